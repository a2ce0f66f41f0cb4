package app

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestACrowdOfSilentStrangersKeepsNobodyOut(t *testing.T) {
	address, _, _ := startFront(t, true)
	for range maxStrangers + 20 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	client := http.Client{Timeout: greetTime / 2} // before the silent ones time out
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		t.Fatalf("somebody who speaks was kept out: %v", err)
	}
	resp.Body.Close()
}

func TestABodyThatTricklesEndsAndAStreamBackDoesNot(t *testing.T) {
	const most = 50 * time.Millisecond
	read := make(chan error, 1)
	srv := httptest.NewServer(promptBodies(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		read <- err
		if err != nil {
			return
		}
		select { // a stream back, longer than a body may take
		case <-r.Context().Done():
			_, _ = io.WriteString(w, "cut")
		case <-time.After(5 * most):
			_, _ = io.WriteString(w, "whole")
		}
	}), most))
	defer srv.Close()

	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
	if err := <-read; err == nil {
		t.Error("a body that never came was read")
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, bufio.NewReader(c)); err != nil {
		t.Errorf("the connection is still held: %v", err)
	}

	c, err = net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\n{")
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "whole" {
		t.Errorf("the stream back was %q", b)
	}
}

package spine_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// calling asks for something by a name of the caller's choice.
func (i *installation) calling(name, method, path string, head http.Header) (int, string) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+i.page+path, strings.NewReader("{}"))
	if err != nil {
		i.t.Fatal(err)
	}
	req.Host, req.Header = name, head
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		i.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestOnlyOurNamesAreAnswered(t *testing.T) {
	i := up(t, t.TempDir())
	_, port, _ := net.SplitHostPort(i.page)
	machine, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	api := http.Header{"Content-Type": {"application/json"}}
	for _, name := range []string{"localhost:" + port, "LOCALHOST:" + port, "localhost.:" + port, "localhost", "localhost:8080", "127.0.0.1:" + port, "[::1]:" + port, machine + ":" + port} {
		if code, body := i.calling(name, http.MethodGet, "/login", nil); code != http.StatusOK {
			t.Errorf("%s is refused: %d %s", name, code, body)
		}
		if code, _ := i.calling(name, http.MethodPost, "/handrail.v1.Hosts/List", api); code != http.StatusUnauthorized {
			t.Errorf("the API answers to %s with %d", name, code)
		}
	}
	for _, name := range []string{"evil.example", "evil.example:" + port, "localhost.evil.example", "127.0.0.1.evil.example:" + port,
		"evil.example:localhost", "192.0.2.9:" + port, "0.0.0.0:" + port, "[::ffff:192.0.2.9]", "server.handrail.internal"} {
		code, body := i.calling(name, http.MethodGet, "/login", nil)
		if code != http.StatusMisdirectedRequest || !strings.Contains(body, "http://localhost:"+port) {
			t.Errorf("the page answers to %s with %d %s", name, code, body)
		}
		if code, _ := i.calling(name, http.MethodGet, "/static/app.js", nil); code != http.StatusMisdirectedRequest {
			t.Errorf("a file is given to %s: %d", name, code)
		}
		code, body = i.calling(name, http.MethodPost, "/handrail.v1.Hosts/List", api)
		var said struct{ Code, Message string }
		if err := json.Unmarshal([]byte(body), &said); err != nil || code != http.StatusMisdirectedRequest || said.Code != "failed_precondition" || said.Message == "" {
			t.Errorf("the API answers to %s with %d %s", name, code, body)
		}
	}
}

// attach opens the WebSocket of a session by a name, from a page of an origin.
func (i *installation) attach(name, origin, session, ticket string) (*websocket.Conn, int) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), patience)
	defer cancel()
	head := http.Header{}
	if origin != "" {
		head.Set("Origin", origin)
	}
	conn, resp, err := websocket.Dial(ctx, "ws://"+i.page+"/v1/sessions/"+session+"/attach?ticket="+ticket, &websocket.DialOptions{Host: name, HTTPHeader: head})
	if err != nil {
		if resp == nil {
			i.t.Fatal(err)
		}
		return nil, resp.StatusCode
	}
	i.t.Cleanup(func() { _ = conn.CloseNow() })
	return conn, resp.StatusCode
}

func TestAnAttachStreamIsForOnePageAndOneUse(t *testing.T) {
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	type opened struct {
		Session struct{ ID string }
		Ticket  string
	}
	open := func() (o opened) {
		ask := map[string]any{"host": host, "level": "read", "command": []string{"cat"}}
		if code, said := ada.call("Sessions/Open", ask, &o); code != http.StatusOK {
			t.Fatalf("%d %s", code, said)
		}
		return o
	}
	a, other := open(), open()
	for _, wrong := range []struct {
		name, origin string
		code         int
	}{
		{"evil.example", "http://evil.example", http.StatusMisdirectedRequest},
		{i.page, "http://evil.example", http.StatusForbidden},
		{i.page, "http://localhost:1", http.StatusForbidden},
		{i.page, "null", http.StatusForbidden},
		{i.page, "http://" + i.page + ".evil.example", http.StatusForbidden},
	} {
		if _, code := i.attach(wrong.name, wrong.origin, a.Session.ID, a.Ticket); code != wrong.code {
			t.Errorf("by the name %s from %s: %d, want %d", wrong.name, wrong.origin, code, wrong.code)
		}
	}
	// None of them has spent the ticket, or taken the session from its owner.
	conn, code := i.attach(i.page, "http://"+i.page, a.Session.ID, a.Ticket)
	if code != http.StatusSwitchingProtocols {
		t.Fatalf("the page itself is refused: %d", code)
	}
	ask, err := proto.Marshal(&v1.AttachFrame{Frame: &v1.AttachFrame_Input{Input: []byte("mine\n")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := conn.Write(ctx, websocket.MessageBinary, ask); err != nil {
		t.Fatal(err)
	}
	for echo := ""; !strings.Contains(echo, "mine\n"); {
		_, raw, err := conn.Read(ctx)
		var f v1.AttachFrame
		if err == nil {
			err = proto.Unmarshal(raw, &f)
		}
		if err != nil {
			t.Fatal(err)
		}
		echo += string(f.GetOutput())
	}
	if _, code := i.attach(i.page, "", a.Session.ID, a.Ticket); code != http.StatusUnauthorized {
		t.Errorf("a ticket works twice: %d", code)
	}
	if _, code := i.attach(i.page, "", a.Session.ID, other.Ticket); code != http.StatusUnauthorized {
		t.Errorf("a ticket of another session works: %d", code)
	}
}

// A kernel that nobody gave a name calls itself "(none)".
func TestAMachineWithoutANameIsToldToTakeOne(t *testing.T) {
	needRoot(t)
	data := t.TempDir() + "/data"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `echo "(none)" > /proc/sys/kernel/hostname && exec "$0" up --data "$1" --listen 127.0.0.1:0 --ssh-listen 127.0.0.1:0`, binary, data)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS}
	r := finish(t, cmd)
	if r.code != 2 || !strings.Contains(r.err, "next: hostname NAME") {
		t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
	}
	if _, err := os.Stat(data + "/server/keys"); err == nil {
		t.Error("it made keys in that name")
	}
}

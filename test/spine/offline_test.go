package spine_test

import (
	"context"
	"database/sql"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // to age tokens while the server is off
)

// again stops an installation and starts another on its folder and ports, so
// that what people have on their devices still points at it.
func (i *installation) again() *installation {
	i.t.Helper()
	i.stop()
	return i.restart()
}

// restart starts anew on the folder of an installation that has ended.
func (i *installation) restart() *installation {
	i.t.Helper()
	next := upBy(i.t, exec.Command(binary, "up", "--data", i.data, "--listen", i.page, "--ssh-listen", i.ssh), i.data)
	next.page, next.ssh = i.page, i.ssh
	return next
}

// age makes every token that was not used yet one of long ago. The server is off.
func (i *installation) age() {
	i.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(i.data, "server", "state.db"))
	if err != nil {
		i.t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"login_tokens", "host_invites"} {
		if _, err := db.ExecContext(i.t.Context(), "UPDATE "+table+" SET expires = 1000 WHERE used = 0"); err != nil {
			i.t.Fatal(err)
		}
	}
}

func TestARestartKeepsEverything(t *testing.T) {
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	ben.ok("ssh", host, "--", "echo kept")
	var sessions struct{ Sessions []struct{ ID string } }
	ben.json(&sessions, "sessions", "-o", "json")
	var link struct{ Token, Link string }
	ada.json(&link, "login-link", "ben", "-o", "json")
	unusedLink := i.link

	i.stop()
	i.age()
	next := i.restart()
	ada.i, ben.i = next, next
	if ada.hostname() != host {
		t.Error("the host has another name after a restart")
	}
	if out := ben.ok("ssh", host, "--", "echo again"); out != "again\n" {
		t.Errorf("a login of before is of no use: %q", out)
	}
	if out := ada.ok("replay", sessions.Sessions[0].ID); !strings.Contains(out, "kept") {
		t.Errorf("the recording of before lacks what was shown:\n%s", out)
	}
	if out := ada.ok("people"); !strings.Contains(out, "ben") {
		t.Errorf("ben is gone:\n%s", out)
	}
	ada.ok("ledger", "verify")

	t.Run("an expired link says so and the new one opens", func(t *testing.T) {
		if next.link == "" || next.link == unusedLink {
			t.Fatalf("no new link was printed:\n%s", next.out)
		}
		if status, body := next.follow(unusedLink); status == http.StatusOK || !strings.Contains(body, "expired") {
			t.Errorf("the expired link answers %d:\n%.400s", status, body)
		}
		if status, body := next.follow(next.link); status != http.StatusOK {
			t.Errorf("the new link answers %d:\n%.400s", status, body)
		}
		r := person{next, t.TempDir()}.refused(3, "login", "--token-file", next.tokenFile(link.Token))
		if !strings.Contains(r.err, "expired") || !strings.Contains(r.err, "next:") {
			t.Errorf("an expired token is refused without help: %s", r.err)
		}
	})
	t.Run("another account gets no local login", func(t *testing.T) {
		ordinaryFolder(t)
		stranger := person{&installation{t: t, as: ordinaryUser()}, ""}
		stranger.home = stranger.i.newHome()
		if r := stranger.run("login", "--local", "--data", i.data); r.code == 0 || !strings.Contains(r.err, "cannot") {
			t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
		}
	})
	t.Run("it starts after bootstrap has ended, without a link", func(t *testing.T) {
		ada.ok("bootstrap", "end", "--yes")
		last := next.again()
		ada.i = last
		if strings.Contains(last.link, "/login?t=") {
			t.Errorf("the server's own account is still a way in: %s", last.link)
		}
		if r := (person{last, t.TempDir()}).run("login", "--local", "--data", i.data); r.code == 0 || !strings.Contains(r.err, "login-link") {
			t.Errorf("exit %d: %s%s", r.code, r.out, r.err)
		}
		ada.ok("ssh", ada.hostname(), "--", "true")
		ada.ok("ledger", "verify")
	})
}

// open fetches a page as a browser would that was never here.
func (i *installation) open(link string) (int, string) {
	i.t.Helper()
	return i.browse(http.MethodGet, link, nil)
}

// follow opens a login link and clicks its one button.
func (i *installation) follow(link string) (int, string) {
	i.t.Helper()
	page, token, _ := strings.Cut(link, "?t=")
	return i.browse(http.MethodPost, page, url.Values{"t": {token}})
}

func (i *installation) browse(method, link string, form url.Values) (int, string) {
	i.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		i.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(i.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, link, strings.NewReader(form.Encode()))
	if err != nil {
		i.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := (&http.Client{Jar: jar}).Do(req)
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

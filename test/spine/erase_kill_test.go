package spine_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // to read what lies in PostgreSQL

	"handrail.dev/handrail/test/postgres"
)

// planted is a person and every word of theirs that handrail gets to see.
type planted struct {
	person
	name  string
	words []string
}

// plant has somebody with telling words do what people do: log in on a device
// with a name, from an address, under a login name that is a mail address's
// local part, ask, be denied, open sessions of both kinds.
func (i *installation) plant(ada, ben person, host string, n int) planted {
	i.t.Helper()
	name := fmt.Sprintf("zyxquetzal%c", 'a'+n)
	word := func(of string) string { return fmt.Sprintf("ququx%s%c", of, 'a'+n) }
	p := planted{name: name, words: []string{name, fmt.Sprintf("127.77.7.%d", 7+n), name + "@mail.example"}}
	for _, of := range []string{"device", "reason", "ticket", "command", "output", "denied"} {
		p.words = append(p.words, word(of))
	}
	var added struct{ Token string }
	ada.json(&added, "person", "add", name, "--group", "developer", "-o", "json")
	p.person = person{i, i.newHome()}
	login := exec.Command("unshare", "--uts", "sh", "-c", `echo "$0" > /proc/sys/kernel/hostname; exec "$@"`, word("device"), binary, "login", "--token-file", i.tokenFile(added.Token))
	login.Env = append(os.Environ(), "HANDRAIL_HOME="+p.home)
	if r := finish(i.t, login); r.code != 0 {
		i.t.Fatalf("login on another device: %s%s", r.out, r.err)
	}
	if r := p.client(i.t, i.t.TempDir(), "ssh", "-b", p.words[1], "-F", p.config(), host+"@handrail", "echo "+word("output")+"; : "+word("command")); r.code != 0 {
		i.t.Fatalf("ssh from another address: %s%s", r.out, r.err)
	}
	var ask asked
	p.json(&ask, "elevate", host, "--reason", word("reason")+", mail "+p.words[2], "--ticket", word("ticket"), "-o", "json")
	ben.ok("approve", ask.ID, "--yes")
	p.ok("ssh", "--write", host, "--", "echo "+word("output"))
	p.json(&ask, "elevate", host, "--reason", word("reason")+" again", "-o", "json")
	ben.ok("deny", ask.ID, "--reason", word("denied"))
	return p
}

// Whenever the server is killed in the middle of an erasure, it is finished at
// the next start: nothing of who was erased is found, and every proof stands.
func TestAnErasureThatIsKilledIsFinished(t *testing.T) {
	t.Parallel()
	needRoot(t)
	t.Run("sqlite", func(t *testing.T) {
		i := up(t, t.TempDir())
		server := filepath.Join(i.data, "server")
		i.erasesKilled(t, []point{
			{},
			{breath: 5 * time.Millisecond},
			{look: func() string { return fingerprint(filepath.Join(server, "state.db")) }, nth: 1},
		}, func() []string { return nil })
	})
	t.Run("postgres", func(t *testing.T) {
		needFaults(t)
		db := postgres.Start()
		t.Cleanup(db.Stop)
		url := db.Database(t)
		i := up(t, t.TempDir(), "--database", url)
		i.erasesKilled(t, []point{{}, {breath: 10 * time.Millisecond}}, func() []string { return postgres.Rows(t, url) })
	})
}

func (i *installation) erasesKilled(t *testing.T, points []point, rows func() []string) {
	i.t = t
	i.needWrites()
	ada := i.first()
	host := ada.hostname()
	ben := ada.add("ben", "operator")
	for n, at := range points {
		ada.online(1) // the server that was killed is back before its node is
		zyx := i.plant(ada, ben, host, n)
		ada.ok("lock", zyx.name, "--reason", "they left")
		asking := ada.refused(4, "ledger", "erase", zyx.name, "--ground", fmt.Sprintf("left, request %d", n), "--yes", "-o", "name")
		if left := append(traces(t, i.data, zyx.words), rows()...); len(left) == 0 {
			t.Fatal("there is nothing to begin with: this test finds nothing")
		}
		ben.ok("approve", strings.TrimSpace(asking.out), "--yes")
		at.wait()
		for _, pid := range i.role("server-role") {
			kill(t, pid)
		}
		killed := time.Now()
		i.until("the server to be back", func() bool { return ada.run("status").code == 0 })
		var list struct{ Entries []struct{ At time.Time } }
		i.until("the erasure to be finished", func() bool {
			ada.json(&list, "ledger", "list", "--action", "erasure.finished", "-o", "json")
			return len(list.Entries) == n+1
		})
		t.Logf("point %d: finished by the next server: %v", n, list.Entries[0].At.After(killed))
		if left := traces(t, filepath.Join(i.data, "server"), zyx.words); len(left) != 0 {
			t.Errorf("point %d: left behind: %s", n, strings.Join(left, "\n"))
		}
		for _, row := range rows() {
			for _, w := range zyx.words {
				if strings.Contains(strings.ToLower(row), w) {
					t.Errorf("point %d: %q is left in the row %.300s", n, w, row)
				}
			}
		}
		dir := t.TempDir()
		ada.ok("ledger", "export", filepath.Join(dir, "ledger.zip"))
		if left := traces(t, dir, zyx.words); len(left) != 0 {
			t.Errorf("point %d: in an export: %s", n, strings.Join(left, "\n"))
		}
		ada.ok("ledger", "verify", "--file", filepath.Join(dir, "ledger.zip"))
		ada.ok("ledger", "verify")
	}
}

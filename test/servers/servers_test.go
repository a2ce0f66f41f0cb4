package servers_test

import (
	"strings"
	"testing"
)

func TestTwoServersAreOne(t *testing.T) {
	needRoot(t)
	a := place(t, "a", cluster.Database(t)).start()
	ada := a.first()
	b := ada.another(t, "b").start()
	adaB := ada.via(b)
	ben := ada.add("ben", "operator")
	cleo := ada.add("cleo", "developer")
	labHost(t, "web-1", ada.invite("web-1"), a.data, b.data)
	until(t, "web-1 to be online at b", func() bool { return adaB.stateOf("web-1") == "online" })
	_ = ben

	if out := cleo.via(b).ok("ssh", "web-1", "--", "hostname; whoami"); out != "web-1\ncleo\n" {
		t.Errorf("a session by way of the other server says %q", out)
	}
	t.Run("a session is watched, paused and stopped from the server that is not its home", func(t *testing.T) {
		long := cleo.begin("ssh", "web-1", "--", "echo up; sleep 300")
		long.says("up")
		var list struct {
			Sessions []struct{ ID, State string }
		}
		until(t, "the session at b", func() bool { adaB.json(&list, "sessions", "--live", "-o", "json"); return len(list.Sessions) == 1 })
		id := list.Sessions[0].ID
		adaB.ok("pause", id)
		if out := adaB.ok("sessions", "--live"); !strings.Contains(out, id) {
			t.Error(out)
		}
		adaB.ok("resume", id)
		adaB.ok("stop", id, "--reason", "enough")
		if code := long.ends(); code == 0 || !strings.Contains(long.out.String(), "enough") {
			t.Errorf("exit %d: %s", code, long.out)
		}
	})
	t.Log(adaB.ok("servers", "-o", "wide"))
	t.Log(adaB.ok("ledger", "verify"))
}

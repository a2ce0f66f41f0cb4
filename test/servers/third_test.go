package servers_test

import (
	"strings"
	"testing"
	"time"
)

// Where the network lets two servers not reach each other, a third carries what
// they have to say: a person at the one works on a host at the other.
func TestAStreamGoesThroughAThirdServer(t *testing.T) {
	long(t)
	needRoot(t)
	n := newNetwork(t, "a", "b", "db", "web-1", "web-2", "c")
	db := cluster.Elsewhere(t, n.at("db"), func() error { return n.join("db") })
	h := enter(t, n.place(t, "a", db.Over(db.Database(t))), n.file)
	c := h.ada.another(t, "c", h.ben).start()
	adaB, benC := h.ada.via(h.b), h.ben.via(c)

	// web-1 reaches only b, web-2 only a.
	n.part("web-1", "a", "c")
	n.part("web-2", "b", "c")
	until(t, "each host at its server, and reached from all", func() bool {
		for _, p := range []person{h.ben, h.ben.via(h.b), benC} {
			if p.run("ssh", "web-1", "--", "true").code != 0 || p.run("ssh", "web-2", "--", "true").code != 0 {
				return false
			}
		}
		return true
	})
	heal := n.part("a", "b")
	began := time.Now()
	until(t, "web-1 to be reached from a, through c", func() bool { return h.ben.run("ssh", "web-1", "--", "true").code == 0 })
	t.Logf("a reached a host of b %s after the line between them was cut", time.Since(began).Round(time.Millisecond))
	for _, p := range []person{h.ben, h.ben.via(h.b)} {
		for _, host := range []string{"web-1", "web-2"} {
			began := time.Now()
			if out := p.ok("ssh", host, "--", "hostname"); out != host+"\n" {
				t.Errorf("%s at %s says %q", host, p.at.name, out)
			}
			t.Logf("%s by way of %s in %s", host, p.at.name, time.Since(began).Round(time.Millisecond))
		}
	}

	// A session that is carried is watched at the other end, stopped there, and recorded.
	session, enter := h.ben.beginTyping("ssh", "web-1", "--", "echo up; read -r line; echo got $line; sleep 300")
	session.says("up")
	id := adaB.oneLive("ben")
	watch := adaB.begin("watch", id)
	watch.says("up")
	enter("carried\n")
	session.says("got carried")
	watch.says("got carried")
	began = time.Now()
	adaB.ok("stop", id, "--reason", "enough")
	if code := session.ends(); code == 0 || !strings.Contains(session.out.String(), "enough") {
		t.Errorf("exit %d: %s", code, session.out)
	}
	t.Logf("a carried session was stopped by the other end in %s", time.Since(began).Round(time.Millisecond))
	if out := adaB.ok("replay", id, "--speed", "64"); !strings.Contains(out, "got carried") {
		t.Errorf("the recording says %q", out)
	}

	// With no third that reaches both, it is refused and said why.
	healC := n.part("c", "b")
	until(t, "what is missing to be said", func() bool {
		r := h.ben.run("ssh", "web-1", "--", "true")
		return r.code != 0 && strings.Contains(r.err, "cannot reach server") && strings.Contains(r.err, "nor through another server")
	})
	healC()
	until(t, "c to carry again", func() bool { return h.ben.run("ssh", "web-1", "--", "true").code == 0 })
	heal()
	h.noTwice(h.ada)
	h.noTwice(adaB)
}

package servers_test

import "testing"

func TestTwoServersAreOne(t *testing.T) {
	needRoot(t)
	a := place(t, "a", cluster.Database(t)).start()
	ada := a.first()
	b := ada.another(t, "b").start()
	atB := ada.via(b)
	t.Log(atB.ok("servers", "-o", "wide"))
	t.Log(atB.ok("ledger", "verify"))
	t.Log(atB.ok("ledger", "list"))
}

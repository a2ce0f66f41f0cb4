package warden

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/keeper"
)

func TestAVoucherOpensARecordedRootShellForTheStockClientOnceTheLeaseIsLost(t *testing.T) {
	g := leftAlone(t, nil)
	cert := g.signed(g.ca, nil)
	g.lost()
	out, err := g.ssh(cert, "id -un; echo from-the-voucher").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "root\nfrom-the-voucher") {
		t.Fatalf("%v: %s", err, out)
	}
	shell := g.ssh(cert, "-tt")
	shell.Stdin = strings.NewReader("echo in-$((40+2)); exit 7\n")
	out, err = shell.CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(string(out), "in-42") ||
		!strings.Contains(string(out), "BREAK-GLASS") {
		t.Fatalf("%v: %s", err, out)
	}
	var heads []*wire.JournalReader
	var said []string
	g.b.eventually("both recordings have an end", func() bool {
		heads, said = g.journals()
		return len(heads) == 2 && heads[0].Ended && heads[1].Ended
	})
	if heads[0].Head.Number == 2 {
		heads[0], heads[1], said[0], said[1] = heads[1], heads[0], said[1], said[0]
	}
	if h := heads[0].Head; h.Number != 1 || h.Account != "root" || h.LostMS < soon.Milliseconds() || !bytes.Equal(h.Certificate, cert.Marshal()) || !strings.Contains(said[0], "from-the-voucher") {
		t.Errorf("%+v said %q", h, said[0])
	}
	if h := heads[1].Head; h.Number != 2 || !bytes.Equal(h.Before, heads[0].HeadHash) || !strings.Contains(said[1], "in-42") {
		t.Errorf("%+v said %q", h, said[1])
	}
}

// refused says what the stock client was told.
func (g *guest) refused(t *testing.T, cert *ssh.Certificate, want string) {
	t.Helper()
	out, err := g.ssh(cert, "id").CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 255 || strings.Contains(string(out), "uid=") || !strings.Contains(string(out), want) {
		t.Errorf("%v: %s\nwanted %q", err, out, want)
	}
}

func TestAVoucherIsRefused(t *testing.T) {
	g := leftAlone(t, nil)
	good := g.signed(g.ca, nil)
	g.b.renew(func(a *wire.LeaseAnswer) {
		a.VoucherRevoked, a.PersonEpochs = []uint64{7777}, map[string]int64{"p-bob00001": 4}
	})
	g.lost()
	other := signer(t)
	for name, c := range map[string]struct {
		by     ssh.Signer
		change func(*ssh.Certificate, *wire.VoucherTerms)
		want   string
	}{
		"that expired": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) {
			c.ValidAfter -= 2 * 86400
			c.ValidBefore -= 2 * 86400
		}, "expired"},
		"that is not valid yet": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) {
			c.ValidAfter += 2 * 86400
			c.ValidBefore += 2 * 86400
		}, "not yet valid"},
		"for another host":      {g.ca, func(_ *ssh.Certificate, v *wire.VoucherTerms) { v.Hosts[0].ID = "h-0ther000" }, "does not name this host"},
		"of a forged authority": {other, nil, "did not sign"},
		"with another command": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) {
			c.CriticalOptions["force-command"] = "/bin/sh"
		}, "command is not"},
		"without a command":      {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) { delete(c.CriticalOptions, "force-command") }, "command is not"},
		"with an unknown option": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) { c.CriticalOptions["new@handrail"] = "" }, "unsupported critical option"},
		"with further principals": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) {
			c.ValidPrincipals = append(c.ValidPrincipals, "root")
		}, "principals"},
		"for longer than a day": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) { c.ValidBefore += 86400 }, "longer than a voucher"},
		"for every host, not of a ceremony": {g.ca, func(_ *ssh.Certificate, v *wire.VoucherTerms) {
			v.Hosts[0].ID = wire.EveryHost
		}, "only a ceremony"},
		"that says its key is hardware": {g.ca, func(_ *ssh.Certificate, v *wire.VoucherTerms) { v.Key = wire.KeyHardware }, "not of the kind"},
		"that was revoked":              {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) { c.Serial = 7777 }, "used or withdrawn"},
		"of somebody who was locked": {g.ca, func(_ *ssh.Certificate, v *wire.VoucherTerms) {
			v.Person, v.PersonName, v.Epoch = "p-bob00001", "bob", 3
		}, "locked or changed"},
		"of a ceremony, for longer than an hour": {g.offline, nil, "longer than a voucher"},
		"with terms of a newer kind": {g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) {
			c.CriticalOptions[wire.VoucherOption] = `{"v":1,"person":"p-ada00001","name":"ada","epoch":1,"hosts":[{"h":"` + testNode + `","a":"root"}],"key":"file","minutes":60,"only":"reads"}`
		}, "unknown field"},
	} {
		t.Run(name, func(t *testing.T) { g.refused(t, g.signed(c.by, c.change), c.want) })
	}
	t.Run("with somebody else's key", func(t *testing.T) {
		cert := g.signed(g.ca, nil)
		mine := g.key
		g.newKey() // the thief's
		g.refused(t, cert, "")
		g.key = mine
	})
	t.Run("with a bare key", func(t *testing.T) {
		out, err := exec.Command("ssh", "-F", "none", "-i", g.key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "StrictHostKeyChecking=no", "-p", fmt.Sprint(g.port.Addr().(*net.TCPAddr).Port), "bg@127.0.0.1", "id").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "opens for vouchers") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("yet not the good one", func(t *testing.T) {
		if out, err := g.ssh(good, "echo in").CombinedOutput(); err != nil || string(out) != "in\n" {
			t.Errorf("%v: %s", err, out)
		}
	})
	if heads, _ := g.journals(); len(heads) != 1 {
		t.Errorf("%d recordings", len(heads))
	}
}

// Whatever the link says, the warden knows when it last heard of a server.
func TestAVoucherIsWorthNothingWhileAServerAnswers(t *testing.T) {
	g := leftAlone(t, func(c *Config) { c.Lost = 0 }) // two minutes, as always
	g.b.renew(nil)
	cert := g.signed(g.ca, nil)
	if _, err := g.b.c.Enter(t.Context(), "x"); err == nil {
		t.Error("the entrance opened before two minutes were over")
	}
	if e, err := g.b.c.Entrance(t.Context()); err != nil || e.Open {
		t.Errorf("the link is told to open: %v", err)
	}
	if _, err := g.judge(cert); err == nil || !strings.Contains(err.Error(), "the server answers") {
		t.Error(err)
	}
}

// judge asks a judge that knows what the bench's warden knows.
func (g *guest) judge(cert *ssh.Certificate) (admitted, error) {
	n, l := &node{}, g.b.liar
	j, err := newJudge(pinFile{V: 1, Node: testNode, RootHash: ledger.RootHash(l.rootV), Bundle: l.signedBundle()}, hostPolicy{}, func() time.Duration { return n.now })
	if err != nil {
		g.b.t.Fatal(err)
	}
	n.judge = j
	if err := n.renew(l, nil); err != nil {
		g.b.t.Fatal(err)
	}
	return j.voucher(cert.Marshal())
}

func TestAClockThatIsSetBackMakesNoVoucherValidAgain(t *testing.T) {
	b := newBench(t)
	g := &guest{b: b, ca: signer(t), offline: signer(t)}
	g.newKey()
	b.bundle.VoucherCA = []string{line(g.ca)}
	cert := g.signed(g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) {
		c.ValidBefore = uint64(testTime/1_000_000 + 600)
	})
	now := time.Hour
	fresh := func(m memory, wall time.Time) *judge {
		j, err := newJudge(pinFile{V: 1, Node: testNode, RootHash: ledger.RootHash(b.rootV), Bundle: b.signedBundle()}, hostPolicy{}, func() time.Duration { return now })
		if err != nil {
			t.Fatal(err)
		}
		j.alone.wall = func() time.Time { return wall }
		j.recall(m)
		return j
	}
	before := time.UnixMicro(testTime)
	j := fresh(memory{Time: testTime}, before.Add(-365*24*time.Hour))
	now += 3 * time.Minute
	if _, err := j.voucher(cert.Marshal()); err != nil {
		t.Errorf("a clock that is a year behind keeps everybody out: %v", err)
	}
	now += 10 * time.Minute
	if _, err := j.voucher(cert.Marshal()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired voucher counts while the clock is behind: %v", err)
	}
	// After a restart nothing is forgotten: neither time nor who was locked.
	m := j.recollect(memory{Number: 3})
	m.Persons["p-ada00001"], m.Revoked = 2, []uint64{cert.Serial}
	j = fresh(m, before.Add(-time.Hour))
	now += 3 * time.Minute
	if _, err := j.voucher(cert.Marshal()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after a restart an expired voucher counts: %v", err)
	}
	again := g.signed(g.ca, func(c *ssh.Certificate, _ *wire.VoucherTerms) { c.Serial = cert.Serial })
	if _, err := j.voucher(again.Marshal()); err == nil || !strings.Contains(err.Error(), "locked or changed") {
		t.Errorf("a lock is forgotten: %v", err)
	}
	m.Persons["p-ada00001"] = 1
	if _, err := fresh(m, before).voucher(again.Marshal()); err == nil || !strings.Contains(err.Error(), "used or withdrawn") {
		t.Errorf("what was revoked is forgotten: %v", err)
	}
}

func TestTwoAtOnceAreTwoRecordings(t *testing.T) {
	g := leftAlone(t, nil)
	cert := g.signed(g.ca, nil)
	g.lost()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			if out, err := g.ssh(cert, fmt.Sprintf("echo guest-%d", i)).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	heads, said := g.journals()
	if len(heads) != 2 || strings.Contains(said[0], "guest-0") == strings.Contains(said[1], "guest-0") {
		t.Errorf("%d recordings: %q", len(heads), said)
	}
}

func TestAKilledKeeperOfAVoucherSessionLeavesWhatWasSyncedAndNoMore(t *testing.T) {
	g := leftAlone(t, nil)
	cert := g.signed(g.ca, nil)
	g.lost()
	cmd := g.ssh(cert, "echo before; cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.b.eventually("the first words are on disk", func() bool {
		_, said := g.journals()
		return len(said) == 1 && strings.Contains(said[0], "before")
	})
	keepers, err := exec.Command("pgrep", "-P", fmt.Sprint(os.Getpid()), "-f", keeper.Arg0).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(keepers)) {
		_ = exec.Command("kill", "-9", pid).Run()
	}
	_ = cmd.Wait()
	heads, _ := g.journals()
	if len(heads) != 1 || heads[0].Ended {
		t.Errorf("%d recordings; one that was cut off says that it ended", len(heads))
	}
}

func TestAJournalIsForgottenOnlyOnTheServersWord(t *testing.T) {
	g := leftAlone(t, nil)
	cert := g.signed(g.ca, nil)
	g.lost()
	if out, err := g.ssh(cert, "true").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var list []Journal
	g.b.eventually("the session is over", func() bool {
		list, _ = g.b.c.Journals(t.Context())
		return len(list) == 1 && !list[0].Live
	})
	forget := func(r wire.Receipt, key ed25519.PrivateKey) error {
		signed, err := wire.SignReceipt(r, key)
		if err != nil {
			t.Fatal(err)
		}
		return g.b.c.Forget(t.Context(), signed)
	}
	good := wire.Receipt{V: 1, Node: testNode, Session: list[0].Session, Size: list[0].Size}
	_, forged, _ := ed25519.GenerateKey(rand.Reader)
	short, other := good, good
	short.Size--
	other.Node = "h-0ther000"
	for what, err := range map[string]error{"a forged receipt": forget(good, forged), "a receipt for less": forget(short, g.b.order), "a receipt for another host": forget(other, g.b.order)} {
		if err == nil {
			t.Errorf("%s made the warden forget", what)
		}
	}
	if err := forget(good, g.b.order); err != nil {
		t.Fatal(err)
	}
	if list, _ := g.b.c.Journals(t.Context()); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func TestADrillLetsInTheOneWhoIsNamed(t *testing.T) {
	g := leftAlone(t, func(c *Config) { c.Lost = 0 })
	ada := g.signed(g.ca, nil)
	bob := g.signed(g.ca, func(_ *ssh.Certificate, v *wire.VoucherTerms) { v.Person, v.PersonName = "p-bob00001", "bob" })
	p := g.b.payload(g.b.serverNow())
	p.Kind, p.Session = wire.KindDrill, &wire.SessionSpec{ID: "s-dr111111", Person: "p-ada00001", RemainingMS: 60_000}
	order := g.b.sign(g.b.entry(p, nil))
	size := int64(len(g.b.leaves))
	a, f, err := g.b.c.Order(t.Context(), wire.Envelope{Order: order, From: g.b.last, Consistency: g.b.consistency(g.b.last, size)}.Marshal())
	if err != nil || !a.OK || f != nil {
		t.Fatal(a, f, err)
	}
	g.lost()
	g.refused(t, bob, "")
	if out, err := g.ssh(ada, "echo in").CombinedOutput(); err != nil || string(out) != "in\n" {
		t.Fatalf("%v: %s", err, out)
	}
	if heads, _ := g.journals(); len(heads) != 1 || heads[0].Head.Drill != p.Order {
		t.Errorf("%d recordings", len(heads))
	}
}

func TestTheHostsOwnPolicySaysWhichVouchersCount(t *testing.T) {
	file := admitted{account: "root"}
	file.Key = wire.KeyFile
	hard := file
	hard.Key = wire.KeyHardware
	app := file
	app.account = "app"
	for name, c := range map[string]struct {
		policy hostPolicy
		a      admitted
		ok     bool
	}{
		"nothing said":                    {hostPolicy{}, file, true},
		"no":                              {hostPolicy{Vouchers: "no"}, hard, false},
		"hardware, a file":                {hostPolicy{Vouchers: "hardware"}, file, false},
		"hardware, a touch":               {hostPolicy{Vouchers: "hardware"}, hard, true},
		"no write":                        {hostPolicy{Vouchers: "yes", NoWrite: true}, hard, false},
		"no root":                         {hostPolicy{NoRoot: true}, hard, false},
		"no root, another account":        {hostPolicy{NoRoot: true}, app, true},
		"another account than is allowed": {hostPolicy{Accounts: []string{"web"}}, app, false},
		"an account that is allowed":      {hostPolicy{Accounts: []string{"app"}}, app, true},
		"approvers":                       {hostPolicy{keys: [][]byte{{1}}}, hard, false},
		"approvers, and yes all the same": {hostPolicy{keys: [][]byte{{1}}, Vouchers: "yes"}, hard, true},
	} {
		if err := c.policy.vouchers(c.a); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if checkVouchersWord("maybe") == nil {
		t.Error("a word that means nothing is taken")
	}
}

func TestTheEntrancesKeySignsExchangeHashesAndNothingElse(t *testing.T) {
	d := &entrances{host: signer(t)}
	for size, ok := range map[int]bool{0: false, 19: false, 32: true, 64: true, 65: false, 4096: false} {
		if _, err := d.sign(make([]byte, size)); (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A local user cannot fake the link: the kernel says who speaks.
func TestOnlyTheLinksAccountReachesTheEntrance(t *testing.T) {
	g := leftAlone(t, nil)
	g.lost()
	for path, mode := range map[string]os.FileMode{g.b.dir: 0o755, filepath.Join(g.b.dir, "s"): 0o666} { // as if somebody had opened them
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	stranger := g.b.asUser(65534)
	if f, err := stranger.Enter(t.Context(), "here"); err == nil {
		f.Close()
		t.Error("a local account was let to the entrance")
	}
	if list, err := stranger.Journals(t.Context()); err == nil {
		t.Errorf("a local account reads what was recorded: %v", list)
	}
	if e := g.b.event(wire.EventAlarm); !strings.Contains(e.Text, "only the link") {
		t.Errorf("%+v", e)
	}
}

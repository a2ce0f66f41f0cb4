package warden

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
)

// look sends an order for a brokered read.
func (b *bench) look(change func(*wire.OrderPayload)) (net.Conn, error) {
	b.t.Helper()
	p := b.payload(b.serverNow())
	p.Kind, p.Session, p.Need = wire.KindInspect, nil, []string{"inspect"}
	p.Inspect = &wire.InspectSpec{ID: "n-" + p.Order[2:], Person: "p-ada00001", PersonName: "ada", What: wire.InspectTop, TimeMS: 50_000}
	if change != nil {
		change(&p)
	}
	order := b.sign(b.entry(p, nil))
	size := int64(len(b.leaves))
	_, f, err := b.c.Order(b.t.Context(), wire.Envelope{Order: order, From: b.last, Consistency: b.consistency(b.last, size)}.Marshal())
	b.last = size // the warden has seen that tree, whether it did what it says or not
	if err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	f.Close()
	if err == nil {
		b.t.Cleanup(func() { conn.Close() })
		err = conn.SetDeadline(time.Now().Add(time.Minute))
	}
	return conn, err
}

// told reads an answer to its end; ended is false if it broke off.
func told(t *testing.T, conn net.Conn) (all []wire.InspectRecord, ended bool) {
	t.Helper()
	r := wire.NewReader(conn)
	for {
		_, raw, err := r.Next()
		if err != nil {
			return all, ended
		}
		record, err := wire.ParseInspectRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		all, ended = append(all, record), record.End != nil
	}
}

func TestABrokeredReadIsAnOrderLikeEveryOther(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	victim := exec.Command("sleep", "10000")
	victim.Env = []string{"DB_PASSWORD=hunter2"}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = victim.Process.Kill(); _ = victim.Wait() })
	conn, err := b.look(func(p *wire.OrderPayload) {
		p.Inspect.What, p.Inspect.Target = wire.InspectEnv, strconv.Itoa(victim.Process.Pid)
	})
	if err != nil {
		t.Fatal(err)
	}
	all, ended := told(t, conn)
	if !ended || all[len(all)-1].End.Error != "" || all[len(all)-1].End.Masked == 0 {
		t.Fatalf("%+v", all)
	}
	b.eventually("nothing of it is left", func() bool {
		return len(cgroupsNamed(func(base string) bool { return strings.HasPrefix(base, cgroupPrefix(b.dir)+"n-") })) == 0
	})
	t.Run("without its person's epoch it is refused", func(t *testing.T) {
		_, err := b.look(func(p *wire.OrderPayload) { p.Epochs.Person = map[string]int64{} })
		if f := fault.From(err); err == nil || f.Rule != RuleEpoch {
			t.Errorf("%v", err)
		}
	})
	t.Run("for another host it is refused", func(t *testing.T) {
		_, err := b.look(func(p *wire.OrderPayload) { p.Node = "h-other001" })
		if f := fault.From(err); err == nil || f.Rule != RuleNode {
			t.Errorf("%v", err)
		}
	})
}

func TestALockEndsABrokeredRead(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	conn, err := b.look(nil) // top looks twice, a second apart
	if err != nil {
		t.Fatal(err)
	}
	if a := b.brake(wire.Brake{Kind: wire.BrakeLockPerson, Person: "p-ada00001", Epoch: 2}); a.Killed != 1 {
		t.Errorf("%+v", a)
	}
	if all, ended := told(t, conn); ended {
		t.Errorf("it went on to its end: %+v", all)
	}
}

func TestAHostCanRefuseBrokeredReads(t *testing.T) {
	b := newBench(t)
	if err := os.WriteFile(filepath.Join(b.dir, policyName), []byte(`{"no_inspect": true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(nil)
	_, err := b.look(nil)
	if f := fault.From(err); err == nil || f.Rule != RulePolicy {
		t.Errorf("%v", err)
	}
}

package warden

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/wire"
)

// outsider is a witness that this test holds the key of.
type outsider struct {
	name string
	key  ed25519.PrivateKey
}

func newOutsider(name string) outsider {
	_, key, _ := ed25519.GenerateKey(nil) // never fails
	return outsider{name, key}
}

func (o outsider) vkey() ledger.WitnessKey {
	k, _ := ledger.NewWitnessKey(o.name, o.key.Public().(ed25519.PublicKey))
	return k
}

func (o outsider) cosign(t *testing.T, signed []byte, at int64) []byte {
	t.Helper()
	text := strings.SplitAfter(string(signed), "\n\n")[0]
	line, err := ledger.Cosign(strings.TrimSuffix(text, "\n"), at, o.name, o.key)
	if err != nil {
		t.Fatal(err)
	}
	return append(signed, line...)
}

func TestAHostCanDemandThatOutsidersSawEachOrder(t *testing.T) {
	w1, w2, stranger := newOutsider("w1"), newOutsider("w2"), newOutsider("w1")
	policy, err := ledger.ParseWitnessPolicy([]byte(ledger.SimplePolicy(nil, []ledger.PolicyWitness{
		{Name: "audit", Key: w1.vkey()}, {Name: "site2", Key: w2.vkey()},
	}, 2)))
	if err != nil {
		t.Fatal(err)
	}
	const now = testTime / 1e6
	for name, c := range map[string]struct {
		cosign func(t *testing.T, signed []byte) []byte
		ok     bool
	}{
		"nobody":                      {func(_ *testing.T, b []byte) []byte { return b }, false},
		"one of two":                  {func(t *testing.T, b []byte) []byte { return w1.cosign(t, b, now) }, false},
		"both":                        {func(t *testing.T, b []byte) []byte { return w2.cosign(t, w1.cosign(t, b, now), now-1) }, true},
		"one of them twice":           {func(t *testing.T, b []byte) []byte { return w1.cosign(t, w1.cosign(t, b, now), now-1) }, false},
		"a stranger of the same name": {func(t *testing.T, b []byte) []byte { return stranger.cosign(t, w2.cosign(t, b, now), now) }, false},
		"one of them long ago":        {func(t *testing.T, b []byte) []byte { return w2.cosign(t, w1.cosign(t, b, now), now-600) }, false},
		"over another tree": {func(t *testing.T, b []byte) []byte {
			return append(b, lines(w2.cosign(t, w1.cosign(t, other(t), now), now))...)
		}, false},
		"both, among lines that spoil": {func(t *testing.T, b []byte) []byte {
			return w2.cosign(t, w1.cosign(t, stranger.cosign(t, b, now), now), now)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			l, n := ready(t, hostPolicy{witnesses: policy})
			proof := l.entry(l.payload(0), nil)
			proof.Checkpoint = c.cosign(t, proof.Checkpoint)
			_, err := n.order(l.envelope(n.judge, l.sign(proof)))
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantRule(t, err, RuleWitness)
		})
	}
}

func other(t *testing.T) []byte {
	l := newLiar(t)
	l.entry(wire.OrderPayload{Issued: 1, Node: testNode, Session: &wire.SessionSpec{ID: "s-0"}}, nil)
	return l.checkpoint(1)
}

func lines(signed []byte) string {
	_, after, _ := strings.Cut(string(signed), "\n\n")
	_, after, _ = strings.Cut(after, "\n") // the log's own
	return after
}

// Whoever holds every key of the server and keeps a second history gets no
// cosignature for it: the witness saw the first.
func TestASecondHistoryStartsNothingWhereOutsidersMustSeeIt(t *testing.T) {
	w := newOutsider("w1")
	policy, err := ledger.ParseWitnessPolicy([]byte(ledger.SimplePolicy(nil, []ledger.PolicyWitness{{Name: "audit", Key: w.vkey()}}, 1)))
	if err != nil {
		t.Fatal(err)
	}
	l, n := ready(t, hostPolicy{witnesses: policy})
	honest := l.entry(l.payload(0), nil)
	honest.Checkpoint = w.cosign(t, honest.Checkpoint, testTime/1e6)
	n.now = time.Second
	if _, err := n.order(l.envelope(n.judge, l.sign(honest))); err != nil {
		t.Fatal(err)
	}
	// The same keys, another entry; the cosignature of the first history beside it.
	stolen := l.entry(l.payload(n.now), nil)
	stolen.Checkpoint = append(stolen.Checkpoint, lines(honest.Checkpoint)...)
	_, err = n.order(l.envelope(n.judge, l.sign(stolen)))
	wantRule(t, err, RuleWitness)
}

func TestWitnessesThatCannotBeReadStopTheWarden(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, witnessesName), []byte("witness\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readPolicy(dir); err == nil {
		t.Error("a demand that cannot be understood demands nothing")
	}
	dir = t.TempDir()
	one := []byte("witness a " + newOutsider("a").vkey().String() + "\nquorum a\n")
	if err := SetWitnesses(dir, one); err != nil {
		t.Fatal(err)
	}
	p, err := readPolicy(dir)
	if err != nil || !p.witnesses.Wants() {
		t.Errorf("%+v, %v", p.witnesses, err)
	}
	if err := SetWitnesses(dir, []byte("quorum none\n")); err == nil {
		t.Error("a later join takes the demand away")
	}
	if err := SetWitnesses(dir, one); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

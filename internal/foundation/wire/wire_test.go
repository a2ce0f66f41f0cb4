package wire

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// testKey is fixed, so that the golden order stays the same.
func testKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
}

func testPayload() OrderPayload {
	return OrderPayload{
		V: 1, Order: "o-7k3f9q2m", Kind: KindSessionStart, Node: "h-00000001", Issued: 1_800_000_000_000_000, ValidMS: 60_000,
		Epochs:    Epochs{Person: map[string]int64{"p-ada00001": 3}, Lock: 4, Policy: 5},
		Authority: &Authority{Kind: "grant", Request: []byte(`{"v":1}`), Signatures: []Signature{{Person: "p-bob00001", Role: "approver", Kind: "device", Credential: "d-1", PublicKey: []byte{1}, Signature: []byte{2}}}},
		Need:      []string{"session"},
		Session: &SessionSpec{ID: "s-00000001", Person: "p-ada00001", PersonName: "ada", Level: LevelWrite, Kind: SessionExec, Account: "app",
			Command: "uptime", Env: map[string]string{"LANG": "C"}, Environment: "production", RemainingMS: 60_000, Limits: Limits{PIDs: 9}},
	}
}

func testProof(t testing.TB) ledger.Proof {
	body, err := testPayload().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var h tlog.Hash
	h[3] = 9
	return ledger.Proof{Index: 5, Leaf: []byte(`{"v":1}`), Salt: bytes.Repeat([]byte{1}, 32), Payload: body, Inclusion: []tlog.Hash{h, h}, Checkpoint: []byte("note\n")}
}

func TestAnOrderKeepsItsExactBytes(t *testing.T) {
	p := testProof(t)
	b, err := BuildOrder(p, testKey())
	if err != nil {
		t.Fatal(err)
	}
	o, err := ParseOrder(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(o.Proof(), p) {
		t.Fatalf("got %+v, want %+v", o.Proof(), p)
	}
	pub := testKey().Public().(ed25519.PublicKey)
	if !o.VerifySignature(pub) {
		t.Fatal("an order does not verify under the key that signed it")
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if o, err := ParseOrder(bad); err == nil && o.VerifySignature(pub) {
			t.Fatalf("byte %d may be changed unnoticed", i)
		}
	}
	for i := range b {
		if _, err := ParseOrder(b[:i]); err == nil {
			t.Fatalf("an order cut at byte %d is read", i)
		}
	}
}

// The golden order is of the first release. Nodes must read it for twelve
// months at least: if this test fails, the format has changed, and then the
// magic must change too and the old one still be read.
func TestTheGoldenOrderOfEachReleaseIsRead(t *testing.T) {
	const path = "testdata/v0.1.order"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		b, err := BuildOrder(testProof(t), testKey())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := ParseOrder(b)
	if err != nil {
		t.Fatal(err)
	}
	if !o.VerifySignature(testKey().Public().(ed25519.PublicKey)) {
		t.Fatal("the signature of the golden order does not verify")
	}
	p, err := ParseOrderPayload(o.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p, testPayload()) {
		t.Fatalf("got %+v", p)
	}
}

func TestAnEnvelopeComesBack(t *testing.T) {
	var h tlog.Hash
	h[0] = 1
	for _, e := range []Envelope{{Order: []byte("order")}, {Order: []byte("order"), From: 7, Consistency: []tlog.Hash{h}}} {
		got, err := ParseEnvelope(e.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		if got.From != e.From || !bytes.Equal(got.Order, e.Order) || len(got.Consistency) != len(e.Consistency) {
			t.Fatalf("got %+v, want %+v", got, e)
		}
	}
}

func TestPayloadsAreStrict(t *testing.T) {
	good, err := testPayload().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseOrderPayload(good); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"an unknown field":         `{"x":1,` + string(good[1:]),
		"an unknown nested field":  strings.Replace(string(good), `"limits":{`, `"limits":{"x":1,`, 1),
		"something behind it":      string(good) + "{}",
		"another version":          strings.Replace(string(good), `{"v":1,`, `{"v":2,`, 1),
		"a node with a star":       strings.Replace(string(good), "h-00000001", "h-*", 1),
		"a write with no account":  strings.Replace(string(good), `"account":"app",`, "", 1),
		"a name with a colon":      strings.Replace(string(good), `"person_name":"ada"`, `"person_name":"a:b"`, 1),
		"no time left":             strings.Replace(string(good), `"remaining_ms":60000`, `"remaining_ms":0`, 1),
		"an exec without command":  strings.Replace(string(good), `"command":"uptime",`, "", 1),
		"valid for more than 60 s": strings.Replace(string(good), `"valid_ms":60000`, `"valid_ms":60001`, 1),
	} {
		if bad == string(good) {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := ParseOrderPayload([]byte(bad)); err == nil {
			t.Errorf("a payload with %s is accepted", name)
		}
	}
}

func TestALeaseAnswersItsOwnQuestionOnly(t *testing.T) {
	key := testKey()
	pub := key.Public().(ed25519.PublicKey)
	ask := LeaseAsk{V: 1, Node: "h-00000001", Nonce: bytes.Repeat([]byte{3}, NonceSize), Size: 4}
	raw, _ := ask.Marshal()
	if got, err := ParseLeaseAsk(raw); err != nil || got.Size != 4 {
		t.Fatal(got, err)
	}
	signed, err := SignLease(LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: 1, Bundle: []byte("b")}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLease(signed, pub, ask); err != nil {
		t.Fatal(err)
	}
	if string(PeekLeaseBundle(signed)) != "b" {
		t.Fatal("the bundle in a lease cannot be seen")
	}
	other := ask
	other.Nonce = bytes.Repeat([]byte{4}, NonceSize)
	if _, err := OpenLease(signed, pub, other); err == nil {
		t.Fatal("a lease answers a question that nobody asked")
	}
	for i := range signed {
		bad := bytes.Clone(signed)
		bad[i] ^= 1
		if _, err := OpenLease(bad, pub, ask); err == nil {
			t.Fatalf("byte %d of a lease may be changed", i)
		}
	}
}

func TestABrakeIsReadOnlyWhenSigned(t *testing.T) {
	key := testKey()
	b := Brake{V: 1, ID: "b-00000001", Kind: BrakeStopSession, Node: EveryNode, Session: "s-00000001", Issued: 1}
	signed, err := SignBrake(b, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenBrake(signed, key.Public().(ed25519.PublicKey))
	if err != nil || got != b {
		t.Fatal(got, err)
	}
	signed[10] ^= 1
	if _, err := OpenBrake(signed, key.Public().(ed25519.PublicKey)); err == nil {
		t.Fatal("a changed brake is accepted")
	}
	if _, err := SignBrake(Brake{V: 1, ID: "b-1", Kind: "go-faster", Node: EveryNode}, key); err == nil {
		t.Fatal("an unknown brake is signed")
	}
}

func TestFramesComeBackWholeHoweverTheyArrive(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 3*MaxFrame/16+5)
	var b bytes.Buffer
	w := NewWriter(&b)
	var block Block
	n := copy(block.Payload(), "block")
	for _, err := range []error{w.Write(FrameStdout, []byte("hello")), w.Write(FrameEOF, nil), w.WriteBlock(FrameStderr, &block, n), w.Write(FrameStdin, big), w.Write(FrameExit, EncodeExit(Exit{Status: -3, Signal: "KILL", Why: "x"}))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wire := b.Bytes()
	for name, src := range map[string]io.Reader{"whole": bytes.NewReader(wire), "bytewise": iotest.OneByteReader(bytes.NewReader(wire)), "halves": iotest.HalfReader(bytes.NewReader(wire))} {
		r := NewReader(src)
		var seen []FrameType
		var stdin []byte
		for {
			ft, p, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			seen = append(seen, ft)
			switch ft {
			case FrameStdin:
				stdin = append(stdin, p...)
			case FrameStdout:
				if string(p) != "hello" {
					t.Fatalf("%s: %q", name, p)
				}
			case FrameExit:
				if e, err := DecodeExit(p); err != nil || e != (Exit{Status: -3, Signal: "KILL", Why: "x"}) {
					t.Fatal(e, err)
				}
			}
		}
		if !bytes.Equal(stdin, big) || len(seen) != 8 {
			t.Fatalf("%s: %d frames, %d bytes of %d", name, len(seen), len(stdin), len(big))
		}
	}
	if _, _, err := NewReader(bytes.NewReader(wire[:7])).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("a torn frame ends with %v", err)
	}
	if _, _, err := NewReader(strings.NewReader("\x02\xff\xff\xff\xff")).Next(); err == nil {
		t.Fatal("a frame of 4 GiB is accepted")
	}
}

func TestSmallFramePayloadsRoundTrip(t *testing.T) {
	if c, r, err := DecodeResize(EncodeResize(80, 24)); c != 80 || r != 24 || err != nil {
		t.Fatal(c, r, err)
	}
	if ms, err := DecodeDeadline(EncodeDeadline(-5)); ms != -5 || err != nil {
		t.Fatal(ms, err)
	}
}

func TestHelloTakesNoByteOfWhatFollows(t *testing.T) {
	var b bytes.Buffer
	if err := WriteLine(&b, Hello{V: 1, Use: UseControl}); err != nil {
		t.Fatal(err)
	}
	if err := WriteSessionOrder(&b, []byte("envelope")); err != nil {
		t.Fatal(err)
	}
	if err := WriteAnswer(&b, SessionAnswer{OK: true, UID: 7}); err != nil {
		t.Fatal(err)
	}
	var h Hello
	if err := ReadLine(&b, &h); err != nil || h.Use != UseControl {
		t.Fatal(h, err)
	}
	if k, err := ReadStreamKind(&b); err != nil || k != StreamSession {
		t.Fatal(k, err)
	}
	if e, err := ReadEnvelope(&b); err != nil || string(e) != "envelope" {
		t.Fatal(e, err)
	}
	if a, err := ReadAnswer(&b); err != nil || a.UID != 7 || a.Err() != nil {
		t.Fatal(a, err)
	}
	if err := ReadLine(strings.NewReader(strings.Repeat("x", MaxLine+1)), &h); err == nil {
		t.Fatal("a line without end is read without end")
	}
}

func TestANodeMayUseItsOwnSubjectsOnly(t *testing.T) {
	p, err := NodePermissions("h-00000001")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(append([]string{}, p.Publish...), p.Subscribe...) {
		if !strings.Contains(s, "h-00000001") && s != "fleet.down.>" {
			t.Errorf("a node may use %s", s)
		}
	}
	for _, bad := range []string{"", "*", "h-*", "h->", "h-1.up", "p-00000001"} {
		if _, err := NodePermissions(bad); err == nil {
			t.Errorf("host id %q is given subjects", bad)
		}
	}
	if h, ok := HostOfUp(UpSubject("h-00000001", UpLease)); !ok || h != "h-00000001" {
		t.Fatal(h, ok)
	}
	if _, ok := HostOfUp("node.h-00000001.down.brake"); ok {
		t.Fatal("a down subject counts as an up subject")
	}
}

func FuzzOrder(f *testing.F) {
	b, err := BuildOrder(testProof(f), testKey())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOrder(b)
		if err != nil {
			return
		}
		if n := len(o.signed) + 4 + len(o.Signature); n != len(b) {
			t.Fatalf("%d of %d bytes are covered", n, len(b))
		}
		_, _ = ParseOrderPayload(o.Payload)
	})
}

func FuzzEnvelope(f *testing.F) {
	f.Add(Envelope{Order: []byte("o"), From: 3}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEnvelope(b)
		if err == nil && !bytes.Equal(e.Marshal(), b) {
			t.Fatal("an envelope has two forms")
		}
	})
}

func FuzzPayload(f *testing.F) {
	good, _ := testPayload().Marshal()
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseOrderPayload(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseOrderPayload(again); err != nil {
			t.Fatalf("what was accepted is refused when written again: %v", err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x01x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		total := 0
		for {
			ft, p, err := r.Next()
			if err != nil {
				return
			}
			total += frameHead + len(p)
			if total > len(b) || len(p) > MaxFrame {
				t.Fatal("more came out than went in")
			}
			switch ft {
			case FrameExit:
				_, _ = DecodeExit(p)
			case FrameResize:
				_, _, _ = DecodeResize(p)
			}
		}
	})
}

func FuzzSigned(f *testing.F) {
	b, _ := SignBrake(Brake{V: 1, ID: "b-00000001", Kind: BrakeFreeze, Node: EveryNode}, testKey())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = OpenBrake(b, testKey().Public().(ed25519.PublicKey))
		_, _ = OpenLease(b, testKey().Public().(ed25519.PublicKey), LeaseAsk{})
		_ = PeekLeaseBundle(b)
		_, _ = ParseLeaseAsk(b)
	})
}

// loop is an endless run of full frames.
type loop struct {
	b []byte
	i int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.b[l.i:])
	l.i = (l.i + n) % len(l.b)
	return n, nil
}

func BenchmarkFrameRead(b *testing.B) {
	var buf bytes.Buffer
	_ = NewWriter(&buf).Write(FrameStdout, make([]byte, MaxFrame))
	r := NewReader(&loop{b: buf.Bytes()})
	b.SetBytes(MaxFrame)
	for b.Loop() {
		if _, _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFrameWrite(b *testing.B) {
	w := NewWriter(io.Discard)
	p := make([]byte, MaxFrame)
	b.SetBytes(MaxFrame)
	for b.Loop() {
		if err := w.Write(FrameStdout, p); err != nil {
			b.Fatal(err)
		}
	}
}

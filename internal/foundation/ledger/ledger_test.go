package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// detRand makes keys from a seed.
func detRand(seed byte) *rand.ChaCha8 {
	return rand.NewChaCha8([32]byte{seed})
}

func testKey(t testing.TB, name string, seed byte) (note.Signer, note.Verifier, string) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(detRand(seed), name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return s, v, vkey
}

func testLeaf(i int64, salt, payload []byte) Leaf {
	return Leaf{V: 1, Time: 1_700_000_000_000_000 + i, Action: "grant.requested", Subjects: []string{"p-7k3f9q2m"},
		Target: "host/h-00000001", Object: "g-00000001", Version: i + 1, Outcome: OK, Commit: Commit(salt, payload)}
}

func genLeaf(t *rapid.T) Leaf {
	word := rapid.StringMatching(`[a-zA-Z0-9._:/#@=,-]{1,20}`)
	maybe := rapid.OneOf(rapid.Just(""), word)
	l := Leaf{
		V: 1, Time: rapid.Int64Min(1).Draw(t, "time"), Action: Action(rapid.StringMatching(`[a-z][a-z0-9-]{0,8}(\.[a-z][a-z0-9-]{0,8}){1,2}`).Draw(t, "action")),
		Subjects: rapid.SliceOfN(word, 1, 4).Draw(t, "subjects"), Session: maybe.Draw(t, "session"), Target: maybe.Draw(t, "target"),
		Outcome: rapid.SampledFrom([]Outcome{OK, Failed, Denied, Lost, Unknown}).Draw(t, "outcome"), Bootstrap: rapid.Bool().Draw(t, "bootstrap"),
		Commit: rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "commit"),
	}
	if rapid.Bool().Draw(t, "object?") {
		l.Object, l.Version = word.Draw(t, "object"), rapid.Int64Min(1).Draw(t, "version")
	}
	if s := maybe.Draw(t, "sealto"); s != l.Subjects[0] {
		l.SealTo = s
	}
	return l
}

func TestALeafSurvivesTheRoundTripAndIsPlainJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := genLeaf(t)
		if err := l.Check(); err != nil {
			t.Fatal(err)
		}
		b := l.Marshal()
		got, err := ParseLeaf(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if again := got.Marshal(); !bytes.Equal(again, b) {
			t.Fatalf("%s became %s", b, again)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("not JSON: %v", err)
		}
		if enc, _ := json.Marshal(m["commit"]); string(enc) != `"`+string(CommitOf(b))+`"` {
			t.Fatalf("commitment %s is found as %s", enc, CommitOf(b))
		}
	})
}

func TestALeafHasOneFormOnly(t *testing.T) {
	good := string(testLeaf(0, make([]byte, 32), []byte("{}")).Marshal())
	if _, err := ParseLeaf([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "{}", good + " ", " " + good, good + good, strings.Replace(good, `,"`, `, "`, 1),
		strings.Replace(good, `"v":1`, `"v":01`, 1), strings.Replace(good, `"v":1`, `"v":2`, 1),
		strings.Replace(good, "ok", "fine", 1), strings.Replace(good, "grant.requested", "grant", 1),
		strings.Replace(good, "grant.requested", "grant.requested\\u0041", 1),
		strings.Replace(good, `"p-7k3f9q2m"`, ``, 1), strings.Replace(good, `"p-7k3f9q2m"`, `"Mary Ann"`, 1),
		strings.Replace(good, `,"version":1`, ``, 1), strings.Replace(good, `,"version":1`, `,"version":0`, 1),
		strings.Replace(good, `,"commit"`, `,"sealed":"p-7k3f9q2m","commit"`, 1),
		strings.Replace(good, `,"commit"`, `,"bootstrap":false,"commit"`, 1),
	} {
		if _, err := ParseLeaf([]byte(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

// growTree appends n leaves and keeps everything that a store would keep.
func growTree(n int64) (*Frontier, map[[2]int64][]byte, []tlog.Hash) {
	f, tiles := &Frontier{}, map[[2]int64][]byte{}
	var hashes []tlog.Hash
	for i := range n {
		h := tlog.RecordHash([]byte(fmt.Sprint(i)))
		hashes = append(hashes, h)
		f.Append(h, func(level int, index int64, tile []byte) { tiles[[2]int64{int64(level), index}] = tile })
	}
	return f, tiles, hashes
}

func tileOf(tiles map[[2]int64][]byte) func(int, int64) ([]byte, error) {
	return func(level int, index int64) ([]byte, error) {
		b, ok := tiles[[2]int64{int64(level), index}]
		if !ok {
			return nil, fmt.Errorf("no tile %d/%d", level, index)
		}
		return b, nil
	}
}

func TestTheFrontierAgreesWithTheReferenceTree(t *testing.T) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(ix []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(ix))
		for i, x := range ix {
			out[i] = stored[x]
		}
		return out, nil
	})
	f := &Frontier{}
	for i := range int64(70_000) {
		hs, err := tlog.StoredHashes(i, []byte(fmt.Sprint(i)), reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hs...)
		f.Append(hs[0], nil)
		if i < 600 || i%997 == 0 || i > 65_530 && i < 65_540 {
			want, err := tlog.TreeHash(i+1, reader)
			if err != nil {
				t.Fatal(err)
			}
			if got := f.Tree(); got.Hash != want || got.N != i+1 {
				t.Fatalf("root of %d entries differs from the reference", i+1)
			}
		}
	}
}

func TestAFrontierIsRebuiltFromTilesAndProvesEverything(t *testing.T) {
	for _, n := range []int64{0, 1, 2, 255, 256, 257, 512, 1000, 65_535, 65_536, 65_537, 66_000} {
		f, tiles, hashes := growTree(n)
		again, err := Rebuild(n, tileOf(tiles), func(from int64) ([]tlog.Hash, error) { return hashes[from:], nil })
		if err != nil {
			t.Fatal(err)
		}
		if again.Tree() != f.Tree() {
			t.Fatalf("rebuilt tree of %d differs", n)
		}
		tree, r := again.Tree(), again.Reader(tileOf(tiles))
		rng := rand.New(rand.NewPCG(uint64(n), 1))
		for range 30 {
			if n == 0 {
				break
			}
			i, old := rng.Int64N(n), 1+rng.Int64N(n)
			p, err := tlog.ProveRecord(n, i, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(p, n, tree.Hash, i, hashes[i]); err != nil {
				t.Fatalf("inclusion of %d in %d: %v", i, n, err)
			}
			oldHash, err := tlog.TreeHash(old, r)
			if err != nil {
				t.Fatal(err)
			}
			tp, err := tlog.ProveTree(n, old, r)
			if err != nil {
				t.Fatal(err)
			}
			if old == n {
				tp = nil
			}
			if err := CheckConsistency(tp, tlog.Tree{N: old, Hash: oldHash}, tree); err != nil {
				t.Fatalf("consistency of %d with %d: %v", old, n, err)
			}
		}
		// The rebuilt one grows like the first.
		for i := range int64(300) {
			h := tlog.RecordHash([]byte(fmt.Sprint(n + i)))
			f.Append(h, nil)
			again.Append(h, nil)
		}
		if again.Tree() != f.Tree() {
			t.Fatalf("rebuilt tree of %d grows differently", n)
		}
	}
}

func TestASnapshotStaysWhileTheTreeGrows(t *testing.T) {
	f, _, _ := growTree(300)
	snap := f.Snapshot()
	want := snap.Tree()
	for i := range 1000 {
		f.Append(tlog.RecordHash([]byte{byte(i)}), nil)
	}
	if snap.Tree() != want {
		t.Fatal("the snapshot moved")
	}
}

func TestACheckpointOpensOnlyUnderItsOriginAndKey(t *testing.T) {
	s, v, _ := testKey(t, "log.example", 1)
	_, other, _ := testKey(t, "log.example", 2)
	tree := tlog.Tree{N: 12, Hash: tlog.RecordHash([]byte("x"))}
	b, err := SignCheckpoint("log.example", tree, s)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenCheckpoint(b, "log.example", v); err != nil || got != tree {
		t.Fatalf("%v %v", got, err)
	}
	if _, err := OpenCheckpoint(b, "log.example", other); err == nil {
		t.Error("opened with another key")
	}
	if _, err := OpenCheckpoint(b, "log2.example", v); err == nil {
		t.Error("opened under another origin")
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := OpenCheckpoint(bad, "log.example", v); err == nil {
			// The signature line's key hash or name may be damaged only so
			// that no known signature is left.
			t.Errorf("opened with byte %d flipped", i)
		}
	}
}

func TestConsistencyRefusesAForkARollbackAndAPaddedProof(t *testing.T) {
	a, tiles, _ := growTree(100)
	tree := a.Tree()
	b := &Frontier{}
	for i := range 120 {
		b.Append(tlog.RecordHash([]byte{byte(i), 9}), nil)
	}
	if CheckConsistency(nil, tree, b.Tree()) == nil {
		t.Error("a fork extends")
	}
	if CheckConsistency(nil, tree, tlog.Tree{N: 99}) == nil {
		t.Error("a shorter tree extends")
	}
	if CheckConsistency(nil, tree, tlog.Tree{N: 100}) == nil {
		t.Error("another tree of the same size extends")
	}
	if CheckConsistency([]tlog.Hash{{}}, tree, tree) == nil {
		t.Error("a padded proof is accepted")
	}
	if err := CheckConsistency(nil, tlog.Tree{}, tree); err != nil {
		t.Errorf("the empty tree is not extended: %v", err)
	}
	_ = tiles
}

func makeProof(t testing.TB, s note.Signer) Proof {
	f, tiles := &Frontier{}, map[[2]int64][]byte{}
	salt, payload := bytes.Repeat([]byte{7}, 32), []byte(`{"v":1}`)
	for i := range int64(300) {
		f.Append(HashOf(testLeaf(i, salt, payload).Marshal()), func(l int, x int64, b []byte) { tiles[[2]int64{int64(l), x}] = b })
	}
	inc, err := tlog.ProveRecord(300, 17, f.Reader(tileOf(tiles)))
	if err != nil {
		t.Fatal(err)
	}
	cp, err := SignCheckpoint("log.example", f.Tree(), s)
	if err != nil {
		t.Fatal(err)
	}
	return Proof{Index: 17, Leaf: testLeaf(17, salt, payload).Marshal(), Salt: salt, Payload: payload, Inclusion: inc, Checkpoint: cp}
}

func TestAProofVerifiesAndNothingInItCanBeChanged(t *testing.T) {
	s, v, _ := testKey(t, "log.example", 1)
	p := makeProof(t, s)
	if err := p.Verify(v, "log.example"); err != nil {
		t.Fatal(err)
	}
	text := p.Text()
	back, err := ParseProof(text)
	if err != nil || back.Verify(v, "log.example") != nil {
		t.Fatalf("the text form does not verify: %v", err)
	}
	change := map[string]func(*Proof){
		"index":      func(p *Proof) { p.Index++ },
		"negative":   func(p *Proof) { p.Index = -1 },
		"beyond":     func(p *Proof) { p.Index = 300 },
		"leaf":       func(p *Proof) { p.Leaf[20] ^= 1 },
		"salt":       func(p *Proof) { p.Salt[0] ^= 1 },
		"no salt":    func(p *Proof) { p.Salt = nil },
		"payload":    func(p *Proof) { p.Payload[0] ^= 1 },
		"no payload": func(p *Proof) { p.Payload = nil },
		"moved":      func(p *Proof) { p.Payload = append(p.Salt[31:], p.Payload...); p.Salt = p.Salt[:31] },
		"inclusion":  func(p *Proof) { p.Inclusion[3][0] ^= 1 },
		"short":      func(p *Proof) { p.Inclusion = p.Inclusion[1:] },
		"checkpoint": func(p *Proof) { p.Checkpoint[15] ^= 1 },
	}
	for name, f := range change {
		q, err := ParseProof(text)
		if err != nil {
			t.Fatal(err)
		}
		f(&q)
		if q.Verify(v, "log.example") == nil {
			t.Errorf("verifies with another %s", name)
		}
	}
}

func TestNothingFollowsTheExtraOfAProof(t *testing.T) {
	s, _, _ := testKey(t, "log.example", 1)
	lines := strings.SplitN(string(makeProof(t, s).Text()), "\n", 3)
	extra, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		t.Fatal(err)
	}
	for _, tail := range []string{"}", "]", "{}", "1", `"`} {
		text := lines[0] + "\nextra " + base64.StdEncoding.EncodeToString(append(bytes.Clone(extra), tail...)) + "\n" + lines[2]
		if _, err := ParseProof([]byte(text)); err == nil {
			t.Errorf("%q may follow", tail)
		}
	}
}

func testBundle(t testing.TB) (Bundle, note.Signer) {
	root, _, rootKey := testKey(t, "example-root", 3)
	_, _, logKey := testKey(t, "log.example", 1)
	return Bundle{RootKey: rootKey, Version: 3, Origin: "log.example", LogKey: logKey, OrderKey: make(ed25519.PublicKey, 32), Epoch: 1,
		CA: [][]byte{{1, 2, 3}}, SSHUserCA: []string{"ssh-ed25519 AAAA user"}, SSHHostCA: []string{"ssh-ed25519 AAAA host"}}, root
}

func TestABundleOpensOnlyUnderThePinnedRootKey(t *testing.T) {
	b, root := testBundle(t)
	signed, err := SignBundle(b, root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenBundle(signed, RootHash(b.RootKey))
	if err != nil || got.Version != 3 || got.Origin != b.Origin || len(got.CA) != 1 || got.SSHHostCA[0] != b.SSHHostCA[0] {
		t.Fatalf("%+v %v", got, err)
	}
	_, _, otherKey := testKey(t, "example-root", 4)
	if _, err := OpenBundle(signed, RootHash(otherKey)); err == nil {
		t.Error("opened under another root key")
	}
	// A bundle signed by a stranger that names the pinned key.
	mallory, _, malloryKey := testKey(t, "example-root", 5)
	forged := b
	if _, err := SignBundle(forged, mallory); err == nil {
		t.Error("signed with a key that is not RootKey")
	}
	forged.RootKey = malloryKey
	if signed, err = SignBundle(forged, mallory); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBundle(signed, RootHash(b.RootKey)); err == nil {
		t.Error("opened a stranger's bundle")
	}
}

func TestABundleWithALineNobodyKnowsIsRefused(t *testing.T) {
	b, root := testBundle(t)
	text, err := b.text()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{text + "weather fine\n", text + "epoch 2\n", strings.Replace(text, "epoch 1\n", "epoch 01\n", 1), strings.Replace(text, "/v1", "/v2", 1)} {
		signed, err := note.Sign(&note.Note{Text: bad}, root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenBundle(signed, RootHash(b.RootKey)); err == nil {
			t.Errorf("accepted %q", bad[len(bad)-30:])
		}
	}
}

func TestATokenIsOneWordThatComesBackWhole(t *testing.T) {
	b, _ := testBundle(t)
	tok := Token{Address: "127.0.0.1:7443", RootHash: RootHash(b.RootKey), Secret: "0123456789abcdefghij"}
	got, err := ParseToken(tok.String())
	if err != nil || got != tok {
		t.Fatalf("%+v %v", got, err)
	}
	if strings.ContainsAny(tok.String(), " \t\n'\"") {
		t.Error("not one word")
	}
	for _, bad := range []string{"", "hr1", "hr2" + tok.String()[3:], tok.String()[:40], tok.String() + ".x", "hr1..."} {
		_, err := ParseToken(bad)
		if err == nil {
			t.Errorf("accepted %q", bad)
		} else if bad != "" && len(bad) > 20 && strings.Contains(err.Error(), bad) {
			t.Error("the error shows the secret")
		}
	}
}

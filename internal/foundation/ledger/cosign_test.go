package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func witness(t *testing.T, name string) (ed25519.PrivateKey, WitnessKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewWitnessKey(name, pub)
	if err != nil {
		t.Fatal(err)
	}
	return key, k
}

func TestACosignatureIsAsTheSpecificationWritesIt(t *testing.T) {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("w", 32)))
	k, err := NewWitnessKey("witness.example/w1", key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	text := "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
	line, err := Cosign(text, 1679315147, "witness.example/w1", key)
	if err != nil {
		t.Fatal(err)
	}
	// x/mod's own parser takes the note, with our key as a verifier.
	n, err := note.Open([]byte(text+"\n"+string(line)), note.VerifierList(k))
	if err != nil || len(n.Sigs) != 1 || n.Text != text {
		t.Fatalf("x/mod reads %+v, %v", n, err)
	}
	message := "cosignature/v1\ntime 1679315147\n" + text
	got := Cosignatures([]byte(text+"\n"+string(line)), k)
	if len(got) != 1 || got[0].Time != 1679315147 {
		t.Fatalf("read %+v", got)
	}
	raw := strings.TrimSuffix(strings.TrimPrefix(string(line), "— witness.example/w1 "), "\n")
	sig, err := base64.StdEncoding.DecodeString(raw)
	if err != nil || len(sig) != 76 || !ed25519.Verify(key.Public().(ed25519.PublicKey), []byte(message), sig[12:]) {
		t.Error("the signature is not over the two lines and the note's text")
	}
	again, err := ParseWitnessKey(k.String())
	if err != nil || again.String() != k.String() || !again.Same(k) {
		t.Errorf("the key reads back as %v, %v", again, err)
	}
}

func TestAWitnessKeyIsNoLogKeyAndNoOther(t *testing.T) {
	_, k := witness(t, "w1")
	_, _, vkey := testKey(t, "log", 1)
	s := k.String()
	for _, bad := range []string{"", "w1", vkey, strings.Replace(s, "w1+", "w2+", 1), s + "A", "+" + s, strings.Replace(s, "w1", "w 1", 1), s[:len(s)-4]} {
		if _, err := ParseWitnessKey(bad); err == nil {
			t.Errorf("%q is taken for the key of a witness", bad)
		}
	}
}

func TestLinesThatSpoilAreAsIfTheyWereNotThere(t *testing.T) {
	key, k := witness(t, "w1")
	other, _ := witness(t, "w1")
	signer, verifier, _ := testKey(t, "log.example", 1)
	f, _, _ := growTree(7)
	signed, err := SignCheckpoint("log.example", f.Tree(), signer)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.SplitAfter(string(signed), "\n\n")[0]
	text = strings.TrimSuffix(text, "\n")
	good, _ := Cosign(text, 100, "w1", key)
	late, _ := Cosign(text, 100, "w1", other)
	wrong, _ := Cosign("another\n1\nAAAA\n", 100, "w1", key)
	for name, lines := range map[string]string{
		"alone": string(good), "after a wrong one": string(wrong) + string(good), "before one": string(good) + string(wrong),
		"beside another's key": string(late) + string(good), "twice": string(good) + string(good),
	} {
		if got := Cosignatures([]byte(string(signed)+lines), k); len(got) != 1 || got[0].Time != 100 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := Cosignatures([]byte(string(signed)+string(wrong)+string(late)), k); len(got) != 0 {
		t.Errorf("taken: %+v", got)
	}
	if _, err := OpenCheckpoint(AddCosignatures(signed, Cosignatures([]byte(string(signed)+string(good)), k)...), "log.example", verifier); err != nil {
		t.Errorf("a cosigned checkpoint no longer opens: %v", err)
	}
}

func TestAPolicySaysHowManyMust(t *testing.T) {
	var ws []PolicyWitness
	for i := range 4 {
		_, k := witness(t, fmt.Sprintf("example.org/w%d", i))
		ws = append(ws, PolicyWitness{Name: fmt.Sprintf("w%d", i), Key: k})
	}
	text := fmt.Sprintf("# ours\nwitness X1 %s http://127.0.0.1:1/w\nwitness X2 %s\n\twitness Y1 %s\ngroup X 2 X1 X2\ngroup both all X Y1\nquorum both\n", ws[0].Key, ws[1].Key, ws[2].Key)
	p, err := ParseWitnessPolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for have, want := range map[string]bool{"": false, "X1 X2": false, "X1 Y1": false, "X1 X2 Y1": true} {
		if got := p.Met(func(n string) bool { return strings.Contains(" "+have+" ", " "+n+" ") }); got != want {
			t.Errorf("%q is enough: %v", have, got)
		}
	}
	for name, bad := range map[string]string{
		"no quorum":          "witness a " + ws[0].Key.String() + "\n",
		"two quorums":        "quorum none\nquorum none\n",
		"a name from below":  "quorum a\nwitness a " + ws[0].Key.String() + "\n",
		"one key twice":      "witness a " + ws[0].Key.String() + "\nwitness b " + ws[0].Key.String() + "\nquorum a\n",
		"a member twice":     "witness a " + ws[0].Key.String() + "\ngroup g any a\ngroup h any a\nquorum h\n",
		"none as a member":   "group g any none\nquorum g\n",
		"more than there is": "witness a " + ws[0].Key.String() + "\ngroup g 2 a\nquorum g\n",
		"a control":          "quorum none\r\n",
		"a wrong address":    "witness a " + ws[0].Key.String() + " file:///etc\nquorum a\n",
		"a secret in it":     "witness a " + ws[0].Key.String() + " http://u:p@h/\nquorum a\n",
	} {
		if _, err := ParseWitnessPolicy([]byte(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	simple := SimplePolicy(nil, ws, 3)
	p, err = ParseWitnessPolicy([]byte(simple))
	if err != nil || p.Need() != 3 || len(p.Witnesses) != 4 {
		t.Errorf("%v of %d, %v:\n%s", p.Need(), len(p.Witnesses), err, simple)
	}
	if p, err = ParseWitnessPolicy([]byte(SimplePolicy(nil, ws, 0))); err != nil || p.Wants() || p.Need() != 0 {
		t.Errorf("none is wanted: %v, %v", p.Wants(), err)
	}
}

func FuzzParseSubmission(f *testing.F) {
	f.Add([]byte("old 5\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n\nexample.com/x\n7\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— example.com/x Az3g\n"))
	f.Add([]byte("old 0\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSubmission(b)
		if err != nil {
			return
		}
		if string(s.Marshal()) != string(b) {
			t.Errorf("%q is read as %q", b, s.Marshal())
		}
		_, _, _, _ = OpenForeign(s.Checkpoint, func(string) []note.Verifier { return nil })
		_ = CheckConsistency(s.Proof, tlog.Tree{N: s.Old}, tlog.Tree{N: s.Old + 3})
	})
}

func FuzzWitnessPolicy(f *testing.F) {
	f.Add("witness a w1+00000000+BAAA\ngroup g any a\nquorum g\n")
	f.Add("quorum none\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseWitnessPolicy([]byte(text))
		if err != nil {
			return
		}
		_, _ = p.Check([]byte(text), 0)
	})
}

func FuzzCosignatures(f *testing.F) {
	pub, _, _ := ed25519.GenerateKey(nil)
	k, _ := NewWitnessKey("w", pub)
	f.Add([]byte("o\n1\nAAAA\n\n— w AAAA\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := Cosignatures(b, k); len(got) != 0 {
			t.Errorf("a cosignature from nothing: %+v", got)
		}
	})
}

func TestAnExportShowsHowFarOutsidersVouchForIt(t *testing.T) {
	key, k := witness(t, "audit")
	_, stranger := witness(t, "audit")
	signer, verifier, _ := testKey(t, "log.example", 1)
	var f Frontier
	build := func(forge bool) []byte {
		f = Frontier{}
		var out bytes.Buffer
		e := NewExport(&out, nil, "")
		for i := range int64(40) {
			leaf := testLeaf(i, bytes.Repeat([]byte{1}, 32), []byte("{}")).Marshal()
			f.Append(HashOf(leaf), nil)
			if err := e.Entry(leaf, bytes.Repeat([]byte{1}, 32), []byte("{}")); err != nil {
				t.Fatal(err)
			}
			if f.Size() != 30 {
				continue
			}
			tree := f.Tree()
			if forge {
				tree.Hash[0]++
			}
			signed, _ := SignCheckpoint("log.example", tree, signer)
			line, _ := Cosign(strings.TrimSuffix(strings.SplitAfter(string(signed), "\n\n")[0], "\n"), 1_700_000_000, "audit", key)
			if err := e.Cosigned(30, append(signed, line...)); err != nil {
				t.Fatal(err)
			}
		}
		signed, _ := SignCheckpoint("log.example", f.Tree(), signer)
		if err := e.Close(signed); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	opts := ExportOptions{LogKey: verifier, Origin: "log.example", Witnesses: []WitnessKey{k}}
	r := verifyBytes(t, build(false), opts)
	if !r.OK || len(r.Witnesses) != 1 || r.Witnesses[0] != (Witnessed{"audit", 30, 1_700_000_000}) {
		t.Errorf("%+v", r)
	}
	if r := verifyBytes(t, build(true), opts); r.OK {
		t.Error("what the witness cosigned is another history, and nothing is found")
	}
	opts.Witnesses = []WitnessKey{k, stranger}
	if r := verifyBytes(t, build(false), opts); r.OK || len(r.Witnesses) != 1 {
		t.Errorf("a witness who never cosigned is not missed: %+v", r)
	}
}

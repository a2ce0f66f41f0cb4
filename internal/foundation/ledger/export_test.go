package ledger

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// writeExport is an export of n entries; one of them commits to a piece of a
// recording, and one payload is erased.
func writeExport(t testing.TB, n int64) ([]byte, Bundle) {
	t.Helper()
	b, root := testBundle(t)
	signer, _, _ := testKey(t, "log.example", 1)
	signed, err := SignBundle(b, root)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e := NewExport(&out, signed, "")
	piece := []byte("a piece of a recording")
	hash := hex.EncodeToString(Commit(nil, piece))
	var f Frontier
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		salt, payload := bytes.Repeat([]byte{byte(i)}, 32), []byte(fmt.Sprintf(`{"v":1,"i":%d}`, i))
		l := testLeaf(i, salt, payload)
		switch i {
		case 1:
			payload = []byte(`{"v":1,"session":"s-1","first":0,"hashes":["` + hash + `"],"sizes":[22]}`)
			l = testLeaf(i, salt, payload)
			l.Action = ActionChunks
		case 2:
			l.SealTo = "p-gone"
		case 3:
			l.Action, l.Object, l.Version = ActionErased, "p-gone", 1
		}
		leaf := l.Marshal()
		f.Append(HashOf(leaf), nil)
		if i == 2 {
			salt, payload = nil, nil
		}
		must(e.Entry(leaf, salt, payload))
		if f.Size() == n/2 {
			cp, err := SignCheckpoint("log.example", f.Tree(), signer)
			must(err)
			must(e.Checkpoint(f.Size(), cp))
		}
	}
	must(e.Blob(hash, bytes.NewReader(piece)))
	cp, err := SignCheckpoint("log.example", f.Tree(), signer)
	must(err)
	must(e.Close(cp))
	return out.Bytes(), b
}

func verifyBytes(t testing.TB, zip []byte, opts ExportOptions) Report {
	t.Helper()
	rep, err := VerifyExport(bytes.NewReader(zip), int64(len(zip)), opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestAnExportVerifiesWithoutAServer(t *testing.T) {
	for _, n := range []int64{10, 256, 257, 600, 66_000} {
		zip, b := writeExport(t, n)
		rep := verifyBytes(t, zip, ExportOptions{RootHash: RootHash(b.RootKey)})
		if !rep.OK || rep.Entries != n || rep.Payloads != n-1 || rep.Erased != 1 || rep.Recordings != 1 || rep.Checkpoints != 1 {
			t.Errorf("%d entries: %+v", n, rep)
		}
		if !strings.Contains(rep.Trust, "you passed in") {
			t.Errorf("trust is %q", rep.Trust)
		}
	}
}

func TestAnExportSaysWhenItTrustedItsOwnWord(t *testing.T) {
	zip, b := writeExport(t, 10)
	rep := verifyBytes(t, zip, ExportOptions{})
	if !rep.OK || !strings.Contains(rep.Trust, "own word") || !strings.Contains(rep.Trust, RootHash(b.RootKey)) {
		t.Errorf("%+v", rep)
	}
	_, _, other := testKey(t, "example-root", 9)
	if rep := verifyBytes(t, zip, ExportOptions{RootHash: RootHash(other)}); rep.OK {
		t.Error("it verifies under another root key")
	}
	_, stranger, _ := testKey(t, "log.example", 9)
	if rep := verifyBytes(t, zip, ExportOptions{LogKey: stranger, Origin: "log.example"}); rep.OK {
		t.Error("it verifies under another log key")
	}
}

func TestAnExportMustExtendTheCheckpointThatIsKept(t *testing.T) {
	zip, b := writeExport(t, 300)
	signer, _, _ := testKey(t, "log.example", 1)
	kept := func(n int64, change bool) []byte {
		var f Frontier
		for i := range n {
			salt, payload := bytes.Repeat([]byte{byte(i)}, 32), []byte(fmt.Sprintf(`{"v":1,"i":%d}`, i))
			f.Append(HashOf(testLeaf(i, salt, payload).Marshal()), nil)
		}
		tree := f.Tree()
		if change {
			tree.Hash[0] ^= 1
		}
		cp, err := SignCheckpoint("log.example", tree, signer)
		if err != nil {
			t.Fatal(err)
		}
		return cp
	}
	for _, c := range []struct {
		name   string
		anchor []byte
		ok     bool
	}{{"a prefix", kept(1, false), true}, {"a fork", kept(1, true), false}, {"a longer one", kept(301, false), false}} {
		if rep := verifyBytes(t, zip, ExportOptions{RootHash: RootHash(b.RootKey), Anchor: c.anchor}); rep.OK != c.ok {
			t.Errorf("%s: %+v", c.name, rep)
		}
	}
}

// Every byte of an export is either vouched for, or belongs to the zip's own
// book-keeping, which cannot change what is verified.
func TestNoByteOfAnExportCanBeChangedUnnoticed(t *testing.T) {
	zip, b := writeExport(t, 300)
	clean := verifyBytes(t, zip, ExportOptions{RootHash: RootHash(b.RootKey)})
	rng := rand.New(rand.NewPCG(1, 2))
	start, end := bytes.Index(zip, []byte(exportBundle)), bytes.Index(zip, []byte("PK\x01\x02"))
	quiet := 0
	const runs = 1500
	for range runs {
		bad := bytes.Clone(zip)
		at := start + rng.IntN(end-start)
		bad[at] ^= byte(1 << rng.IntN(8))
		rep, err := VerifyExport(bytes.NewReader(bad), int64(len(bad)), ExportOptions{RootHash: RootHash(b.RootKey)}, nil)
		if err != nil || !rep.OK {
			continue
		}
		// The local headers and checksums of the zip are not read.
		quiet++
		if rep.Entries != clean.Entries || rep.Payloads != clean.Payloads || rep.Checkpoint != clean.Checkpoint {
			t.Fatalf("byte %d changes the result unnoticed", at)
		}
		if !inZipHeader(zip, at) {
			t.Fatalf("byte %d (%q) can be changed unnoticed", at, zip[max(0, at-20):at+20])
		}
	}
	t.Logf("%d of %d fell on zip headers", quiet, runs)
}

// inZipHeader says whether a byte belongs to a local header or to the data
// descriptor behind a file.
func inZipHeader(zip []byte, at int) bool {
	for _, sig := range []string{"PK\x03\x04", "PK\x07\x08"} {
		from := bytes.LastIndex(zip[:min(at+4, len(zip))], []byte(sig))
		if from >= 0 && at-from < 70 {
			return true
		}
	}
	return false
}

func TestAnExportFindsWhatWasTakenOutOrPutIn(t *testing.T) {
	signer, key, _ := testKey(t, "log.example", 1)
	payload, salt := []byte(`{}`), make([]byte, 32)
	build := func(n int64, change func(i int64, leaf []byte) [][]byte) Report {
		var out bytes.Buffer
		_, _, vkey := testKey(t, "log.example", 1)
		e := NewExport(&out, nil, vkey)
		var honest Frontier
		for i := range n {
			leaf := testLeaf(i, salt, payload).Marshal()
			honest.Append(HashOf(leaf), nil)
			for _, l := range change(i, leaf) {
				if err := e.Entry(l, salt, payload); err != nil {
					t.Fatal(err)
				}
			}
		}
		cp, err := SignCheckpoint("log.example", honest.Tree(), signer)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(cp); err != nil {
			t.Fatal(err)
		}
		return verifyBytes(t, out.Bytes(), ExportOptions{LogKey: key, Origin: "log.example"})
	}
	same := func(_ int64, l []byte) [][]byte { return [][]byte{l} }
	if rep := build(500, same); !rep.OK {
		t.Fatalf("%+v", rep)
	}
	for name, change := range map[string]func(i int64, l []byte) [][]byte{
		"taken out": func(i int64, l []byte) [][]byte {
			if i == 77 {
				return nil
			}
			return [][]byte{l}
		},
		"put in": func(i int64, l []byte) [][]byte {
			if i == 77 {
				return [][]byte{l, l}
			}
			return [][]byte{l}
		},
		"changed": func(i int64, l []byte) [][]byte {
			if i == 77 {
				return [][]byte{testLeaf(7, salt, payload).Marshal()}
			}
			return [][]byte{l}
		},
		"cut off": func(i int64, l []byte) [][]byte {
			if i > 400 {
				return nil
			}
			return [][]byte{l}
		},
	} {
		if rep := build(500, change); rep.OK {
			t.Errorf("%s: not found", name)
		}
	}
}

func FuzzVerifyExport(f *testing.F) {
	zip, b := writeExport(f, 12)
	f.Add(zip)
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = VerifyExport(bytes.NewReader(in), int64(len(in)), ExportOptions{RootHash: RootHash(b.RootKey)}, nil)
		_, _ = VerifyExport(bytes.NewReader(in), int64(len(in)), ExportOptions{}, nil)
	})
}

func BenchmarkVerifyExport(b *testing.B) {
	const n = 300_000
	zip, bundle := writeExport(b, n)
	b.SetBytes(int64(len(zip)))
	for b.Loop() {
		if rep := verifyBytes(b, zip, ExportOptions{RootHash: RootHash(bundle.RootKey)}); !rep.OK {
			b.Fatal(rep.Findings)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

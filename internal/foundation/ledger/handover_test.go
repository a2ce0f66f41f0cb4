package ledger

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// pair signs by several keys.
type pair struct {
	note.Signer
	all []note.Signer
}

func (p pair) Signers() []note.Signer { return p.all }

// handedOver is an export across a rotation of the log key: 3 entries under the
// old key, a hand-over at 5 signed by the given signer, 8 under the new key.
func handedOver(t *testing.T, between func(old, new note.Signer) note.Signer) (zip []byte, b Bundle) {
	t.Helper()
	b, root := testBundle(t)
	old, _, oldV := testKey(t, "log.example", 1)
	fresh, _, newV := testKey(t, "log.example", 77)
	if b.LogKey != oldV {
		t.Fatal("the test's bundle names another log key")
	}
	b.Version, b.LogKey, b.Former = b.Version+1, newV, []Former{{Kind: KeyLog, Until: time.Now().Add(-time.Hour).Unix(), Key: oldV}}
	signed, err := SignBundle(b, root)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	e := NewExport(&out, signed, "")
	var f Frontier
	for i := range int64(8) {
		salt, payload := bytes.Repeat([]byte{byte(i)}, 32), []byte(`{"v":1}`)
		leaf := testLeaf(i, salt, payload).Marshal()
		f.Append(HashOf(leaf), nil)
		if err := e.Entry(leaf, salt, payload); err != nil {
			t.Fatal(err)
		}
		by := map[int64]note.Signer{3: old, 5: between(old, fresh)}[f.Size()]
		if by == nil {
			continue
		}
		cp, err := SignCheckpoint("log.example", f.Tree(), by)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Checkpoint(f.Size(), cp); err != nil {
			t.Fatal(err)
		}
	}
	head, err := SignCheckpoint("log.example", f.Tree(), fresh)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(head); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), b
}

func TestAnExportVerifiesAcrossARotationOfTheLogKey(t *testing.T) {
	zip, b := handedOver(t, func(old, fresh note.Signer) note.Signer { return pair{fresh, []note.Signer{fresh, old}} })
	rep := verifyBytes(t, zip, ExportOptions{RootHash: RootHash(b.RootKey)})
	if !rep.OK || rep.Entries != 8 || rep.Checkpoints != 2 {
		t.Errorf("%+v", rep)
	}
}

func TestAHandOverThatTheOldKeyDidNotSignIsAFinding(t *testing.T) {
	zip, b := handedOver(t, func(_, fresh note.Signer) note.Signer { return fresh })
	rep := verifyBytes(t, zip, ExportOptions{RootHash: RootHash(b.RootKey)})
	if rep.OK || len(rep.Findings) != 1 || !strings.Contains(rep.Findings[0].What, "signed by both") {
		t.Errorf("%+v", rep.Findings)
	}
}

func TestAFormerKeyIsMalformedOrKnown(t *testing.T) {
	b, _ := testBundle(t)
	for _, f := range []Former{
		{Kind: "root", Until: 1, Key: "x"}, {Kind: KeyLog, Until: 1, Key: "x"}, {Kind: KeyOrder, Until: 1, Key: "AAAA"},
		{Kind: KeyCA, Until: -1, Key: "AAAA"}, {Kind: KeySSHUser, Until: 1, Key: "a\nb"},
	} {
		b.Former = []Former{f}
		if _, err := b.Text(); err == nil {
			t.Errorf("%+v passes", f)
		}
	}
	b.Former = make([]Former, maxFormer+1)
	for i := range b.Former {
		b.Former[i] = Former{Kind: KeySSHUser, Until: 1, Key: "ssh-ed25519 AAAA"}
	}
	if _, err := b.Text(); err == nil {
		t.Error("a bundle with too many former keys passes")
	}
}

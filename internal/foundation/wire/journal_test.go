package wire

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"testing"
)

// aJournal is one with two pieces, and its node's key.
func aJournal(t testing.TB) (blocks [][]byte, node ed25519.PublicKey) {
	t.Helper()
	nodePub, nodeKey, _ := ed25519.GenerateKey(nil)
	pub, key, _ := ed25519.GenerateKey(nil)
	head, err := SignJournalHead(JournalHead{V: 1, Session: "s-00000001", Node: "h-00000001", Number: 1, Kind: SessionShell, Key: pub}, nodeKey)
	if err != nil {
		t.Fatal(err)
	}
	blocks = [][]byte{head}
	for i := range 2 {
		p := JournalPiece{N: int64(i + 1), Prev: HashBlock(blocks[i][4:]), Events: []JournalEvent{{Type: FrameStdout, Data: []byte("x")}}}
		if i == 1 {
			p.End = &JournalEnd{Status: 1}
		}
		b, err := SignJournalPiece(p, key)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	return blocks, nodePub
}

// readJournal reads all of it.
func readJournal(b []byte, node ed25519.PublicKey) (pieces int, ended bool, err error) {
	r, err := OpenJournal(bytes.NewReader(b), node)
	if err != nil {
		return 0, false, err
	}
	for {
		if _, err := r.Next(); err != nil {
			return pieces, r.Ended, err
		}
		pieces++
	}
}

func TestEachByteOfAJournalCounts(t *testing.T) {
	blocks, node := aJournal(t)
	file := bytes.Join(blocks, nil)
	if n, ended, err := readJournal(file, node); n != 2 || !ended || !errors.Is(err, io.EOF) {
		t.Fatal(n, ended, err)
	}
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1
		if n, ended, err := readJournal(bad, node); n == 2 && ended && errors.Is(err, io.EOF) {
			t.Fatalf("byte %d may be another", i)
		}
	}
	for i := range file {
		if n, ended, err := readJournal(file[:i], node); ended || n == 2 || err == nil {
			t.Fatalf("cut at %d it ends well", i)
		}
	}
	for name, order := range map[string][]int{"doubled": {0, 1, 1, 2}, "left out": {0, 2}, "swapped": {0, 2, 1}, "going on after the end": {0, 1, 2, 2}} {
		var b []byte
		for _, n := range order {
			b = append(b, blocks[n]...)
		}
		if n, _, err := readJournal(b, node); errors.Is(err, io.EOF) {
			t.Errorf("pieces that are %s read well (%d)", name, n)
		}
	}
}

func TestAReceiptIsTheOrderKeysAlone(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(nil)
	other, _, _ := ed25519.GenerateKey(nil)
	b, err := SignReceipt(Receipt{V: 1, Node: "h-00000001", Session: "s-00000001", Size: 7}, key)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := OpenReceipt(b, pub); err != nil || r.Size != 7 {
		t.Error(r, err)
	}
	if _, err := OpenReceipt(b, other); err == nil {
		t.Error("somebody else's receipt counts")
	}
}

func FuzzJournal(f *testing.F) {
	blocks, node := aJournal(f)
	f.Add(bytes.Join(blocks, nil))
	f.Add([]byte{0, 4, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := readJournal(b, node); err == nil {
			t.Error("it does not end")
		}
		_, _ = ParseJournalPart(b)
		_, _ = OpenReceipt(b, node)
		if k, err := ParseEntranceKeys(b); err == nil && Plain(k.HostKey, 1024) != k.HostKey {
			t.Errorf("%q came through", k.HostKey)
		}
	})
}

func FuzzVoucherTerms(f *testing.F) {
	f.Add(`{"v":1,"person":"p-ada00001","name":"ada","epoch":1,"hosts":[{"h":"h-00000001","a":"root"}],"key":"file","minutes":60}`)
	f.Add(`{"v":1,"person":"p-1","name":"\u202e","hosts":[{"h":"*","a":"root"}],"key":"hardware","minutes":61}`)
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVoucherTerms(s)
		if err != nil {
			return
		}
		if v.Minutes > 60 || len(v.Hosts) == 0 || Plain(v.PersonName, 64) != v.PersonName {
			t.Errorf("%+v", v)
		}
		if _, err := v.Marshal(); err != nil {
			t.Error(err)
		}
	})
}

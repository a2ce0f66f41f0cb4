package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// pieces is a stand-in for a recording's folder.
type pieces map[string][]byte

func (p pieces) ExportBlobs(_ context.Context, entries func(fn func(Recorded) error) error, put func(string, io.Reader) error) error {
	return entries(func(r Recorded) error {
		var c ledger.Chunks
		if r.Parsed.Action != ledger.ActionChunks || json.Unmarshal(r.Payload, &c) != nil {
			return nil
		}
		for _, h := range c.Hashes {
			if err := put(h, bytes.NewReader(p[h])); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p pieces) VerifyBlobs(_ context.Context, entries func(fn func(Recorded) error) error) (checked int64, found []ledger.Finding, err error) {
	err = entries(func(r Recorded) error {
		var c ledger.Chunks
		if r.Parsed.Action != ledger.ActionChunks || json.Unmarshal(r.Payload, &c) != nil {
			return nil
		}
		for i, h := range c.Hashes {
			got := sha256.Sum256(p[h])
			if checked++; hex.EncodeToString(got[:]) != h {
				found = append(found, ledger.Finding{Where: fmt.Sprintf("recording of %s, piece %d", c.Session, c.First+int64(i)), What: "changed"})
			}
		}
		return nil
	})
	return checked, found, err
}

func TestAnExportOfTheStoreVerifiesOffline(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		piece := []byte("encrypted piece")
		sum := sha256.Sum256(piece)
		hash := hex.EncodeToString(sum[:])
		blobs := pieces{hash: piece}
		mustRecord(t, s, "rec", func(*Tx) ([]ledger.Entry, error) {
			return []ledger.Entry{{Action: ledger.ActionChunks, Session: "s-1", Payload: ledger.Chunks{V: 1, Session: "s-1", Hashes: []string{hash}, Sizes: []int64{15}}}}, nil
		})
		for i := range 300 {
			mustRecord(t, s, fmt.Sprint(i), bump("a"))
			if i == 100 {
				if err := s.settle(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := s.Erase(t.Context(), "erase", "p-00000001", ledger.Entry{Payload: map[string]string{"ground": "asked"}}); err != nil {
			t.Fatal(err)
		}
		var zip bytes.Buffer
		if err := s.Export(t.Context(), &zip, blobs); err != nil {
			t.Fatal(err)
		}
		rep, err := ledger.VerifyExport(bytes.NewReader(zip.Bytes()), int64(zip.Len()), ledger.ExportOptions{LogKey: c.Verifier, Origin: c.Origin}, nil)
		if err != nil || !rep.OK || rep.Entries != 303 || rep.Erased != 300 || rep.Recordings != 1 || rep.Checkpoints != 1 {
			t.Errorf("%+v %v", rep, err)
		}
		if rep, err := s.Verify(t.Context(), nil, blobs); err != nil || !rep.OK || rep.Recordings != 1 {
			t.Errorf("%+v %v", rep, err)
		}
		blobs[hash] = []byte("another piece..")
		if rep, err := s.Verify(t.Context(), nil, blobs); err != nil || rep.OK || rep.Findings[0].Where != "recording of s-1, piece 0" {
			t.Errorf("%+v %v", rep, err)
		}
	})
}

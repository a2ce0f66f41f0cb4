package store

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// Another server's checkpoint counts as one's own: a database that does not hold
// it takes no entry, whoever was away when it was replaced.
func TestWhatAnotherServerSignedIsFaced(t *testing.T) {
	onBoth(t, func(t *testing.T, c Config) {
		s := mustOpen(t, c)
		for i := range 10 {
			mustRecord(t, s, fmt.Sprint(i), bump("a"))
		}
		older, err := ledger.SignCheckpoint(c.Origin, tlog.Tree{N: 3, Hash: hashAt(t, s, 3)}, c.Signer)
		if err != nil {
			t.Fatal(err)
		}
		longer, err := ledger.SignCheckpoint(c.Origin, tlog.Tree{N: 1000, Hash: tlog.Hash{1}}, c.Signer)
		if err != nil {
			t.Fatal(err)
		}
		own, epoch := s.Signed()
		for what, checkpoint := range map[string][]byte{"an older one": older, "its own": own, "nothing": nil} {
			if err := s.Face(t.Context(), checkpoint, epoch); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := s.Face(t.Context(), longer, c.Epoch-1); err != nil {
			t.Errorf("of an epoch that was given up: %v", err)
		}
		forged := append([]byte(nil), longer...)
		forged[len(forged)-20] ^= 1
		if err := s.Face(t.Context(), forged, epoch); err == nil {
			t.Error("what nobody signed is believed")
		}
		if d := s.Damage(); d != nil {
			t.Fatalf("damage: %v", d)
		}
		if err := s.Face(t.Context(), longer, epoch); err == nil || !strings.Contains(err.Error(), "rolled back") {
			t.Errorf("a longer one: %v", err)
		}
		if _, err := s.Record(t.Context(), "no", bump("a")); err == nil {
			t.Error("it goes on after what was lost")
		}
	})
	t.Run("fork", func(t *testing.T) {
		c := testConfig(t)
		s := mustOpen(t, c)
		for i := range 10 {
			mustRecord(t, s, fmt.Sprint(i), bump("a"))
		}
		other, err := ledger.SignCheckpoint(c.Origin, tlog.Tree{N: 7, Hash: tlog.Hash{1}}, c.Signer)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Face(t.Context(), other, c.Epoch); err == nil || !strings.Contains(err.Error(), "fork") || s.Damage() == nil {
			t.Errorf("another history: %v", err)
		}
	})
}

func hashAt(t *testing.T, s *Store, n int64) (h tlog.Hash) {
	t.Helper()
	err := s.withReader(t.Context(), s.head.Load(), func(r tlog.HashReader) (err error) {
		h, err = tlog.TreeHash(n, r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

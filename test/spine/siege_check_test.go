package spine_test

import (
	"archive/zip"
	bytesorder "encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// check looks at everything from outside, once all is over.
func (s *siege) check(w *work) {
	s.t.Helper()
	if out := s.must("ledger", "verify"); !strings.Contains(out, "nothing was touched") {
		s.t.Errorf("the server does not verify its ledger:\n%s", out)
	}
	var leaves []ledger.Leaf
	grants := s.grants()
	// Time ends grants: both are to be of one moment. And what ended while the
	// database was away is recorded when it is back.
	for late := time.Now().Add(patience); ; {
		file := filepath.Join(s.t.TempDir(), "ledger.zip")
		s.must("ledger", "export", file)
		leaves = s.verify(file)
		again := s.grants()
		if slices.Equal(grants, again) && allClosed(leaves) || time.Now().After(late) {
			break
		}
		grants = again
	}
	count := map[expected]int{}
	versions := map[string][]int64{}
	for _, l := range leaves {
		object := l.Object
		if object == "" {
			object = l.Session
		}
		count[expected{string(l.Action), object}]++
		if l.Object != "" {
			versions[l.Object] = append(versions[l.Object], l.Version)
		}
	}
	for _, e := range w.acked {
		if n := count[e]; n != 1 {
			s.t.Errorf("%s of %s was acknowledged, and is in the ledger %d times", e.action, e.object, n)
		}
	}
	for object, of := range versions {
		for n, v := range of {
			if n > 0 && v <= of[n-1] {
				s.t.Errorf("the versions of %s in the ledger are %v", object, of)
				break
			}
		}
	}
	for e, n := range count {
		if e.action == "session.opened" && (n != 1 || count[expected{"session.closed", e.object}] != 1) {
			s.t.Errorf("session %s was opened %d times and closed %d times", e.object, n, count[expected{"session.closed", e.object}])
		}
	}
	s.folds(leaves, grants)
	s.all.add(func() { s.all.Confirmed += len(w.acked); s.all.Entries += len(leaves) - s.size })
	s.size = len(leaves)
}

// allClosed says whether each session that was opened is closed.
func allClosed(leaves []ledger.Leaf) bool {
	open := map[string]bool{}
	for _, l := range leaves {
		switch l.Action {
		case "session.opened":
			open[l.Session] = true
		case "session.closed":
			delete(open, l.Session)
		}
	}
	return len(open) == 0
}

// verify checks an export against the newest checkpoint that was seen before,
// and returns what it holds.
func (s *siege) verify(file string) (leaves []ledger.Leaf) {
	s.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		s.t.Fatal(err)
	}
	report, err := ledger.VerifyExport(f, info.Size(), ledger.ExportOptions{RootHash: s.root, Anchor: s.anchor}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if !report.OK {
		s.t.Errorf("the export does not verify: %v", report.Findings)
	}
	z, err := zip.NewReader(f, info.Size())
	if err != nil {
		s.t.Fatal(err)
	}
	bundles := map[string][]byte{}
	var names []string
	for _, part := range z.File {
		if part.Name != "checkpoint" && !strings.HasPrefix(part.Name, "tile/entries/") {
			continue
		}
		r, err := part.Open()
		if err != nil {
			s.t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			s.t.Fatal(err)
		}
		if part.Name == "checkpoint" {
			s.anchor = body
			continue
		}
		bundles[part.Name] = body
		names = append(names, part.Name)
	}
	sort.Strings(names) // fewer than 1,000 bundles: their names are of one length, a part of one comes last
	for _, name := range names {
		leaves = append(leaves, unbundle(s, bundles[name])...)
	}
	return leaves
}

func unbundle(s *siege, body []byte) (leaves []ledger.Leaf) {
	s.t.Helper()
	for len(body) >= 2 {
		n := int(bytesorder.BigEndian.Uint16(body))
		leaf, err := ledger.ParseLeaf(body[2 : 2+n])
		if err != nil {
			s.t.Fatal(err)
		}
		leaves = append(leaves, leaf)
		body = body[2+n:]
	}
	return leaves
}

// shown is a grant in the list.
type shown struct{ ID, State string }

// grants are all that the server shows.
func (s *siege) grants() []shown {
	s.t.Helper()
	var list struct{ Grants []shown }
	s.reads(&list, "grants", "--all", "-o", "json")
	return list.Grants
}

// folds compares the ledger, folded, with the grants that the server shows.
func (s *siege) folds(leaves []ledger.Leaf, grants []shown) {
	s.t.Helper()
	state := map[string]string{}
	for _, l := range leaves {
		switch l.Action {
		case "grant.requested", "grant.activated", "grant.declared", "grant.ended", "grant.reviewed":
			next := strings.TrimPrefix(string(l.Action), "grant.")
			if owes := state[l.Object] == "declared"; owes && next == "ended" {
				next = "owing"
			}
			state[l.Object] = next
		}
	}
	means := map[string]string{"requested": "requested", "activated": "active", "declared": "active", "ended": "ended", "owing": "in-review", "reviewed": "closed"}
	for _, g := range grants {
		if means[state[g.ID]] != g.State {
			s.t.Errorf("grant %s is %s, and the ledger folds to %s", g.ID, g.State, state[g.ID])
		}
	}
	if len(grants) == 0 && len(state) > 0 {
		s.t.Error("the server shows no grants")
	}
}

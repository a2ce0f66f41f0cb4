package directory

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// Copy is the company as it was read, in one form: the same company is the
// same bytes. Members are places in the two lists, which are sorted by id.
type Copy struct {
	V      int     `json:"v"`
	People []Human `json:"people"`
	Groups []Group `json:"groups"`
}

// Human is somebody of the directory.
type Human struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Manager int    `json:"manager"` // place in People; -1: none that is there
	Off     string `json:"off,omitempty"`
}

// Group is a group of the directory.
type Group struct {
	ID     string `json:"id"`
	DN     string `json:"dn"`
	Name   string `json:"name"`
	People []int  `json:"people,omitempty"`
	Groups []int  `json:"groups,omitempty"` // nested
}

// copy makes the one form. Members that are not there are left out: they are
// of another branch, or gone.
func (w *world) copy() *Copy {
	c := &Copy{V: 1, People: make([]Human, 0, len(w.people)), Groups: make([]Group, 0, len(w.groups))}
	at := map[string]int{}
	for _, id := range sortedKeys(w.people) {
		at[id] = len(c.People)
		c.People = append(c.People, Human{ID: id, Name: w.people[id].name, Manager: -1, Off: w.people[id].off})
	}
	for _, id := range sortedKeys(w.groups) {
		at[id] = len(c.Groups)
		c.Groups = append(c.Groups, Group{ID: id, DN: w.groups[id].dn, Name: w.groups[id].name})
	}
	for id, h := range w.people {
		if boss, there := w.refs[h.manager]; there && w.people[boss] != nil && h.manager != (ref{}) {
			c.People[at[id]].Manager = at[boss]
		}
	}
	for id, b := range w.groups {
		g := &c.Groups[at[id]]
		for _, r := range b.members {
			switch m := w.refs[r]; {
			case w.people[m] != nil:
				g.People = append(g.People, at[m])
			case w.groups[m] != nil:
				g.Groups = append(g.Groups, at[m])
			}
		}
		slices.Sort(g.People)
		slices.Sort(g.Groups)
		g.People, g.Groups = slices.Compact(g.People), slices.Compact(g.Groups)
	}
	return c
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// pack is the copy as it is kept, and the hash of its one form.
func (c *Copy) pack() (body []byte, hash string, err error) {
	text, err := json.Marshal(c)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(text)
	var b bytes.Buffer
	z, err := flate.NewWriter(&b, flate.BestSpeed)
	if err == nil {
		_, err = z.Write(text)
	}
	if err == nil {
		err = z.Close()
	}
	return b.Bytes(), hex.EncodeToString(sum[:]), err
}

// maxCopy bounds a copy that is unpacked.
const maxCopy = 512 << 20

func unpack(body []byte, hash string) (*Copy, error) {
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(body)), maxCopy))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the copy of the directory")
	}
	sum := sha256.Sum256(text)
	if hex.EncodeToString(sum[:]) != hash {
		return nil, fault.New(fault.Internal, "cannot read the copy of the directory: it is not what was signed").WithHint("handrail directory sync")
	}
	var c Copy
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot read the copy of the directory")
	}
	return &c, nil
}

// statementTitle begins what is signed. It is no origin of a ledger, so that
// the signature can never pass for one under a checkpoint.
const statementTitle = "handrail directory copy v1"

// Statement is what the log key says of a copy: which version, when it was
// read, and its hash. Whoever holds the copy checks it with the trust bundle.
type Statement struct {
	Version int64
	Read    time.Time
	Hash    string
}

func (s Statement) sign(key note.Signer) (string, error) {
	signed, err := note.Sign(&note.Note{Text: fmt.Sprintf("%s\n%d\n%s\n%s\n", statementTitle, s.Version, s.Read.UTC().Format(time.RFC3339Nano), s.Hash)}, ledger.SignersOf(key)...)
	return string(signed), err
}

// OpenStatement checks a signed statement.
func OpenStatement(signed string, key note.Verifier) (Statement, error) {
	wrong := fault.New(fault.Invalid, "cannot believe this copy of the directory: it is not signed by this installation")
	n, err := note.Open([]byte(signed), note.VerifierList(ledger.KeysOf(key)...))
	if err != nil {
		return Statement{}, wrong
	}
	var s Statement
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 5 || lines[0] != statementTitle || lines[4] != "" {
		return Statement{}, wrong
	}
	if _, err := fmt.Sscanf(lines[1], "%d", &s.Version); err != nil {
		return Statement{}, wrong
	}
	if s.Read, err = time.Parse(time.RFC3339Nano, lines[2]); err != nil {
		return Statement{}, wrong
	}
	s.Hash = lines[3]
	return s, nil
}

// standing is which groups here everybody has by the directory, and the way:
// the groups of the directory, from the one that is mapped to the one that
// holds the person.
type standing struct {
	copy   *Copy
	of     map[int]map[string][]int // person → group here → path of groups
	absent []string                 // names in the map that no group has, or several
}

// stand follows the map through the nested groups. Each group is visited once
// for each group here, so a cycle ends, and so does the work.
func (c *Copy) stand(mapped map[string][]string) standing {
	s := standing{copy: c, of: map[int]map[string][]int{}}
	byName, byDN := map[string][]int{}, map[ref]int{}
	for i, g := range c.Groups {
		byName[fold(g.Name)] = append(byName[fold(g.Name)], i)
		if r, err := refOf(g.DN); err == nil {
			byDN[r] = i
		}
	}
	for _, here := range sortedKeys(mapped) {
		from := map[int]int{} // group → the group it was reached from; -1: named in the map
		var queue []int
		for _, name := range mapped[here] {
			start, ok := find(name, byName, byDN)
			if !ok {
				s.absent = append(s.absent, name)
				continue
			}
			if _, seen := from[start]; !seen {
				from[start] = -1
				queue = append(queue, start)
			}
		}
		for len(queue) > 0 {
			g := queue[0]
			queue = queue[1:]
			path := way(from, g)
			for _, p := range c.Groups[g].People {
				if s.of[p] == nil {
					s.of[p] = map[string][]int{}
				}
				if s.of[p][here] == nil {
					s.of[p][here] = path
				}
			}
			for _, inner := range c.Groups[g].Groups {
				if _, seen := from[inner]; !seen {
					from[inner] = g
					queue = append(queue, inner)
				}
			}
		}
	}
	return s
}

func find(name string, byName map[string][]int, byDN map[ref]int) (int, bool) {
	if strings.Contains(name, "=") {
		r, err := refOf(name)
		i, ok := byDN[r]
		return i, ok && err == nil
	}
	same := byName[fold(name)]
	if len(same) != 1 { // of two groups with one name, neither is meant
		return 0, false
	}
	return same[0], true
}

// way is the path to a group, outermost first.
func way(from map[int]int, g int) []int {
	var path []int
	for ; g >= 0; g = from[g] {
		path = append(path, g)
	}
	slices.Reverse(path)
	return path
}

// groups is the groups here of a person, sorted.
func (s standing) groups(person int) []string { return sortedKeys(s.of[person]) }

// path is the way in words: "ops ← sre ← oncall".
func (s standing) path(person int, here string) []string {
	var names []string
	for _, g := range s.of[person][here] {
		names = append(names, s.copy.Groups[g].Name)
	}
	return names
}

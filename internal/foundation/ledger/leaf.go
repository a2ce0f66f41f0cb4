package ledger

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"

	"handrail.dev/handrail/internal/foundation/fault"
)

// LeafVersion is the version that Marshal writes.
const LeafVersion = 1

// Bounds of a leaf. A C2SP entry bundle holds leaves below 64 KiB; ours stay
// far below, so that one leaf always fits one frame on the wire.
const (
	MaxLeaf     = 16 << 10
	MaxSubjects = 64
	MaxWord     = 256
)

// Leaf is the parsed envelope. It holds ids and numbers only, never a name or
// free text, since it can never be erased.
type Leaf struct {
	V         int
	Time      int64 // UTC microseconds
	Action    Action
	Subjects  []string
	Session   string
	Target    string
	Object    string
	Version   int64
	Outcome   Outcome
	Bootstrap bool
	SealTo    string // whose key seals the payload; "" is Subjects[0]
	Commit    []byte // SHA-256(salt ‖ payload)
}

// Sealer is the subject whose key seals the payload.
func (l Leaf) Sealer() string {
	if l.SealTo != "" {
		return l.SealTo
	}
	if len(l.Subjects) > 0 {
		return l.Subjects[0]
	}
	return System
}

// commitTail is how every leaf ends; the commitment is found from the end.
const (
	commitHead = `,"commit":"`
	commitTail = `"}`
	commitLen  = 44
)

// Marshal returns the exact bytes that are hashed: compact JSON with the keys
// in this order, empty ones left out, the commitment last. Check first: words
// are written without escaping.
func (l Leaf) Marshal() []byte {
	b := make([]byte, 0, 320)
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, int64(l.V), 10)
	b = append(b, `,"time":`...)
	b = strconv.AppendInt(b, l.Time, 10)
	b = appendWord(b, `,"action":"`, string(l.Action))
	b = appendWord(b, `,"outcome":"`, string(l.Outcome))
	b = append(b, `,"subjects":[`...)
	for i, s := range l.Subjects {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, s...)
		b = append(b, '"')
	}
	b = append(b, ']')
	b = appendWord(b, `,"session":"`, l.Session)
	b = appendWord(b, `,"target":"`, l.Target)
	b = appendWord(b, `,"object":"`, l.Object)
	if l.Version != 0 {
		b = append(b, `,"version":`...)
		b = strconv.AppendInt(b, l.Version, 10)
	}
	if l.Bootstrap {
		b = append(b, `,"bootstrap":true`...)
	}
	b = appendWord(b, `,"sealed":"`, l.SealTo)
	b = append(b, commitHead...)
	b = base64.StdEncoding.AppendEncode(b, l.Commit)
	return append(b, commitTail...)
}

func appendWord(b []byte, key, word string) []byte {
	if word == "" {
		return b
	}
	b = append(b, key...)
	b = append(b, word...)
	return append(b, '"')
}

// Check reports what ParseLeaf would refuse.
func (l Leaf) Check() error {
	switch {
	case l.V != LeafVersion:
		return fault.New(fault.Invalid, "cannot use leaf: version %d is not known here", l.V).WithHint("upgrade handrail")
	case l.Time <= 0:
		return fault.New(fault.Invalid, "cannot use leaf: time %d is not positive", l.Time)
	case !l.Action.valid():
		return fault.New(fault.Invalid, "cannot use leaf: action %q is not noun.verb", l.Action)
	case !l.Outcome.valid():
		return fault.New(fault.Invalid, "cannot use leaf: outcome %q is not known", l.Outcome)
	case len(l.Subjects) == 0 || len(l.Subjects) > MaxSubjects:
		return fault.New(fault.Invalid, "cannot use leaf: %d subjects, 1 to %d are allowed", len(l.Subjects), MaxSubjects)
	case l.Version < 0:
		return fault.New(fault.Invalid, "cannot use leaf: version %d of object %q", l.Version, l.Object)
	case (l.Object == "") != (l.Version == 0):
		return fault.New(fault.Invalid, "cannot use leaf: object %q and version %d belong together", l.Object, l.Version)
	case l.SealTo != "" && l.SealTo == l.Subjects[0]:
		return fault.New(fault.Invalid, "cannot use leaf: sealed to %q, its first subject, which is left out", l.SealTo)
	case len(l.Commit) != 32:
		return fault.New(fault.Invalid, "cannot use leaf: commitment of %d bytes", len(l.Commit))
	}
	for _, s := range l.Subjects {
		if s == "" {
			return fault.New(fault.Invalid, "cannot use leaf: a subject is empty")
		}
	}
	for _, w := range append([]string{string(l.Action), l.Session, l.Target, l.Object, l.SealTo}, l.Subjects...) {
		if !validWord(w) {
			return fault.New(fault.Invalid, "cannot use leaf: %.40q is not an id (printable ASCII, at most %d bytes)", w, MaxWord)
		}
	}
	return nil
}

// validWord allows what needs no escape in JSON: printable ASCII without
// space, quote, backslash, <, > and &.
func validWord(w string) bool {
	if len(w) > MaxWord {
		return false
	}
	for i := 0; i < len(w); i++ {
		if !wordByte[w[i]] {
			return false
		}
	}
	return true
}

var wordByte = func() (t [256]bool) {
	for c := 0x21; c <= 0x7e; c++ {
		t[c] = strings.IndexByte(`"\<>&`, byte(c)) < 0
	}
	return t
}()

func (o Outcome) valid() bool {
	switch o {
	case OK, Failed, Denied, Lost, Unknown:
		return true
	}
	return false
}

// valid wants at least two lower-case words joined by dots.
func (a Action) valid() bool {
	parts, start := 0, true
	for i := 0; i < len(a); i++ {
		switch c := a[i]; {
		case start && c >= 'a' && c <= 'z':
			start, parts = false, parts+1
		case !start && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'):
		case !start && c == '.':
			start = true
		default:
			return false
		}
	}
	return parts >= 2 && !start
}

// ParseLeaf accepts exactly what Marshal makes of a leaf that passes Check, so
// one leaf has one form and an auditor can read it with any JSON tool.
func ParseLeaf(b []byte) (Leaf, error) {
	if len(b) > MaxLeaf {
		return Leaf{}, fault.New(fault.Invalid, "cannot read leaf: %d bytes, at most %d are allowed", len(b), MaxLeaf)
	}
	s := &scan{rest: string(b)}
	var l Leaf
	s.want(`{"v":`)
	l.V = int(s.number())
	s.want(`,"time":`)
	l.Time = s.number()
	l.Action = Action(s.word(`,"action":"`))
	l.Outcome = Outcome(s.word(`,"outcome":"`))
	s.want(`,"subjects":[`)
	l.Subjects = s.words()
	l.Session = s.word(`,"session":"`)
	l.Target = s.word(`,"target":"`)
	l.Object = s.word(`,"object":"`)
	if s.take(`,"version":`) {
		if l.Version = s.number(); l.Version == 0 {
			s.bad = true
		}
	}
	l.Bootstrap = s.take(`,"bootstrap":true`)
	l.SealTo = s.word(`,"sealed":"`)
	s.want(commitHead)
	l.Commit = s.commit()
	if s.bad || s.rest != "" {
		return Leaf{}, fault.New(fault.Invalid, "cannot read leaf: malformed at byte %d", len(b)-len(s.rest))
	}
	return l, l.Check()
}

// CommitOf returns the encoded commitment at the end of a leaf, for verifiers
// that check millions; nil when the leaf is not one of ours.
func CommitOf(leaf []byte) []byte {
	from := len(leaf) - len(commitTail) - commitLen
	if from < len(commitHead) || string(leaf[from-len(commitHead):from]) != commitHead {
		return nil
	}
	return leaf[from : from+commitLen]
}

// actionOf returns the action of a leaf without reading the rest; "" when it
// does not begin like one of ours.
func actionOf(leaf []byte) Action {
	rest, ok := bytes.CutPrefix(leaf, leafHead)
	if !ok {
		return ""
	}
	digits := 0
	for digits < len(rest) && '0' <= rest[digits] && rest[digits] <= '9' {
		digits++
	}
	if word, ok := bytes.CutPrefix(rest[digits:], actionHead); ok && digits <= 20 { // as in every leaf of ours
		if end := bytes.IndexByte(word[:min(len(word), MaxWord+1)], '"'); end >= 0 {
			return Action(word[:end])
		}
	}
	_, rest, ok = bytes.Cut(rest[:min(len(rest), 64+MaxWord)], actionHead)
	end := bytes.IndexByte(rest, '"')
	if !ok || end < 0 {
		return ""
	}
	return Action(rest[:end])
}

var leafHead, actionHead = []byte(`{"v":1,"time":`), []byte(`,"action":"`)

// scan reads a leaf from left to right; after the first error it stays bad.
type scan struct {
	rest string
	bad  bool
}

func (s *scan) take(lit string) bool {
	if s.bad || !strings.HasPrefix(s.rest, lit) {
		return false
	}
	s.rest = s.rest[len(lit):]
	return true
}

func (s *scan) want(lit string) {
	if !s.take(lit) {
		s.bad = true
	}
}

// number reads a canonical non-negative decimal.
func (s *scan) number() int64 {
	i := 0
	for i < len(s.rest) && s.rest[i] >= '0' && s.rest[i] <= '9' {
		i++
	}
	n, err := strconv.ParseInt(s.rest[:i], 10, 64)
	if err != nil || i > 1 && s.rest[0] == '0' {
		s.bad = true
		return 0
	}
	s.rest = s.rest[i:]
	return n
}

// word reads an optional member; a member that is there is not empty.
func (s *scan) word(key string) string {
	if !s.take(key) {
		return ""
	}
	return s.quoted()
}

func (s *scan) quoted() string {
	end := strings.IndexByte(s.rest, '"')
	if end <= 0 {
		s.bad = true
		return ""
	}
	w := s.rest[:end]
	s.rest = s.rest[end+1:]
	return w
}

func (s *scan) words() []string {
	var out []string
	for !s.bad && len(out) <= MaxSubjects {
		s.want(`"`)
		out = append(out, s.quoted())
		if s.take(`]`) {
			return out
		}
		s.want(`,`)
	}
	s.bad = true
	return nil
}

func (s *scan) commit() []byte {
	if len(s.rest) != commitLen+len(commitTail) || s.rest[commitLen:] != commitTail {
		s.bad = true
		return nil
	}
	c, err := base64.StdEncoding.Strict().DecodeString(s.rest[:commitLen])
	if err != nil || len(c) != 32 {
		s.bad = true
		return nil
	}
	s.rest = ""
	return c
}

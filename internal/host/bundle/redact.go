package bundle

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"unicode"
	"unicode/utf8"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/mask"
)

// What leaves in a support bundle names nobody. Three things see to it, each for
// what the ones before it cannot know:
//
//	words     names and secrets that this installation knows become marks, or go
//	mask      what has the form of a secret goes
//	patterns  what has the form of a name goes: mail, address, host, DN, home
//
// A mark is a keyed hash, so that the same name is the same mark in each bundle
// of this installation and nobody else can try names until one fits.
//
// House rule: a doubt redacts.

// Kinds of words.
const (
	Person = "person"
	Host   = "host"
	Server = "server"
	Thing  = "name" // of anything else that somebody named
	Secret = "secret"
)

// Kinds of which Known makes things.
const (
	group = "group" // but for those that every installation has
	list  = "list"  // of them, or an address: also what stands between the points
)

const (
	leastWord   = 2 // what is shorter would take letters out of every text
	leastInside = 4 // a secret that is found inside of words
)

// Redactor takes names and secrets out of texts.
type Redactor struct {
	salt    []byte
	words   map[string]string   // in ASCII lower case → kind
	byStart map[string][]string // the same by their first run of letters, the longest first
	inside  []string            // the secrets among them
	marks   map[string]string   // mark → name, of what was met
	whole   bool                // the server said whom and what it knows
}

// NewRedactor returns one that knows no words yet. Its marks are keyed by salt.
func NewRedactor(salt []byte) *Redactor {
	return &Redactor{salt: salt, words: map[string]string{}, byStart: map[string][]string{}, marks: map[string]string{}}
}

// Learn adds words that must not leave as they are.
func (r *Redactor) Learn(kind string, words ...string) {
	for _, w := range words {
		forms := []string{w}
		if low := strings.ToLower(w); low != lower(w) {
			forms = append(forms, low, strings.ToUpper(w))
		}
		if kind == Secret {
			forms = append(forms, url.QueryEscape(w), url.PathEscape(w), strings.ReplaceAll(w, `"`, `\"`))
		}
		for _, form := range forms {
			form = lower(strings.TrimFunc(form, func(c rune) bool { return !letter(c) }))
			was := r.words[form]
			if len(form) < leastWord || was == Secret || was != "" && kind != Secret {
				continue
			}
			r.words[form] = kind
			if kind == Secret && len(form) >= leastInside {
				r.inside = append(r.inside, form)
			}
			if was != "" {
				continue
			}
			start := form[:run(form, 0)]
			r.byStart[start] = append(r.byStart[start], form)
			slices.SortStableFunc(r.byStart[start], func(a, b string) int { return len(b) - len(a) })
		}
	}
}

// LearnKnown adds what an installation says that it knows, by kind: secrets
// first, since a word is of the first kind that it is told for.
func (r *Redactor) LearnKnown(words map[string][]string) {
	for _, kind := range []string{Secret, Person, Server, Host, Thing} {
		r.Learn(kind, words[kind]...)
	}
	things := slices.Clone(words[group])
	for _, l := range words[list] {
		r.Learn(Thing, l)
		things = append(things, strings.FieldsFunc(l, func(c rune) bool { return !letter(c) && c != '-' && c != '.' })...)
	}
	for _, thing := range things {
		if !shape().ordinary.MatchString(thing) {
			r.Learn(Thing, thing)
		}
	}
}

// Words are what it has learned, by kind.
func (r *Redactor) Words() map[string][]string {
	all := map[string][]string{}
	for word, kind := range r.words {
		all[kind] = append(all[kind], word)
	}
	return all
}

// Whole says whether a server told whom and what it knows. Where none did, a
// text that could name somebody is left out.
func (r *Redactor) Whole() bool { return r.whole }

// mark stands for a name.
func (r *Redactor) mark(kind, word string) string {
	if kind == Secret {
		return mask.Hidden(Secret)
	}
	h := hmac.New(sha256.New, r.salt)
	h.Write([]byte(kind + "\x00" + lower(word)))
	const letters = 8
	m := kind + "-" + strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil))[:letters])
	r.marks[m] = word
	return m
}

// lower keeps the length, as strings.ToLower does not.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func letter(r rune) bool { return unicode.In(r, unicode.L, unicode.N, unicode.M) }

// run is where the run of letters that begins at i ends.
func run(s string, i int) int {
	for i < len(s) {
		r, size := utf8.DecodeRuneInString(s[i:])
		if !letter(r) {
			break
		}
		i += size
	}
	return i
}

// wordEnds says whether a word ends where rest begins.
func wordEnds(rest, word string) bool {
	next, _ := utf8.DecodeRuneInString(rest)
	last, _ := utf8.DecodeLastRuneInString(word)
	return !letter(next) || !letter(last)
}

// names takes the words out of a text.
func (r *Redactor) names(s string) string {
	small := lower(s)
	var out strings.Builder
	for i := 0; i < len(s); {
		end := run(small, i)
		if end == i {
			_, size := utf8.DecodeRuneInString(s[i:])
			out.WriteString(s[i : i+size])
			i += size
			continue
		}
		for _, w := range r.byStart[small[i:end]] {
			if strings.HasPrefix(small[i:], w) && wordEnds(s[i+len(w):], w) {
				out.WriteString(r.mark(r.words[w], s[i:i+len(w)]))
				i, end = i+len(w), i+len(w)
				break
			}
		}
		out.WriteString(s[i:end])
		i = end
	}
	return out.String()
}

// secrets takes them out of longer words too.
func (r *Redactor) secrets(s string) string {
	for _, w := range r.inside {
		var out strings.Builder
		for small := lower(s); ; {
			i := strings.Index(small, w)
			if i < 0 {
				break
			}
			out.WriteString(s[:i] + mask.Hidden(Secret))
			s, small = s[i+len(w):], small[i+len(w):]
		}
		s = out.String() + s
	}
	return s
}

// shapes are what texts are told apart by.
type shapes struct{ ours, places, frame, head, field, plain, causes, logins, ordinary, mode *regexp.Regexp }

var shape = sync.OnceValue(func() shapes {
	re := regexp.MustCompile
	return shapes{
		ours:     re(`(?i)^(handrail\.(dev|toml|env|db)|localhost\.localdomain|[a-z0-9_-]+\.(go|log|service|sock|key|json|db|tar|txt))$`),                                   // dotted words that every installation has
		places:   re(`^/(var/lib/handrail|etc/handrail|run|proc|sys|dev|usr)(/[A-Za-z0-9_-]{0,20})*$`),                                                                      // of every machine
		ordinary: re(`^([0-9]+(\.[0-9]+)?[a-z]{0,2}|true|false|admin|operator|developer|auditor|member|name|mail|uid|cn|email|groups|file|http|https|postgres|localhost)$`), // may stand in texts without naming anybody
		mode:     re(`^[a-z-]{1,12}$`),
		logins:   re(`://[^/\s@"]+@`),
		// A line of a Go program's last words.
		frame: re(`^(goroutine \d+ \[[a-z A-Z0-9,()]+\]:|created by [\w./-]+\.[\w.*()\[\]]+( in goroutine \d+)?|[\w./-]+\.[\w.*()\[\]]+\([0-9a-fx, {}.?]*\)|\t[\w./@+-]+\.go:\d+( \+0x[0-9a-f]+)?)$`),
		// What a line of log begins with, and one of its fields.
		head:  re(`^time=\S+ level=[A-Z]+(?:[+-]\d+)? msg=("(?:[^"\\]|\\.)*"|\S*)`),
		field: re(` ([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)`),
		plain: re(`^(\d+(\.\d+)?|true|false|(\d+(\.\d+)?(h|m|s|ms|µs|ns))+)$`),
		// What the system says, and an error is known by.
		causes: re(`(?i)(no such file or directory|permission denied|operation not permitted|no space left on device|read-only file system|too many open files|input/output error|connection refused|connection reset by peer|broken pipe|i/o timeout|context deadline exceeded|no route to host|network is unreachable|address already in use|certificate has expired|unexpected EOF|database is locked|disk I/O error|file is not a database|exit status \d+|signal: [a-z]+)`),
	}
})

type form struct {
	*regexp.Regexp
	as func(r *Redactor, match string) string
}

// forms are those of names that nobody told us.
var forms = sync.OnceValue(func() []form {
	re := regexp.MustCompile
	gone := func(what string) func(*Redactor, string) string {
		return func(*Redactor, string) string { return mask.Hidden(what) }
	}
	marked := func(kind string) func(*Redactor, string) string {
		return func(r *Redactor, m string) string { return r.mark(kind, m) }
	}
	return []form{
		{re(`[\pL\d._%+-]+@[\pL\d-]+(\.[\pL\d-]+)*`), marked("mail")},
		{re(`(?i)\b(cn|uid|ou|dc|o|sn|mail|samaccountname)=[^,;\s"')]+`), gone("directory")},
		{re(`(^|[^\w/.‹›-])/(home|Users|root)(/[^\s"':]*)?`), func(_ *Redactor, m string) string { return m[:strings.IndexByte(m, '/')] + mask.Hidden("home") }},
		{re(`\b\d{1,3}(\.\d{1,3}){3}\b`), address},
		{re(`(?i)[0-9a-f]{0,4}(:[0-9a-f]{0,4}){2,7}(%\w+)?`), address},
		{re(`(?i)\b[a-z0-9_]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\.[a-z]{2,24}\b`), dotted},
		{re(`[A-Za-z0-9+/_=-]{24,}`), dense},
	}
})

// address leaves what every machine has.
func address(r *Redactor, m string) string {
	a, err := netip.ParseAddr(m)
	if err != nil || a.IsLoopback() || a.IsUnspecified() {
		return m
	}
	return r.mark("addr", m)
}

func dotted(r *Redactor, m string) string {
	if shape().ours.MatchString(m) {
		return m
	}
	return r.mark(Host, m)
}

// dense is what a key looks like in text: long, with letters and digits.
func dense(_ *Redactor, m string) string {
	if shape().places.MatchString(m) {
		return m
	}
	if strings.ContainsAny(m, "0123456789") && strings.ContainsAny(m, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		return mask.Hidden(mask.Token)
	}
	return m
}

// known takes known words out, where the rest of a text is our own making.
func (r *Redactor) known(s string) string { return r.names(r.secrets(s)) }

// Text redacts a text that anybody may have written in part.
func (r *Redactor) Text(s string) string {
	s = shape().logins.ReplaceAllString(r.secrets(s), "://"+mask.Hidden(mask.Login)+"@") // who it is, too, before mask takes the password
	s, _ = mask.Text(s)
	for _, f := range forms() {
		// A mark that is there already is no name.
		s = f.ReplaceAllStringFunc(s, func(m string) string { return f.as(r, m) })
	}
	return r.names(s)
}

// log redacts lines of log. Where nobody said which names there are, only what
// handrail itself wrote is kept of them: time, level, message and the names of
// fields, and values that can name nobody.
func (r *Redactor) log(text []byte) []byte {
	var out bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		var fields map[string]any
		switch {
		case strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &fields) == nil:
			line = r.jsonLine(fields)
		case shape().frame.MatchString(line):
			line = r.known(line)
		case r.whole:
			line = r.Text(line)
		default:
			line = bare(line)
		}
		out.WriteString(line + "\n")
	}
	return out.Bytes()
}

// bare is a line of log without the values that could name somebody.
func bare(line string) string {
	start := shape().head.FindString(line)
	if start == "" {
		return mask.Hidden("line")
	}
	for _, f := range shape().field.FindAllStringSubmatch(line[len(start):], -1) {
		start += fmt.Sprintf(" %s=%q", f[1], bareValue(f[1], f[2]))
	}
	return start
}

func bareValue(name, value string) string {
	if known := shape().causes.FindAllString(value, -1); known != nil {
		return "… " + strings.Join(known, " … ")
	}
	if shape().plain.MatchString(value) || name == "role" || name == "part" {
		return value
	}
	return mask.Hidden("value")
}

// jsonLine is a line of log that is JSON.
func (r *Redactor) jsonLine(fields map[string]any) string {
	var out strings.Builder
	out.WriteString("{")
	const ours = "time level msg"
	for _, name := range append(strings.Fields(ours), slices.Sorted(maps.Keys(fields))...) {
		value, has := fields[name]
		delete(fields, name)
		if !has {
			continue
		}
		text, is := value.(string)
		switch {
		case !is:
			text = fmt.Sprint(value)
			fallthrough
		case !strings.Contains(ours, name):
			if text = r.Text(text); !r.whole {
				text = bareValue(name, text)
			}
		}
		if out.Len() > 1 {
			out.WriteString(",")
		}
		fmt.Fprintf(&out, "%s:%s", quoted(name), quoted(text))
	}
	return out.String() + "}"
}

func quoted(s string) []byte {
	text, _ := json.Marshal(s) // a string always marshals
	return text
}

// The salt of an installation's marks lies in its folder and never leaves it.
const saltName, saltSize = "support.salt", 32

func readSalt(dir string) ([]byte, error) {
	path := filepath.Join(dir, saltName)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		salt, err := io.ReadAll(io.LimitReader(f, saltSize))
		if err == nil && len(salt) == saltSize {
			return salt, nil
		}
		return nil, fault.New(fault.Conflict, "cannot use %s: it is not whole", path).WithHint("rm %s   # names get other marks than before", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.Denied, err, "cannot read what names are marked with").WithHint("sudo handrail support bundle FILE")
	}
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(salt)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot keep what names are marked with").WithHint("sudo handrail support bundle FILE")
	}
	return salt, nil
}

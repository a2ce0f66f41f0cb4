package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"handrail.dev/handrail/internal/foundation/fault"
)

var formats = []string{"table", "wide", "json", "yaml", "name"}

func (t *tool) checkFormat() error {
	for _, f := range formats {
		if t.format == f {
			return nil
		}
	}
	return fault.New(fault.Invalid, "cannot print as %q: known are %s", clean(t.format), strings.Join(formats, ", ")).WithHint("-o json")
}

// view is how a message looks to a person.
type view interface {
	text(w io.Writer, wide, colour bool)
	names() []string // for -o name: what another command takes as argument
}

// emit prints a message of the API in the form that -o asks for. JSON and YAML
// are the API's own shape, so that a script written against one fits the other.
func (t *tool) emit(msg proto.Message, v view) error {
	switch t.format {
	case "json", "yaml":
		raw, err := marshal(msg)
		if err != nil {
			return err
		}
		return t.structured(raw)
	case "name":
		for _, n := range v.names() {
			fmt.Fprintln(t.out(), clean(n))
		}
		return nil
	}
	v.text(t.out(), t.format == "wide", t.colour(t.Stdout))
	return nil
}

func marshal(msg proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(msg)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot print the answer")
	}
	return raw, nil
}

// structured prints JSON, indented, or as YAML. protojson varies its spaces on
// purpose; indenting settles them.
func (t *tool) structured(raw []byte) error {
	if t.format == "yaml" {
		return writeYAML(t.out(), raw)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot print the answer")
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(t.out())
	return err
}

// line prints one event of a live stream: a line of JSON, or the view.
func (t *tool) line(msg proto.Message, v view) error {
	if t.format != "json" {
		return t.emit(msg, v)
	}
	raw, err := marshal(msg)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err = b.WriteTo(t.out())
	return err
}

// colour says whether w takes colours: a terminal, and nobody asked for none.
func (t *tool) colour(w io.Writer) bool {
	_, tty := terminal(w)
	return tty && t.Env("NO_COLOR") == "" && t.Env("TERM") != "dumb"
}

// tone is what a cell wants to be noticed for; the word itself says it too.
type tone uint8

const (
	calm tone = iota
	good
	warn
	bad
	dim
)

func (n tone) wrap(s string) string {
	code := map[tone]string{good: "32", warn: "33", bad: "1;31", dim: "2"}[n]
	if code == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// cell is one value in a table.
type cell struct {
	value string
	tone  tone
}

func cells(values ...string) []cell {
	row := make([]cell, len(values))
	for i, v := range values {
		row[i].value = v
	}
	return row
}

// table is a view of a list. The columns from wide on show only in -o wide.
type table struct {
	head     []string
	wide     int // 0: all are shown
	rows     [][]cell
	ids      []string
	empty    string // what to say, on a terminal, of an empty list
	headless bool   // a later part of a table that was begun
}

func (tb *table) add(id string, row []cell) {
	tb.ids = append(tb.ids, id)
	tb.rows = append(tb.rows, row)
}

func (tb *table) names() []string { return tb.ids }

func (tb *table) text(w io.Writer, wide, colour bool) {
	if len(tb.rows) == 0 {
		if _, tty := terminal(w); tty && tb.empty != "" {
			fmt.Fprintln(w, tb.empty)
		}
		return
	}
	columns := len(tb.head)
	if !wide && tb.wide > 0 {
		columns = tb.wide
	}
	width := make([]int, columns)
	for i := range width {
		width[i] = utf8.RuneCountInString(tb.head[i])
		for _, row := range tb.rows {
			width[i] = max(width[i], utf8.RuneCountInString(clean(row[i].value)))
		}
	}
	print := func(row []cell, all tone) {
		var b strings.Builder
		for i := 0; i < columns; i++ {
			v := clean(row[i].value)
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(v))
			if n := row[i].tone; colour && (n != calm || all != calm) {
				v = max(n, all).wrap(v)
			}
			b.WriteString(v)
			if i < columns-1 {
				b.WriteString(pad + "  ")
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	if !tb.headless {
		print(cells(tb.head...), dim)
	}
	for _, row := range tb.rows {
		print(row, calm)
	}
}

// sheet is a view of one thing: names and values, one a line.
type sheet struct {
	id    string
	lines []sheetLine
	below string // free text under the values
}

type sheetLine struct {
	name string
	cell
	wide bool
}

// put adds a line unless the value is empty.
func (s *sheet) put(name, value string) *sheet { return s.toned(name, value, calm) }

func (s *sheet) toned(name, value string, n tone) *sheet {
	if value != "" {
		s.lines = append(s.lines, sheetLine{name: name, cell: cell{value, n}})
	}
	return s
}

// wide adds a line that shows only in -o wide.
func (s *sheet) wide(name, value string) *sheet {
	if value != "" {
		s.lines = append(s.lines, sheetLine{name: name, cell: cell{value, calm}, wide: true})
	}
	return s
}

// list adds several values under one name.
func (s *sheet) list(name string, values []string) *sheet {
	for i, v := range values {
		if i > 0 {
			name = ""
		}
		s.lines = append(s.lines, sheetLine{name: name, cell: cell{v, calm}})
	}
	return s
}

func (s *sheet) names() []string { return []string{s.id} }

func (s *sheet) text(w io.Writer, wide, colour bool) {
	width := 0
	for _, l := range s.lines {
		if !l.wide || wide {
			width = max(width, utf8.RuneCountInString(l.name))
		}
	}
	for _, l := range s.lines {
		if l.wide && !wide {
			continue
		}
		name := l.name + strings.Repeat(" ", width-utf8.RuneCountInString(l.name))
		value := clean(l.value)
		if colour {
			name, value = dim.wrap(name), l.tone.wrap(value)
		}
		fmt.Fprintf(w, "%s  %s\n", name, value)
	}
	if s.below != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimRight(cleanText(s.below), "\n"))
	}
}

// clean makes foreign text safe for one line of a terminal: whatever could
// move the cursor, change colours or turn the direction of text is shown as
// its escape.
func clean(s string) string { return scrub(s, "") }

// cleanText is clean for text of several lines.
func cleanText(s string) string { return scrub(s, "\n\t") }

func scrub(s, keep string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return unsafe(r) && !strings.ContainsRune(keep, r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case strings.ContainsRune(keep, r) || !unsafe(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func unsafe(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) || r == utf8.RuneError || r == 0xfeff
}

package recording

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/fault"
)

func written(kind Kind, parts ...string) (lines []string) {
	s := &scribe{kind: kind, out: func(l Line) { lines = append(lines, l.Text) }}
	for i, p := range parts {
		s.take(time.Duration(i)*time.Second, []byte(p))
	}
	s.end()
	return lines
}

func TestTextIsWhatStoodOnTheScreen(t *testing.T) {
	for _, c := range []struct {
		what string
		kind Kind
		in   []string
		want []string
	}{
		{"colours", Output, []string{"\x1b[1;31mred\x1b[0m and plain\r\n"}, []string{"red and plain"}},
		{"a sequence cut in two", Output, []string{"a\x1b", "[31", "mb\n"}, []string{"ab"}},
		{"a letter cut in two", Output, []string{"gr\xc3", "\xbcn\n"}, []string{"grün"}},
		{"a progress bar", Output, []string{"10 %\r", "55 %\r", "done\x1b[K\r\n"}, []string{"done"}},
		{"a correction while typing", Output, []string{"lss\b \b -l\r\n"}, []string{"ls -l"}},
		{"a title", Output, []string{"\x1b]0;root@web-1\x07$ id\r\n\x1b]0;x\x1b\\y\n"}, []string{"$ id", "y"}},
		{"an editor", Output, []string{"\x1b[2J\x1b[1;1Hfirst\x1b[2;1Hsecond"}, []string{"first", "second"}},
		{"a column", Output, []string{"a\x1b[10Gb\x1b[3D<\n"}, []string{"a      < b"}},
		{"controls", Output, []string{"a\x00\x07\x0e\xff\xfeb\n"}, []string{"ab"}},
		{"typed", Input, []string{"l", "x", "\x7f", "s\r", "exit\r"}, []string{"ls", "exit"}},
		{"a sequence without an end", Output, []string{"\x1b]" + strings.Repeat("x", maxSequence) + "after\n"}, []string{"after"}},
	} {
		got := written(c.kind, c.in...)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	if got := written(Output, strings.Repeat("x", 3*maxLine)); len(got) != 3 {
		t.Errorf("a line without an end became %d", len(got))
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\x1b[5Cb\x1b[3D\x1b[K\x1b[4Px\r\n\xc3"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		var lines []Line
		s := &scribe{kind: Output, out: func(l Line) { lines = append(lines, l) }}
		at := int(cut) % (len(in) + 1)
		s.take(time.Second, in[:at])
		s.take(2*time.Second, in[at:])
		s.end()
		for _, l := range lines {
			if strings.ContainsFunc(l.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) || len([]rune(l.Text)) > maxLine {
				t.Fatalf("line %q", l.Text)
			}
		}
		whole := written(Output, string(in))
		for i, l := range lines {
			if i >= len(whole) || whole[i] != l.Text {
				t.Fatalf("cut at %d: line %d is %q, whole: %q", at, i, l.Text, whole)
			}
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add((&text{lines: []Line{{At: time.Second, Kind: Output, Text: "hello"}, {At: 0, Kind: Input, Text: "ls"}}, cut: true}).encode())
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := parseText(in)
		if err != nil {
			return
		}
		again, err := parseText(got.encode())
		if err != nil || again.cut != got.cut || !slices.Equal(again.lines, got.lines) {
			t.Fatalf("%v: %+v, then %+v", err, got, again)
		}
	})
}

// FuzzIndexFile reads what whoever writes to the disk or the bucket may put there.
func FuzzIndexFile(f *testing.F) {
	r, err := New(Deps{Dir: f.TempDir(), Store: &book{}, Subjects: keys{}, Replay: keys{}})
	fatal(f, err)
	d, err := r.Draft(Header{Session: "s-aaaa1111", Person: "p-1"})
	fatal(f, err)
	raw, err := r.sealIndex(d.Header, d.key, &text{lines: []Line{{Kind: Output, Text: "hello"}}})
	fatal(f, err)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, in []byte) {
		if got, err := r.openIndex("s-aaaa1111", in); err == nil && !bytes.Equal(in, raw) && len(got.lines) != 1 {
			t.Fatalf("another file opens: %+v", got)
		}
	})
}

func find(t testing.TB, r *Recordings, session, words string) (lines []string) {
	t.Helper()
	_, err := r.Find(t.Context(), session, words, func(l Line) bool {
		lines = append(lines, l.Text)
		return true
	})
	fatal(t, err)
	return lines
}

func TestWordsAreFoundWhereverTheRecordingLies(t *testing.T) {
	buckets(t, func(t *testing.T, b blob.Store) {
		d := newDepot(t, b)
		other := d.server(0)
		d.play(d.Recordings, "s-aaaa1111", "$ systemctl restart \x1b[1mPayments\x1b[0m", "done")
		for range 2 { // without an index, and with it
			if got := find(t, d.Recordings, "s-aaaa1111", "restart pay"); len(got) != 1 || got[0] != "$ systemctl restart Payments" {
				t.Fatalf("found %q", got)
			}
		}
		if got := find(t, d.Recordings, "s-aaaa1111", "nothing of that"); len(got) != 0 {
			t.Fatalf("found %q", got)
		}
		fatal(t, d.Round(t.Context(), time.Now()))
		fatal(t, d.Round(t.Context(), time.Now().Add(later)))
		if got := find(t, other, "s-aaaa1111", "RESTART"); len(got) != 1 {
			t.Fatalf("the other server found %q", got)
		}
		if report := d.verify(other); !report.OK {
			t.Fatalf("verify: %+v", report)
		}
	})
}

func TestAnIndexTellsNobodyWithoutTheKeysAndDiesWithThem(t *testing.T) {
	dir := t.TempDir()
	b, err := blob.OpenFiles(dir)
	fatal(t, err)
	d := newDepot(t, b)
	const words = "a-password-on-the-screen"
	d.play(d.Recordings, "s-aaaa1111", words)
	d.play(d.Recordings, "s-bbbb2222", words)
	fatal(t, d.Round(t.Context(), time.Now()))
	var files [][]byte
	for _, session := range []string{"s-aaaa1111", "s-bbbb2222"} {
		path, err := d.path(session)
		fatal(t, err)
		raw, err := os.ReadFile(indexPath(path))
		fatal(t, err)
		if bytes.Contains(raw, []byte("password")) {
			t.Fatal("the words are in the file")
		}
		files = append(files, raw)
	}
	sealed := func(raw []byte) []byte { return raw[bytes.Index(raw, []byte("\"}"))+2:] } // after the head
	for i := 0; i+4 < len(sealed(files[0])); i++ {
		if part := sealed(files[0])[i : i+4]; bytes.Contains(sealed(files[1]), part) {
			t.Fatalf("two recordings of the same words share %x", part)
		}
	}
	// A file of another session, or one that was changed, is made again.
	path, err := d.path("s-aaaa1111")
	fatal(t, err)
	for _, evil := range [][]byte{files[1], files[0][:40], append(slices.Clone(files[0][:len(files[0])-1]), files[0][len(files[0])-1]^1), bytes.Repeat([]byte("x"), 100)} {
		fatal(t, os.WriteFile(indexPath(path), evil, 0o600))
		if got := find(t, d.Recordings, "s-aaaa1111", "PASSWORD"); len(got) != 1 {
			t.Fatalf("found %q", got)
		}
	}
	fatal(t, d.ring.Subjects().Destroy("p-00000001"))
	if _, err := d.Find(t.Context(), "s-aaaa1111", "password", func(Line) bool { return true }); fault.KindOf(err) != fault.NotFound {
		t.Fatalf("after the erasure: %v", err)
	}
}

// BenchmarkSearch searches 1,000 recordings of a shell's usual size.
func BenchmarkSearch(b *testing.B) {
	bucket, err := blob.OpenFiles(b.TempDir())
	fatal(b, err)
	d := newDepot(b, bucket)
	var size, index int64
	var sessions []string
	for n := range 1000 {
		session := fmt.Sprintf("s-%08d", n)
		var lines []string
		for i := range 400 {
			lines = append(lines, fmt.Sprintf("\x1b[32m%08x\x1b[0m request %d of customer %x took %d ms", rand.Uint32(), i, rand.Uint32(), rand.IntN(900)))
		}
		d.play(d.Recordings, session, lines...)
		_, err := d.Find(b.Context(), session, "warm", func(Line) bool { return true })
		fatal(b, err)
		path, _ := d.path(session)
		st, err := os.Stat(path)
		fatal(b, err)
		ix, err := os.Stat(indexPath(path))
		fatal(b, err)
		size, index, sessions = size+st.Size(), index+ix.Size(), append(sessions, session)
	}
	b.ResetTimer()
	for b.Loop() {
		for _, s := range sessions {
			_, err := d.Find(b.Context(), s, "customer ffff", func(Line) bool { return true })
			fatal(b, err)
		}
	}
	b.ReportMetric(float64(index)/float64(size), "index/recording")
	b.ReportMetric(float64(size)/1000, "bytes/recording")
}

package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/test/s3"
)

// stores runs a test on each kind of store.
func stores(t *testing.T, test func(t *testing.T, s Store)) {
	t.Run("files", func(t *testing.T) {
		s, err := OpenFiles(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		test(t, s)
	})
	t.Run("s3", func(t *testing.T) { test(t, bucket(t, s3.Start(t, true), "s3://"+s3.Bucket+"/of/handrail")) })
}

func bucket(t *testing.T, server *s3.Server, url string) *Bucket {
	t.Helper()
	s, err := Settings{Bucket: url, Endpoint: server.URL, CA: server.CA, Access: s3.Access, Secret: s3.Secret}.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s.(*Bucket)
}

func put(t *testing.T, s Store, name string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(content)); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func get(t *testing.T, s Store, name string, offset, length int64) []byte {
	t.Helper()
	in, err := s.Get(t.Context(), name, offset, length)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	defer in.Close()
	out, err := io.ReadAll(in)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	return out
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Fatalf("got %v (%v), want %v", err, fault.KindOf(err), kind)
	}
}

func listAll(t *testing.T, s Store, prefix string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	for i, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[i.Name]; twice {
			t.Fatalf("%s is listed twice", i.Name)
		}
		all[i.Name] = i.Size
	}
	return all
}

func TestWhatIsPutIsReadInRangesAndNeverOverwritten(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		content := make([]byte, 300<<10)
		_, _ = rand.Read(content)
		const name = "ab/s-1234/000000"
		_, err := s.Stat(t.Context(), name)
		wantKind(t, err, fault.NotFound)
		_, err = s.Get(t.Context(), name, 0, -1)
		wantKind(t, err, fault.NotFound)
		put(t, s, name, content)
		wantKind(t, s.Put(t.Context(), name, bytes.NewReader([]byte("something else"))), fault.Conflict)
		for _, r := range [][2]int64{{0, -1}, {0, 1}, {7, 1000}, {int64(len(content)) - 1, 1}, {100, -1}, {0, int64(len(content))}} {
			want := content[r[0]:]
			if r[1] >= 0 {
				want = want[:r[1]]
			}
			if got := get(t, s, name, r[0], r[1]); !bytes.Equal(got, want) {
				t.Fatalf("range %v: %d bytes, want %d", r, len(got), len(want))
			}
		}
		for _, r := range [][2]int64{{0, int64(len(content)) + 1}, {int64(len(content)), -1}, {int64(len(content)), 1}, {-1, 5}, {0, 0}, {5, -2}} {
			_, err := s.Get(t.Context(), name, r[0], r[1])
			wantKind(t, err, fault.Invalid)
		}
		info, err := s.Stat(t.Context(), name)
		if err != nil || info.Size != int64(len(content)) || info.Name != name || info.Modified.IsZero() {
			t.Fatalf("stat: %+v %v", info, err)
		}
	})
}

func TestNamesAndSizesAreBounded(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		for _, name := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "A", "a b", "a\x00", "ä", "a%2f", strings.Repeat("a", 201)} {
			wantKind(t, s.Put(t.Context(), name, bytes.NewReader([]byte("x"))), fault.Invalid)
			_, err := s.Get(t.Context(), name, 0, -1)
			wantKind(t, err, fault.Invalid)
			_, err = s.Stat(t.Context(), name)
			wantKind(t, err, fault.Invalid)
			wantKind(t, s.Delete(t.Context(), name), fault.Invalid)
		}
		wantKind(t, s.Put(t.Context(), "a", bytes.NewReader(nil)), fault.Invalid)
		wantKind(t, s.Put(t.Context(), "a", io.NewSectionReader(nil, 0, MaxSize+1)), fault.Invalid)
		for _, err := range s.List(t.Context(), "../") {
			wantKind(t, err, fault.Invalid)
		}
	})
}

func TestListsHoldEachNameOnceAndDeletedOnesNot(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		want := map[string]int64{}
		for i := range 25 {
			name := fmt.Sprintf("%02d/s-%d/000000", i%3, i)
			put(t, s, name, bytes.Repeat([]byte("x"), i+1))
			want[name] = int64(i + 1)
		}
		check := func(prefix string) {
			t.Helper()
			got := listAll(t, s, prefix)
			for name, size := range want {
				if strings.HasPrefix(name, prefix) != (got[name] == size) {
					t.Errorf("prefix %q: %s has size %d", prefix, name, got[name])
				}
				delete(got, name)
			}
			if len(got) > 0 {
				t.Errorf("prefix %q: %v too many", prefix, got)
			}
		}
		for _, prefix := range []string{"", "00/", "01/s-1", "01/s-1/", "zz/"} {
			check(prefix)
		}
		for name := range want {
			if len(want) < 20 {
				break
			}
			for range 2 { // the second time it is not there
				if err := s.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			delete(want, name)
		}
		check("")
		put(t, s, "a-name/that-was/deleted", []byte("1"))
		if err := s.Delete(t.Context(), "a-name/that-was/deleted"); err != nil {
			t.Fatal(err)
		}
		put(t, s, "a-name/that-was/deleted", []byte("22"))
		if got := get(t, s, "a-name/that-was/deleted", 0, -1); string(got) != "22" {
			t.Fatalf("%q", got)
		}
	})
}

func TestOfManyWhoPutOneNameOneSucceeds(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		var won atomic.Int32
		var winner atomic.Value
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				content := fmt.Sprintf("writer %d", i)
				err := s.Put(t.Context(), "one/name", strings.NewReader(content))
				switch {
				case err == nil:
					won.Add(1)
					winner.Store(content)
				case fault.KindOf(err) != fault.Conflict:
					t.Errorf("writer %d: %v", i, err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d writers were told that theirs is there", won.Load())
		}
		if got := get(t, s, "one/name", 0, -1); string(got) != winner.Load() {
			t.Fatalf("%q is there, %q won", got, winner.Load())
		}
	})
}

func TestAStoreCanBeTried(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		if err := Try(t.Context(), s, "tried"); err != nil {
			t.Fatal(err)
		}
		if left := listAll(t, s, ""); len(left) > 0 {
			t.Fatalf("left behind: %v", left)
		}
	})
}

// TestAFileThatIsNotWholeIsNotThere is a put that was killed before its end.
func TestAFileThatIsNotWholeIsNotThere(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	torn := io.NewSectionReader(shortReader{}, 0, 10)
	wantKind(t, s.Put(t.Context(), "ab/torn", torn), fault.Unavailable)
	if err := os.WriteFile(filepath.Join(dir, "ab", unfinished+"killed"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all := listAll(t, s, ""); len(all) != 0 {
		t.Fatalf("listed: %v", all)
	}
	put(t, s, "ab/torn", []byte("whole"))
}

type shortReader struct{}

func (shortReader) ReadAt(p []byte, at int64) (int, error) {
	if at >= 5 {
		return 0, io.EOF
	}
	return copy(p, "12345"[at:]), io.EOF
}

func TestErrorsOfTheBucketSayWhatToDo(t *testing.T) {
	server := s3.Start(t, false)
	at := Settings{Bucket: "s3://" + s3.Bucket, Endpoint: server.URL, Access: s3.Access, Secret: s3.Secret}
	for what, c := range map[string]struct {
		change func(*Settings)
		kind   fault.Kind
		says   string
	}{
		"wrong secret": {func(s *Settings) { s.Secret = "another" }, fault.Denied, "the secret key is not that of access key " + s3.Access},
		"unknown key":  {func(s *Settings) { s.Access = "nobody" }, fault.Denied, "not know access key nobody"},
		"no bucket":    {func(s *Settings) { s.Bucket = "s3://another" }, fault.NotFound, "there is no bucket another"},
		"wrong region": {func(s *Settings) { s.Region = "mars-1" }, fault.Invalid, "not in region mars-1"},
	} {
		t.Run(what, func(t *testing.T) {
			set := at
			c.change(&set)
			s, err := set.Open()
			if err != nil {
				t.Fatal(err)
			}
			err = s.(*Bucket).put(t.Context(), "x", strings.NewReader("x"))
			wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.says) || fault.From(err).Hint == "" {
				t.Fatalf("%v (hint %q) does not say %q", err, fault.From(err).Hint, c.says)
			}
			if strings.Contains(err.Error(), s3.Secret) {
				t.Fatalf("the secret is in %v", err)
			}
		})
	}
	b := bucket(t, server, "s3://"+s3.Bucket)
	b.pause = 1
	put(t, b, "kept", []byte("kept"))
	server.Stop()
	_, err := b.Stat(t.Context(), "kept")
	wantKind(t, err, fault.Unavailable)
	server.Again()
	if got := get(t, b, "kept", 0, -1); string(got) != "kept" {
		t.Fatalf("%q", got)
	}
}

func TestSettingsThatAreNotSafeAreRefused(t *testing.T) {
	fine := Settings{Bucket: "s3://recordings/a/b", Endpoint: "https://s3.example.com:9000", Access: "a", Secret: "b"}
	if err := fine.Check(); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Settings){
		"no TLS":       func(s *Settings) { s.Endpoint = "http://s3.example.com" },
		"a lookalike":  func(s *Settings) { s.Endpoint = "http://127.0.0.1.example.com" },
		"a login":      func(s *Settings) { s.Endpoint = "https://a:b@s3.example.com" },
		"a path":       func(s *Settings) { s.Endpoint = "https://s3.example.com/x" },
		"no bucket":    func(s *Settings) { s.Bucket = "" },
		"a host":       func(s *Settings) { s.Bucket = "https://s3.example.com/recordings" },
		"climbing":     func(s *Settings) { s.Bucket = "s3://recordings/../other" },
		"relative":     func(s *Settings) { s.Bucket = "file://recordings" },
		"a region":     func(s *Settings) { s.Region = "eu/../../x" },
		"no key":       func(s *Settings) { s.Access = "" },
		"the root":     func(s *Settings) { s.Bucket = "file:///" },
		"a query":      func(s *Settings) { s.Bucket = "s3://recordings/?x=y" },
		"dots":         func(s *Settings) { s.Bucket = "s3://rec..ordings" },
		"capital":      func(s *Settings) { s.Bucket = "s3://recordings/A" },
		"another kind": func(s *Settings) { s.Bucket = "gs://recordings" },
	} {
		s := fine
		change(&s)
		if err := s.Check(); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWhatIsReadIsTheWholeRangeOrAnError(t *testing.T) {
	in := &exactly{in: io.NopCloser(strings.NewReader("12345")), left: 6}
	if got, err := io.ReadAll(in); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%q %v", got, err)
	}
	in = &exactly{in: io.NopCloser(strings.NewReader("12345")), left: 4}
	if got, err := io.ReadAll(in); string(got) != "1234" || err != nil {
		t.Fatalf("%q %v", got, err)
	}
}

func TestPutAfterTheEndOfItsContextPutsNothing(t *testing.T) {
	stores(t, func(t *testing.T, s Store) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Put(ctx, "late", strings.NewReader("late")); err == nil {
			t.Fatal("it was put")
		}
		_, err := s.Stat(t.Context(), "late")
		wantKind(t, err, fault.NotFound)
	})
}

package spine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"handrail.dev/handrail/test/s3"
)

// inBucket configures a bucket of a real server for what starts next.
func inBucket(t *testing.T, keepLocal string) *s3.Server {
	t.Helper()
	server := s3.Start(t, false)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"s3.secret": s3.Secret + "\n",
		"handrail.toml": fmt.Sprintf("[recordings]\nbucket = \"s3://%s/handrail\"\nendpoint = %q\naccess-key = %q\nsecret-file = \"s3.secret\"\nkeep-local = %q\n",
			s3.Bucket, server.URL, s3.Access, keepLocal),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("HANDRAIL_CONFIG", filepath.Join(dir, "handrail.toml"))
	return server
}

// Recordings leave for the bucket, are replayed and searched out of it, and an
// erasure empties it.
func TestRecordingsGoToABucketAndAreFoundThere(t *testing.T) {
	server := inBucket(t, "1s")
	i := up(t, t.TempDir())
	i.needShells()
	ada := i.first()
	host := ada.hostname()
	ben, zyx := ada.add("ben", "operator"), ada.add("zyxquetzal", "developer")
	zyx.ok("ssh", host, "--", "echo a ququxoutput of 42")
	var list struct{ Sessions []struct{ ID string } }
	ada.json(&list, "sessions", "-o", "json")
	session := list.Sessions[0].ID

	if out := ada.ok("config", "explain"); !strings.Contains(out, "recordings.bucket") || strings.Contains(out, s3.Secret) {
		t.Errorf("config explain says:\n%s", out)
	}
	files := func() []string {
		found, err := filepath.Glob(filepath.Join(i.data, "server", "recordings", "*", "*.rec"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	objects := func() []string {
		found, err := filepath.Glob(filepath.Join(server.Dir, s3.Bucket, "handrail", "*", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	i.until("the file to be in the bucket alone", func() bool {
		ada.ok("recordings", "move")
		return len(files()) == 0
	})
	if n := len(objects()); n != 2 {
		t.Errorf("%d objects, a recording and its index are wanted", n)
	}
	if found := traces(t, server.Dir, []string{"ququxoutput", "zyxquetzal"}); len(found) > 0 {
		t.Errorf("the bucket can be read: %v", found)
	}
	if out := ada.ok("replay", session); !strings.Contains(out, "ququxoutput") {
		t.Errorf("the replay says %q", out)
	}
	r := ada.run("sessions", "search", "QuquxOutput", "of")
	if r.code != 0 || !strings.Contains(r.out, "a ququxoutput of 42") || !strings.Contains(r.err, "handrail replay "+session+" --at ") {
		t.Errorf("the search finds (exit %d):\n%s%s", r.code, r.out, r.err)
	}
	if out := ada.ok("ledger", "list"); !strings.Contains(out, "searched 1 recordings for “QuquxOutput of”") {
		t.Errorf("the ledger says:\n%s", out)
	}
	ada.ok("ledger", "verify")

	// Somebody changes the bucket.
	part := filepath.Join(filepath.Dir(objects()[0]), "000000")
	raw, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(part, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := ada.run("ledger", "verify"); r.code == 0 || !strings.Contains(r.out+r.err, session) {
		t.Errorf("a changed object is not found (exit %d):\n%s%s", r.code, r.out, r.err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(part, raw, 0o600); err != nil {
		t.Fatal(err)
	}

	ada.ok("lock", "zyxquetzal", "--reason", "to be erased")
	asking := ada.refused(4, "ledger", "erase", "zyxquetzal", "--ground", "left", "--yes", "-o", "name")
	ben.ok("approve", strings.TrimSpace(asking.out), "--yes")
	i.until("the bucket to be empty", func() bool { return len(objects()) == 0 })
	ada.ok("ledger", "verify")
	if out := ada.run("sessions", "search", "ququxoutput"); strings.Contains(out.out, "ququxoutput of 42") {
		t.Errorf("found after the erasure:\n%s", out.out)
	}
}

package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/blob"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

// recordingsSection is [recordings]: where finished recordings go, and how long
// they are kept where.
type recordingsSection struct {
	blob.Settings
	KeepLocal  string `toml:"keep-local" json:"keep_local,omitempty"`
	Keep       string `toml:"keep" json:"keep,omitempty"`
	WaitingGiB int64  `toml:"waiting-gib" json:"waiting_gib,omitempty"`
}

const (
	recordingsAccessEnv = "HANDRAIL_RECORDINGS_ACCESS_KEY"
	recordingsSecretEnv = "HANDRAIL_RECORDINGS_SECRET_KEY"

	// keepLocalUsually is how long a file stays once its objects are there.
	keepLocalUsually = 24 * time.Hour
	maxWaitingGiB    = 1 << 20
)

const recordingsHelp = `And one for where finished recordings go. They are always written to a file of
their server first; any server of the installation reads them out of the bucket:

  [recordings]
  bucket = "s3://recordings/handrail"  # or file:///mnt/shared; empty: they stay files
  endpoint = "https://s3.example.com"  # without it Amazon's, of the region
  region = "us-east-1"
  path-style = false                   # the bucket stands in the path of the URL
  ca-file = "s3-ca.pem"                # whom to trust beside the system's
  access-key = "AKIA…"                 # or HANDRAIL_RECORDINGS_ACCESS_KEY
  secret-file = "s3.secret"            # mode 600; or HANDRAIL_RECORDINGS_SECRET_KEY
  keep-local = "1d"                    # the file, once its objects were read back
  keep = "400d"                        # the recording; without it for ever
  waiting-gib = 20                     # what may wait for the bucket; beyond it no session opens
`

// durations reads the texts of the table.
func (r *recordingsSection) durations() (local, keep time.Duration, err error) {
	local = keepLocalUsually
	if r.KeepLocal != "" {
		if local, err = when.Duration(r.KeepLocal); err != nil {
			return 0, 0, fault.Wrap(fault.Invalid, err, "cannot keep files of recordings for %q", r.KeepLocal)
		}
	}
	if r.Keep != "" {
		if keep, err = when.Duration(r.Keep); err != nil {
			return 0, 0, fault.Wrap(fault.Invalid, err, "cannot keep recordings for %q", r.Keep)
		}
		if keep < leastRetention {
			return 0, 0, fault.New(fault.Invalid, "cannot keep recordings for %s only: a day is the least", r.Keep)
		}
	}
	return local, keep, nil
}

// check says what is wrong with the table, before its secrets are read.
func (r *recordingsSection) check() error {
	if r == nil {
		return nil
	}
	if r.WaitingGiB < 0 || r.WaitingGiB > maxWaitingGiB {
		return fault.New(fault.Invalid, "cannot let %d GiB of recordings wait: 1 to %d", r.WaitingGiB, maxWaitingGiB)
	}
	if _, _, err := r.durations(); err != nil || r.Bucket == "" {
		return err
	}
	set := r.Settings
	if set.Access == "" {
		set.Access = "of the environment" // or missing, which complete says
	}
	return set.Check()
}

// complete reads what the table names. The environment wins over it.
func (r *recordingsSection) complete(config string) (err error) {
	if r == nil || r.Bucket == "" || strings.HasPrefix(r.Bucket, "file:") {
		return nil
	}
	if r.CA != "" {
		if r.CA, err = pemFile(config, r.CA); err != nil {
			return err
		}
	}
	if key := os.Getenv(recordingsAccessEnv); key != "" {
		r.Access = key
	}
	if r.Secret = os.Getenv(recordingsSecretEnv); r.Secret == "" && r.KeyFile != "" {
		text, err := secretFile(config, r.KeyFile)
		if err != nil {
			return err
		}
		r.Secret, r.Token, _ = strings.Cut(string(text.Reveal()), "\n")
		r.Secret, r.Token = strings.TrimSpace(r.Secret), strings.TrimSpace(r.Token)
	}
	if r.Access == "" || r.Secret == "" {
		return fault.New(fault.Invalid, "cannot use the bucket %s: it needs an access-key and a secret-file, or %s and %s", r.Bucket, recordingsAccessEnv, recordingsSecretEnv)
	}
	return r.Check()
}

// pemFile reads certificates, whose name may be beside the configuration.
func pemFile(config, name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(config), name)
	}
	info, err := os.Stat(name)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxPEM) {
		err = fmt.Errorf("it is no file of at most %d bytes", maxPEM)
	}
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot read the ca-file of [recordings]")
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", fault.Wrap(fault.Invalid, err, "cannot read the ca-file of [recordings]")
	}
	return string(text), nil
}

// explained are the table's settings, for `handrail config explain`.
func (r *recordingsSection) explained(from string) []setting {
	if r == nil {
		return nil
	}
	secret := "(not given)"
	switch {
	case os.Getenv(recordingsSecretEnv) != "":
		secret = "(of " + recordingsSecretEnv + ")"
	case r.KeyFile != "":
		secret = "(in " + r.KeyFile + ")"
	}
	access, by := r.Access, from
	if key := os.Getenv(recordingsAccessEnv); key != "" {
		access, by = key, recordingsAccessEnv
	}
	local, keep, _ := r.durations()
	forever := "for ever"
	if keep > 0 {
		forever = r.Keep
	}
	return []setting{
		{Name: "recordings.bucket", Value: r.Bucket, From: from, About: "where finished recordings go"},
		{Name: "recordings.endpoint", Value: r.Endpoint, From: from, About: "of the storage"},
		{Name: "recordings.access-key", Value: access, From: by, About: "who handrail is there"},
		{Name: "recordings.secret", Value: secret, From: from, About: "never shown"},
		{Name: "recordings.keep-local", Value: local.String(), From: from, About: "how long a file stays once it is there"},
		{Name: "recordings.keep", Value: forever, From: from, About: "how long a recording is kept"},
	}
}

// archive is where this server's finished recordings go.
func (s *Server) archive() (*recording.Archive, error) {
	a := &recording.Archive{
		Store: s.store,
		Ended: func(ctx context.Context, ids []string) (map[string]recording.Ended, error) {
			return s.sessions.Ended(ctx, ids)
		},
		Of: func(ctx context.Context, person string) ([]string, error) { return s.sessions.Of(ctx, person) },
	}
	r := s.c.sections.Recordings
	if r == nil {
		return a, nil
	}
	var err error
	if a.Local, a.Keep, err = r.durations(); err != nil || r.Bucket == "" {
		return a, err
	}
	a.Place, a.Waiting = r.Place(), r.WaitingGiB<<30
	a.Bucket, err = r.Open()
	return a, err
}

// lookTime is how long the doctor waits for the bucket.
const lookTime = 5 * time.Second

// checkBucket says whether the bucket answers and recordings get there. It looks
// and puts nothing.
func (s *Server) checkBucket(ctx context.Context) ([]finding, error) {
	at := s.recordings.Status()
	if at.Place == "" {
		return nil, nil
	}
	bad := finding{ID: "bucket-behind", Group: "recordings", Bad: at.Delayed, Fix: "handrail recordings"}
	if at.Failed != "" || at.Delayed {
		bad.What = fmt.Sprintf("%d finished recordings wait for the bucket: %s", at.Waiting, orWords(at.Failed, "for too long"))
		return one(bad), nil
	}
	set := s.c.sections.Recordings
	bucket, err := set.Open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	for _, err := range bucket.List(ctx, "") {
		if err != nil {
			bad.ID, bad.Bad, bad.What = "bucket-away", true, fault.From(err).Text
			return one(bad), nil
		}
		break
	}
	return nil, nil
}

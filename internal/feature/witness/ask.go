package witness

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/ledger"
)

const (
	maxAnswer = 16 << 10
	maxAsks   = 3 // to learn where the witness stands, and to race others who ask
)

// newClient speaks to witnesses. Whose certificate answers does not matter:
// what counts is the cosignature, which is verified; who sits in between can
// only keep it from us, and that is an alarm.
func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
			MaxIdleConnsPerHost: 2, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: maxAnswer,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// asked is what one witness said.
type asked struct {
	cosignature *ledger.Cosignature
	size        int64 // of the tree that it cosigned last, when it said so; else -1
	why         string
	forked      bool
}

// ask shows the tree to one witness and reports.
func (c *Circle) ask(ctx context.Context, m *member, tree tlog.Tree, signed []byte, answers chan<- *ledger.Cosignature) {
	start := time.Now()
	c.mu.Lock()
	old, key, url := m.size, m.Key, m.URL
	c.mu.Unlock()
	a := c.askFrom(ctx, key, url, old, tree, signed)
	c.mu.Lock()
	m.busy, m.took = false, time.Since(start)
	if m.why, m.forked = a.why, a.forked; a.cosignature != nil {
		m.good, m.at, m.size = time.Now(), a.cosignature.Time, tree.N
	} else if a.size > tree.N {
		m.size = 0 // nobody signed this: next time it has to say it again
	} else if a.size >= 0 {
		m.size = a.size
	}
	c.mu.Unlock()
	answers <- a.cosignature
}

// askFrom submits, and learns from a conflict where the witness stands.
func (c *Circle) askFrom(ctx context.Context, key ledger.WitnessKey, url string, old int64, tree tlog.Tree, signed []byte) (a asked) {
	for range maxAsks {
		if old > tree.N {
			return asked{size: old, why: fmt.Sprintf("it has cosigned %d entries, and this ledger holds %d: an older copy was put back, or somebody else writes in its name", old, tree.N)}
		}
		proof, err := c.d.Store.Consistency(ctx, old, tree.N)
		if err != nil {
			return asked{size: -1, why: err.Error()}
		}
		if old == 0 || old == tree.N {
			proof = nil
		}
		a = c.submit(ctx, key, url, ledger.Submission{Old: old, Proof: proof, Checkpoint: signed})
		if a.size < 0 || a.size == old || a.cosignature != nil {
			break
		}
		old = a.size
	}
	if a.cosignature == nil && a.size == old && old == tree.N && a.size >= 0 {
		a.why, a.forked = fmt.Sprintf("it has cosigned another history of %d entries", old), true
	}
	return a
}

// submit is one request.
func (c *Circle) submit(ctx context.Context, key ledger.WitnessKey, url string, s ledger.Submission) asked {
	silent := func(format string, args ...any) asked { return asked{size: -1, why: fmt.Sprintf(format, args...)} }
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+addPath, bytes.NewReader(s.Marshal()))
	if err != nil {
		return silent("its address cannot be used: %v", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return silent("it does not answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil || len(body) > maxAnswer {
		return silent("its answer was cut short or too long")
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if got := ledger.Cosignatures(append(bytes.Clone(s.Checkpoint), body...), key); len(got) == 1 {
			return asked{cosignature: &got[0], size: -1}
		}
		return silent("its answer holds no cosignature of its key")
	case http.StatusConflict:
		n, err := strconv.ParseInt(strings.TrimSuffix(string(body), "\n"), 10, 64)
		if err != nil || n < 0 {
			return silent("it refuses, and does not say where it stands")
		}
		return asked{size: n, why: "it refuses: others ask it in this ledger's name at the same time"}
	case http.StatusUnprocessableEntity:
		return asked{size: -1, forked: true, why: fmt.Sprintf("it says that this ledger does not extend the %d entries that it cosigned", s.Old)}
	case http.StatusNotFound, http.StatusForbidden:
		return silent("it does not know this ledger or its log key (%d)", resp.StatusCode)
	}
	return silent("it answers %d", resp.StatusCode)
}

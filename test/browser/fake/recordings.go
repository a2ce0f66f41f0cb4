package fake

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type recordings struct {
	handrailv1connect.UnimplementedRecordingsHandler
	a *API
}

// Search looks into the one film that there is. It says of mallory that the
// caller may not, and breaks off after "checkout" was found, when asked for it on
// build-1.
func (r recordings) Search(_ context.Context, q *v1.SearchRecordingsRequest, out *connect.ServerStream[v1.SearchRecordingsResponse]) error {
	r.a.mu.Lock()
	r.a.Searches++
	x := copyOf(r.a.session("s-9b3n7m1q"))
	r.a.mu.Unlock()
	words := strings.ToLower(strings.Join(strings.Fields(q.Words), " "))
	if len(words) < 2 {
		return wrong(fault.New(fault.Invalid, "cannot search for %d letters: 2 to 200", len(words)))
	}
	if q.Person == "mallory" {
		return wrong(fault.New(fault.Denied, "cannot replay the sessions of mallory: only an auditor may").WithRule("replay-by-auditors").WithHint("handrail policy explain"))
	}
	sum := &v1.SearchSummary{Recordings: 212, Denied: 1, Elsewhere: 12, Unread: 2, Cut: 1, More: words == "checkout", Next: "s-9b3n7m1q"}
	for _, e := range film() {
		text, kind := string(e.Data), e.Kind
		if kind == "chapter" {
			text, kind = e.Text, "input"
		}
		for line := range strings.SplitSeq(text, "\n") {
			line = strings.TrimSpace(plain.Replace(line))
			if !strings.Contains(strings.ToLower(line), words) {
				continue
			}
			if r.a.kind == Hostile {
				line += Poison
			}
			sum.Hits++
			at := time.Duration(e.OffsetMicros) * time.Microsecond
			if err := out.Send(&v1.SearchRecordingsResponse{Hit: &v1.SearchHit{Session: x, Offset: lasting(at), Kind: kind, Line: line}}); err != nil {
				return err
			}
		}
	}
	if q.Host == "build-1" {
		return wrong(fault.New(fault.Unavailable, "cannot search to the end: the storage is away").WithHint("handrail recordings"))
	}
	return out.Send(&v1.SearchRecordingsResponse{Summary: sum})
}

// plain takes from the film what only a terminal understands.
var plain = strings.NewReplacer("\x1b[1;41;97m", "", "\x1b[1;31m", "", "\x1b[31m", "", "\x1b[32m", "", "\x1b[33m", "", "\x1b[0m", "", "\r", "")

package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/session"
)

type recordings struct{ d *Deps }

func (s recordings) Search(ctx context.Context, r *handrailv1.SearchRecordingsRequest, out *connect.ServerStream[handrailv1.SearchRecordingsResponse]) error {
	q := session.SearchQuery{Words: r.Words, Before: r.Before}
	if r.Host != "" {
		h, err := s.d.Hosts.Get(ctx, r.Host)
		if err != nil {
			return err
		}
		q.Host = h.ID
	}
	if r.Person != "" {
		p, err := s.d.People.Get(ctx, r.Person)
		if err != nil {
			return err
		}
		q.Person = p.ID
	}
	if r.Since != nil {
		q.Since = r.Since.AsTime()
	}
	done, err := s.d.Sessions.Search(ctx, caller(ctx), q, func(h session.Hit) error {
		return out.Send(&handrailv1.SearchRecordingsResponse{Hit: &handrailv1.SearchHit{
			Session: sessionMessage(h.Session), Offset: durationpb.New(h.Line.At), Kind: h.Line.Kind.String(), Line: h.Line.Text,
			At: stamp(h.Session.Started + h.Line.At.Microseconds()),
		}})
	})
	if err != nil {
		return err
	}
	return out.Send(&handrailv1.SearchRecordingsResponse{Summary: &handrailv1.SearchSummary{
		Recordings: uint32(done.Recordings), Hits: uint32(done.Hits), Denied: uint32(done.Denied), Elsewhere: uint32(done.Elsewhere),
		Unread: uint32(done.Unread), Cut: uint32(done.Cut), More: done.More, Next: done.Next,
	}})
}

func (s recordings) Storage(_ context.Context, r *handrailv1.RecordingStorageRequest) (*handrailv1.RecordingStorageResponse, error) {
	if r.Now {
		s.d.Recordings.Nudge()
	}
	at := s.d.Recordings.Status()
	out := &handrailv1.RecordingStorageResponse{
		Place: at.Place, Here: uint32(at.Here), Waiting: uint32(at.Waiting), WaitingBytes: uint64(at.Bytes), Limit: uint64(at.Limit),
		Failed: at.Failed, Delayed: at.Delayed, Rounds: at.Rounds,
	}
	if !at.Oldest.IsZero() {
		out.Oldest = stampTime(at.Oldest.Truncate(time.Second))
	}
	return out, nil
}

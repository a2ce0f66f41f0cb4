package rpc

import (
	"context"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
)

type erasures struct{ d *Deps }

func (s erasures) Ask(ctx context.Context, r *handrailv1.AskErasureRequest) (*handrailv1.AskErasureResponse, error) {
	approval, err := s.d.Erasures.Ask(ctx, caller(ctx), r.Person, r.Ground)
	return &handrailv1.AskErasureResponse{Approval: approval}, err
}

func subjectErased(s *said) string {
	p := read[struct{ Of, Ground string }](s)
	if p.Of != "" {
		return "a request was erased with " + s.names.name(p.Of) + ", who took part in it"
	}
	return s.who() + " had " + s.names.name(s.Object) + " erased; every proof stands" + because(p.Ground)
}

func erasureFinished(s *said) string {
	return "nothing readable is left of " + s.names.name(s.Object)
}

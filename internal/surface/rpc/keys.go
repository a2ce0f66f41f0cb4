package rpc

import (
	"context"
	"strings"
	"time"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/rotation"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
)

type keys struct{ d *Deps }

func (s keys) List(ctx context.Context, _ *handrailv1.ListKeysRequest) (*handrailv1.ListKeysResponse, error) {
	b, _ := s.d.Ring.Bundle()
	out := &handrailv1.ListKeysResponse{Bundle: b.Version, HandingOver: s.d.Ring.Rotating()}
	for _, kind := range keyring.Kinds() {
		for _, public := range b.Keys(kind) {
			out.Keys = append(out.Keys, keyOut(kind, public, "in force", 0))
		}
	}
	for _, f := range b.Former {
		state := "former"
		if f.Until < s.d.Now().Unix() {
			state = "ended"
		}
		out.Keys = append(out.Keys, keyOut(f.Kind, f.Key, state, f.Until))
	}
	open, err := s.d.Rotations.Open(ctx)
	if err != nil || open.ID == "" {
		return out, err
	}
	next, err := ledger.ReadBundle([]byte(open.Body))
	if err != nil {
		return nil, err
	}
	for _, kind := range strings.Fields(open.Kinds) {
		for _, public := range next.Keys(kind) {
			out.Keys = append(out.Keys, keyOut(kind, public, "proposed", 0))
		}
	}
	out.Open = rotationOut(open)
	return out, nil
}

func keyOut(kind, public, state string, until int64) *handrailv1.Key {
	return &handrailv1.Key{Kind: kind, Fingerprint: rotation.Fingerprint(public), Public: public, State: state, Until: until}
}

func rotationOut(r rotation.Rotation) *handrailv1.Rotation {
	return &handrailv1.Rotation{
		Id: r.ID, State: string(r.State), Approval: r.Approval, Kinds: strings.Fields(r.Kinds), Until: r.Until, Text: r.Body,
	}
}

func (s keys) Rotate(ctx context.Context, r *handrailv1.RotateKeysRequest) (*handrailv1.RotateKeysResponse, error) {
	row, err := s.d.Rotations.Ask(ctx, caller(ctx), r.Kinds, time.Duration(min(max(r.Overlap, 0), 1<<32))*time.Second, r.Reason)
	if err != nil {
		return nil, err
	}
	return &handrailv1.RotateKeysResponse{Rotation: rotationOut(row)}, nil
}

func (s keys) Bring(ctx context.Context, r *handrailv1.BringBundleRequest) (*handrailv1.BringBundleResponse, error) {
	row, err := s.d.Rotations.Bring(ctx, caller(ctx), r.Signed)
	if err != nil {
		return nil, err
	}
	return &handrailv1.BringBundleResponse{Bundle: row.Bundle, Rotation: rotationOut(row)}, nil
}

func (s keys) Drop(ctx context.Context, _ *handrailv1.DropRotationRequest) (*handrailv1.DropRotationResponse, error) {
	row, err := s.d.Rotations.Drop(ctx, caller(ctx))
	if err != nil {
		return nil, err
	}
	return &handrailv1.DropRotationResponse{Rotation: rotationOut(row)}, nil
}

// keySentence is what the ledger says of a rotation.
func keySentence(what string) func(*said) string {
	return func(s *said) string {
		p := read[struct {
			Kinds  []string
			Bundle int64
			Reason string
			Server string
		}](s)
		text := strings.NewReplacer("WHO", s.who(), "KINDS", strings.Join(p.Kinds, ", ")).Replace(what)
		if p.Server != "" {
			text += " on server " + s.names.name(p.Server)
		}
		return text + because(p.Reason)
	}
}

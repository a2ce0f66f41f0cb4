package rpc

import (
	"context"
	"time"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/peer"
	"handrail.dev/handrail/internal/foundation/ledger"
)

type servers struct{ d *Deps }

func (s servers) List(context.Context, *handrailv1.ListServersRequest) (*handrailv1.ListServersResponse, error) {
	return &handrailv1.ListServersResponse{Servers: each(s.d.Peers.List(), s.message)}, nil
}

func (s servers) Invite(ctx context.Context, r *handrailv1.InviteServerRequest) (*handrailv1.InviteServerResponse, error) {
	invited, err := s.d.Peers.Invite(ctx, caller(ctx), r.Name)
	if err != nil {
		return nil, err
	}
	token := ledger.Token{Address: s.d.Info().Address, RootHash: s.d.Ring.RootHash(), Secret: invited.Secret}
	return &handrailv1.InviteServerResponse{Token: token.String(), Expires: stampTime(invited.Expires)}, nil
}

func (s servers) Join(ctx context.Context, r *handrailv1.JoinServerRequest) (*handrailv1.JoinServerResponse, error) {
	secret := r.Token
	if t, err := ledger.ParseToken(r.Token); err == nil {
		secret = t.Secret
	}
	a, err := s.d.Peers.Join(ctx, peer.Question{Secret: secret, Chest: r.Key, Address: r.Address, SSH: r.SshAddress}, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return &handrailv1.JoinServerResponse{
		Server: a.Server.ID, Name: a.Server.Name, Approval: a.Approval, Fingerprint: a.Fingerprint, Keys: a.Keys,
	}, nil
}

func (s servers) Drain(ctx context.Context, r *handrailv1.DrainServerRequest) (*handrailv1.DrainServerResponse, error) {
	moved, err := s.d.Peers.Drain(ctx, caller(ctx), r.Server, r.Reason, time.Duration(r.Within)*time.Second)
	return &handrailv1.DrainServerResponse{Server: s.message(moved)}, err
}

func (s servers) Remove(ctx context.Context, r *handrailv1.RemoveServerRequest) (*handrailv1.RemoveServerResponse, error) {
	moved, err := s.d.Peers.Remove(ctx, caller(ctx), r.Server, r.Reason)
	return &handrailv1.RemoveServerResponse{Server: s.message(moved)}, err
}

func (s servers) message(p peer.Server) *handrailv1.Server {
	state := p.State
	if p.Serves() && !p.Alive {
		state = "away"
	}
	return &handrailv1.Server{
		Id: p.ID, Name: p.Name, State: state, Address: p.Address, SshAddress: p.SSH, Version: p.Program, Self: p.Self,
		Behind: uint64(p.Behind), Nodes: uint64(p.Nodes), Sessions: uint64(p.Sessions),
		Seen: stampTime(p.Seen), Added: stamp(p.Added), Approval: p.Approval,
	}
}

// serverWords tells an entry about a server: who did what, and what it says.
func serverWords(verb string, more func(p serverPayload) string) func(*said) string {
	return func(s *said) string {
		p := read[serverPayload](s)
		text := s.who() + " " + verb + " " + orWord(p.Name, p.Server)
		if more != nil {
			text += more(p)
		}
		return text + because(p.Reason)
	}
}

// serverPayload is what peer writes.
type serverPayload struct {
	Server, Name, Address, SSH, Key, Approval, Reason, Before string
}

var serverSentences = map[string]func(*said) string{
	"server.invited": serverWords("invited the server", nil),
	"server.asked":   serverWords("has the keys asked for by the server", func(p serverPayload) string { return " at " + p.Address + ", for its key " + p.Key }),
	"server.added":   serverWords("added the server", func(p serverPayload) string { return " at " + p.Address }),
	"server.refused": serverWords("got no yes for the server", nil),
	"server.sealed":  serverWords("handed the keys, sealed, to the server", func(p serverPayload) string { return " for its key " + p.Key }),
	"server.set":     serverWords("reaches elsewhere the server", func(p serverPayload) string { return ": " + p.Address }),
	"server.drained": serverWords("drains the server", nil),
	"server.began":   serverWords("has back from draining the server", nil),
	"server.removed": serverWords("removed the server", nil),
	"server.leads": func(s *said) string {
		p := read[serverPayload](s)
		text := "server " + p.Server + " does what is done once"
		if p.Before != "" && p.Before != p.Server {
			text += ", and " + p.Before + " no more"
		}
		return text
	},
}

package rpc

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
)

type robots struct{ d *Deps }

func (s robots) robot(ctx context.Context, who identity.Person, r identity.Robot) (*handrailv1.Robot, error) {
	person, err := s.d.person(ctx, who, caller(ctx).ID)
	if err != nil {
		return nil, err
	}
	owner, err := s.d.People.Get(ctx, who.Owner)
	if err != nil {
		return nil, err
	}
	return &handrailv1.Robot{
		Person: person, Owner: owner.ID, OwnerName: owner.Name, May: r.May, Hosts: r.Hosts, Expires: stamp(r.Expires),
		Proof: &handrailv1.RobotProof{Issuer: r.Proof.Issuer, Audience: r.Proof.Audience, Subject: r.Proof.Subject, Claims: r.Proof.Claims, Key: r.Proof.Key},
	}, nil
}

func (s robots) List(ctx context.Context, _ *handrailv1.ListRobotsRequest) (*handrailv1.ListRobotsResponse, error) {
	people, all, err := s.d.People.ListRobots(ctx)
	if err != nil {
		return nil, err
	}
	out := &handrailv1.ListRobotsResponse{}
	for i, who := range people {
		m, err := s.robot(ctx, who, all[i])
		if err != nil {
			return nil, err
		}
		out.Robots = append(out.Robots, m)
	}
	return out, nil
}

func (s robots) Get(ctx context.Context, r *handrailv1.GetRobotRequest) (*handrailv1.GetRobotResponse, error) {
	who, robot, err := s.d.Roster.Robot(ctx, r.Robot)
	if err != nil {
		return nil, err
	}
	m, err := s.robot(ctx, who, robot)
	return &handrailv1.GetRobotResponse{Robot: m}, err
}

func proofOf(p *handrailv1.RobotProof) identity.Proof {
	return identity.Proof{Issuer: p.GetIssuer(), Audience: p.GetAudience(), Subject: p.GetSubject(), Claims: p.GetClaims(), Key: p.GetKey()}
}

// known refuses an issuer that nobody configured: its word would never count.
func (s robots) known(p identity.Proof) error {
	if p.Issuer != "" && !s.d.Workloads.Knows(p.Issuer) {
		return fault.New(fault.Invalid, "cannot take the word of %.100q on a robot: it is not configured", p.Issuer).WithHint("an admin adds it as [[workload]] to handrail.toml: handrail config explain --help")
	}
	return nil
}

func (s robots) Add(ctx context.Context, r *handrailv1.AddRobotRequest) (*handrailv1.ChangeRobotResponse, error) {
	robot := identity.Robot{May: r.May, Hosts: r.Hosts, Expires: r.Expires.AsTime().UnixMicro(), Proof: proofOf(r.Proof)}
	if err := s.known(robot.Proof); err != nil {
		return nil, err
	}
	_, approval, err := s.d.Roster.AddRobot(ctx, caller(ctx), r.Name, r.Owner, robot)
	return &handrailv1.ChangeRobotResponse{Approval: approval}, err
}

func (s robots) Set(ctx context.Context, r *handrailv1.SetRobotRequest) (*handrailv1.ChangeRobotResponse, error) {
	if r.Proof != nil {
		if err := s.known(proofOf(r.Proof)); err != nil {
			return nil, err
		}
	}
	approval, err := s.d.Roster.SetRobot(ctx, caller(ctx), r.Robot, func(robot identity.Robot) identity.Robot {
		if len(r.May) > 0 {
			robot.May = r.May
		}
		if r.Hosts != "" {
			robot.Hosts = r.Hosts
		}
		if r.Expires != nil {
			robot.Expires = r.Expires.AsTime().UnixMicro()
		}
		if r.Proof != nil {
			robot.Proof = proofOf(r.Proof)
		}
		return robot
	})
	return &handrailv1.ChangeRobotResponse{Approval: approval}, err
}

func (s robots) Remove(ctx context.Context, r *handrailv1.RemoveRobotRequest) (*handrailv1.RemoveRobotResponse, error) {
	_, err := s.d.Roster.RemoveRobot(ctx, caller(ctx), r.Robot, r.Reason)
	return &handrailv1.RemoveRobotResponse{}, err
}

// The types of token that RFC 8693 names and Exchange takes.
const tokenTypes = "urn:ietf:params:oauth:token-type:"

func (s robots) Exchange(ctx context.Context, r *handrailv1.ExchangeRequest) (*handrailv1.RedeemResponse, error) {
	if kind, ok := strings.CutPrefix(r.SubjectTokenType, tokenTypes); !ok || kind != "jwt" && kind != "id_token" {
		return nil, fault.New(fault.Invalid, "cannot exchange a token of type %.60q: only %sjwt and id_token", r.SubjectTokenType, tokenTypes).WithHint("handrail robot login --help")
	}
	w, err := s.d.Workloads.Verify(ctx, r.SubjectToken)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Unauthenticated {
			s.d.People.FailedLogin(caller(ctx).Source, "robot refused")
		}
		return nil, err
	}
	login, who, err := s.d.People.EnterWorkload(ctx, r.Robot, identity.Workload{
		Issuer: w.Issuer, Subject: w.Subject, Audience: w.Audience, Claims: w.Claims, Once: w.Once, Expires: w.Expires,
	}, caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return logins(s).answer(ctx, login, who, nil)
}

func (s robots) Enter(ctx context.Context, r *handrailv1.EnterRequest) (*handrailv1.RedeemResponse, error) {
	key, _ := ctx.Value(keyOf{}).(string)
	if key == "" {
		return nil, fault.New(fault.Unauthenticated, "cannot let a robot in: the connection came with no client certificate").WithHint("handrail robot login NAME --cert FILE --key FILE")
	}
	login, who, err := s.d.People.EnterKey(ctx, r.Robot, key, rand.Text(), caller(ctx).Source)
	if err != nil {
		return nil, err
	}
	return logins(s).answer(ctx, login, who, nil)
}

// keyOf is in the context of a call that came with a client certificate: which
// key its connection proved.
type keyOf struct{}

// RobotName is what a robot with a key calls the server by: there it is asked
// for a certificate, of which the key alone counts.
const RobotName = "robot.handrail.internal"

// WithRobotKey tells the API which key a connection to RobotName proved.
func WithRobotKey(next http.Handler, now func() time.Time) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && r.TLS.ServerName == RobotName && len(r.TLS.PeerCertificates) > 0 {
			cert := r.TLS.PeerCertificates[0]
			if t := now(); !t.Before(cert.NotBefore) && t.Before(cert.NotAfter) {
				sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
				r = r.WithContext(context.WithValue(r.Context(), keyOf{}, hex.EncodeToString(sum[:])))
			}
		}
		next.ServeHTTP(w, r)
	})
}

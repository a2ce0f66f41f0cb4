package rpc

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/directory"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/target"
)

type directories struct{ d *Deps }

func (s directories) Status(ctx context.Context, _ *handrailv1.DirectoryStatusRequest) (*handrailv1.DirectoryStatusResponse, error) {
	if s.d.Directory == nil {
		return &handrailv1.DirectoryStatusResponse{}, nil
	}
	st, err := s.d.Directory.Status(ctx)
	return directoryStatus(st), err
}

func (s directories) Sync(ctx context.Context, _ *handrailv1.DirectorySyncRequest) (*handrailv1.DirectoryStatusResponse, error) {
	st, err := s.d.Directory.Sync(ctx)
	return directoryStatus(st), err
}

func directoryStatus(st directory.Status) *handrailv1.DirectoryStatusResponse {
	return &handrailv1.DirectoryStatusResponse{
		Configured: true, Host: st.Host, Mode: st.Mode, Version: uint64(st.Version), Hash: st.Hash, Statement: st.Statement,
		Read: stampTime(st.Read), Confirmed: stampTime(st.Confirmed), Seen: stampTime(st.Seen), StaleAfter: durationpb.New(st.StaleAfter),
		Stale: st.Stale, Failing: st.Failing, FailingSince: stampTime(st.FailingSince), People: uint32(st.People), Away: uint32(st.Away),
		Held: each(st.Held, func(h directory.HeldStatus) *handrailv1.DirectoryHeld {
			return &handrailv1.DirectoryHeld{What: h.What, State: h.State, Approval: h.Approval, People: uint32(h.People), Since: stampTime(h.Since)}
		}),
		Odd: each(st.Odd, func(o directory.Odd) *handrailv1.DirectoryOdd {
			return &handrailv1.DirectoryOdd{Id: o.ID, Name: o.Name, Why: o.Why}
		}),
		OddCount: uint32(st.OddCount), Login: st.Login,
	}
}

// Login is that of somebody whose password the directory knows. They are known
// to identity by the entry's lasting id, as somebody whom a provider vouches for.
func (s directories) Login(ctx context.Context, r *handrailv1.DirectoryLoginRequest) (*handrailv1.RedeemResponse, error) {
	source := caller(ctx).Source
	id, err := s.d.Directory.Login(ctx, r.Name, r.Password, source)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Unauthenticated || k == fault.Exhausted {
			s.d.People.FailedLogin(source, "password refused")
		}
		return nil, err
	}
	login, person, cert, err := s.d.People.LoginOutside(ctx, identity.Outside{
		Issuer: "directory", Subject: id, Value: id, Lasting: true, Claim: "password", Question: rand.Text(),
	}, r.DeviceKey, r.DeviceName, source)
	if err != nil {
		return nil, err
	}
	return logins(s).answer(ctx, login, person, cert)
}

type rights struct{ d *Deps }

func (s rights) OfPerson(ctx context.Context, r *handrailv1.RightsOfPersonRequest) (*handrailv1.RightsOfPersonResponse, error) {
	person, err := s.d.People.Get(ctx, r.Person)
	if err != nil {
		return nil, err
	}
	hosts, err := s.d.Hosts.List(ctx, r.Selector)
	if err != nil {
		return nil, err
	}
	reaches, err := s.d.Door.Reach(ctx, []identity.Person{person}, hosts)
	if err != nil {
		return nil, err
	}
	ways, boss, err := s.ways(ctx, person.ID)
	if err != nil {
		return nil, err
	}
	mine := ways[person.ID]
	out := &handrailv1.RightsOfPersonResponse{
		Person: person.ID, Name: person.Name, Manager: boss, Locked: person.Locked(),
		Groups: each(person.Groups, func(g string) *handrailv1.GroupWay { return wayOf(mine, g) }),
	}
	folded := foldReach(reaches, func(x doorway.Reach) ([]*handrailv1.Right, string) { return rightMessages(x.Rights, mine), x.Host.Name })
	for _, f := range folded {
		out.Hosts = append(out.Hosts, &handrailv1.RightsOnHosts{Hosts: f.names, Rights: f.rights})
	}
	return out, nil
}

func (s rights) OfHost(ctx context.Context, r *handrailv1.RightsOfHostRequest) (*handrailv1.RightsOfHostResponse, error) {
	host, err := s.d.Hosts.Get(ctx, r.Host)
	if err != nil {
		return nil, err
	}
	people, err := s.d.People.List(ctx)
	if err != nil {
		return nil, err
	}
	reaches, err := s.d.Door.Reach(ctx, people, []target.Host{host})
	if err != nil {
		return nil, err
	}
	ways, _, err := s.ways(ctx, "")
	if err != nil {
		return nil, err
	}
	out := &handrailv1.RightsOfHostResponse{Host: host.ID, Name: host.Name, Environment: host.Environment, Scope: host.Scope}
	folded := foldReach(reaches, func(x doorway.Reach) ([]*handrailv1.Right, string) {
		return rightMessages(x.Rights, ways[x.Person.ID]), x.Person.Name
	})
	for _, f := range folded {
		out.People = append(out.People, &handrailv1.RightsOfPeople{People: f.names, Rights: f.rights})
	}
	return out, nil
}

// ways is how people came by their groups, and the name of one's manager.
func (s rights) ways(ctx context.Context, person string) (ways map[string]directory.Ways, boss string, err error) {
	if s.d.Directory == nil {
		return nil, "", nil
	}
	err = s.d.Store.View(ctx, func(v *store.View) error {
		if ways, err = directory.WaysTx(v, person); err != nil || person == "" {
			return err
		}
		id, err := directory.ManagerTx(v, person)
		if err != nil || id == "" {
			return err
		}
		who, err := s.d.People.GetTx(v, id)
		boss = who.Name
		return err
	})
	return ways, boss, err
}

func wayOf(ways directory.Ways, group string) *handrailv1.GroupWay {
	return &handrailv1.GroupWay{Group: group, Path: ways[group]}
}

func rightMessages(list []doorway.Right, ways directory.Ways) []*handrailv1.Right {
	return each(list, func(r doorway.Right) *handrailv1.Right {
		return &handrailv1.Right{Level: r.Level, How: r.How, Rule: r.Rule, Text: r.Text, Grant: r.Grant,
			Ways: each(r.Because, func(g string) *handrailv1.GroupWay { return wayOf(ways, g) })}
	})
}

// alike is the names for which the same holds.
type alike struct {
	names  []string
	rights []*handrailv1.Right
}

// foldReach puts together what is the same, in the order in which it first came.
func foldReach(all []doorway.Reach, one func(doorway.Reach) ([]*handrailv1.Right, string)) []*alike {
	at := map[string]*alike{}
	var out []*alike
	for _, x := range all {
		rights, name := one(x)
		key, err := json.Marshal(rights)
		if err != nil {
			key = []byte(name) // not folded is not wrong
		}
		f := at[string(key)]
		if f == nil {
			f = &alike{rights: rights}
			at[string(key)] = f
			out = append(out, f)
		}
		f.names = append(f.names, name)
	}
	for _, f := range out {
		slices.Sort(f.names)
	}
	return out
}

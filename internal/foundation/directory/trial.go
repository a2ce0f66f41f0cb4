package directory

import (
	"context"
	"strings"

	"handrail.dev/handrail/internal/foundation/store"
)

// Trial is what settings would bring about, before they are in force.
type Trial struct {
	People, Groups int // that are read
	Lines          []TrialLine
	More           int // lines beyond the bound
	Odd            []Odd
	OddCount       int
	Waits          bool // the losses would wait for a person, or the gains
}

// TrialLine is one thing that would become of one person.
type TrialLine struct{ Name, What string }

// maxTrial bounds what a trial lists.
const maxTrial = 500

// Read reads the directory once by these settings, from wherever this runs, and
// returns the copy as Try takes it. Nothing is changed.
func (s Settings) Read(ctx context.Context) (body []byte, hash string, err error) {
	c, err := s.check()
	if err != nil {
		return nil, "", err
	}
	l, err := c.open(ctx)
	if err != nil {
		return nil, "", err
	}
	defer l.close()
	w, err := l.readAll(ctx)
	if err != nil {
		return nil, "", err
	}
	return w.copy().pack()
}

// Try says what a copy that was read by these settings would bring about here.
func Try(ctx context.Context, st *store.Store, s Settings, body []byte, hash string) (Trial, error) {
	if s.BindDN != "" {
		s.Password = "of no use here"
	}
	c, err := s.check()
	if err != nil {
		return Trial{}, err
	}
	copied, err := unpack(body, hash)
	if err != nil {
		return Trial{}, err
	}
	stands := copied.stand(c.Map)
	if len(stands.absent) > 0 {
		return Trial{}, absentGroup(stands.absent[0])
	}
	now, err := readHere(ctx, st)
	if err != nil {
		return Trial{}, err
	}
	p := makePlan(c, copied, stands, now)
	t := Trial{People: len(copied.People), Groups: len(copied.Groups), Odd: p.odd[:min(len(p.odd), maxOdd)], OddCount: len(p.odd), Waits: len(p.held) > 0}
	t.list(p, now)
	return t, nil
}

func (t *Trial) list(p plan, now here) {
	say := func(name, what string) {
		if len(t.Lines) >= maxTrial {
			t.More++
			return
		}
		t.Lines = append(t.Lines, TrialLine{name, what})
	}
	name := func(person string) string { return now.members[now.uuids[person]].Name }
	for _, h := range p.held {
		for _, l := range h.lines {
			person, what := Held{}.Parse(l)
			say(name(person), "waits: "+what)
		}
	}
	for _, l := range p.leaves {
		say(l.name, "is locked: "+l.why)
	}
	for _, l := range p.losses {
		say(l.name, "loses "+strings.Join(l.lost, ", "))
	}
	for _, g := range p.gains {
		say(name(g.person), "gains "+strings.Join(g.groups, ", "))
	}
	for _, r := range p.names {
		say(name(r.person), "is called "+r.name)
	}
	for _, j := range p.joins {
		what := "joins, in no group"
		if len(j.groups) > 0 {
			what = "joins, in " + strings.Join(j.groups, ", ")
		}
		say(j.name, what)
	}
}

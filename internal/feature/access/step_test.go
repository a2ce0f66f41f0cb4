package access

import (
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"handrail.dev/handrail/internal/foundation/fault"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func blank() Grant {
	return Grant{ID: "g-00000001", Person: "p-ada", PersonName: "ada", Kind: Routine, Targets: []Target{{ID: "h-1", Name: "web-1"}}, Reason: "it burns", AskedFor: 30 * time.Minute}
}

func glass(at time.Time) Grant {
	g := blank()
	g.Kind, g.RatifyBy, g.ReviewWithin = BreakGlass, at.Add(10*time.Minute).UnixMicro(), 72*time.Hour
	return g
}

// walk applies events a minute apart and fails on a refused one.
func walk(t *testing.T, g Grant, events ...Event) Grant {
	t.Helper()
	for i, e := range events {
		after, _, err := Step(g, e, noon.Add(time.Duration(i)*time.Minute))
		if err != nil {
			t.Fatalf("%s of a grant that is %q: %v", e.Kind, g.State, err)
		}
		g = after
	}
	return g
}

func TestAGrantGoesItsWay(t *testing.T) {
	g := walk(t, blank(), Event{Kind: EventRequest}, Event{Kind: EventApprove, By: "p-bob"}, Event{Kind: EventStart},
		Event{Kind: EventPause, Why: "buddy left"}, Event{Kind: EventResume}, Event{Kind: EventEnd, Why: Done, By: "p-ada"})
	if g.State != Ended || g.EndedWhy != Done || g.Version != 6 {
		t.Errorf("%+v", g)
	}
	if want := noon.Add(2*time.Minute + 30*time.Minute).UnixMicro(); g.Expires != want {
		t.Errorf("its time runs from the start: %v", time.UnixMicro(g.Expires))
	}
}

func TestBreakGlassOwesAReviewHoweverItEnds(t *testing.T) {
	for _, why := range []string{Expired, Done, Revoked, Locked, Unratified} {
		g := walk(t, glass(noon), Event{Kind: EventDeclare}, Event{Kind: EventEnd, Why: why})
		if g.State != InReview || g.ReviewBy == 0 || g.EndedWhy != why {
			t.Errorf("ended %s: %+v", why, g)
		}
		if g.ReviewOverdue(noon.Add(time.Hour)) || !g.ReviewOverdue(noon.Add(80*time.Hour)) {
			t.Error("the review is due after three days")
		}
		if _, _, err := Step(g, Event{Kind: EventReview, By: "p-ada", Verdict: "justified"}, noon); fault.KindOf(err) != fault.Denied {
			t.Errorf("their own review: %v", err)
		}
		if _, _, err := Step(g, Event{Kind: EventReview, By: "p-bob", Verdict: "fine"}, noon); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a verdict that is none: %v", err)
		}
		if g = walk(t, g, Event{Kind: EventReview, By: "p-bob", Verdict: "not-justified", Notes: "no"}); g.State != Closed {
			t.Errorf("reviewed: %+v", g)
		}
	}
}

func TestBreakGlassThatNobodyRatifiesIsCutBack(t *testing.T) {
	g := walk(t, glass(noon), Event{Kind: EventDeclare})
	if !g.InForce(noon.Add(9*time.Minute)) || g.InForce(noon.Add(10*time.Minute)) {
		t.Error("it is in force for ten minutes, timer or not")
	}
	cut, effects, err := Step(g, Event{Kind: EventTick}, noon.Add(10*time.Minute))
	if err != nil || cut.EndedWhy != Unratified || len(effects) == 0 || effects[0].Kind != EffectEndSessions {
		t.Errorf("%+v %v %v", cut, effects, err)
	}
	if _, _, err := Step(g, Event{Kind: EventRatify, By: "p-ada"}, noon); fault.KindOf(err) != fault.Denied {
		t.Errorf("ratified by themselves: %v", err)
	}
	if _, _, err := Step(g, Event{Kind: EventRatify, By: "p-bob"}, noon.Add(10*time.Minute)); err == nil {
		t.Error("ratified too late")
	}
	g, _, err = Step(g, Event{Kind: EventRatify, By: "p-bob"}, noon.Add(5*time.Minute))
	if err != nil || !g.InForce(noon.Add(29*time.Minute)) || g.InForce(noon.Add(30*time.Minute)) {
		t.Errorf("ratified, it runs its time: %+v %v", g, err)
	}
}

// pairs is every way out of a state that the drawing in step.go has.
var pairs = map[State]map[State]bool{
	"":        {Requested: true, Active: true},
	Requested: {Approved: true, Denied: true, Lapsed: true},
	Approved:  {Active: true, Ended: true},
	Active:    {Paused: true, Ended: true, InReview: true, Active: true}, // to itself: ratified
	Paused:    {Active: true, Ended: true, InReview: true, Paused: true},
	InReview:  {Closed: true},
}

// Whatever happens, in whatever order, with a clock that jumps both ways and
// with restarts in between: only drawn transitions, nobody agrees to their own,
// and what has ended is never in force again.
func TestNoOrderOfEventsBreaksAGrant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := noon
		g := blank()
		first := Event{Kind: EventRequest}
		if rapid.Bool().Draw(t, "glass") {
			g, first = glass(now), Event{Kind: EventDeclare}
		}
		var err error
		if g, _, err = Step(g, first, now); err != nil {
			t.Fatal(err)
		}
		over := false
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(-600, 900).Draw(t, "jump")) * time.Second)
			e := Event{
				Kind: rapid.SampledFrom([]string{EventRequest, EventDeclare, EventApprove, EventDeny, EventLapse, EventStart, EventPause,
					EventResume, EventTick, EventTick, EventEnd, EventRatify, EventReview, "nonsense"}).Draw(t, "event"),
				By:      rapid.SampledFrom([]string{"p-ada", "p-bob", "system", ""}).Draw(t, "by"),
				Why:     rapid.SampledFrom([]string{Expired, Done, Revoked, Locked, Unratified, "because"}).Draw(t, "why"),
				Verdict: rapid.SampledFrom([]string{"justified", "not-justified", ""}).Draw(t, "verdict"),
			}
			before := g
			after, effects, err := Step(g, e, now)
			if err != nil || after.Version == before.Version {
				if !reflect.DeepEqual(after, before) || len(effects) != 0 {
					t.Fatalf("%s was refused and changed something", e.Kind)
				}
				continue
			}
			if !pairs[before.State][after.State] || after.Version != before.Version+1 {
				t.Fatalf("%s took %s to %s", e.Kind, before.State, after.State)
			}
			if e.By == "p-ada" && (e.Kind == EventApprove || e.Kind == EventRatify || e.Kind == EventReview) {
				t.Fatalf("%s by the person themselves", e.Kind)
			}
			checkEnd(t, before, after, effects)
			over = over || !after.Live()
			g = after
			if over && g.InForce(now) {
				t.Fatalf("%s is in force", g.State)
			}
			if g.InForce(now) && now.UnixMicro() >= g.Expires {
				t.Fatal("in force past its time")
			}
		}
	})
}

// checkEnd: whatever takes the right away ends the sessions, and break-glass
// then owes a review.
func checkEnd(t *rapid.T, before, after Grant, effects []Effect) {
	if before.State != Active && before.State != Paused || after.Live() {
		return
	}
	kills := false
	for _, e := range effects {
		kills = kills || e.Kind == EffectEndSessions
	}
	if !kills || after.EndedWhy == "" || after.Finished == 0 {
		t.Fatalf("ended without ending its sessions: %+v", after)
	}
	if (after.Kind == BreakGlass) != (after.State == InReview && after.ReviewBy > after.Finished) {
		t.Fatalf("break-glass owes a review, and nothing else does: %+v", after)
	}
}

func TestAGrantThatAsksForNothingIsRefused(t *testing.T) {
	for _, spoil := range []func(*Grant){
		func(g *Grant) { g.Targets = nil }, func(g *Grant) { g.Reason = " " }, func(g *Grant) { g.AskedFor = 0 },
		func(g *Grant) { g.Person = "" }, func(g *Grant) { g.Kind = BreakGlass }, func(g *Grant) { g.State = Active },
	} {
		g := blank()
		spoil(&g)
		if _, _, err := Step(g, Event{Kind: EventRequest}, noon); err == nil {
			t.Errorf("%+v is asked for", g)
		}
	}
	g := glass(noon)
	g.ReviewWithin = 0
	if _, _, err := Step(g, Event{Kind: EventDeclare}, noon); err == nil {
		t.Error("a break-glass that owes no review")
	}
}

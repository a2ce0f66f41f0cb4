package directory

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"handrail.dev/handrail/internal/foundation/identity"
)

// member is somebody here who came by the directory: the row that ties an
// entry's id to a person, and that person as they are.
type member struct {
	UUID   string          `db:"uuid"`
	Person string          `db:"person"`
	Away   int64           `db:"away"` // µs since when the directory has them no more; 0: it has
	Name   string          `db:"name"`
	Groups identity.Groups `db:"member_of"`
	Locked int64           `db:"locked_at"`
}

// here is what the plan is made against.
type here struct {
	members map[string]member // by id in the directory
	names   map[string]string // name → person
	uuids   map[string]string // person → id in the directory
	agreed  map[string]string // what is held → digest that somebody agreed to
}

// plan is what must happen so that the people here are those of the directory.
type plan struct {
	leaves []leave
	losses []change // of groups, of people who stay
	joins  []join
	gains  []change // of groups only
	names  []rename
	back   []string // ids of those who were away
	held   []held
	odd    []Odd
	total  int // people of the directory who are here now
}

type leave struct{ uuid, person, name, why string }

type change struct {
	person, name string
	groups       []string // that they will be in
	lost         []string
}

type join struct {
	uuid, name string
	groups     []string
	aside      string // whoever had the name and left
}

type rename struct{ person, name, aside string }

// Odd is somebody of the directory who is not let in, or not as they are there.
type Odd struct {
	ID   string `json:"id"` // in the directory
	Name string `json:"name"`
	Why  string `json:"why"`
}

// The kinds of change that wait until a person agrees.
const (
	HeldLosses = "losses" // so many at once that a mistake is likelier
	HeldGains  = "gains"  // of a group that the directory alone does not give
)

// held is a change that waits for a person.
type held struct {
	what   string
	people []string // ids
	lines  []string // all of it, in order
}

// digest names exactly this change.
func (h held) digest() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "handrail-directory-held-v1\n%s\n", h.what)
	for _, l := range h.lines {
		fmt.Fprintln(sum, l)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// always is how many may lose something at once in the smallest company.
const always = 5

// tooMany says whether it is likelier that the directory errs than that so many
// go: more than one in twenty, or everybody.
func tooMany(lose, total int) bool {
	return lose > always && lose*20 > total || lose == total && total > 2
}

// makePlan compares. It is pure.
func makePlan(c config, copied *Copy, st standing, now here) plan {
	var p plan
	wanted := wantedNames(copied)
	there := map[string]bool{}
	for i, h := range copied.People {
		m, known := now.members[h.ID]
		if h.Off != "" {
			continue // like somebody who is not there; if they are here, they leave
		}
		there[h.ID] = true
		why := unusable(h.Name, wanted)
		if !known {
			p.newcomer(c, now, h, st.groups(i), why)
			continue
		}
		if m.Away != 0 {
			p.back = append(p.back, h.ID)
		}
		if h.Name != m.Name {
			p.renamed(now, h, m, why)
		}
		p.regroup(c, m, st.groups(i))
	}
	for _, uuid := range sortedKeys(now.members) {
		m := now.members[uuid]
		if m.Away != 0 {
			continue
		}
		p.total++
		if !there[uuid] {
			p.leaves = append(p.leaves, leave{uuid, m.Person, m.Name, offOf(copied, uuid)})
		}
	}
	p.hold(now)
	return p
}

func offOf(c *Copy, uuid string) string {
	at, found := slices.BinarySearchFunc(c.People, uuid, func(h Human, id string) int {
		switch {
		case h.ID < id:
			return -1
		case h.ID > id:
			return 1
		}
		return 0
	})
	if found {
		return c.People[at].Off
	}
	return "left the directory"
}

// wantedNames counts who claims a name.
func wantedNames(c *Copy) map[string]int {
	n := map[string]int{}
	for _, h := range c.People {
		if h.Off == "" {
			n[h.Name]++
		}
	}
	return n
}

// unusable says why nobody can be called that.
func unusable(name string, wanted map[string]int) string {
	switch {
	case name == "":
		return "has no login name"
	case identity.CheckName(name) != nil:
		return "has a login name that cannot be one here"
	case wanted[name] > 1:
		return "has the login name of somebody else"
	}
	return ""
}

// free says whether a name can be had: nobody has it, or somebody who left and
// steps aside.
func (now here) free(name string) (aside string, ok bool) {
	person, taken := now.names[name]
	if !taken {
		return "", true
	}
	m, ours := now.members[now.uuids[person]]
	return person, ours && m.Away != 0 && m.Locked != 0
}

func (p *plan) newcomer(c config, now here, h Human, groups []string, why string) {
	aside, ok := now.free(h.Name)
	if why == "" && !ok {
		why = "has the name of somebody who is known here already"
	}
	if why != "" {
		p.odd = append(p.odd, Odd{h.ID, h.Name, why})
		return
	}
	groups = slices.DeleteFunc(groups, c.asksFirst) // asked for once they are here
	p.joins = append(p.joins, join{h.ID, h.Name, groups, aside})
}

func (p *plan) renamed(now here, h Human, m member, why string) {
	aside, ok := now.free(h.Name)
	if why == "" && !ok {
		why = "has the name of somebody who is known here already"
	}
	if why != "" {
		p.odd = append(p.odd, Odd{h.ID, h.Name, why + "; here still " + m.Name})
		return
	}
	p.names = append(p.names, rename{m.Person, h.Name, aside})
}

// regroup finds what somebody gains and loses. What they lose does not wait for
// what they gain, nor the other way round.
func (p *plan) regroup(c config, m member, wanted []string) {
	var kept, lost, gained, asked []string
	for _, g := range m.Groups {
		if slices.Contains(wanted, g) {
			kept = append(kept, g)
		} else {
			lost = append(lost, g)
		}
	}
	for _, g := range wanted {
		switch {
		case slices.Contains(m.Groups, g):
		case c.asksFirst(g):
			asked = append(asked, g)
		default:
			gained = append(gained, g)
		}
	}
	if len(lost) > 0 {
		p.losses = append(p.losses, change{person: m.Person, name: m.Name, groups: kept, lost: lost})
	}
	if len(gained) > 0 {
		p.gains = append(p.gains, change{person: m.Person, name: m.Name, groups: gained})
	}
	for _, g := range asked {
		p.ask(m.Person, g)
	}
}

func (p *plan) ask(person, group string) {
	if len(p.held) == 0 {
		p.held = append(p.held, held{what: HeldGains})
	}
	h := &p.held[0]
	h.lines = append(h.lines, "gain "+person+" "+group)
	if !slices.Contains(h.people, person) {
		h.people = append(h.people, person)
	}
}

// hold takes out of the plan what waits, unless somebody agreed to exactly that.
func (p *plan) hold(now here) {
	if len(p.held) > 0 {
		gains := p.held[0]
		slices.Sort(gains.lines)
		p.held[0] = gains
		if now.agreed[HeldGains] == gains.digest() {
			p.held = nil
			for _, l := range gains.lines {
				var person, group string
				if _, err := fmt.Sscanf(l, "gain %s %s", &person, &group); err == nil {
					p.gains = append(p.gains, change{person: person, groups: []string{group}})
				}
			}
		}
	}
	if !tooMany(len(p.leaves)+len(p.losses), p.total) {
		return
	}
	losses := held{what: HeldLosses}
	for _, l := range p.leaves {
		losses.people = append(losses.people, l.person)
		losses.lines = append(losses.lines, "leave "+l.person)
	}
	for _, l := range p.losses {
		losses.people = append(losses.people, l.person)
		losses.lines = append(losses.lines, fmt.Sprintf("lose %s %q", l.person, l.lost))
	}
	slices.Sort(losses.lines)
	if now.agreed[HeldLosses] == losses.digest() {
		return
	}
	p.held = append(p.held, losses)
	p.leaves, p.losses = nil, nil
}

// nothing says whether nothing needs to be done.
func (p plan) nothing() bool {
	return len(p.leaves)+len(p.losses)+len(p.joins)+len(p.gains)+len(p.names)+len(p.back) == 0
}

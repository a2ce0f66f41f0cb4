package directory

import (
	"bytes"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/internal/foundation/fault"
)

// world is what the directory says, entry by entry, while it is being read and
// followed. Only a whole one becomes a copy.
type world struct {
	c       config
	people  map[string]*human // by id
	groups  map[string]*band
	refs    map[ref]string // of people and groups, to their ids
	members int            // of all groups
	read    time.Time      // when the directory last said that it is so
}

// human is an entry of a person, cut down to what is kept.
type human struct {
	id, dn  string
	name    string // login name, lower case; "" where it has none
	manager ref
	off     string // why the directory lets them in nowhere; "" where it does
	refs    [2]ref // their DN, and their login name where members are named so
}

// band is an entry of a group.
type band struct {
	id, dn, name string
	members      []ref
	ref          ref
}

func newWorld(c config) *world {
	return &world{c: c, people: map[string]*human{}, groups: map[string]*band{}, refs: map[ref]string{}}
}

func unreadable(format string, args ...any) error {
	return fault.New(fault.Unavailable, "cannot read the directory: "+format, args...).WithHint("handrail directory status")
}

// attributes of people and groups that are asked for; nothing else is read.
func (c config) personAttributes() []string {
	return append([]string{"objectClass", c.ID, c.Name, c.Manager}, offAttributes...)
}

func (c config) groupAttributes() []string {
	return []string{"objectClass", c.ID, c.GroupName, c.Member}
}

// offAttributes say that an account is switched off. A lockout after wrong
// passwords is not that: it is over by itself, and anybody can bring it about.
var offAttributes = []string{"userAccountControl", "nsAccountLock", "loginDisabled", "pwdAccountLockedTime"}

func off(e *ldap.Entry) string {
	for _, v := range values(e, "userAccountControl") {
		var bits int64
		if _, err := fmt.Sscanf(string(v), "%d", &bits); err != nil || bits&2 != 0 {
			return "disabled (userAccountControl)"
		}
	}
	for _, name := range []string{"nsAccountLock", "loginDisabled"} {
		for _, v := range values(e, name) {
			if !strings.EqualFold(string(v), "false") {
				return "disabled (" + name + ")"
			}
		}
	}
	for _, v := range values(e, "pwdAccountLockedTime") {
		if string(v) == "000001010000Z" { // for good, by an administrator
			return "disabled (pwdAccountLockedTime)"
		}
	}
	return ""
}

// values is what an entry says under a name, whatever the case of the name. An
// attribute of which only a range came is the caller's to find.
func values(e *ldap.Entry, name string) [][]byte {
	for _, a := range e.Attributes {
		if strings.EqualFold(a.Name, name) {
			return a.ByteValues
		}
	}
	return nil
}

// identify is the id of an entry. An entry without one cannot be told from the
// next of its name, so it is no entry that could be left out either.
func (c config) identify(e *ldap.Entry) (string, error) {
	found := values(e, c.ID)
	if len(found) != 1 {
		return "", unreadable("an entry below %.200q has %d values of %s", place(e.DN), len(found), c.ID)
	}
	var id string
	var err error
	if c.guid {
		id, err = uuidText(found[0], true)
	} else {
		id, err = uuidOf(string(found[0]))
	}
	if err != nil {
		return "", unreadable("an entry below %.200q has no %s that could be one: %v", place(e.DN), c.ID, err)
	}
	return id, nil
}

// place is a DN without its first part, which is somebody's name: errors are
// seen by everybody and kept.
func place(dn string) string {
	_, rest, _ := strings.Cut(dn, ",")
	return rest
}

// maxName bounds a name that is kept; identity is stricter where it matters.
const maxName = 256

func oneValue(e *ldap.Entry, name string) string {
	for _, v := range values(e, name) {
		if len(v) <= maxName && utf8.Valid(v) {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}

// putPerson takes an entry in, or what it became.
func (w *world) putPerson(e *ldap.Entry) error {
	id, err := w.c.identify(e)
	if err != nil {
		return err
	}
	if _, there := w.groups[id]; there {
		return unreadable("one entry below %.200q is a person and a group", place(e.DN))
	}
	r, err := refOf(e.DN)
	if err != nil {
		return unreadable("%v", err)
	}
	h := &human{id: id, dn: strings.Clone(e.DN), name: strings.ToLower(oneValue(e, w.c.Name)), off: off(e)}
	h.refs[0] = r
	if w.c.byName && h.name != "" {
		h.refs[1] = refName(h.name)
	}
	if m := oneLong(e, w.c.Manager); m != "" {
		h.manager, _ = refOf(m) // what is no name is nobody
	}
	old := w.people[id]
	if old != nil && old.name != "" && h.name == "" {
		return unreadable("somebody below %.200q has no %s any more: the account that reads may not see it", place(e.DN), w.c.Name)
	}
	if old == nil && len(w.people) >= w.c.MaxPeople {
		return unreadable("it holds more than %d people (max-people)", w.c.MaxPeople)
	}
	w.dropRefs(id)
	w.people[id] = h
	return w.addRefs(id, h.refs[:]...)
}

func oneLong(e *ldap.Entry, name string) string {
	for _, v := range values(e, name) {
		if len(v) <= maxDN && utf8.Valid(v) {
			return string(v)
		}
	}
	return ""
}

// putGroup takes a group in, or what it became.
func (w *world) putGroup(e *ldap.Entry) error {
	id, err := w.c.identify(e)
	if err != nil {
		return err
	}
	if _, there := w.people[id]; there {
		return unreadable("one entry below %.200q is a person and a group", place(e.DN))
	}
	r, err := refOf(e.DN)
	if err != nil {
		return unreadable("%v", err)
	}
	b := &band{id: id, dn: strings.Clone(e.DN), name: oneValue(e, w.c.GroupName), ref: r}
	if b.members, err = w.membersOf(e); err != nil {
		return err
	}
	old := w.groups[id]
	if old == nil && len(w.groups) >= maxGroups {
		return unreadable("it holds more than %d groups", maxGroups)
	}
	w.dropRefs(id)
	if old != nil {
		w.members -= len(old.members)
	}
	if w.members += len(b.members); w.members > maxMembers {
		return unreadable("its groups have more than %d members", maxMembers)
	}
	w.groups[id] = b
	return w.addRefs(id, r)
}

// membersOf reads the members. A group that cannot be empty and shows nobody
// is one whose members we may not see; one of which a part came is not whole.
func (w *world) membersOf(e *ldap.Entry) ([]ref, error) {
	prefix := strings.ToLower(w.c.Member) + ";"
	for _, a := range e.Attributes {
		if strings.HasPrefix(strings.ToLower(a.Name), prefix) {
			return nil, unreadable("the group %.200q came with only a part of its members (%.60q)", e.DN, a.Name)
		}
	}
	raw := values(e, w.c.Member)
	if len(raw) == 0 {
		for _, class := range values(e, "objectClass") {
			if strings.EqualFold(string(class), "groupOfNames") && strings.EqualFold(w.c.Member, "member") ||
				strings.EqualFold(string(class), "groupOfUniqueNames") && strings.EqualFold(w.c.Member, "uniqueMember") {
				return nil, unreadable("the group %.200q shows no %s: the account that reads may not see them", e.DN, w.c.Member)
			}
		}
	}
	out := make([]ref, 0, len(raw))
	for _, v := range raw {
		if !utf8.Valid(v) {
			continue // nobody is called that
		}
		if w.c.byName {
			out = append(out, refName(string(v)))
		} else if r, err := refOf(string(v)); err == nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// remove takes an entry out.
func (w *world) remove(id string) {
	w.dropRefs(id)
	if b := w.groups[id]; b != nil {
		w.members -= len(b.members)
	}
	delete(w.people, id)
	delete(w.groups, id)
}

// addRefs refuses two entries of one name: which of them a group means could
// not be said.
func (w *world) addRefs(id string, refs ...ref) error {
	for i, r := range refs {
		if r == (ref{}) {
			continue
		}
		if other, taken := w.refs[r]; taken && other != id {
			if i == 1 { // a login name that two people have: no group means either
				w.refs[r] = nobody
				continue
			}
			return unreadable("two entries have one name")
		}
		w.refs[r] = id
	}
	return nil
}

// nobody stands for a login name that more than one person has.
const nobody = "-"

func (w *world) dropRefs(id string) {
	var refs []ref
	if h := w.people[id]; h != nil {
		refs = h.refs[:]
	}
	if b := w.groups[id]; b != nil {
		refs = []ref{b.ref}
	}
	for _, r := range refs {
		if w.refs[r] == id {
			delete(w.refs, r)
		}
	}
}

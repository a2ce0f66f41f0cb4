package warden

import (
	"fmt"
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/entrance"
)

// RuleVoucher refuses at the entrance.
const RuleVoucher = "voucher"

// alone is what a judge knows for the time without a server.
type alone struct {
	began   time.Duration // boot time of this warden's start
	lost    time.Duration // without a lease, until vouchers count
	time    int64         // µs: the highest server time that is known to have passed
	wall    func() time.Time
	revoked map[uint64]bool
	drill   drill
}

// drill is an order in force that lets one person rehearse.
type drill struct {
	order, person string
	until         time.Duration // boot time
}

// learn keeps what a lease says for later. The caller holds mu.
func (j *judge) learn(a wire.LeaseAnswer) {
	j.alone.time = max(j.alone.time, a.ServerTime)
	clear(j.alone.revoked)
	for _, serial := range a.VoucherRevoked {
		j.alone.revoked[serial] = true
	}
}

// recall takes in what was remembered on disk.
func (j *judge) recall(m memory) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.alone.time = max(j.alone.time, m.Time)
	for p, e := range m.Persons {
		j.raise(p, e)
	}
	for _, serial := range m.Revoked {
		j.alone.revoked[serial] = true
	}
}

// recollect is what must be on disk for the next warden.
func (j *judge) recollect(m memory) memory {
	j.mu.Lock()
	defer j.mu.Unlock()
	m.V, m.Time, m.Persons, m.Revoked = 1, j.nowLocked().UnixMicro(), map[string]int64{}, nil
	for p, e := range j.epochs.Person {
		m.Persons[p] = e
	}
	for serial := range j.alone.revoked {
		m.Revoked = append(m.Revoked, serial)
	}
	slices.Sort(m.Revoked)
	return m
}

// nowLocked is the time by which a voucher has expired or not. With a lease of
// this boot the clock of the host does not matter: it is the server's time then
// and boot time since. Without one, a clock that was set back does not go
// behind what is known to have passed.
func (j *judge) nowLocked() time.Time {
	if j.lease.have {
		return time.UnixMicro(max(j.lease.server+(j.boot()-j.lease.asked).Microseconds(), j.alone.time))
	}
	known := time.UnixMicro(j.alone.time).Add(j.boot() - j.alone.began)
	if j.alone.time == 0 {
		known = time.Time{}
	}
	wall := time.Now()
	if j.alone.wall != nil {
		wall = j.alone.wall()
	}
	if wall.After(known) {
		return wall
	}
	return known
}

// lostFor is how long this node has been without a lease: since the last was
// asked for, or since this warden started.
func (j *judge) lostForLocked() time.Duration {
	if j.lease.have {
		return j.boot() - j.lease.asked
	}
	return j.boot() - j.alone.began
}

// open says whether vouchers count now, and for whom: "" is for everybody.
func (j *judge) open() (open bool, only string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.lostForLocked() > j.alone.lost:
		return true, ""
	case j.alone.drill.until > j.boot():
		return true, j.alone.drill.person
	}
	return false, ""
}

// drill begins a rehearsal that was ordered.
func (j *judge) drill(a accepted) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.alone.drill = drill{order: a.Order, person: a.Session.Person, until: a.deadline}
}

// admitted is a voucher that opens a session here and now.
type admitted struct {
	entrance.Voucher
	account   string
	lost      time.Duration
	lastLease int64
	drill     string // the order
}

// voucher judges a certificate: first by itself, then whether it counts here
// and now. That its key is at the other end is not judged here.
func (j *judge) voucher(raw []byte) (admitted, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	v, err := entrance.Check(raw, entrance.Authorities{Voucher: j.bundle.VoucherCA, Offline: j.bundle.OfflineCA}, j.nowLocked())
	if err != nil {
		return admitted{}, err
	}
	a := admitted{Voucher: v, lost: j.lostForLocked()}
	if j.lease.have {
		a.lastLease = j.lease.server
	}
	var here bool
	if a.account, here = v.On(j.node); !here {
		return a, refuse(RuleVoucher, "cannot use this voucher here: it does not name this host")
	}
	switch {
	case v.Epoch < j.epochs.Person[v.Person] && !v.Offline:
		return a, refuse(RuleVoucher, "cannot use this voucher: %s was locked or changed since it was made", v.PersonName)
	case j.alone.revoked[v.Serial]:
		return a, refuse(RuleVoucher, "cannot use this voucher: it was used or withdrawn; get another: handrail voucher fetch")
	case j.frozen:
		return a, refuse(RuleVoucher, "cannot use this voucher: this host is frozen")
	}
	if err := j.policy.vouchers(a); err != nil {
		return a, err
	}
	if a.lost > j.alone.lost {
		return a, nil
	}
	if d := j.alone.drill; d.until > j.boot() && d.person == v.Person {
		a.drill = d.order
		return a, nil
	}
	if j.lease.have && a.lost <= leaseFresh {
		return a, refuse(RuleVoucher, "the server answers, so a voucher is worth nothing: handrail break-glass HOST --reason \"…\"")
	}
	return a, refuse(RuleVoucher, "a server answered %d s ago; vouchers count from %d s on: try again in %d s",
		int(a.lost.Seconds()), int(j.alone.lost.Seconds()), int((j.alone.lost-a.lost).Seconds())+1)
}

// Ways in which a host's own policy takes vouchers.
const (
	vouchersNo       = "no"
	vouchersHardware = "hardware"
	vouchersYes      = "yes"
)

// vouchers is what the host's own administrator allows. A host that wants
// approvers' signatures gets none with a voucher, so it has to say that it
// takes them all the same.
func (h hostPolicy) vouchers(a admitted) error {
	switch mode := h.voucherMode(); {
	case mode == vouchersNo:
		return refuse(RulePolicy, "cannot use vouchers here: this host's own policy refuses them")
	case mode == vouchersHardware && a.Key != wire.KeyHardware:
		return refuse(RulePolicy, "cannot use this voucher here: this host's own policy wants a key that asks for a touch")
	case h.NoRoot && a.account == "root":
		return refuse(RulePolicy, "cannot use this voucher here: this host's own policy allows no root")
	case len(h.Accounts) > 0 && !slices.Contains(h.Accounts, a.account):
		return refuse(RulePolicy, "cannot use this voucher here: this host's own policy does not allow account %s", a.account)
	}
	return nil
}

func (h hostPolicy) voucherMode() string {
	switch {
	case h.NoWrite:
		return vouchersNo
	case h.Vouchers != "":
		return h.Vouchers
	case len(h.keys) > 0:
		return vouchersNo
	}
	return vouchersYes
}

func checkVouchersWord(word string) error {
	if !slices.Contains([]string{"", vouchersNo, vouchersHardware, vouchersYes}, word) {
		return fault.New(fault.Invalid, "vouchers is %q: it can be no, hardware or yes", word)
	}
	return nil
}

// accepted is the session that an admitted voucher opens.
func (a admitted) accepted(session string, ask entrance.Ask, node, host string, now time.Duration) accepted {
	stay := time.Duration(a.Minutes) * time.Minute
	spec := &wire.SessionSpec{
		ID: session, Person: a.Person, PersonName: a.PersonName, Level: wire.LevelWrite, Kind: ask.Kind, Account: a.account,
		Root: a.account == "root", Sudo: a.account == "root", Command: ask.Command, PTY: ask.PTY, Term: ask.Term, Cols: ask.Cols, Rows: ask.Rows,
		Environment: "no server", HostName: host, RemainingMS: stay.Milliseconds(), BreakGlass: true,
		LeastFloor: wire.FloorReduced, Prompt: "OFFLINE",
	}
	spec.Banner = []string{
		fmt.Sprintf("%s · OFFLINE break-glass as %s · %d min at most · recorded here as %s", host, a.account, a.Minutes, session),
		"BREAK-GLASS with a voucher: everybody on this host was told; when the server is back it hears of all of it, and you owe a review",
	}
	if a.drill != "" {
		spec.Banner = append(spec.Banner, "this is a drill: the server is there, and hears of it all the same")
	}
	return accepted{
		OrderPayload: wire.OrderPayload{Order: "voucher", Kind: wire.KindSessionStart, Node: node, Session: spec,
			Epochs: wire.Epochs{Person: map[string]int64{a.Person: a.Epoch}}},
		deadline: now + stay, left: stay,
	}
}

package warden

import (
	"maps"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// rise is one step of an epoch, as it was learned here.
type rise struct {
	from, to int64
	at       time.Duration // boot time
}

// maxRises bounds those of one epoch that are remembered.
const maxRises = 16

// The epochs that are nobody's, among the rises.
const (
	everyLock = "every lock"
	thePolicy = "the policy"
)

// raiseAll takes what a lease says of epochs. The caller holds mu.
func (j *judge) raiseAll(e wire.Epochs) {
	now := j.boot()
	maps.DeleteFunc(j.rises, func(_ string, list []rise) bool { return now-list[len(list)-1].at > leaseFresh })
	j.rose(everyLock, j.epochs.Lock, e.Lock)
	j.rose(thePolicy, j.epochs.Policy, e.Policy)
	j.epochs.Lock = max(j.epochs.Lock, e.Lock)
	j.epochs.Policy = max(j.epochs.Policy, e.Policy)
	for person, epoch := range e.Person {
		j.raise(person, epoch)
	}
}

// raise takes a person's epoch; none ever falls. The caller holds mu.
func (j *judge) raise(person string, epoch int64) {
	known, ok := j.epochs.Person[person]
	if !ok && len(j.epochs.Person) >= maxPersons {
		return
	}
	j.rose(person, known, epoch)
	j.epochs.Person[person] = max(known, epoch)
}

func (j *judge) rose(name string, from, to int64) {
	if to <= from {
		return
	}
	list := j.rises[name]
	if len(list) == maxRises {
		list = append(list[:0], list[1:]...)
	}
	j.rises[name] = append(list, rise{from, to, j.boot()})
}

// metOnTheWay says whether an order of that age, made when the epoch stood
// there, was on its way when the epoch rose here. An honest server sends such
// orders, since a lock does not wait for anybody; it sends none that it made
// afterwards, and none that takes longer than a lease is fresh.
func (j *judge) metOnTheWay(name string, epoch int64, age, now time.Duration) bool {
	for _, r := range j.rises[name] {
		if r.from <= epoch && epoch < r.to {
			return age > now-r.at && now-r.at <= leaseFresh
		}
	}
	return false
}

// checkEpochs refuses what a lock or a policy has overtaken. The caller holds mu.
func (j *judge) checkEpochs(p wire.OrderPayload, age, now time.Duration) error {
	if actor := p.Actor(); actor != "" {
		if _, ok := p.Epochs.Person[actor]; !ok {
			return refuse(RuleEpoch, "cannot accept order %s: it does not say at which epoch %s stood", p.Order, actor)
		}
	}
	var r *refusal
	quiet := true
	if p.Epochs.Lock < j.epochs.Lock {
		r = refuse(RuleEpoch, "cannot accept order %s: a lock has overtaken it", p.Order)
		quiet = quiet && j.metOnTheWay(everyLock, p.Epochs.Lock, age, now)
	}
	if p.Epochs.Policy < j.epochs.Policy {
		r = refuse(RuleEpoch, "cannot accept order %s: a policy has overtaken it", p.Order)
		quiet = quiet && j.metOnTheWay(thePolicy, p.Epochs.Policy, age, now)
	}
	for person, epoch := range p.Epochs.Person {
		if epoch < j.epochs.Person[person] {
			r = refuse(RuleEpoch, "cannot accept order %s: %s was locked since", p.Order, person)
			quiet = quiet && j.metOnTheWay(person, epoch, age, now)
		}
	}
	if r == nil {
		return nil
	}
	r.quiet = quiet
	return r
}

// overtaken reports whether a session that started at these epochs must end.
func (j *judge) overtaken(person string, epoch int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return epoch < j.epochs.Person[person]
}

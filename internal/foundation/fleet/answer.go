package fleet

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

func (f *Fleet) openCheckpoint(signed []byte) (tlog.Tree, error) {
	return ledger.OpenCheckpoint(signed, f.d.Ring.Origin(), f.d.Ring.LogVerifier())
}

// lease answers a node's question whether it may go on acting. An answer that
// cannot be made is no answer: the node then stops by itself.
func (f *Fleet) lease(ctx context.Context, host string, data []byte) []byte {
	ask, err := wire.ParseLeaseAsk(data)
	if err != nil || ask.Node != host {
		f.alarm(host, "lease", "asked for a lease in another's name or malformed")
		return nil
	}
	answer, err := f.makeLease(ctx, ask)
	if err != nil {
		f.d.Log.Error("a lease could not be given", "host", host, "error", err)
		return nil
	}
	signed, err := wire.SignLease(answer, f.d.Ring.Order())
	if err != nil {
		f.d.Log.Error("a lease could not be signed", "host", host, "error", err)
		return nil
	}
	f.seen(host, ask.Size)
	return signed
}

func (f *Fleet) makeLease(ctx context.Context, ask wire.LeaseAsk) (wire.LeaseAnswer, error) {
	answer := wire.LeaseAnswer{V: 1, Node: ask.Node, Nonce: ask.Nonce, ServerTime: time.Now().UnixMicro()}
	f.longer(ctx, ask.Size)
	tree, signed, err := f.d.Store.Head(ctx)
	if err != nil {
		return answer, err
	}
	answer.Checkpoint = signed
	if ask.Size > tree.N {
		f.alarm(ask.Node, "rollback", "the node saw a longer ledger than this server has")
	} else if ask.Size > 0 && ask.Size < tree.N {
		hashes, err := f.d.Store.Consistency(ctx, ask.Size, tree.N)
		if err != nil {
			return answer, err
		}
		answer.Consistency = wire.HashList(hashes)
	}
	epochs, err := f.d.Epochs(ctx)
	if err != nil {
		return answer, err
	}
	answer.LockEpoch, answer.PolicyEpoch, answer.PersonEpochs = epochs.Lock, epochs.Policy, epochs.Person
	if ask.Vouchers && f.d.Revoked != nil {
		if answer.VoucherRevoked, err = f.d.Revoked(ctx); err != nil {
			return answer, err
		}
	}
	if bundle, signed := f.d.Ring.Bundle(); bundle.Version > ask.BundleVersion {
		answer.Bundle = signed
	}
	return answer, nil
}

// longer hears that a node has seen so long a ledger. It may know from another
// server what this one is about to learn.
func (f *Fleet) longer(ctx context.Context, size int64) {
	if f.d.Cluster == nil || size <= f.d.Store.Size() {
		return
	}
	if err := f.d.Store.Refresh(ctx); err != nil {
		f.d.Log.Warn("what other servers recorded cannot be read", "error", err)
	}
}

// consistency proves one tree to extend another, both of the node's choosing.
func (f *Fleet) consistency(ctx context.Context, host string, data []byte) []byte {
	var ask wire.ConsistencyAsk
	answer := wire.ConsistencyAnswer{V: 1}
	err := json.Unmarshal(data, &ask)
	if err == nil {
		f.longer(ctx, ask.New)
	}
	if err != nil || ask.Old <= 0 || ask.New < ask.Old {
		answer.Error = "cannot read the question"
	} else if hashes, err := f.d.Store.Consistency(ctx, ask.Old, ask.New); err != nil {
		answer.Error = err.Error()
	} else {
		answer.Hashes = wire.HashList(hashes)
	}
	out, _ := json.Marshal(answer) // plain strings and bytes always marshal
	return out
}

func (f *Fleet) bundle(context.Context, string, []byte) []byte {
	_, signed := f.d.Ring.Bundle()
	return signed
}

// event records what happened on a node. The node sends it again until it is
// answered; its id makes that harmless. What is of a session is an entry once,
// and only of a session that was ordered there; the rest is bounded like all
// entries about a host.
func (f *Fleet) event(ctx context.Context, host string, data []byte) []byte {
	e, err := wire.ParseEvent(data)
	if err != nil {
		f.alarm(host, "event", "sent an event that cannot be read")
		return done // sending it again would not help
	}
	action, outcome, id := NodeReported, ledger.OK, host+"/"+e.ID
	switch e.Kind {
	case wire.EventAlarm:
		action, outcome = NodeAlarmed, ledger.Denied
		f.d.Log.Error("a node refused what an honest server would not send", "host", host, "rule", e.Rule, "text", e.Text)
	case wire.EventGap:
		outcome = ledger.Lost
	case wire.EventSessionEnded, wire.EventSessionStarted, wire.EventResidue, wire.EventClock:
	default:
		outcome = ledger.Unknown
	}
	payload := reported{Event: e}
	if e.Session == "" || action == NodeAlarmed || outcome == ledger.Unknown {
		var ok bool
		if payload.LeftOut, ok = f.mayNote(host); !ok {
			return done
		}
	} else {
		id = host + "/" + e.Kind + "/" + e.Session
	}
	if e.Session != "" && f.d.Ordered != nil {
		ordered, err := f.d.Ordered(ctx, host, e.Session)
		if err != nil {
			f.d.Log.Error("a node's event could not be judged", "host", host, "error", err)
			return nil // the node sends it again
		}
		if !ordered {
			f.alarm(host, "event", "spoke of session "+e.Session+", which was never ordered there")
			return done
		}
	}
	_, err = f.d.Store.Record(ctx, id, func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{
			Action: action, Outcome: outcome, Subjects: []string{host}, Session: e.Session, Target: "host/" + host, Payload: payload,
		}}, nil
	})
	if err != nil {
		f.d.Log.Error("a node's event could not be recorded", "host", host, "error", err)
		return nil // the node sends it again
	}
	f.d.Changed(host)
	return done
}

// done tells a node that it need not send an event again.
var done = []byte("ok")

// reported is the payload of an event's entry.
type reported struct {
	wire.Event
	LeftOut int `json:"left_out,omitempty"`
}

// renew certifies another key of a node, over the connection that its present
// certificate opened: whoever could ask could go on with that one. A host that
// was removed gets none.
func (f *Fleet) renew(ctx context.Context, host string, data []byte) []byte {
	answer := wire.RenewAnswer{V: 1}
	der, err := f.certify(ctx, host, data)
	if err != nil {
		f.d.Log.Error("a node's certificate could not be renewed", "host", host, "error", err)
		answer.Error = fault.From(err).Text
	}
	answer.Certificate = der
	out, _ := json.Marshal(answer) // plain strings and bytes always marshal
	return out
}

func (f *Fleet) certify(ctx context.Context, host string, data []byte) ([]byte, error) {
	if err := f.d.Known(ctx, host); err != nil {
		return nil, err
	}
	var ask wire.RenewAsk
	if err := json.Unmarshal(data, &ask); err != nil {
		f.alarm(host, "renew", "asked for a certificate in no known form")
		return nil, fault.Wrap(fault.Invalid, err, "cannot renew the certificate of %s", host)
	}
	der, err := f.d.Ring.IssueNode(ask.CSR, host)
	if err != nil {
		f.alarm(host, "renew", "asked for a certificate that cannot be given")
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot renew the certificate of %s", host)
	}
	_, err = f.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: NodeRenewed, Subjects: []string{host}, Target: "host/" + host, Payload: map[string]any{
			"v": 1, "serial": cert.SerialNumber.Text(16), "not_after": cert.NotAfter.UnixMicro(),
		}}}, nil
	})
	if err != nil {
		return nil, err
	}
	return der, nil
}

// alarm records that a node did what an honest one does not.
func (f *Fleet) alarm(host, rule, text string) {
	f.record(host, NodeAlarmed, ledger.Denied, map[string]any{"v": 1, "rule": rule, "text": text})
}

func (f *Fleet) recordConnected(_ context.Context, host string, hello wire.Hello) {
	f.record(host, NodeConnected, ledger.OK, map[string]any{
		"v": 1, "mode": hello.Mode, "floor": hello.Floor, "missing": hello.Missing, "version": hello.Version, "trial": hello.Trial,
	})
}

func (f *Fleet) recordLeft(host string) {
	f.record(host, NodeLeft, ledger.Lost, map[string]any{"v": 1})
}

// recordTime bounds how long fleet waits to write an entry of its own.
const recordTime = 10 * time.Second

// record writes one entry about a node, at most noteRate a minute for each
// host, so that a node that flaps cannot flood the ledger; the count of those
// left out is in the next one.
func (f *Fleet) record(host string, action ledger.Action, outcome ledger.Outcome, payload map[string]any) {
	left, ok := f.mayNote(host)
	if !ok {
		return
	}
	if left > 0 {
		payload["left_out"] = left
	}
	ctx, cancel := context.WithTimeout(context.Background(), recordTime)
	defer cancel()
	_, err := f.d.Store.Record(ctx, store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: action, Outcome: outcome, Subjects: []string{host}, Target: "host/" + host, Payload: payload}}, nil
	})
	if err != nil {
		f.d.Log.Error("an entry about a node could not be recorded", "host", host, "action", string(action), "error", err)
	}
}

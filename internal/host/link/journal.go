package link

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/warden"
)

const (
	journalsEvery = 2 * time.Second
	announceEvery = time.Minute // until the server has taken the keys
)

// announce tells the server by what this host's entrance is known.
func (b *bus) announce(ctx context.Context) error {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		if err := b.announceOnce(ctx); err == nil {
			<-ctx.Done()
			return ctx.Err()
		} else if ctx.Err() == nil {
			b.l.log.Warn("the server does not know the entrance for vouchers yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (b *bus) announceOnce(ctx context.Context) error {
	e, err := b.l.warden.Entrance(ctx)
	if err != nil {
		return err
	}
	k := wire.EntranceKeys{V: 1, HostKey: strings.TrimSpace(e.HostKey), Journal: e.Journal}
	if host, port, err := net.SplitHostPort(b.l.c.Entrance); err == nil {
		if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
			k.Address = host
		}
		k.Port, _ = strconv.Atoi(port)
	}
	raw, err := json.Marshal(k)
	if err != nil {
		return err
	}
	_, err = b.ask(ctx, wire.UpEntrance, raw)
	return err
}

func (b *bus) ask(ctx context.Context, name string, raw []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, wire.UpSubject(b.l.id.Host, name), raw)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot reach the server")
	}
	return m.Data, nil
}

// journals carries up what was recorded while no server answered: each from
// where the server's copy ends, until it has signed that it is in the ledger.
func (b *bus) journals(ctx context.Context) error {
	tick := time.NewTicker(journalsEvery)
	defer tick.Stop()
	sent := map[string]int64{} // of live ones
	for {
		list, err := b.l.warden.Journals(ctx)
		for _, j := range list {
			if j.Live && sent[j.Session] == j.Size {
				continue // nothing new
			}
			if err = b.carry(ctx, j); err != nil {
				break // one after the other, so that none seems to be missing
			}
			sent[j.Session] = j.Size
		}
		if err != nil && ctx.Err() == nil {
			b.l.log.Warn("what was recorded without a server did not go up", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// carry brings one journal up as far as it goes now.
func (b *bus) carry(ctx context.Context, j warden.Journal) error {
	have, err := b.part(ctx, wire.JournalPart{V: 1, Session: j.Session, Size: j.Size, Live: j.Live})
	for err == nil && len(have.Receipt) == 0 && have.Have < j.Size {
		var data []byte
		if data, err = b.l.warden.Journal(ctx, j.Session, have.Have); err != nil {
			return err
		}
		data = data[:min(int64(len(data)), j.Size-have.Have)]
		if len(data) == 0 {
			return fault.New(fault.Conflict, "cannot bring up the recording of %s: it is shorter than it was", j.Session)
		}
		before := have.Have
		have, err = b.part(ctx, wire.JournalPart{V: 1, Session: j.Session, Offset: before, Data: data, Size: j.Size, Live: j.Live})
		if err == nil && have.Have <= before && len(have.Receipt) == 0 {
			return fault.New(fault.Conflict, "cannot bring up the recording of %s: the server does not take it", j.Session)
		}
	}
	if err != nil || len(have.Receipt) == 0 {
		return err
	}
	return b.l.warden.Forget(ctx, have.Receipt)
}

func (b *bus) part(ctx context.Context, p wire.JournalPart) (wire.JournalAnswer, error) {
	var a wire.JournalAnswer
	raw, err := json.Marshal(p)
	if err != nil {
		return a, err
	}
	out, err := b.ask(ctx, wire.UpJournal, raw)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(out, &a); err != nil {
		return a, fault.Wrap(fault.Invalid, err, "cannot read the server's answer about the recording of %s", p.Session)
	}
	if a.Error != "" {
		return a, fault.New(fault.Unavailable, "cannot bring up the recording of %s: %s", p.Session, a.Error)
	}
	return a, nil
}

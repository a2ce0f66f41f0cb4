package rpc

import (
	"fmt"
	"time"
)

// voucherPayload is what the entries of vouchers, journals and drills may say.
type voucherPayload struct {
	Session  string `json:"session"`
	Host     string `json:"host_name"`
	Name     string `json:"person_name"`
	Key      string `json:"key"`
	Account  string `json:"account"`
	Ceremony bool   `json:"ceremony"`
	Officers string `json:"officers"`
	Known    bool   `json:"known"`
	LostMS   int64  `json:"lost_ms"`
	Drill    string `json:"drill"`
	Lost     string `json:"lost"`
	Whole    bool   `json:"whole"`
	Why      string `json:"why"`
	From     int64  `json:"from"`
	To       int64  `json:"to"`
	Took     int64  `json:"took_us"`
	Failure  string `json:"failure"`
	Changed  bool   `json:"changed"`
	Hosts    []any  `json:"hosts"`
}

var voucherSentences = map[string]func(*said) string{
	"voucher.issued": func(s *said) string {
		p := read[voucherPayload](s)
		return fmt.Sprintf("%s fetched a voucher for %d hosts on a %s key", s.who(), len(p.Hosts), p.Key)
	},
	"voucher.keyed": func(s *said) string {
		return s.who() + " named a " + read[voucherPayload](s).Key + " key for vouchers, with a passkey"
	},
	"voucher.revoked": func(s *said) string {
		p := read[struct {
			Serial uint64
			Known  bool
			Reason string
		}](s)
		text := fmt.Sprintf("%s revoked voucher %d", s.who(), p.Serial)
		if !p.Known {
			text += ", which this server did not make"
		}
		return text + because(p.Reason)
	},
	"voucher.used": func(s *said) string {
		p := read[voucherPayload](s)
		text := fmt.Sprintf("%s broke the glass OFFLINE on %s as %s, %s without a server", p.Name, p.Host, p.Account, (time.Duration(p.LostMS) * time.Millisecond).Round(time.Second))
		switch {
		case p.Drill != "":
			return fmt.Sprintf("%s came in on %s with a voucher, in a drill", p.Name, p.Host)
		case p.Ceremony:
			text = "CEREMONY: " + text + ", with a voucher that officers made (" + p.Officers + ")"
		case !p.Known:
			text += ", with a voucher that this server did not make"
		}
		return text
	},
	"entrance.keyed": func(s *said) string {
		if read[voucherPayload](s).Changed {
			return s.who() + " has other keys for its entrance than before"
		}
		return s.who() + " has an entrance for vouchers"
	},
	"breakglass.offline": func(s *said) string {
		p := read[voucherPayload](s)
		text := fmt.Sprintf("what %s did OFFLINE on %s is here, recorded as %s", p.Name, p.Host, p.Session)
		if p.Lost != "" {
			text += "; " + p.Lost
		}
		return text
	},
	"journal.missing": func(s *said) string {
		p := read[voucherPayload](s)
		return fmt.Sprintf("%d recordings of offline sessions on %s are missing", p.To-p.From+1, s.who())
	},
	"journal.refused": func(s *said) string {
		return s.who() + " sent a recording that is not what it signed: " + read[voucherPayload](s).Why
	},
	"drill.ordered": func(s *said) string { return s.who() + " began a break-glass drill" + s.on() },
	"drill.ended": func(s *said) string {
		p := read[voucherPayload](s)
		if p.Failure != "" {
			return fmt.Sprintf("the break-glass drill of %s on %s failed: %s", s.who(), p.Host, p.Failure)
		}
		return fmt.Sprintf("the break-glass drill of %s on %s took %s", s.who(), p.Host, (time.Duration(p.Took) * time.Microsecond).Round(10*time.Millisecond))
	},
}

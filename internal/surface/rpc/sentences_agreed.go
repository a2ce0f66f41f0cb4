package rpc

import (
	"fmt"

	"handrail.dev/handrail/internal/feature/drain"
)

// agreedPayload is of the entries about core dumps and unmasked values.
type agreedPayload struct {
	Is, Name, Why, Ended string
	Bytes                int64
	Until                int64
	Inspection           string
}

func (p agreedPayload) size() string { return fmt.Sprintf("%.1f MiB", float64(p.Bytes)/(1<<20)) }

type drainPayload struct{ Drain drain.Drain }

var agreedSentences = map[string]func(*said) string{
	"host.drained": func(s *said) string {
		d := read[drainPayload](s).Drain
		return s.who() + " drained " + s.TargetName + " until " + clock(d.Until) + because(d.Why)
	},
	"host.undrained": func(s *said) string { return s.who() + " undrained " + s.TargetName },
	"core.kept": func(s *said) string {
		p := read[agreedPayload](s)
		return s.who() + " dumped the memory of " + p.Is + s.on() + ", " + p.size() + ", kept until " + clock(p.Until) + because(p.Why)
	},
	"core.read":    func(s *said) string { return s.who() + " downloaded a core dump" + s.on() },
	"core.removed": func(s *said) string { return s.who() + " has a core dump" + s.on() + " destroyed" },
	"core.destroyed": func(s *said) string {
		p := read[agreedPayload](s)
		if p.Ended == "lost" {
			return "a core dump" + s.on() + " broke off when the server stopped; nothing of it can be opened"
		}
		return "a core dump" + s.on() + " is destroyed: " + p.Ended
	},
	"inspection.unmasked": func(s *said) string {
		p := read[agreedPayload](s)
		return s.who() + " was shown " + p.Name + " of " + p.Is + s.on() + because(p.Why)
	},
	"inspection.shown": func(s *said) string {
		p := read[agreedPayload](s)
		return s.who() + " looked again at the answer of " + p.Inspection + s.on()
	},
}

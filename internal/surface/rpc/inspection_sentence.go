package rpc

import (
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

func inspectionOpened(s *said) string {
	p := read[wire.OrderPayload](s).Inspect
	if p == nil {
		return s.who() + " inspects" + s.on()
	}
	text := s.who() + " inspects " + p.What
	if p.Target != "" {
		text += " of " + p.Target
	}
	return text + s.on()
}

func inspectionClosed(s *said) string {
	p := read[struct {
		What, Target, Process, Error string
		PauseNS                      int64 `json:"pause_ns"`
		Masked                       int64
		Visited                      bool
	}](s)
	text := s.own(s.whom()) + " look at " + orWord(p.What, "the host") + s.on() + " is over"
	if p.Visited {
		text += ", a node came for it"
	}
	if p.PauseNS > 0 {
		text += ", the process was held for " + time.Duration(p.PauseNS).Round(10*time.Microsecond).String()
	}
	if p.Masked > 0 {
		text += ", " + times(int(p.Masked)) + " something was masked"
	}
	return text + because(p.Error)
}

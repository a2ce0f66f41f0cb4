package rpc

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/access"
	"handrail.dev/handrail/internal/foundation/approval"
	"handrail.dev/handrail/internal/foundation/doorway"
	"handrail.dev/handrail/internal/foundation/identity"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/target"
	"handrail.dev/handrail/internal/foundation/wire"
)

// sentences is every action's: a line here is a line that people read.
var sentences = map[string]func(*said) string{
	"act.denied":     denied,
	"act.ended":      over,
	"denial.counted": func(s *said) string { return s.who() + " was refused" + counted(s) },
	"read.counted":   func(s *said) string { return s.who() + " looked" + counted(s) },

	"approval.requested": func(s *said) string {
		return s.who() + " waits for somebody to agree" + s.request(" to ", read[approvalPayload](s).Approval)
	},
	"approval.signed": func(s *said) string {
		return s.who() + " signed their own request" + s.request(" for ", read[approvalPayload](s).Approval)
	},
	"approval.approved": approved,
	"approval.denied": func(s *said) string {
		a := read[approvalPayload](s).Approval
		return s.who() + " refused" + s.request(" ", a) + lastWords(a)
	},
	"approval.lapsed": func(s *said) string {
		return "nobody decided in time" + s.request(" about ", read[approvalPayload](s).Approval)
	},
	"approval.withdrawn": func(s *said) string {
		a := read[approvalPayload](s).Approval
		return "nobody is asked any more (" + orWord(a.EndedWhy, "given up") + ")" + s.request(" about ", a)
	},
	"approver.added": func(s *said) string {
		return s.who() + " added " + s.whom() + " alone, as nobody else could agree yet"
	},

	"bootstrap.begun":   func(*said) string { return "the installation began: one person may add people" },
	"bootstrap.limited": func(s *said) string { return "a second person came: bootstrap ends within a day" },
	"bootstrap.ended": func(s *said) string {
		return s.who() + " ended the bootstrap: from now on it takes two" + because(read[identity.BootstrapPayload](s).Reason)
	},
	"code.confirmed": func(s *said) string {
		return s.who() + " let an ssh client" + from(read[identity.CodePayload](s).Source) + " in by its code, to read"
	},
	"credential.revoked": func(s *said) string {
		p := read[identity.CredentialPayload](s)
		return s.who() + " took away " + s.own(s.names.name(p.Person)) + " key " + p.Name + because(p.Reason)
	},
	"device.enrolled": func(s *said) string {
		return s.who() + " enrolled the device " + read[identity.CredentialPayload](s).Name
	},
	"passkey.enrolled": func(s *said) string {
		return s.who() + " enrolled the passkey " + read[identity.CredentialPayload](s).Name
	},

	"grant.requested": func(s *said) string {
		g := read[grantPayload](s).Grant
		return g.PersonName + " asked for " + g.Phrase() + because(g.Reason)
	},
	"grant.declared": func(s *said) string {
		g := read[grantPayload](s).Grant
		return g.PersonName + " BROKE THE GLASS: " + g.Phrase() + because(g.Reason)
	},
	"grant.approved": func(s *said) string {
		g := read[grantPayload](s).Grant
		return g.PersonName + "'s " + g.Phrase() + " is agreed to"
	},
	"grant.activated": func(s *said) string {
		g := read[grantPayload](s).Grant
		return g.PersonName + "'s " + g.Phrase() + " is in force, until " + clock(g.Expires)
	},
	"grant.denied": func(s *said) string {
		g := read[grantPayload](s).Grant
		return g.PersonName + " does not get " + g.Phrase() + because(orWord(g.EndedNote, g.EndedWhy))
	},
	"grant.lapsed": func(s *said) string {
		g := read[grantPayload](s).Grant
		return "nobody agreed in time to " + g.PersonName + "'s " + g.Phrase()
	},
	"grant.paused": func(s *said) string {
		g := read[grantPayload](s).Grant
		return s.who() + " paused " + g.PersonName + "'s grant on " + targets(g.Targets) + because(g.PausedWhy)
	},
	"grant.resumed": func(s *said) string {
		g := read[grantPayload](s).Grant
		return s.who() + " resumed " + g.PersonName + "'s grant on " + targets(g.Targets)
	},
	"grant.ended": grantEnded,
	"grant.ratified": func(s *said) string {
		g := read[grantPayload](s).Grant
		return s.who() + " stands behind " + g.PersonName + "'s break-glass on " + targets(g.Targets)
	},
	"grant.reviewed": func(s *said) string {
		g := read[grantPayload](s).Grant
		return s.who() + " reviewed " + g.PersonName + "'s break-glass on " + targets(g.Targets) + ", " + strings.ReplaceAll(g.Verdict, "-", " ") + because(g.Notes)
	},

	"host.invited": func(s *said) string {
		p := read[struct{ Name, Environment, Scope string }](s)
		return s.who() + " invited a host, " + orWord(p.Name, "by its own name") + ", as " + place(p.Environment, p.Scope)
	},
	"host.joined": func(s *said) string {
		h := read[hostPayload](s).Host
		return h.Name + " joined as " + place(h.Environment, h.Scope)
	},
	"host.set":   hostSet,
	"host.added": hostAdded,
	"host.called": func(s *said) string {
		if read[struct{ Stay bool }](s).Stay {
			return s.who() + " sent a node to " + s.TargetName + ", to stay"
		}
		return s.who() + " has a node sent to " + s.TargetName + ", for the length of a visit"
	},
	"host.visited":    func(s *said) string { return s.TargetName + " has a node for the length of a visit" },
	"host.mismatched": mismatched,
	"session.swept":   sessionSwept,

	"support.bundled": func(*said) string {
		return "whoever owns the server's folder had put together what can be told of the server to somebody outside"
	},
	"ledger.opened": func(*said) string { return "the ledger was opened" },
	"ledger.restored": func(s *said) string {
		return "the database was put back from a copy" + because(read[struct{ Reason string }](s).Reason)
	},
	"ledger.pruned": func(s *said) string {
		return fmt.Sprintf("the payloads of %d entries were let go, as the configuration's retention says; their proofs stay", read[struct{ Count int64 }](s).Count)
	},
	"ledger.verified": func(s *said) string { return s.who() + " had the whole ledger verified" },
	"ledger.exported": func(s *said) string { return s.who() + " took a copy of the ledger" },
	"brake.spooled": func(s *said) string {
		p := read[struct {
			Action string
			Used   int64
		}](s)
		return s.who() + " used a brake (" + p.Action + ") at " + clock(p.Used) + " while the database was away"
	},
	"witness.set":      witnessSet,
	"witness.missing":  witnessMissing,
	"witness.refused":  witnessMissing,
	"witness.returned": witnessReturned,
	"subject.erased":   subjectErased,
	"erasure.finished": erasureFinished,
	"keys.proposed":    keySentence("WHO had new keys made: KINDS"),
	"keys.agreed":      keySentence("new keys were agreed to: KINDS"),
	"keys.dropped":     keySentence("the new keys were given up"),
	"keys.rotated":     keySentence("WHO brought what the root key signed: new keys count (KINDS)"),
	"keys.trusted":     keySentence("the root key has signed whose vouchers count"),
	"keys.finished":    keySentence("the new keys act, and the old ones were destroyed"),

	"login.opened": func(s *said) string {
		p := read[identity.LoginPayload](s)
		return s.who() + " logged in with a " + orWord(p.Born, "token") + from(p.Source)
	},
	"login.ended":  func(s *said) string { return s.who() + " logged out" },
	"login.failed": loginsFailed,

	"node.connected": func(s *said) string {
		p := read[struct{ Mode, Floor string }](s)
		return s.where() + " came: mode " + p.Mode + ", floor " + p.Floor
	},
	"node.left": func(s *said) string { return s.where() + " went away" },
	"node.alarmed": func(s *said) string {
		p := read[wire.Event](s)
		return s.where() + " ALARM " + p.Rule + because(p.Text)
	},
	"node.reported": reported,
	"node.renewed": func(s *said) string {
		return s.where() + " got another certificate, good until " + time.UnixMicro(read[struct {
			NotAfter int64 `json:"not_after"`
		}](s).NotAfter).UTC().Format(time.DateOnly)
	},

	"person.added": func(s *said) string {
		p := read[identity.PersonPayload](s)
		return s.who() + " added " + p.Name + in(p.Groups)
	},
	"person.enrolled": func(s *said) string { return s.who() + " logged in for the first time" },
	"person.named":    func(s *said) string { return "the first person is called " + read[identity.PersonPayload](s).Name },
	"person.bound": func(s *said) string {
		return s.who() + " is from now on who " + read[identity.BindingPayload](s).Issuer + " says they are"
	},
	"robot.set": func(s *said) string {
		p := read[identity.RobotPayload](s)
		verb := " made robot "
		if p.Before != nil {
			verb = " changed robot "
		}
		return s.who() + verb + p.Name + " of " + s.names.name(p.Owner) + ": " + strings.Join(p.Robot.May, ", ") + " on " + p.Robot.Hosts
	},
	"robot.removed": func(s *said) string {
		p := read[identity.RobotPayload](s)
		return s.who() + " removed robot " + p.Name + because(p.Reason)
	},
	"person.regrouped": func(s *said) string {
		p := read[identity.PersonPayload](s)
		return s.who() + " regrouped " + s.names.name(p.Person) + in(p.Groups) + "; before that" + in(p.Before)
	},
	"person.locked": func(s *said) string {
		p := read[identity.PersonPayload](s)
		return s.who() + " LOCKED " + s.names.name(p.Person) + because(p.Reason)
	},
	"person.unlocked": func(s *said) string {
		p := read[identity.PersonPayload](s)
		return s.who() + " unlocked " + s.names.name(p.Person) + because(p.Reason)
	},
	"policy.applied": func(s *said) string {
		return fmt.Sprintf("%s put version %d of the policy in force", s.who(), read[struct{ Version int64 }](s).Version)
	},

	"recording.started": func(s *said) string { return "the recording of " + s.Session + " began" },
	"recording.chunks": func(s *said) string {
		p := read[struct{ Sizes []int64 }](s)
		total := int64(0)
		for _, n := range p.Sizes {
			total += n
		}
		return fmt.Sprintf("%s of the recording of %s are in the ledger", bytesOf(total), s.Session)
	},
	"recording.closed": func(s *said) string {
		p := read[struct {
			Bytes int64
			Lost  string
		}](s)
		return "the recording of " + s.Session + " is complete, " + bytesOf(p.Bytes) + because(p.Lost)
	},

	"recording.archived": func(s *said) string {
		return "the recording of " + s.Session + ", " + bytesOf(read[struct{ Bytes int64 }](s).Bytes) + ", lies in the bucket"
	},
	"recording.delayed": func(s *said) string {
		p := read[struct {
			Waiting      int
			Bytes, Since int64
			Why          string
		}](s)
		return fmt.Sprintf("%d finished recordings, %s, WAIT for the bucket", p.Waiting, bytesOf(p.Bytes)) + because(p.Why)
	},
	"recording.caughtup": func(*said) string { return "recordings no longer wait for the bucket" },
	"recording.removed": func(s *said) string {
		p := read[ledger.Removed](s)
		return fmt.Sprintf("%d recordings were removed for good", len(p.Sessions)) + because(p.Why)
	},

	"inspection.opened": inspectionOpened,
	"inspection.closed": inspectionClosed,

	"session.opened":  opened,
	"session.closed":  sessionClosed,
	"session.watched": func(s *said) string { return s.who() + " watches " + s.session() },
	"session.joined":  func(s *said) string { return s.who() + " joined " + s.session() },
	"session.left":    func(s *said) string { return s.who() + " left " + s.session() },
	"session.searched": func(s *said) string {
		p := read[struct {
			Words    string
			Sessions []string
		}](s)
		return fmt.Sprintf("%s searched %d recordings for “%s”", s.who(), len(p.Sessions), p.Words)
	},
	"session.resumed": func(s *said) string { return s.who() + " let " + s.session() + " go on" },
	"session.paused": func(s *said) string {
		return s.who() + " paused " + s.session() + because(strings.TrimPrefix(read[braked](s).Reason, s.who()+" paused it: "))
	},
	"session.stopped":  func(s *said) string { return s.who() + " stopped " + s.session() + because(read[braked](s).Reason) },
	"session.replayed": func(s *said) string { return s.who() + " replayed " + s.session() },

	"token.made": func(s *said) string {
		p := read[identity.TokenPayload](s)
		return s.who() + " made a login link for " + s.names.name(p.Person)
	},
	"token.redeemed": func(s *said) string {
		return s.who() + " used a login link" + from(read[identity.TokenPayload](s).Source)
	},
	"token.replayed": func(s *said) string {
		p := read[identity.TokenPayload](s)
		return "somebody tried a used login link of " + s.names.name(p.Person) + from(p.Source)
	},
}

// The parts of payloads that sentences are made of.
type (
	grantPayload    struct{ Grant access.Grant }
	approvalPayload struct{ Approval approval.Approval }
	hostPayload     struct {
		Host   target.Host
		Before *target.Host
	}
	braked struct{ Reason string }
)

func denied(s *said) string {
	p := read[struct{ Action, Text string }](s)
	why := strings.TrimSuffix(strings.TrimPrefix(p.Text, "Refused: "), ".")
	return s.who() + " could not " + doorway.Verb(p.Action) + s.on() + because(why)
}

func over(s *said) string {
	p := read[struct{ Action, Error string }](s)
	return "over: " + s.who() + " was let through to " + doorway.Verb(p.Action) + s.on() + because(p.Error)
}

func counted(s *said) string {
	p := read[struct{ Counts map[string]int }](s)
	total := 0
	var parts []string
	for _, action := range slices.Sorted(maps.Keys(p.Counts)) {
		total += p.Counts[action]
		parts = append(parts, fmt.Sprintf("%s %d", action, p.Counts[action]))
	}
	return fmt.Sprintf(" %s within a minute: %s", times(total), strings.Join(parts, ", "))
}

func approved(s *said) string {
	a := read[approvalPayload](s).Approval
	if a.State == approval.Requested {
		return fmt.Sprintf("%s agreed, one of %d,", s.who(), a.Rule.Needed) + s.request(" to ", a)
	}
	return s.who() + " approved" + s.request(" ", a)
}

func lastWords(a approval.Approval) string {
	if len(a.Decisions) == 0 {
		return ""
	}
	return because(a.Decisions[len(a.Decisions)-1].Reason)
}

func grantEnded(s *said) string {
	g := read[grantPayload](s).Grant
	what := g.PersonName + "'s grant on " + targets(g.Targets)
	switch g.EndedWhy {
	case access.Expired:
		return what + " ended: its time was up"
	case access.Done:
		return g.PersonName + " is done: the grant on " + targets(g.Targets) + " ended"
	case access.Locked:
		return what + " ended: they were locked" + because(g.EndedNote)
	case access.Unratified:
		return what + " was cut back to read: nobody stood behind it" + because(g.EndedNote)
	}
	return s.who() + " revoked " + what + because(g.EndedNote)
}

func hostSet(s *said) string {
	p := read[hostPayload](s)
	if p.Before == nil {
		return s.who() + " set " + p.Host.Name
	}
	var parts []string
	for _, f := range []struct{ name, was, is string }{
		{"name", p.Before.Name, p.Host.Name}, {"environment", p.Before.Environment, p.Host.Environment}, {"scope", p.Before.Scope, p.Host.Scope},
		{"services", strings.Join(p.Before.Services, " "), strings.Join(p.Host.Services, " ")},
		{"labels", strings.Join(p.Before.Labels, " "), strings.Join(p.Host.Labels, " ")},
		{"mode", p.Before.Mode, p.Host.Mode}, {"trial", fmt.Sprint(p.Before.Trial), fmt.Sprint(p.Host.Trial)},
		{"SSH address", p.Before.SSHAddress, p.Host.SSHAddress}, {"reads as", p.Before.SSHUser, p.Host.SSHUser}, {"writes as", p.Before.SSHWrite, p.Host.SSHWrite},
		{"host key", target.Fingerprint(p.Before.SSHKey), target.Fingerprint(p.Host.SSHKey)}, {"certificates from", p.Before.SSHSource, p.Host.SSHSource},
		{"node for a session", fmt.Sprint(p.Before.SSHNode), fmt.Sprint(p.Host.SSHNode)},
	} {
		if f.was != f.is {
			parts = append(parts, f.name+" "+orWord(f.is, "none")+" (was "+orWord(f.was, "none")+")")
		}
	}
	return s.who() + " set " + p.Host.Name + because(strings.Join(parts, ", "))
}

func loginsFailed(s *said) string {
	p := read[identity.FailuresPayload](s)
	total := 0
	var sources []string
	for _, one := range p.Sources {
		sources = append(sources, one.Source)
		for _, n := range one.Counts {
			total += int(n)
		}
	}
	total += int(p.Others)
	if len(sources) > 3 {
		sources = append(sources[:3], "others")
	}
	return "logging in failed " + times(total) + " within a minute" + from(strings.Join(sources, ", "))
}

func reported(s *said) string {
	p := read[wire.Event](s)
	text := s.where() + " reports: "
	switch p.Kind {
	case wire.EventSessionStarted:
		return text + "session " + p.Session + " runs"
	case wire.EventSessionEnded:
		return text + "session " + p.Session + " is over, " + orWord(p.Why, "ended")
	case wire.EventGap:
		return text + fmt.Sprintf("%d of its events are lost", p.Count) + because(p.Text)
	case wire.EventResidue:
		return text + "something of session " + p.Session + " was left and cleaned up" + because(p.Text)
	case wire.EventClock:
		return text + "its clock jumped" + because(p.Text)
	}
	return text + p.Kind + because(p.Text)
}

func opened(s *said) string {
	p := read[wire.OrderPayload](s).Session
	if p == nil {
		return ""
	}
	level := map[string]string{wire.LevelRead: "read-only", wire.LevelWrite: "with write access"}[p.Level]
	switch {
	case p.Root:
		level = "as root"
	case p.Sudo:
		level = "with sudo"
	}
	if p.BreakGlass {
		level += ", BREAK-GLASS"
	}
	if p.Kind == wire.SessionExec {
		return s.who() + " ran a command" + s.on() + ", " + level + because(p.Command)
	}
	if p.Kind == wire.SessionForward {
		return s.who() + " reached " + p.Command + " by a forwarded port" + s.on() + ", " + level
	}
	return s.who() + " opened a " + p.Kind + s.on() + ", " + level
}

func sessionClosed(s *said) string {
	p := read[struct {
		Why, Text, Signal string
		Status            int32
	}](s)
	text := s.whom() + "'s session" + s.on() + " is over"
	switch {
	case p.Why == "exit" && p.Signal != "":
		text += ", by signal " + p.Signal
	case p.Why == "exit":
		text += fmt.Sprintf(", with status %d", p.Status)
	default:
		text += ", " + p.Why
	}
	return text + because(p.Text)
}

// session is the session that an entry is about, by its person and host.
func (s *said) session() string {
	return s.own(s.whom()) + " session" + s.on()
}

// where is the host's node.
func (s *said) where() string { return orWord(s.TargetName, s.who()) + "'s node" }

func in(groups []string) string {
	if len(groups) == 0 {
		return ", in no group"
	}
	return ", in " + strings.Join(groups, ", ")
}

func place(environment, scope string) string {
	if scope == "" || scope == "none" {
		return environment
	}
	return environment + ", " + scope
}

func orWord(word, absent string) string {
	if word == "" {
		return absent
	}
	return word
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// clock is a moment of a sentence, whose own time stands beside it.
func clock(micros int64) string { return time.UnixMicro(micros).UTC().Format("15:04 UTC") }

// bytesOf is a number of bytes for people.
func bytesOf(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, unit := float64(n)/(1<<10), 0
	for f >= 1<<10 && unit < len("KMGTPE")-1 {
		f, unit = f/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTPE"[unit])
}

package fake

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (a *API) tell() {
	a.install = &v1.Installation{
		Name: "acme", Mode: "root", DataDir: "/var/lib/handrail", Version: "0.1.0", SshAddress: "127.0.0.1:2222",
		RootKeyHash: "sha256:Vf3kq0n8h2Jc1xk9", Url: "http://localhost:8080",
	}
	switch a.kind {
	case Fresh:
		a.fresh()
	case NoShells:
		a.fresh()
		a.noShells()
	case Hostile:
		a.busy()
		a.poison()
	default:
		a.busy()
	}
	a.tree = grow(a.entries)
	a.install.LedgerSize = uint64(len(a.entries))
}

func (a *API) fresh() {
	a.install.Mode, a.install.Trial, a.install.Bootstrap = "user-namespace", true, true
	a.install.Missing = []string{
		"Other people's processes are hidden, not shown read-only: this user may not see them.",
		"Write sessions run as the user that started handrail, since no other account can be taken.",
		"A person with that same account could read the data folder.",
	}
	a.people = []*v1.Person{{Id: "p-7k3f9q2m", Name: "admin", Groups: []string{"admin"}, Created: a.at(-20 * time.Second)}}
	a.hosts = []*v1.Host{a.machine("h-0000000a", "thinkpad", "dev", "none", "online", 0.42, 16, 9.1, 512, 220)}
	a.hosts[0].Mode, a.hosts[0].Trial = "user-namespace", true
	a.entry("installation.created", "ok", "", "", "handrail made its keys and its ledger", 18*time.Second)
	a.entry("host.added", "ok", "", "thinkpad", "handrail added the host thinkpad", 17*time.Second)
	a.entry("login.redeemed", "ok", "admin", "", "admin logged in from 127.0.0.1", 9*time.Second)
}

func (a *API) noShells() {
	a.install.Mode = "no-shells"
	a.install.Missing = []string{"User namespaces are switched off (kernel.apparmor_restrict_unprivileged_userns=1), and handrail does not run as root."}
	a.hosts[0].Mode, a.hosts[0].Floor = "no-shells", "brokered"
	a.hosts[0].FloorMissing = []string{"No user namespace: the kernel refuses unshare(CLONE_NEWUSER). Run handrail as root, or set kernel.apparmor_restrict_unprivileged_userns=0."}
}

func (a *API) machine(id, name, env, scope, state string, load float64, memory, free float64, disk, diskFree float64) *v1.Host {
	gib := func(f float64) string { return strconv.FormatInt(int64(f*(1<<30)), 10) }
	h := &v1.Host{
		Id: id, Name: name, Environment: env, Scope: scope, State: state, Seen: a.at(-2 * time.Second), Floor: "full", Mode: "root",
		NodeVersion: "0.1.0", Created: a.at(-40 * 24 * time.Hour),
	}
	for _, f := range [][2]string{
		{"os", "Debian GNU/Linux 12 (bookworm)"}, {"kernel", "6.1.0-28-amd64"}, {"cpus", "8"}, {"load1", strconv.FormatFloat(load, 'f', 2, 64)},
		{"memory_total_bytes", gib(memory)}, {"memory_available_bytes", gib(free)}, {"disk_root_total_bytes", gib(disk)}, {"disk_root_free_bytes", gib(diskFree)},
		{"uptime_seconds", "3456789"}, {"addresses", "10.20.4." + strconv.Itoa(len(a.hosts)+11) + ", fd00:20:4::" + strconv.Itoa(len(a.hosts)+11)},
		{"serial", "unreadable: needs root"},
	} {
		h.Facts = append(h.Facts, &v1.Fact{Name: f[0], Value: f[1], At: a.at(-2 * time.Second), Source: "node"})
	}
	if state != "online" {
		h.Seen = a.at(-3 * time.Hour)
	}
	return h
}

func (a *API) busy() {
	a.install.Demo = true
	a.install.Banner = "Break-glass: grace has write on db-1 (production): \"primary is out of connections\". 22 min left."
	day := 24 * time.Hour
	key := func(id, kind, name string, old time.Duration) *v1.Credential {
		return &v1.Credential{Id: id, Kind: kind, Name: name, Created: a.at(-old), MayApproveFrom: a.at(day - old), Fingerprint: "SHA256:kq0n8h2Jc1xk9VfTn3Pz7Qm4"}
	}
	a.people = []*v1.Person{
		{Id: "p-7k3f9q2m", Name: "ada", Groups: []string{"admin", "operator"}, Created: a.at(-40 * day), Credentials: []*v1.Credential{key("k-1", "passkey", "laptop fingerprint", 40*day), key("d-1", "device", "ada's laptop", 2*time.Hour)}},
		{Id: "p-2m4x8c1d", Name: "grace", Groups: []string{"operator"}, Created: a.at(-38 * day), Credentials: []*v1.Credential{key("k-2", "passkey", "security key", 38*day)}},
		{Id: "p-9w1v5b3z", Name: "linus", Groups: []string{"developer"}, Created: a.at(-30 * day), Credentials: []*v1.Credential{key("d-3", "device", "linus-desktop", 30*day)}},
		{Id: "p-3h6j0k4s", Name: "margaret", Groups: []string{"auditor"}, Created: a.at(-12 * day), OwesReview: true},
		{Id: "p-5t8r2n6p", Name: "mallory", Groups: []string{"developer"}, Created: a.at(-9 * day), Locked: a.at(-3 * day), LockedReason: "laptop stolen"},
	}
	a.hosts = []*v1.Host{
		a.machine("h-4q8t2m6w", "db-1", "production", "pci", "online", 6.31, 64, 4.2, 2000, 130),
		a.machine("h-1z5x9c3v", "web-1", "production", "none", "online", 1.12, 16, 8.9, 80, 51),
		a.machine("h-6n0m4b8k", "web-2", "production", "none", "online", 0.97, 16, 9.4, 80, 52),
		a.machine("h-8r2d6f1g", "staging-1", "staging", "none", "online", 0.20, 8, 6.1, 40, 12),
		a.machine("h-3c7v1b5n", "build-1", "dev", "none", "offline", 0, 32, 30, 500, 90),
		a.machine("h-0a4s8d2f", "thinkpad", "dev", "none", "online", 0.42, 16, 9.1, 512, 220),
		a.agentless("h-2n8c4x6l", "edge-7", "mismatch", "its host key is SHA256:8bQh0vJ2rXoN1ZkUu7nQy6l3fZt5m9s4c0gEwYq2pTA, and not the one that was agreed to"),
		a.agentless("h-5w3e7u1o", "edge-8", "online", ""),
	}
	a.hosts[7].SshNode, a.hosts[7].SshWrite, a.hosts[7].Floor = true, "deploy", "full"
	a.hosts[0].Services, a.hosts[0].Labels, a.hosts[0].Sessions = []string{"postgres"}, []string{"primary", "rack=b4"}, 2
	a.hosts[1].Services, a.hosts[1].Sessions = []string{"checkout", "nginx"}, 1
	a.hosts[2].Services = []string{"checkout", "nginx"}
	a.hosts[3].Floor, a.hosts[3].FloorMissing = "reduced", []string{"the kernel is older than 5.13: no Landlock"}
	a.talk()
	a.ask()
	a.past()
}

// agentless is a host that is reached through its own sshd.
func (a *API) agentless(id, name, state, trouble string) *v1.Host {
	return &v1.Host{
		Id: id, Name: name, Environment: "staging", Scope: "none", State: state, Seen: a.at(-40 * time.Second), Mode: "agentless", Floor: "account",
		SshAddress: "10.20.9.7:22", SshUser: "handrail-read", SshFingerprint: "SHA256:1mZr9y3v0WcT5hKqD2uXb8oLe6JfNaSgPi4RtYwEx7c", SshTrouble: trouble,
		Created: a.at(-3 * 24 * time.Hour),
	}
}

func (a *API) talk() {
	from := func(d time.Duration) time.Duration { return -d }
	a.sessions = []*v1.Session{
		{Id: "s-4f9k2m7x", Person: "p-2m4x8c1d", PersonName: "grace", Host: "h-4q8t2m6w", HostName: "db-1", Environment: "production", Scope: "pci", Level: "write", Kind: "shell", State: "live", Started: a.at(from(8 * time.Minute)), Deadline: a.at(22 * time.Minute), Grant: "g-8d3f1k6q", BreakGlass: true, Account: "postgres", Recorded: true, RecordingBytes: 48 << 10, Client: "ssh", SourceAddress: "10.9.0.14", Reason: "primary is out of connections", BuddyRequired: true, Watchers: []*v1.Watcher{{Person: "p-7k3f9q2m", PersonName: "ada", Since: a.at(from(6 * time.Minute))}}},
		{Id: "s-7q1w5e9r", Person: "p-9w1v5b3z", PersonName: "linus", Host: "h-1z5x9c3v", HostName: "web-1", Environment: "production", Scope: "none", Level: "read", Kind: "shell", State: "live", Started: a.at(from(3 * time.Minute)), Deadline: a.at(57 * time.Minute), Floor: "full", Recorded: true, RecordingBytes: 9 << 10, Client: "browser", SourceAddress: "10.9.0.31"},
		{Id: "s-2x6c0v4b", Person: "p-7k3f9q2m", PersonName: "ada", Host: "h-4q8t2m6w", HostName: "db-1", Environment: "production", Scope: "pci", Level: "read", Kind: "shell", State: "paused", PausedWhy: "the buddy left", Started: a.at(from(12 * time.Minute)), Deadline: a.at(48 * time.Minute), Floor: "full", Recorded: true, Client: "cli", SourceAddress: "10.9.0.12", BuddyRequired: true},
		{Id: "s-9b3n7m1q", Person: "p-9w1v5b3z", PersonName: "linus", Host: "h-1z5x9c3v", HostName: "web-1", Environment: "production", Scope: "none", Level: "write", Kind: "shell", State: "ended", EndedWhy: "expired", Started: a.at(from(26 * time.Hour)), Ended: a.at(from(25*time.Hour + 30*time.Minute)), Length: lasting(30 * time.Minute), Grant: "g-2k7j4h9s", Account: "deploy", Recorded: true, RecordingBytes: 310 << 10, Client: "ssh", SourceAddress: "10.9.0.31", Reason: "checkout returns 502 since the deploy"},
		{Id: "s-5g0h4j8k", Person: "p-2m4x8c1d", PersonName: "grace", Host: "h-8r2d6f1g", HostName: "staging-1", Environment: "staging", Scope: "none", Level: "read", Kind: "exec", State: "ended", EndedWhy: "exit", ExitStatus: 1, Command: "journalctl -u checkout -n 200", Started: a.at(from(28 * time.Hour)), Ended: a.at(from(28 * time.Hour)), Length: lasting(2 * time.Second), Floor: "reduced", FloorMissing: []string{"no Landlock"}, Recorded: true, RecordingBytes: 21 << 10, Client: "cli", SourceAddress: "10.9.0.14"},
		{Id: "s-1t5y9u3i", Person: "p-5t8r2n6p", PersonName: "mallory", Host: "h-0a4s8d2f", HostName: "thinkpad", Environment: "dev", Scope: "none", Level: "read", Kind: "sftp", State: "ended", EndedWhy: "locked", Started: a.at(from(72 * time.Hour)), Ended: a.at(from(72 * time.Hour)), Length: lasting(4 * time.Minute), Floor: "full", Recorded: true, RecordingBytes: 2 << 20, Client: "ssh", SourceAddress: "203.0.113.9"},
	}
}

var cannot = []string{
	"root: what another daemon (at, cron, systemd-run, docker) starts for it outlives it; a job or unit left as a file is recorded, what is asked over a socket alone is not seen",
	"What postgres writes to its tables is not undone by handrail.",
}

func (a *API) ask() {
	target := func(h *v1.Host) *v1.GrantTarget {
		return &v1.GrantTarget{Id: h.Id, Name: h.Name, Environment: h.Environment, Scope: h.Scope}
	}
	grace := &v1.Decision{Person: "p-2m4x8c1d", PersonName: "grace", Verdict: "approved", At: a.at(-18 * time.Minute), SignedBy: "passkey", Counts: true}
	a.grants = []*v1.Grant{
		{Id: "g-8d3f1k6q", Person: "p-2m4x8c1d", PersonName: "grace", Kind: "break-glass", State: "active", Targets: []*v1.GrantTarget{target(a.hosts[0])}, Account: "postgres", Sudo: true, Reason: "primary is out of connections", Ticket: "INC-41", AskedFor: lasting(30 * time.Minute), Requested: a.at(-8 * time.Minute), Starts: a.at(-8 * time.Minute), Expires: a.at(22 * time.Minute), RatifyBy: a.at(2 * time.Minute), ReviewBy: a.at(72 * time.Hour), BuddyRequired: true, CannotContain: slices.Clone(cannot)},
		{Id: "g-5v2b7n3m", Person: "p-9w1v5b3z", PersonName: "linus", Kind: "elevated", State: "requested", Targets: []*v1.GrantTarget{target(a.hosts[1]), target(a.hosts[2])}, Account: "deploy", Sudo: true, Forwards: []string{"127.0.0.1:5432", "[fd00:20:4::11]:8443", "db.internal:*"}, Reason: "checkout serves the old certificate: reload nginx", Ticket: "OPS-7", AskedFor: lasting(30 * time.Minute), Requested: a.at(-90 * time.Second), Approval: "a-6y1u8i4o", CannotContain: slices.Clone(cannot[:1])},
		{Id: "g-1a6s3d9f", Person: "p-7k3f9q2m", PersonName: "ada", Kind: "elevated", State: "active", Targets: []*v1.GrantTarget{target(a.hosts[3])}, Account: "deploy", Reason: "try the new nginx configuration", AskedFor: lasting(time.Hour), Requested: a.at(-20 * time.Minute), Starts: a.at(-18 * time.Minute), Expires: a.at(42 * time.Minute), Approval: "a-3e7r2t5w", Decisions: []*v1.Decision{grace}},
		{Id: "g-4j8l2z6x", Person: "p-3h6j0k4s", PersonName: "margaret", Kind: "break-glass", State: "in-review", EndedWhy: "expired", Targets: []*v1.GrantTarget{target(a.hosts[1])}, Account: "deploy", Reason: "certificates were about to expire", AskedFor: lasting(30 * time.Minute), Requested: a.at(-50 * time.Hour), Starts: a.at(-50 * time.Hour), Expires: a.at(-49 * time.Hour), ReviewBy: a.at(22 * time.Hour)},
	}
	hash := sha256.Sum256([]byte("the exact request"))
	a.approvals = []*v1.Approval{
		{Id: "a-6y1u8i4o", Kind: "grant", State: "requested", Requester: "p-9w1v5b3z", RequesterName: "linus", Requested: a.at(-90 * time.Second), Lapses: a.at(24 * time.Hour), SubjectHash: hash[:], Summary: "write on web-1, web-2 for 30 min",
			Details:    []*v1.Detail{{Name: "Hosts", Value: "web-1 (production), web-2 (production)"}, {Name: "Account", Value: "deploy, with sudo"}, {Name: "For", Value: "30 minutes from approval"}, {Name: "Reason", Value: "checkout serves the old certificate: reload nginx"}, {Name: "Ticket", Value: "OPS-7"}},
			GrantsLine: []string{"linus may open write sessions on web-1 and web-2, as the account deploy, with sudo.", "For 30 minutes from the moment you approve; then every process of those sessions is killed.", "Every session is recorded and can be watched."}, CannotContain: slices.Clone(cannot[:1]),
			Needed: 1, NeededGroups: []string{"operator", "admin"}, MayDecide: true, Subject: "g-5v2b7n3m"},
		{Id: "a-2q9w4e1r", Kind: "person.add", State: "requested", Requester: "p-7k3f9q2m", RequesterName: "ada", Requested: a.at(-3 * time.Hour), Lapses: a.at(21 * time.Hour), SubjectHash: hash[:], Summary: "add barbara to developer", Details: []*v1.Detail{{Name: "Name", Value: "barbara"}, {Name: "Groups", Value: "developer"}}, Needed: 2, NeededGroups: []string{"admin"}, Decisions: []*v1.Decision{{Person: "p-2m4x8c1d", PersonName: "grace", Verdict: "approved", At: a.at(-2 * time.Hour), SignedBy: "passkey", Void: "they left admin since"}}, MayNotWhy: "You asked for it yourself: nobody decides their own request, admins included.", Subject: "p-barbara1"},
		{Id: "a-3e7r2t5w", Kind: "grant", State: "approved", Requester: "p-7k3f9q2m", RequesterName: "ada", Requested: a.at(-20 * time.Minute), SubjectHash: hash[:], Summary: "write on staging-1 for 1 h", Needed: 1, Decisions: []*v1.Decision{grace}, Agreed: 1, Subject: "g-1a6s3d9f", GrantsLine: []string{"ada may open write sessions on staging-1, as the account deploy."}},
		{Id: "a-9x5c2v8b", Kind: "grant", State: "denied", Requester: "p-9w1v5b3z", RequesterName: "linus", Requested: a.at(-49 * time.Hour), SubjectHash: hash[:], Summary: "write on db-1 for 4 h", Needed: 1, Decisions: []*v1.Decision{{Person: "p-2m4x8c1d", PersonName: "grace", Verdict: "denied", Reason: "use the read replica", At: a.at(-48 * time.Hour), SignedBy: "device"}}},
	}
}

func (a *API) entry(action, outcome, who, where, words string, old time.Duration) {
	e := &v1.Entry{
		Number: uint64(len(a.entries)), At: a.at(-old), Action: action, Outcome: outcome, ActorName: who, TargetName: where, Summary: words,
		Bootstrap: a.install.Bootstrap, PayloadJson: fmt.Sprintf(`{"v":1,"text":%q,"source":"10.9.0.14"}`, words), Subjects: []string{"system"},
	}
	if p := a.person(who); p != nil {
		e.Subjects = []string{p.Id}
	}
	if h := a.host(where); h != nil {
		e.Target = "host/" + h.Id
	}
	e.LeafJson = fmt.Sprintf(`{"v":1,"time":%d,"action":%q,"subjects":[%q],"target":%q,"outcome":%q,"commit":"q83vASNFZ4mrze8BI0VniQ"}`, e.At.AsTime().UnixMicro(), action, e.Subjects[0], e.Target, outcome)
	a.entries = append(a.entries, e)
}

func (a *API) past() {
	acts := []struct{ action, outcome, who, where, words string }{
		{"login.redeemed", "ok", "linus", "", "linus logged in from 10.9.0.31"},
		{"session.opened", "ok", "linus", "web-1", "linus opened a read session on web-1"},
		{"act.denied", "denied", "linus", "db-1", "linus was refused a write session on db-1 (write-with-a-grant)"},
		{"grant.requested", "ok", "linus", "web-1", "linus asked for write on web-1 for 30 min"},
		{"grant.approved", "ok", "grace", "web-1", "grace approved linus's write on web-1, by passkey"},
		{"session.opened", "ok", "linus", "web-1", "linus opened a write session on web-1 as deploy"},
		{"recording.chunks", "ok", "", "web-1", "a piece of a recording is in the ledger"},
		{"session.ended", "ok", "linus", "web-1", "linus's session on web-1 ended: expired"},
		{"recording.replayed", "ok", "margaret", "web-1", "margaret replayed linus's session on web-1"},
		{"host.lost", "unknown", "", "build-1", "build-1 was not heard of for 120 s"},
		{"session.ended", "lost", "grace", "staging-1", "grace's session on staging-1 was lost with its node"},
	}
	for i := range 132 {
		x := acts[i%len(acts)]
		a.entry(x.action, x.outcome, x.who, x.where, x.words, time.Duration(140-i)*11*time.Minute)
	}
	a.entry("grant.broken", "ok", "grace", "db-1", "grace broke the glass on db-1: primary is out of connections", 8*time.Minute)
	a.entry("session.opened", "ok", "grace", "db-1", "grace opened a write session on db-1 as postgres", 8*time.Minute)
	a.entry("grant.requested", "ok", "linus", "web-1", "linus asked for write on web-1, web-2 for 30 min", 90*time.Second)
	a.entries[40].Erased, a.entries[40].PayloadJson = true, ""
	a.entries[len(a.entries)-2].Session = "s-4f9k2m7x"
	for range 3 {
		a.entry("recording.chunks", "ok", "", "db-1", "a piece of a recording is in the ledger", 80*time.Second)
	}
}

// Keep adds n pieces of recordings to the ledger.
func (a *API) Keep(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range n {
		a.entry("recording.chunks", "ok", "", "web-1", "a piece of a recording is in the ledger", 0)
	}
}

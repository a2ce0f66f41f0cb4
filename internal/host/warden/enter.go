package warden

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/wire"
	"handrail.dev/handrail/internal/host/entrance"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/sandbox"
)

const (
	maxStrangers = 48                     // at the entrance at once, before they have shown a voucher
	strangerStay = 4 * time.Second        // nobody has to make room sooner: an honest client needs one, with a slow line and a busy host
	enterEvery   = 100 * time.Millisecond // a child each, whoever comes: what a flood costs this host
	enterBurst   = 8                      // of them without waiting
	maxShown     = 16                     // who have shown a voucher and still have to touch their key
	shownOfOne   = 2                      // of them with the same voucher, which others may have seen
	maxGuests    = 16                     // sessions by voucher at once
	maxChildAsks = 64                     // of one child: keys that an agent offers, hashes of key exchanges
	strangerSign = 4                      // of them hashes, before a session has begun: a client needs one
	hashMost     = 64                     // an exchange hash is that long at most; what else the host key could sign is longer
	entranceName = "entrance.json"
	memoryName   = "voucher.json"
	rememberEach = 30 * time.Second
	wallTime     = 5 * time.Second
)

// Entrance is what the link is told of the entrance.
type Entrance struct {
	Open    bool   `json:"open"`
	HostKey string `json:"host_key"` // authorized_keys line
	Journal []byte `json:"journal"`  // ed25519 public key
}

// entranceKeys is entrance.json: the keys of this host's entrance, made once.
type entranceKeys struct {
	V       int    `json:"v"`
	Host    []byte `json:"host"`    // ed25519 seed: by which clients know the entrance
	Journal []byte `json:"journal"` // ed25519 seed: signs what was recorded
}

// memory is voucher.json: what a warden must know after a restart while no
// server answers.
type memory struct {
	V       int              `json:"v"`
	Time    int64            `json:"time"` // µs, see alone.time
	Persons map[string]int64 `json:"persons"`
	Revoked []uint64         `json:"revoked"`
	Number  int64            `json:"number"` // of the last journal
	Before  []byte           `json:"before"` // hash of its head
}

// entrances are the children at the door, and what they need.
type entrances struct {
	w       *warden
	dir     string // of the warden, as it reaches it once confined
	empty   string // folder to live in
	host    ssh.Signer
	journal ed25519.PrivateKey

	mu     sync.Mutex
	m      memory
	saved  time.Duration
	guests int
	at     []*child          // strangers, the oldest first
	shown  map[*child]uint64 // who were strangers, by the serial of their voucher
	pace   pace
	closed bool
	wg     sync.WaitGroup
}

// child is a process at the entrance.
type child struct {
	cmd    *exec.Cmd
	ctl    *net.UnixConn
	uid    uint32
	source string
	came   time.Duration // boot time
	signed int           // hashes
	began  bool          // its session runs
}

// openDoor reads or makes the keys and reads the memory.
func (w *warden) openDoor(held string) (*entrances, error) {
	d := &entrances{w: w, dir: held, empty: filepath.Join(w.c.Dir, "empty"), shown: map[*child]uint64{}}
	var k entranceKeys
	if err := readOrMake(filepath.Join(held, entranceName), &k, func() { k = entranceKeys{1, seed(), seed()} }); err != nil {
		return nil, err
	}
	if len(k.Host) != ed25519.SeedSize || len(k.Journal) != ed25519.SeedSize {
		return nil, fault.New(fault.Invalid, "cannot read %s: it is damaged", filepath.Join(w.c.Dir, entranceName)).
			WithHint("remove it: other keys are made, and the ledger says so")
	}
	var err error
	if d.host, err = ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(k.Host)); err != nil {
		return nil, err
	}
	d.journal = ed25519.NewKeyFromSeed(k.Journal)
	if err := readOrMake(filepath.Join(held, memoryName), &d.m, func() { d.m = memory{V: 1} }); err != nil {
		return nil, err
	}
	w.judge.recall(d.m)
	if w.c.Lost > 0 {
		w.judge.alone.lost = w.c.Lost
	}
	d.saved = w.c.Boot()
	for _, dir := range []string{filepath.Join(held, "journal"), filepath.Join(held, "empty")} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fault.Wrap(fault.Unavailable, err, "cannot start the warden")
		}
	}
	return d, os.Chmod(filepath.Join(held, "empty"), 0o555)
}

func seed() []byte {
	b := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(b) // never fails
	return b
}

// readOrMake reads a JSON file, or makes it, durable.
func readOrMake(path string, v any, fresh func()) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh()
		if b, err = json.Marshal(v); err == nil {
			err = replace(path, b)
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot make %s in the warden's folder", filepath.Base(path))
		}
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read %s in the warden's folder", filepath.Base(path))
	}
	return nil
}

// status is what the link may know.
func (d *entrances) status() Entrance {
	open, _ := d.w.judge.open()
	return Entrance{
		Open:    open && d.w.judge.policy.voucherMode() != vouchersNo,
		HostKey: string(ssh.MarshalAuthorizedKey(d.host.PublicKey())), Journal: d.journal.Public().(ed25519.PublicKey),
	}
}

// remember saves what a lease taught, now and then: only what takes power away
// is worth a disk write at once.
func (d *entrances) remember() {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.w.judge.recollect(d.m)
	news := len(next.Revoked) != len(d.m.Revoked) || len(next.Persons) != len(d.m.Persons)
	for p, e := range next.Persons {
		news = news || d.m.Persons[p] != e
	}
	for i := range next.Revoked {
		news = news || next.Revoked[i] != d.m.Revoked[i]
	}
	if now := d.w.c.Boot(); news || now-d.saved > rememberEach || d.m.Time == 0 {
		if err := d.saveLocked(next); err != nil {
			d.w.log.Error("what vouchers need could not be saved", "error", err)
		}
	}
}

func (d *entrances) saveLocked(next memory) error {
	b, err := json.Marshal(next)
	if err == nil {
		err = replace(filepath.Join(d.dir, memoryName), b)
	}
	if err == nil {
		d.m, d.saved = next, d.w.c.Boot()
	}
	return err
}

// enter makes a child for somebody who has come, and returns the end of its
// line for the link, which decides whose turn it is. When too many stand there,
// one of those who are most of one source goes, the one who came first, but
// nobody who had less time than an honest client needs. Who has shown a voucher
// stays: they may wait for a touch of their key.
func (d *entrances) enter(source string) (*os.File, error) {
	if !d.status().Open {
		return nil, refuse(RuleVoucher, "cannot open the entrance: a server answered a moment ago")
	}
	c, f, err := d.admit(wire.Plain(source, 64))
	if err != nil {
		return nil, err
	}
	go func() {
		defer d.wg.Done()
		d.attend(c)
	}()
	return f, nil
}

func (d *entrances) admit(source string) (*child, *os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.w.c.Boot()
	if d.closed {
		return nil, nil, fault.New(fault.Unavailable, "cannot open the entrance: the warden ends")
	}
	goes := -1
	if len(d.at) >= d.places() {
		if goes = d.goes(now); goes < 0 {
			return nil, nil, fault.New(fault.Exhausted, "cannot open the entrance: %d have just come", len(d.at))
		}
	}
	if !d.pace.take(now) {
		return nil, nil, fault.New(fault.Exhausted, "cannot open the entrance: too many come at once")
	}
	if goes >= 0 {
		c := d.at[goes]
		_ = c.cmd.Process.Kill()
		c.ctl.Close()
		d.passed(c)
	}
	c, f, err := d.spawn(source)
	if err != nil {
		return nil, nil, err
	}
	c.came = now
	d.at = append(d.at, c)
	d.wg.Add(1)
	return c, f, nil
}

// pace is the boot time by which as many came as may.
type pace time.Duration

// take says whether one more may come now.
func (p *pace) take(now time.Duration) bool {
	by := max(time.Duration(*p), now) + enterEvery
	if by > now+enterBurst*enterEvery {
		return false
	}
	*p = pace(by)
	return true
}

// places is how many strangers may stand here: most uids are for sessions.
func (d *entrances) places() int {
	return min(maxStrangers, max(1, int(d.w.run.uids.count)/4))
}

// goes is which stranger makes room, -1 if nobody has to yet. The caller holds mu.
func (d *entrances) goes(now time.Duration) int {
	count := map[string]int{}
	for _, c := range d.at {
		count[sourceOf(c.source)]++
	}
	goes, most := -1, 0
	for i, c := range d.at {
		if n := count[sourceOf(c.source)]; n > most && now-c.came >= strangerStay {
			goes, most = i, n
		}
	}
	return goes
}

// show notes that a child has seen a voucher that counts: it is no stranger any
// more. Without the voucher's key it gets no further, so of one voucher there
// are few places, and nobody loses theirs to another.
func (d *entrances) show(c *child, serial uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	same := 0
	for _, other := range d.shown {
		if other == serial {
			same++
		}
	}
	if _, already := d.shown[c]; !already && !c.began && same < shownOfOne && len(d.shown) < maxShown {
		d.shown[c] = serial
		d.passed(c)
	}
}

// sourceOf is what one stranger has of addresses: one of IPv4, 2^64 of IPv6.
func sourceOf(address string) string {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return address
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, 64).Masked().String()
}

// spawn starts a child. The caller holds mu.
func (d *entrances) spawn(source string) (*child, *os.File, error) {
	failed := func(err error) error { return fault.Wrap(fault.Unavailable, err, "cannot open the entrance") }
	spec := entrance.Spec{HostKey: d.host.PublicKey().Marshal()}
	if d.w.run.mode == sandbox.RootMode {
		uid, err := d.w.run.uids.take()
		if err != nil {
			return nil, nil, err
		}
		spec.UID, spec.Root = uid, d.empty
	}
	c := &child{uid: spec.UID, source: source}
	fail := func(err error) (*child, *os.File, error) {
		d.w.run.uids.release(c.uid)
		return nil, nil, failed(err)
	}
	mine, theirs, err := socketPair()
	if err != nil {
		return fail(err)
	}
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		return fail(err)
	}
	c.ctl = conn.(*net.UnixConn)
	line, client, err := socketPair()
	if err != nil {
		c.ctl.Close()
		return fail(err)
	}
	defer client.Close()
	c.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{entrance.Arg0}, Env: []string{}, Dir: "/", ExtraFiles: []*os.File{theirs, client},
		Stderr: os.Stderr, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err = c.cmd.Start(); err == nil {
		var b []byte
		b, _ = json.Marshal(spec) // plain bytes always marshal
		err = wire.WriteBlock(c.ctl, b)
	}
	if err != nil {
		c.ctl.Close()
		line.Close()
		return fail(err)
	}
	return c, line, nil
}

func socketPair() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// attend answers a child until it is gone.
func (d *entrances) attend(c *child) {
	defer d.leave(c)
	for range maxChildAsks {
		ask, err := entrance.ReadAsk(c.ctl)
		if err != nil {
			return
		}
		a, f := d.answer(c, ask)
		err = entrance.WriteAnswer(c.ctl, a, f)
		closeFile(f)
		if err != nil {
			return
		}
	}
}

func (d *entrances) leave(c *child) {
	c.ctl.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	d.w.run.uids.release(c.uid)
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.began {
		d.guests--
	}
	delete(d.shown, c)
	d.passed(c)
}

// passed takes a child off the list of strangers. The caller holds mu.
func (d *entrances) passed(c *child) {
	for i := range d.at {
		if d.at[i] == c {
			d.at = append(d.at[:i:i], d.at[i+1:]...)
			return
		}
	}
}

func (d *entrances) close() {
	d.mu.Lock()
	d.closed = true
	for _, c := range d.at {
		_ = c.cmd.Process.Kill()
	}
	for c := range d.shown {
		_ = c.cmd.Process.Kill()
	}
	d.mu.Unlock()
	d.w.run.stopWhere(keeper.WhyLost, func(l *live) bool { return l.alone })
	d.wg.Wait()
}

func (d *entrances) answer(c *child, ask entrance.Ask) (entrance.Answer, *os.File) {
	var f *os.File
	var data []byte
	var err error
	switch ask.Op {
	case entrance.OpSign:
		data, err = d.signFor(c, ask.Data)
	case entrance.OpOffer:
		var a admitted
		if a, err = d.w.judge.voucher(ask.Certificate); err == nil {
			d.show(c, a.Serial)
		}
	case entrance.OpStart:
		f, err = d.start(c, ask)
	default:
		err = fault.New(fault.Invalid, "cannot serve the entrance: %.16q is not known", ask.Op)
	}
	if err != nil {
		d.w.log.Info("the entrance refused", "op", ask.Op, "from", c.source, "why", err.Error())
		return entrance.Answer{Text: "handrail: " + textOf(err)}, nil
	}
	return entrance.Answer{OK: true, Data: data}, f
}

func textOf(err error) string {
	f := fault.From(err)
	if f.Hint != "" {
		return f.Text + "\n  next: " + f.Hint
	}
	return f.Text
}

// signFor signs for a child; only a session goes on long enough to exchange keys
// again and again. The caller is the child's one goroutine.
func (d *entrances) signFor(c *child, hash []byte) ([]byte, error) {
	if c.signed++; c.signed > strangerSign && !c.began {
		return nil, fault.New(fault.Exhausted, "cannot sign: a stranger exchanged keys %d times", strangerSign)
	}
	return d.sign(hash)
}

// sign signs an exchange hash, and nothing longer.
func (d *entrances) sign(hash []byte) ([]byte, error) {
	if len(hash) < 20 || len(hash) > hashMost {
		return nil, fault.New(fault.Invalid, "cannot sign: that is no exchange hash")
	}
	sig, err := d.host.Sign(rand.Reader, hash)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(sig), nil
}

// start opens the session of a voucher whose key is at the other end.
func (d *entrances) start(c *child, ask entrance.Ask) (*os.File, error) {
	if d.w.run.mode == sandbox.NoShells {
		return nil, fault.New(fault.Unavailable, "cannot start a session: this host can give no shells")
	}
	a, err := d.w.judge.voucher(ask.Certificate) // again: the lease may have come back
	if err != nil {
		d.w.alarm(err, "")
		return nil, err
	}
	session := "s-" + eventID()[2:]
	now := d.w.c.Boot()
	acc := a.accepted(session, ask, d.w.status.Node, hostName(), now)
	if d.w.run.mode == sandbox.UserNamespaceMode { // a trial has one account, whatever the voucher names
		acc.Session.Root, acc.Session.Sudo = false, false
	}
	d.mu.Lock()
	switch {
	case c.began:
		err = refuse(RuleVoucher, "cannot start a second session on one connection")
	case d.guests >= maxGuests:
		err = fault.New(fault.Exhausted, "cannot start a session: %d sessions by voucher run here", d.guests)
	default:
		acc.journal, err = d.beginJournal(a, acc, ask, c.source)
	}
	if err == nil {
		c.began = true
		d.guests++
		delete(d.shown, c)
		d.passed(c)
	}
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	go d.wall(fmt.Sprintf("handrail: %s broke the glass OFFLINE on %s as %s for %d min at most, recorded as %s", a.PersonName, hostName(), a.account, a.Minutes, session))
	_, f, err := d.w.run.start(d.w.life, acc)
	if err != nil {
		d.failJournal(acc.journal)
		return nil, err
	}
	return f, nil
}

// wall tells everybody who has a terminal on this host. The program is root
// again when it is exec'ed, which writing to others' terminals takes.
func (d *entrances) wall(text string) {
	ctx, cancel := context.WithTimeout(d.w.life, wallTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/wall", text)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	if err := cmd.Run(); err != nil {
		d.w.log.Warn("those who are on this host could not be told of an offline break-glass", "error", err)
	}
}

// tell reports what happened in a session. Of one that no server ordered, the
// server hears from its journal: an event that names it would count as a lie.
func (s *sessions) tell(l *live, e wire.Event) {
	if l.alone {
		if e.Kind != wire.EventResidue {
			return
		}
		e.Text, e.Session, e.Person = "session "+l.id+" by voucher: "+e.Text, "", ""
	}
	s.events.put(e)
}

func (s *sessions) hasJournal(session string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(s.heldDir), "journal", session))
	return err == nil
}

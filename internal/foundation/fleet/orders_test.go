package fleet

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/internal/foundation/wire"
)

// An order to many nodes is one leaf and one proof: each node gets the same
// bytes, verifies them and answers. The nodes live in a process of their own,
// each with a certificate, a TLS connection and a message channel of its own;
// what they do with an order is what a warden does before it looks at whom the
// order is for.

const (
	// crowdEnv makes this test binary the crowd: a crowdPlan as JSON.
	crowdEnv = "HANDRAIL_TEST_CROWD"
	// scaleEnv asks for figures: numbers of nodes, with commas.
	scaleEnv = "HANDRAIL_BENCH_NODES"

	orderName = "order" // verified, then answered
	probeName = "probe" // answered
)

type crowdPlan struct {
	Keys       string
	Address    string
	Checkpoint []byte // what all of them have seen
	Nodes      int
}

func crowdHost(i int) string { return fmt.Sprintf("h-%08d", i) }

// TestCrowd is the crowd's process. It ends with its standard input.
func TestCrowd(t *testing.T) {
	text := os.Getenv(crowdEnv)
	if text == "" {
		return // this process is not the crowd
	}
	var plan crowdPlan
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(plan.Keys)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, ring: ring, address: plan.Address}
	seen, err := ledger.OpenCheckpoint(plan.Checkpoint, ring.Origin(), ring.LogVerifier())
	if err != nil {
		t.Fatal(err)
	}
	bundle, _ := ring.Bundle()
	next := make(chan int)
	var joining sync.WaitGroup
	for range 64 {
		joining.Go(func() {
			for i := range next {
				c := &crowdNode{host: crowdHost(i), seen: seen, ring: ring, bundle: bundle}
				err := c.join(b)
				for tries := 0; err != nil && tries < 5; tries++ { // the bus gives a node two seconds to say who it is
					err = c.join(b)
				}
				if err != nil {
					fmt.Println(c.host, "did not join:", err)
				}
			}
		})
	}
	for i := range plan.Nodes {
		next <- i
	}
	close(next)
	joining.Wait()
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadByte() // until the other process goes
}

type crowdNode struct {
	host   string
	seen   tlog.Tree
	ring   *keyring.Ring
	bundle ledger.Bundle
}

func (c *crowdNode) join(b *bench) error {
	cert := certify(b.t, c.ring, c.host)
	n, err := b.dial(&cert, c.host)
	if err != nil {
		return err
	}
	answer := func(m *nats.Msg) {
		err := error(nil)
		if strings.HasSuffix(m.Subject, "."+orderName) {
			err = c.judge(m.Data)
		}
		if err != nil {
			_ = m.Respond([]byte(err.Error()))
			return
		}
		_ = m.Respond(done)
	}
	for _, subject := range []string{wire.DownSubject(c.host, ">"), wire.FleetSubject(">")} {
		if _, err := n.nats.Subscribe(subject, answer); err != nil {
			return err
		}
	}
	return n.nats.FlushTimeout(patience)
}

// judge is what a warden does with every order: signature, proof, that its
// tree extends the one that was seen here, leaf and payload.
func (c *crowdNode) judge(raw []byte) error {
	e, err := wire.ParseEnvelope(raw)
	if err != nil {
		return err
	}
	o, err := wire.ParseOrder(e.Order)
	if err != nil {
		return err
	}
	if !o.VerifySignature(c.bundle.OrderKey) {
		return errors.New("the order key did not sign it")
	}
	if err := o.Proof().Verify(c.ring.LogVerifier(), c.ring.Origin()); err != nil {
		return err
	}
	tree, err := ledger.OpenCheckpoint(o.Checkpoint, c.ring.Origin(), c.ring.LogVerifier())
	if err != nil {
		return err
	}
	if e.From != c.seen.N {
		return fmt.Errorf("the proof is from %d, not from %d", e.From, c.seen.N)
	}
	if err := ledger.CheckConsistency(e.Consistency, c.seen, tree); err != nil {
		return err
	}
	if _, err := ledger.ParseLeaf(o.Leaf); err != nil {
		return err
	}
	_, err = wire.ParseOrderPayload(o.Payload)
	return err
}

// crowd starts that many nodes and returns when all are connected.
func (b *bench) crowd(keys string, nodes int) (hosts []string, seen int64) {
	b.t.Helper()
	tree, checkpoint, err := b.store.Head(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	plan, err := json.Marshal(crowdPlan{Keys: keys, Address: b.address, Checkpoint: checkpoint, Nodes: nodes})
	if err != nil {
		b.t.Fatal(err)
	}
	child := exec.CommandContext(b.t.Context(), os.Args[0], "-test.run=^TestCrowd$", "-test.timeout=10m")
	child.Env = append(os.Environ(), crowdEnv+"="+string(plan))
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { in.Close(); _ = child.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "ready" {
			for i := range nodes {
				hosts = append(hosts, crowdHost(i))
			}
			if n := b.fleet.Connected(); n != nodes {
				b.t.Fatalf("%d of %d nodes are connected", n, nodes)
			}
			return hosts, tree.N
		}
		b.t.Log(lines.Text())
	}
	b.t.Fatal("the crowd did not come")
	return nil, 0
}

// orderForMany is one leaf, and the envelope that proves it to whoever has seen
// the first entries.
func (b *bench) orderForMany(seen int64) []byte {
	b.t.Helper()
	now := time.Now().UnixMicro()
	payload, err := wire.OrderPayload{
		V: 1, Order: store.NewID('o'), Kind: wire.KindSessionResume, Node: crowdHost(0), Issued: now, ValidMS: 10_000,
		Session: &wire.SessionSpec{ID: "s-00000001"},
	}.Marshal()
	if err != nil {
		b.t.Fatal(err)
	}
	receipt, err := b.store.Record(b.t.Context(), store.Once(), func(*store.Tx) ([]ledger.Entry, error) {
		return []ledger.Entry{{Action: "test.ordered", Subjects: []string{"p-00000001"}, Session: "s-00000001", Payload: payload}}, nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	proof, err := receipt.Proof(b.t.Context(), 0)
	if err != nil {
		b.t.Fatal(err)
	}
	order, err := wire.BuildOrder(proof, b.ring.Order())
	if err != nil {
		b.t.Fatal(err)
	}
	tree, err := b.fleet.openCheckpoint(proof.Checkpoint)
	if err != nil {
		b.t.Fatal(err)
	}
	env := wire.Envelope{Order: order, From: seen}
	if env.Consistency, err = b.store.Consistency(b.t.Context(), seen, tree.N); err != nil {
		b.t.Fatal(err)
	}
	return env.Marshal()
}

// accepted counts the nodes that said that they did.
func accepted(answers map[string][]byte) (n int) {
	for _, a := range answers {
		if string(a) == string(done) {
			n++
		}
	}
	return n
}

// others are what the nodes said that did not, and how often.
func others(answers map[string][]byte) map[string]int {
	said := map[string]int{}
	for _, a := range answers {
		if string(a) != string(done) {
			said[string(a)]++
		}
	}
	return said
}

func newCrowdBench(t *testing.T) (b *bench, keys string) {
	t.Helper()
	dir := t.TempDir()
	keys = dir + "/keys"
	if err := keyring.Init(keys, dir+"/root", "handrail/test"); err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	return newBenchWith(t, ring), keys
}

func TestAnOrderReachesManyNodesThatEachVerifyIt(t *testing.T) {
	b, keys := newCrowdBench(t)
	hosts, seen := b.crowd(keys, 12)
	order := b.orderForMany(seen)
	answers, err := b.fleet.bus.gather(t.Context(), orderName, order, hosts)
	if err != nil || accepted(answers) != len(hosts) {
		t.Errorf("%d of %d nodes accepted the order: %v %q", accepted(answers), len(hosts), err, answers)
	}
	order[len(order)/3] ^= 1
	answers, err = b.fleet.bus.gather(t.Context(), orderName, order, hosts)
	if err != nil || len(answers) != len(hosts) || accepted(answers) != 0 {
		t.Errorf("%d of %d nodes accepted an order that was touched: %v", accepted(answers), len(answers), err)
	}
}

// scale is what the bench prints; times are medians.
type scale struct {
	Nodes     int
	Answered  int     // the fewest, of all rounds: on a machine that starves them, some lose their connection
	Connect   float64 // s
	KiB       float64 // of memory of the server, for each node
	Order     float64 // ms, leaf and proof included, verified by all
	OrderCPU  float64 // ms of the server's processor time in that
	Probe     float64 // ms, the same bytes, answered without verifying
	Broadcast float64 // ms, one message to all instead of one to each
}

func TestOrdersAtScale(t *testing.T) {
	text := os.Getenv(scaleEnv)
	if text == "" {
		t.Skip("set " + scaleEnv + "=1000 for figures")
	}
	for _, word := range strings.Split(text, ",") {
		nodes, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(word, func(t *testing.T) {
			out, err := json.Marshal(measureScale(t, nodes))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Printf("\nscale %s\n", out)
		})
	}
}

func measureScale(t *testing.T, nodes int) scale {
	b, keys := newCrowdBench(t)
	out := scale{Nodes: nodes, Answered: nodes}
	before, start := resident(t), time.Now()
	hosts, seen := b.crowd(keys, nodes)
	out.Connect = time.Since(start).Seconds()
	out.KiB = (resident(t) - before) / float64(nodes)
	var orders, used, probes, broadcasts []float64
	for range 5 {
		start, cpu := time.Now(), processorTime()
		raw := b.orderForMany(seen)
		answers, err := b.fleet.bus.gather(t.Context(), orderName, raw, hosts)
		orders, used = append(orders, ms(time.Since(start))), append(used, ms(processorTime()-cpu))
		if out.Answered = min(out.Answered, accepted(answers)); err != nil || len(others(answers)) > 0 {
			t.Fatalf("%d of %d nodes accepted the order: %v %v", accepted(answers), nodes, err, others(answers))
		}
		start = time.Now()
		answers, err = b.fleet.bus.gather(t.Context(), probeName, raw, hosts)
		probes = append(probes, ms(time.Since(start)))
		if out.Answered = min(out.Answered, accepted(answers)); err != nil || out.Answered == 0 {
			t.Fatalf("%d of %d nodes answered: %v", accepted(answers), nodes, err)
		}
		start = time.Now()
		b.broadcast(b.orderForMany(seen), out.Answered)
		broadcasts = append(broadcasts, ms(time.Since(start)))
	}
	out.Order, out.OrderCPU, out.Probe, out.Broadcast = middle(orders), middle(used), middle(probes), middle(broadcasts)
	return out
}

// broadcast is one message for all, who answer to one place.
func (b *bench) broadcast(raw []byte, nodes int) {
	b.t.Helper()
	conn := b.fleet.bus.conn
	inbox := conn.NewRespInbox()
	sub, err := conn.SubscribeSync(inbox)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := conn.PublishRequest(wire.FleetSubject(orderName), inbox, raw); err != nil {
		b.t.Fatal(err)
	}
	for heard := range nodes {
		m, err := sub.NextMsg(patience)
		if err != nil || string(m.Data) != string(done) {
			b.t.Fatalf("after %d of %d nodes: %v", heard, nodes, err)
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func middle(all []float64) float64 { return slices.Sorted(slices.Values(all))[len(all)/2] }

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail with a good pointer
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident is this process's memory in KiB, after a collection.
func resident(t *testing.T) float64 {
	t.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * float64(os.Getpagesize()) / 1024
}

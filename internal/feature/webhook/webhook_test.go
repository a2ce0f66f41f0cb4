package webhook_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"handrail.dev/handrail/internal/feature/webhook"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// secretOf is the key in a secret as the receiver is given it.
func secretOf(t *testing.T, given, prefix string) []byte {
	t.Helper()
	text, ok := strings.CutPrefix(given, prefix)
	if !ok {
		t.Fatalf("%.8s… does not begin with %s", given, prefix)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	house.Must(t, err)
	return b
}

// signedBy says whether one of the signatures is of that secret.
func signedBy(g got, secret []byte) bool {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(g.ID + "." + g.Timestamp + "." + string(g.Body)))
	for s := range strings.FieldsSeq(g.Signature) {
		if s == "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			return true
		}
	}
	return false
}

func TestNobodyIsToldUntilASecondPersonAgrees(t *testing.T) {
	h := build(t, quick)
	r := receive(t, nil)
	h.trust(r)
	h.run(h.hooks)
	a, err := h.hooks.Add(t.Context(), h.ada.Principal, webhook.Wanted{Name: "siem", URL: r.URL, Actions: []string{"thing.*"}})
	house.Must(t, err)
	if a.Approval == "" {
		t.Fatal("nobody has to agree")
	}
	h.happen("thing.before", nil)
	house.Want(t, h.approve(h.ada, a.Approval), fault.Denied, "")
	_, _, err = h.hooks.Test(t.Context(), h.ada.Principal, "siem")
	house.Want(t, err, fault.NeedsApproval, "agreed")
	house.Must(t, h.approve(h.bob, a.Approval))
	seq := h.happen("thing.happened", map[string]string{"who": "ada"})
	g := r.next(t)
	if g.Type != "thing.happened" || g.Seq != seq {
		t.Errorf("the first that came is %s, #%d", g.Type, g.Seq)
	}
	if !signedBy(g, secretOf(t, a.Given, "whsec_")) {
		t.Error("what came is not signed by the secret that was shown")
	}
	stored, err := h.Store.Entries(t.Context(), store.EntryQuery{Limit: 1000})
	house.Must(t, err)
	for _, e := range stored {
		if strings.Contains(string(e.Payload), a.Given[len("whsec_"):]) {
			t.Errorf("entry #%d holds the secret", e.Seq)
		}
	}
}

func TestARefusedWebhookIsForgotten(t *testing.T) {
	h := build(t, quick)
	a, err := h.hooks.Add(t.Context(), h.ada.Principal, webhook.Wanted{Name: "siem", URL: "https://siem.example.org/in", Actions: []string{"*"}})
	house.Must(t, err)
	h.record(func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.approvals.DenyTx(tx, h.bob.Principal, a.Approval, "no")
		return entries, err
	})
	all, err := h.hooks.List(t.Context())
	house.Must(t, err)
	if len(all) != 0 {
		t.Errorf("%d webhooks are left", len(all))
	}
	h.until(webhook.ActionRefused)
}

func TestEntriesArriveInOrderEachAtLeastOnce(t *testing.T) {
	h := build(t, quick)
	r := receive(t, func(n int, _ got, w http.ResponseWriter) {
		if n%3 != 2 { // two of three attempts fail
			w.WriteHeader([]int{500, 302, 429}[n%3])
		}
	})
	h.trust(r)
	a := h.add(r.URL, "thing.*")
	h.run(h.hooks)
	var seqs []int64
	for range 20 {
		seqs = append(seqs, h.happen("thing.happened", nil))
		h.happen("other.happened", nil)
	}
	for i, seq := range seqs {
		var id string
		for attempt := range 3 {
			g := r.next(t)
			if g.Seq != seq {
				t.Fatalf("attempt %d of the %d. is of #%d, want #%d", attempt, i, g.Seq, seq)
			}
			if attempt > 0 && g.ID != id {
				t.Errorf("a retry of #%d comes as %s, before it was %s", seq, g.ID, id)
			}
			id = g.ID
			if !signedBy(g, secretOf(t, a.Given, "whsec_")) {
				t.Errorf("attempt %d of #%d is not signed", attempt, seq)
			}
		}
	}
	// What went is told in summary, and adds up.
	var sum struct{ Delivered, Failed int64 }
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := h.Store.Follow(ctx, -1, func(e ledger.Recorded) error {
		if e.Parsed.Action == webhook.ActionDelivered {
			var p struct{ Delivered, Failed int64 }
			house.Must(t, json.Unmarshal(e.Payload, &p))
			sum.Delivered, sum.Failed = sum.Delivered+p.Delivered, sum.Failed+p.Failed
		}
		if sum.Delivered == 20 {
			cancel()
		}
		return nil
	})
	if sum.Delivered != 20 || sum.Failed != 40 {
		t.Errorf("the ledger was told of %d deliveries and %d attempts in vain: %v", sum.Delivered, sum.Failed, err)
	}
	_, tried, err := h.hooks.Deliveries(t.Context(), "siem")
	house.Must(t, err)
	if len(tried) != 60 || tried[0].Failure != "" || tried[2].Status != 500 {
		t.Errorf("%d attempts are remembered, the last %+v", len(tried), tried[0])
	}
}

func TestWhoeverStopsInTheMiddleGoesOnWhereItWas(t *testing.T) {
	h := build(t, quick)
	hold, arrived := make(chan struct{}), make(chan struct{})
	r := receive(t, func(n int, _ got, w http.ResponseWriter) {
		if n == 2 { // it was taken, and the answer never comes
			close(arrived)
			<-hold
		}
	})
	h.trust(r)
	h.add(r.URL, "thing.*")
	stop := h.run(h.hooks)
	var seqs []int64
	for range 4 {
		seqs = append(seqs, h.happen("thing.happened", nil))
	}
	r.next(t)
	r.next(t)
	await(t, arrived)
	stop()
	close(hold)
	third := r.next(t)
	h.run(webhook.New(h.deps))
	again := r.next(t)
	if third.Seq != seqs[2] || again.Seq != seqs[2] || third.ID != again.ID {
		t.Errorf("#%d as %s came, then #%d as %s; want #%d twice under one id", third.Seq, third.ID, again.Seq, again.ID, seqs[2])
	}
	if last := r.next(t); last.Seq != seqs[3] {
		t.Errorf("then #%d came, want #%d", last.Seq, seqs[3])
	}
}

func TestAWebhookThatFailsForTooLongIsDisabledAndResumed(t *testing.T) {
	h := build(t, quick)
	well := make(chan struct{})
	r := receive(t, func(_ int, _ got, w http.ResponseWriter) {
		select {
		case <-well:
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	h.trust(r)
	h.add(r.URL, "thing.*")
	h.run(h.hooks)
	first := h.happen("thing.happened", nil)
	h.happen("thing.happened", nil)
	e := h.until(webhook.ActionDisabled)
	if e.Parsed.Outcome != ledger.Failed || !strings.Contains(string(e.Payload), "500") {
		t.Errorf("the entry says %s: %s", e.Parsed.Outcome, e.Payload)
	}
	for range 4 {
		if g := r.next(t); g.Seq != first {
			t.Errorf("#%d came before #%d was taken", g.Seq, first)
		}
	}
	_, _, err := h.hooks.Test(t.Context(), h.ada.Principal, "siem")
	house.Want(t, err, fault.Conflict, "disabled")
	close(well)
	_, err = h.hooks.Resume(t.Context(), h.bob.Principal, "siem")
	house.Must(t, err)
	if g := r.next(t); g.Seq != first {
		t.Errorf("it goes on with #%d, want #%d", g.Seq, first)
	}
}

func TestAReceiverThatIsGoneIsLeftAtOnce(t *testing.T) {
	h := build(t, quick)
	r := receive(t, func(_ int, _ got, w http.ResponseWriter) { w.WriteHeader(http.StatusGone) })
	h.trust(r)
	h.add(r.URL, "thing.*")
	h.run(h.hooks)
	h.happen("thing.happened", nil)
	h.until(webhook.ActionDisabled)
	if n := len(r.came); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

func TestWithoutTheDeclarationNoNameLeaves(t *testing.T) {
	h := build(t, quick)
	r := receive(t, nil)
	h.trust(r)
	h.addAs(webhook.Wanted{Name: "thin", URL: r.URL + "/thin", Actions: []string{"thing.*"}})
	h.run(h.hooks)
	h.happen("thing.happened", map[string]string{"name": "a-name-that-stays-here"})
	if g := r.next(t); bytes.Contains(g.Body, []byte("a-name-that-stays-here")) || g.Payload != "" {
		t.Errorf("a hook that was not declared to carry names was sent %s", g.Body)
	}
	_, err := h.hooks.Remove(t.Context(), h.ada.Principal, "thin")
	house.Must(t, err)
	h.addAs(webhook.Wanted{Name: "full", URL: r.URL + "/full", Actions: []string{"thing.*"}, Names: true})
	h.happen("thing.happened", map[string]string{"name": "a-name-that-goes"})
	if g := r.next(t); !strings.Contains(g.Payload, "a-name-that-goes") {
		t.Errorf("a hook that was declared to carry names was sent %s", g.Body)
	}
}

func TestWhatWasErasedIsNotSentByARetry(t *testing.T) {
	h := build(t, quick)
	erased, arrived := make(chan struct{}), make(chan struct{})
	r := receive(t, func(n int, _ got, w http.ResponseWriter) {
		if n == 0 {
			close(arrived)
			<-erased
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	h.trust(r)
	h.addAs(webhook.Wanted{Name: "full", URL: r.URL, Actions: []string{"thing.*"}, Names: true})
	h.run(h.hooks)
	h.record(func(*store.Tx) ([]ledger.Entry, error) {
		var entries []ledger.Entry
		for range 2 { // the second is read ahead while the first waits
			entries = append(entries, ledger.Entry{Action: "thing.happened", Subjects: []string{"p-00000001"}, Payload: map[string]string{"name": "eve"}})
		}
		return entries, nil
	})
	await(t, arrived)
	_, err := h.Store.Erase(t.Context(), "test-erase", "p-00000001", ledger.Entry{Subjects: []string{h.ada.ID}, SealTo: ledger.System})
	house.Must(t, err)
	close(erased)
	if g := r.next(t); !strings.Contains(g.Payload, "eve") {
		t.Errorf("the first attempt was before the erasure, and sent %s", g.Body)
	}
	for range 2 {
		if g := r.next(t); bytes.Contains(g.Body, []byte("eve")) || !bytes.Contains(g.Body, []byte("erased")) {
			t.Errorf("after the erasure it was sent %s", g.Body)
		}
	}
}

func TestForADayBothSecretsSign(t *testing.T) {
	h := build(t, quick)
	r := receive(t, nil)
	h.trust(r)
	a := h.add(r.URL, "thing.*")
	h.run(h.hooks)
	_, given, err := h.hooks.Rotate(t.Context(), h.bob.Principal, "siem")
	house.Must(t, err)
	h.happen("thing.happened", nil)
	g := r.next(t)
	if !signedBy(g, secretOf(t, a.Given, "whsec_")) || !signedBy(g, secretOf(t, given, "whsec_")) {
		t.Errorf("not both secrets signed: %s", g.Signature)
	}
	h.deps.Bounds.Overlap = time.Nanosecond
	h.hooks = webhook.New(h.deps)
	_, last, err := h.hooks.Rotate(t.Context(), h.bob.Principal, "siem")
	house.Must(t, err)
	for !signedBy(g, secretOf(t, last, "whsec_")) { // the worker may not have heard yet
		h.happen("thing.happened", nil)
		g = r.next(t)
	}
	if signedBy(g, secretOf(t, given, "whsec_")) {
		t.Error("a secret signs after its time")
	}
}

func TestAKeySignsWhereThatWasAskedFor(t *testing.T) {
	h := build(t, quick)
	r := receive(t, nil)
	h.trust(r)
	a := h.addAs(webhook.Wanted{Name: "key", URL: r.URL, Actions: []string{"thing.*"}, Scheme: webhook.SchemeKey})
	h.run(h.hooks)
	h.happen("thing.happened", nil)
	g := r.next(t)
	sig, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(g.Signature, "v1a,"))
	house.Must(t, err)
	if !ed25519.Verify(secretOf(t, a.Given, "whpk_"), []byte(g.ID+"."+g.Timestamp+"."+string(g.Body)), sig) {
		t.Errorf("the key that was shown did not make %s", g.Signature)
	}
}

// A receiver that answers slowly, endlessly, or nonsense costs a worker of its
// own, and no other hook.
func TestSlowAndLyingReceiversHoldUpNobodyElse(t *testing.T) {
	b := quick
	b.Answer = 300 * time.Millisecond
	h := build(t, b)
	bad := receive(t, func(n int, _ got, w http.ResponseWriter) {
		switch n % 4 {
		case 0: // says nothing, until it is left
			rc := http.NewResponseController(w)
			_ = rc.SetWriteDeadline(time.Now().Add(patience))
			c, _, err := rc.Hijack()
			if err == nil {
				_, _ = c.Read(make([]byte, 1))
				c.Close()
			}
		case 1: // talks for ever
			for i := 0; i < 1<<20; i++ {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		case 2: // headers without end
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		case 3: // elsewhere
			w.Header().Set("Location", "https://169.254.169.254/latest/meta-data")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	})
	good := receive(t, nil)
	h.trust(bad)
	h.deps.Roots.AddCert(good.Certificate())
	h.hooks = webhook.New(h.deps)
	h.addAs(webhook.Wanted{Name: "bad", URL: bad.URL, Actions: []string{"thing.*"}})
	h.addAs(webhook.Wanted{Name: "good", URL: good.URL, Actions: []string{"thing.*"}})
	h.run(h.hooks)
	for range 5 {
		seq := h.happen("thing.happened", nil)
		if g := good.next(t); g.Seq != seq {
			t.Errorf("the good one was told of #%d, want #%d", g.Seq, seq)
		}
	}
}

// A server that hung with a message on its way may go on beside the one that
// took over: what it then writes moves nothing back.
func TestAPlaceOnlyMovesForward(t *testing.T) {
	h := build(t, quick)
	hold, arrived := make(chan struct{}), make(chan struct{})
	r := receive(t, func(n int, _ got, _ http.ResponseWriter) {
		if n == 0 {
			close(arrived)
			<-hold
		}
	})
	h.trust(r)
	h.add(r.URL, "thing.*")
	h.run(h.hooks)
	first := h.happen("thing.happened", nil)
	await(t, arrived)
	other := webhook.New(h.deps)
	stop := h.run(other)
	second := h.happen("thing.happened", nil)
	for g := r.next(t); g.Seq != second; g = r.next(t) {
		if g.Seq != first {
			t.Fatalf("#%d came", g.Seq)
		}
	}
	h.eventually("the place to be kept", func() bool {
		all, err := h.hooks.List(t.Context())
		house.Must(t, err)
		return all[0].Seq >= second
	})
	stop()
	close(hold)
	for g := r.next(t); g.Seq != second; g = r.next(t) { // the first server goes on
		if g.Seq != first {
			t.Fatalf("#%d came", g.Seq)
		}
	}
	all, err := h.hooks.List(t.Context())
	house.Must(t, err)
	if len(all) != 1 || all[0].Seq < second {
		t.Errorf("the place is #%d, after #%d was taken", all[0].Seq, second)
	}
}

func TestWhoIsNoAdminSetsNoWebhook(t *testing.T) {
	h := build(t, quick)
	_, err := h.hooks.Add(t.Context(), h.ada.Principal, webhook.Wanted{Name: "siem", URL: "https://siem.example.org", Actions: []string{"everything"}})
	house.Want(t, err, fault.Invalid, "an action is")
	nobody := h.ada.Principal
	nobody.ID, nobody.Name, nobody.Groups = "p-00000000", "eve", nil
	if _, err := h.hooks.Add(t.Context(), nobody, webhook.Wanted{Name: "siem", URL: "https://siem.example.org", Actions: []string{"*"}}); err == nil {
		t.Error("nobody in particular added a webhook")
	}
}

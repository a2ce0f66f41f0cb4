package approval

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	"handrail.dev/handrail/internal/foundation/wire"
)

// The file never changes again: what was written with it is read for ever.
func TestWhatTheLedgerHoldsOfAnApprovalIsReadForEver(t *testing.T) {
	sig := &wire.Signature{Person: "p-00000002", Role: "approver", Kind: "passkey", Credential: "k-00000001", PublicKey: []byte{1}, Signature: []byte{2}, AuthenticatorData: []byte{3}, ClientData: []byte{4}}
	a := Approval{
		ID: "a-00000001", Kind: "grant", State: Approved, Requester: "p-00000001", RequesterName: "ada", Subject: "g-00000001",
		Request: []byte(`{"v":1}`), Hash: []byte{5}, Rule: Rule{Needed: 2, Groups: []string{"operator"}, DifferentGroups: true, Passkey: true, Lapse: time.Hour},
		Requested: 1, Lapses: 2, Decided: 3, Signed: sig, EndedBy: "p-00000003", EndedWhy: "revoked", Version: 4,
		Decisions: []Decision{{Person: "p-00000002", Name: "bob", Groups: []string{"operator"}, Verdict: Approved, Reason: "yes", At: 5, Signature: sig}},
	}
	v := reflect.ValueOf(a)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("field %s is not tried", v.Type().Field(i).Name)
		}
	}
	text, err := json.MarshalIndent(payload{V: 1, Approval: a}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/approval-v1.1.json"
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && os.Getenv("UPDATE_GOLDEN") != "" {
		want = append(text, '\n')
		err = os.WriteFile(path, want, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(text)+"\n" {
		t.Errorf("%s: what is written changed without a new version:\n%s", path, text)
	}
	var back payload
	if err := json.Unmarshal(want, &back); err != nil || !reflect.DeepEqual(back.Approval, a) {
		t.Errorf("read back: %+v %v", back, err)
	}
	first, err := os.ReadFile("testdata/approval-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	a.EndedBy, a.EndedWhy = "", "" // not yet known then
	back = payload{}
	if err := json.Unmarshal(first, &back); err != nil || !reflect.DeepEqual(back.Approval, a) {
		t.Errorf("the first version reads as: %+v %v", back, err)
	}
}

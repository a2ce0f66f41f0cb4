package access

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// full is a grant with every field set, so that none is lost unnoticed.
func full() Grant {
	g := Grant{
		ID: "g-00000001", Person: "p-00000001", PersonName: "ada", Kind: BreakGlass, State: Closed, EndedWhy: Done, EndedBy: "p-00000001", EndedNote: "all is well",
		Targets: []Target{{ID: "h-00000001", Name: "web-1", Environment: "production", Scope: "pci"}}, Account: "handrail-write", Sudo: true, Root: true, Forwards: []string{"127.0.0.1:5432"},
		Reason: "it burns", Ticket: "OPS-7", AskedFor: 30 * time.Minute, Requested: 1, Starts: 2, Expires: 3, Finished: 4, Approval: "a-00000001",
		PausedWhy: "buddy left", BuddyRequired: true, RatifyBy: 5, Ratified: 6, RatifiedBy: "p-00000002", ReviewWithin: time.Hour, ReviewBy: 7,
		Reviewed: 8, ReviewedBy: "p-00000003", Verdict: "justified", Notes: "it was", RequestID: "r-1", Policy: 9, Version: 10,
	}
	return g
}

// golden compares with the file of a version, which never changes again: what
// was written with it must be read for ever. A new field is a new file.
func golden(t *testing.T, name string, got any) []byte {
	t.Helper()
	text, err := json.MarshalIndent(got, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if os.IsNotExist(err) && os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		want = append(text, '\n')
	} else if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(text)+"\n" {
		t.Errorf("%s: what is written changed without a new version:\n%s", path, text)
	}
	return want
}

func TestWhatTheLedgerHoldsOfAGrantIsReadForEver(t *testing.T) {
	v := reflect.ValueOf(full())
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("field %s is not tried", v.Type().Field(i).Name)
		}
	}
	golden(t, "grant-v1.2.json", payload{V: 1, By: "p-00000001", Grant: full()})
	want := full()
	for _, version := range []struct {
		name   string
		before func() // what the version before it did not know yet
	}{
		{"grant-v1.2.json", func() { want.Forwards = nil }},
		{"grant-v1.1.json", func() { want.EndedNote = "" }},
		{"grant-v1.json", func() {}},
	} {
		text, err := os.ReadFile(filepath.Join("testdata", version.name))
		if err != nil {
			t.Fatal(err)
		}
		var back payload
		if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back.Grant, want) {
			t.Errorf("%s reads as: %+v %v", version.name, back, err)
		}
		version.before()
	}
}

func TestWhatPeopleAgreeToIsReadForEver(t *testing.T) {
	request, err := full().request()
	if err != nil {
		t.Fatal(err)
	}
	var text json.RawMessage = request
	golden(t, "request-v1.1.json", text)
	first, err := os.ReadFile(filepath.Join("testdata", "request-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := parseRequest(first); err != nil || r.Grant != "g-00000001" || r.Forwards != nil {
		t.Errorf("the first version reads as %+v, %v", r, err)
	}
	r, err := parseRequest(request)
	if err != nil || r.Grant != "g-00000001" || len(r.Targets) != 1 {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := parseRequest([]byte(`{"v":1,"grant":"g","person":"p","targets":[{}],"for_ms":1,"and":"more"}`)); err == nil {
		t.Error("bytes with a field that nobody understands can be agreed to")
	}
	const whole = `{"v":1,"grant":"g","person":"p","targets":[{}],"for_ms":1}`
	if _, err := parseRequest([]byte(whole + "\n")); err != nil {
		t.Errorf("a whole request: %v", err)
	}
	for _, tail := range []string{whole, "{}", "null", "}", "x", "\x00"} {
		if _, err := parseRequest([]byte(whole + tail)); err == nil {
			t.Errorf("bytes that nobody was shown can be agreed to: %q after the request", tail)
		}
	}
}

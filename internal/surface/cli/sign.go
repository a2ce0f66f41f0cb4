package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/when"
)

// What an approver signs is a hash, and what they read is a text: a server that
// lies could show one request and have the hash of another signed. So the hash
// is made here from the request's own bytes, and what a grant gives is read from
// them, not from the server's words.

// subjectHash is what is signed of a request.
func subjectHash(kind string, request []byte) []byte {
	h := sha256.New()
	h.Write([]byte("handrail-approval-v1\n" + kind + "\n"))
	h.Write(request)
	return h.Sum(nil)
}

// signedGrant is what of a grant's request an approver must know.
type signedGrant struct {
	Grant      string `json:"grant"`
	PersonName string `json:"person_name"`
	Kind       string `json:"kind"`
	Targets    []struct {
		Name        string `json:"name"`
		Environment string `json:"environment"`
		Server      bool   `json:"server"`
	} `json:"targets"`
	Account  string   `json:"account"`
	Sudo     bool     `json:"sudo"`
	Root     bool     `json:"root"`
	Forwards []string `json:"forwards"`
	ForMS    int64    `json:"for_ms"`
}

// signing says what the signature will be over, or why there must be none.
func signing(a *v1.Approval) (string, error) {
	if !bytes.Equal(subjectHash(a.GetKind(), a.GetRequest()), a.GetSubjectHash()) {
		return "", fault.New(fault.Internal, "cannot approve %s: the server asks for a signature over something else than it shows", clean(a.GetId())).
			WithHint("tell whoever runs the server; nothing was signed")
	}
	if a.Kind != "grant" && a.Kind != "ratification" {
		return fmt.Sprintf("this request of kind %s, %s of it", a.Kind, count(len(a.Request), "byte")), nil
	}
	var g signedGrant
	if err := json.Unmarshal(a.Request, &g); err != nil || g.Grant != a.Subject || len(g.Targets) == 0 {
		return "", fault.New(fault.Internal, "cannot approve %s: what would be signed is no request for grant %s", clean(a.GetId()), clean(a.GetSubject())).
			WithHint("tell whoever runs the server; nothing was signed")
	}
	as := orElse(g.Account, "the account that policy names")
	switch {
	case g.Root:
		as = "root"
	case g.Sudo:
		as += " with sudo"
	}
	if len(g.Forwards) > 0 {
		as += ", with ports forwarded to " + strings.Join(g.Forwards, ", ") + ","
	}
	var hosts []string
	for _, t := range g.Targets {
		where := t.Name + " (" + t.Environment
		if t.Server && (g.Root || g.Sudo) {
			where += ", THE SERVER RUNS THERE"
		}
		hosts = append(hosts, where+")")
	}
	return fmt.Sprintf("%s writes as %s for %s on %s", g.PersonName, as, when.Words(time.Duration(g.ForMS)*time.Millisecond), strings.Join(hosts, ", ")), nil
}

package approval

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/policy"
)

// Read reads a request of a kind strictly into its struct. A request has one
// form only, that which json.Marshal gives it: what people sign cannot say one
// thing to a reader and another to a parser.
func Read(kind string, request []byte, into any) error {
	err := oneForm(request, into)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read the request of kind %s", kind)
	}
	return nil
}

func oneForm(request []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(request))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if again, err := json.Marshal(into); err != nil || !bytes.Equal(again, request) {
		return errors.New("it is not in its one form")
	}
	return nil
}

// RuleOf is the rule that policy has for a kind of request.
func RuleOf(p policy.ApprovalRule) Rule {
	return Rule{Needed: p.Needed, Groups: p.Groups, DifferentGroups: p.DifferentGroups, Passkey: p.Passkey, Lapse: time.Duration(p.Lapse)}
}

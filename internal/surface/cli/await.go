package cli

import (
	"google.golang.org/protobuf/proto"

	"handrail.dev/handrail/internal/foundation/fault"
)

// awaiting prints an answer that may wait for a second person, and then exits
// with "needs approval".
func (t *tool) awaiting(msg proto.Message, v view, approval, what string) error {
	if err := t.emit(msg, v); err != nil {
		return err
	}
	if approval == "" {
		return nil
	}
	t.say("A second person must agree to %s first. They run: handrail approve %s", what, clean(approval))
	return &exit{code: fault.NeedsApproval.ExitCode()}
}

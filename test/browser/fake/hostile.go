package fake

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Poison is what the hostile story appends to every text that somebody may
// choose: an end of each place that a page puts text into, scripts, text turned
// around, hidden letters, and a terminal's order to fill the clipboard.
const Poison = `"'></textarea></title><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>javascript:window.pwned=1` +
	"\u202etxt.exe\u200b\U000e0041\x1b]52;c;cHduZWQ=\x07"

// kept are the fields that machines make and pages find things by.
var kept = []protoreflect.Name{
	"id", "person", "host", "grant", "session", "subject", "approval", "requester", "target", "object", "subjects", "leaf_json",
	"state", "kind", "level", "environment", "scope", "verdict", "outcome", "action", "mode", "floor", "signed_by", "client", "ended_why", "url",
}

// poison appends Poison to every other text of the story.
func (a *API) poison() {
	var in func(protoreflect.Message)
	in = func(m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.Kind() == protoreflect.MessageKind && f.IsList():
				for i := range v.List().Len() {
					in(v.List().Get(i).Message())
				}
			case f.Kind() == protoreflect.MessageKind && !f.IsMap():
				in(v.Message())
			case f.Kind() != protoreflect.StringKind || slices.Contains(kept, f.Name()):
			case f.IsList():
				for i := range v.List().Len() {
					v.List().Set(i, protoreflect.ValueOfString(v.List().Get(i).String()+Poison))
				}
			default:
				m.Set(f, protoreflect.ValueOfString(v.String()+Poison))
			}
			return true
		})
	}
	all := []proto.Message{a.install}
	all = add(all, a.hosts)
	all = add(all, a.people)
	all = add(all, a.sessions)
	all = add(all, a.grants)
	all = add(all, a.approvals)
	all = add(all, a.entries)
	for _, m := range all {
		in(m.ProtoReflect())
	}
}

func add[M proto.Message](all []proto.Message, list []M) []proto.Message {
	for _, m := range list {
		all = append(all, m)
	}
	return all
}

package rpc

import (
	"fmt"

	"handrail.dev/handrail/internal/foundation/identity"
)

// directorySentences tell what the company's directory brought about.
var directorySentences = map[string]func(*said) string{
	"person.joined": func(s *said) string {
		p := read[identity.PersonPayload](s)
		return p.Name + " came by the directory" + in(p.Groups)
	},
	"people.joined": func(s *said) string {
		return fmt.Sprintf("%d people came by the directory", len(read[identity.FoldedPayload](s).People))
	},
	"people.regrouped": func(s *said) string {
		return fmt.Sprintf("the directory changed the groups of %d people", len(read[identity.FoldedPayload](s).People))
	},
	"people.returned": func(s *said) string {
		p := read[identity.FoldedPayload](s).People
		if len(p) == 1 {
			return s.names.name(p[0].Person) + " is in the directory again, and stays locked until unlocked"
		}
		return fmt.Sprintf("%d people are in the directory again, and stay locked until unlocked", len(p))
	},
	"directory.synced": func(s *said) string {
		p := read[struct {
			Version                          int64
			People, Groups                   int
			Joined, Left, Regrouped, Renamed int
		}](s)
		text := fmt.Sprintf("the copy of the directory is version %d: %d people, %d groups", p.Version, p.People, p.Groups)
		for _, part := range []struct {
			n    int
			what string
		}{{p.Joined, "joined"}, {p.Left, "left"}, {p.Regrouped, "regrouped"}, {p.Renamed, "renamed"}} {
			if part.n > 0 {
				text += fmt.Sprintf(", %d %s", part.n, part.what)
			}
		}
		return text
	},
	"directory.failed": func(s *said) string {
		return "the directory cannot be read" + because(read[struct{ Why string }](s).Why)
	},
	"directory.waits": func(s *said) string {
		p := read[struct {
			What    string
			Waiting bool
			People  int
		}](s)
		if !p.Waiting {
			return "nothing of the directory waits any more (" + p.What + ")"
		}
		if p.What == "gains" {
			return fmt.Sprintf("the directory puts %d people into a group that it does not give alone: somebody must agree", p.People)
		}
		return fmt.Sprintf("the directory takes away from %d people at once: nothing of it happens until somebody agrees", p.People)
	},
}

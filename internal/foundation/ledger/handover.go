package ledger

import (
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// signedHand says which keys of the log signed one checkpoint.
type signedHand struct {
	where string
	by    []note.Verifier
}

func (v *exportCheck) noteSigners(where string, signed []byte) {
	if len(KeysOf(v.key)) > 1 {
		v.hands = append(v.hands, signedHand{where, SignedBy(signed, v.key)})
	}
}

// handOvers checks that each key handed the log over to its follower: there is
// a checkpoint that both signed. What a former key signed alone is held by the
// newest checkpoint, which it cannot sign.
func (v *exportCheck) handOvers() {
	keys := slices.Clone(KeysOf(v.key)[1:])
	keys = append(keys, KeysOf(v.key)[0]) // oldest first
	for i, former := range keys[:len(keys)-1] {
		var used, both bool
		for _, h := range v.hands {
			if !slices.Contains(h.by, former) {
				continue
			}
			used = true
			both = both || slices.Contains(h.by, keys[i+1])
		}
		if !used {
			continue
		}
		if newest := v.newestOf(keys[i+1:]); !both && newest {
			v.find("log key", "no checkpoint is signed by both %08x and the key that followed it", former.KeyHash())
		} else if !both {
			v.report.Trust += "; it was signed by a log key that was replaced since: whoever has that key could have made it, so compare with a newer export"
		}
	}
}

// newestOf says whether one of these keys signed the newest checkpoint.
func (v *exportCheck) newestOf(keys []note.Verifier) bool {
	for _, h := range v.hands {
		if h.where == exportHead {
			return slices.ContainsFunc(h.by, func(k note.Verifier) bool { return slices.Contains(keys, k) })
		}
	}
	return false
}

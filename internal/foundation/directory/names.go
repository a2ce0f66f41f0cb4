package directory

import "handrail.dev/handrail/internal/foundation/store"

// NamesTx are those of everybody in the copy, and the groups': for whoever must
// keep them out of what leaves.
func NamesTx(q store.Queryer) (people, groups []string, err error) {
	rows, err := store.All[struct {
		Hash string `db:"hash"`
		Body []byte `db:"body"`
	}](q, `SELECT hash, body FROM directory_copy WHERE id = 1`)
	if err != nil || len(rows) == 0 {
		return nil, nil, err
	}
	copied, err := unpack(rows[0].Body, rows[0].Hash)
	if err != nil {
		return nil, nil, err
	}
	for _, h := range copied.People {
		people = append(people, h.Name)
	}
	for _, g := range copied.Groups {
		groups = append(groups, g.Name)
	}
	return people, groups, nil
}

package access

import (
	"slices"
	"time"

	"handrail.dev/handrail/internal/foundation/store"
)

// OwesReview says whether a break-glass of the person still waits for its
// review, overdue or not.
func OwesReview(q store.Queryer, person string) (bool, error) {
	n, err := store.One[int64](q, `SELECT COUNT(*) FROM grants WHERE person = $1 AND state = $2`, person, string(InReview))
	return n > 0, err
}

// ActiveGrant is the id of the grant with which the person may write on the
// host now; "" is none.
func ActiveGrant(q store.Queryer, person, host string, now time.Time) (string, error) {
	g, _, err := Standing{}.Active(q, person, host, now)
	return g.ID, err
}

// InForceTx is every grant with which somebody may write now.
func InForceTx(q store.Queryer, now time.Time) ([]Grant, error) {
	list, err := find(q, `WHERE g.state = $1 ORDER BY g.requested DESC, g.id LIMIT $2`, string(Active), maxListed)
	return slices.DeleteFunc(list, func(g Grant) bool { return !g.InForce(now) }), err
}

package identity

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
)

// standing is who was logged in when the database last said so. Brakes go by it
// while the database is away: they only take power away, and are recorded when
// it is back. Nothing else may. Whoever is locked, logs out or changes groups
// leaves it; what is in it ends with the login.
type standing struct {
	mu     sync.Mutex
	logins map[[sha256.Size]byte]stood
	names  map[string]string // of people, to their ids
}

type stood struct {
	who     Principal
	expires int64
}

// maxStanding bounds both maps; beyond it they begin anew.
const maxStanding = 16 << 10

func (s *standing) note(hash string, who Principal, expires int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logins == nil || len(s.logins) >= maxStanding || len(s.names) >= maxStanding {
		s.logins, s.names = map[[sha256.Size]byte]stood{}, map[string]string{}
	}
	if hash != "" {
		s.logins[cacheKey(hash)] = stood{who, expires}
	}
	s.names[who.Name] = who.ID
}

func (s *standing) get(hash string, now time.Time) (Principal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.logins[cacheKey(hash)]
	return l.who, ok && micros(now) < l.expires
}

// robotsOf are the robots of an owner that are logged in.
func (s *standing) robotsOf(owner string) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.logins {
		if l.who.Owner == owner && !slices.Contains(ids, l.who.ID) {
			ids = append(ids, l.who.ID)
		}
	}
	return ids
}

// leave forgets the logins of people. Their names stay: a brake may be for them.
func (s *standing) leave(people ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, l := range s.logins {
		for _, id := range people {
			if l.who.ID == id {
				delete(s.logins, key)
			}
		}
	}
}

// AuthenticateBrake is Authenticate for an act that only takes power away: while
// the database is away, who was logged in when it last answered still is.
func (p *People) AuthenticateBrake(ctx context.Context, bearer string) (Principal, error) {
	who, err := p.Authenticate(ctx, bearer)
	if err == nil || fault.KindOf(err) != fault.Unavailable {
		return who, err
	}
	stood, ok := p.standing.get(hashOf(kindBearer, bearer), time.Now())
	if !ok {
		return Principal{}, err
	}
	if err := p.admit(Person{ID: stood.ID, Name: stood.Name}); err != nil {
		return Principal{}, err
	}
	return stood, nil
}

// Known is the id of a person who was seen under a name, for a brake while the
// database is away.
func (p *People) Known(name string) (id string, ok bool) {
	p.standing.mu.Lock()
	defer p.standing.mu.Unlock()
	id, ok = p.standing.names[name]
	return id, ok
}

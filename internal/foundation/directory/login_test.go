package directory

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/slapd"
)

func TestAPasswordLetsInWhoseItIsAndNobodyElse(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, TLS: true, LDIF: small()})
	for name, url := range map[string]string{"ldaps": s.SecureURL(), "StartTLS": s.URL()} {
		t.Run(name, func(t *testing.T) {
			h := build(t)
			set := mapped(s)
			set.URL, set.StartTLS, set.CA, set.Login = url, name == "StartTLS", s.CA, true
			h.follow(set)
			h.until("everybody is here", func() bool { return h.status().Version > 0 })
			id, err := h.dir.Login(t.Context(), " Ada ", "ada-pw", "192.0.2.1")
			if err != nil {
				t.Fatal(err)
			}
			var person string
			err = h.store.View(t.Context(), func(v *store.View) (err error) {
				person, err = h.dir.PersonOf(v, id)
				return err
			})
			if err != nil || person != h.who("ada").ID {
				t.Errorf("ada's password is of %q, %v", person, err)
			}
			// Whatever is wrong, the words are the same.
			words := map[string]bool{}
			for _, try := range [][2]string{{"ada", "bob-pw"}, {"nobody", "ada-pw"}, {"ada", ""}, {"", "ada-pw"}, {"*", "ada-pw"}, {"ada,ou=people", "ada-pw"}, {"ada)(uid=*", "ada-pw"}, {"ada\x00", "ada-pw"}, {"ada", "ada-pw\x00"}} {
				_, err := h.dir.Login(t.Context(), try[0], try[1], "192.0.2.2")
				if fault.KindOf(err) != fault.Unauthenticated {
					t.Errorf("%q: %v", try, err)
				}
				words[fmt.Sprint(err)] = true
			}
			if len(words) != 1 {
				t.Errorf("what is wrong can be told apart: %v", words)
			}
		})
	}
	t.Run("an authority that we do not know", func(t *testing.T) {
		other := slapd.Start(t, slapd.Options{TLS: true})
		set := mapped(s)
		set.URL, set.CA = s.SecureURL(), other.CA
		if l, err := checked(t, set).open(t.Context()); err == nil {
			l.close()
			t.Error("a certificate of another authority is believed")
		}
	})
}

func TestWhoIsLockedOrGoneHasNoPassword(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: small()})
	h := build(t)
	set := mapped(s)
	set.Login = true
	h.follow(set)
	h.until("everybody is here", func() bool { return h.status().People == 4 && h.status().Version > 0 })
	_, err := h.store.Record(t.Context(), store.Once(), func(tx *store.Tx) ([]ledger.Entry, error) {
		_, entries, err := h.people.LockTx(tx, ledger.System, h.who("ada").ID, "lost laptop")
		return entries, err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Delete(slapd.Person("bob"))
	h.until("bob is gone", func() bool { return h.who("bob").Locked() })
	for _, name := range []string{"ada", "bob"} {
		if _, err := h.dir.Login(t.Context(), name, name+"-pw", "192.0.2.1"); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The directory is away: a password cannot be looked at, and that is said.
	s.Stop()
	if _, err := h.dir.Login(t.Context(), "carol", "carol-pw", "192.0.2.1"); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("while the directory is away: %v", err)
	}
}

// The name under which we know carol is given to somebody else, whose password
// it then is: it lets nobody in as carol.
func TestAPasswordOfANameIsNotThatOfThePerson(t *testing.T) {
	s := slapd.Start(t, slapd.Options{Sync: true, LDIF: small()})
	h := build(t)
	set := mapped(s)
	set.Login = true
	stop := h.follow(set)
	h.until("everybody is here", func() bool { return h.status().People == 4 && h.status().Version > 0 })
	stop() // what we know is old
	s.Do(func(c *ldap.Conn) error {
		return c.ModifyDN(ldap.NewModifyDNRequest(slapd.Person("carol"), "uid=carol.w", true, ""))
	})
	s.AddPerson("carol")
	if _, err := h.dir.Login(t.Context(), "carol", "carol-pw", "192.0.2.1"); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("the new carol came in as the old one: %v", err)
	}
}

func TestPasswordsAreNotTriedWithoutEnd(t *testing.T) {
	var n tries
	now := time.Unix(1_800_000_000, 0)
	count := func(name, source string) (taken int) {
		for range 200 {
			if _, err := n.take(name, source, now); err != nil {
				var f *fault.Error
				if !errors.As(err, &f) || f.Kind != fault.Exhausted {
					t.Fatal(err)
				}
				return taken
			}
			taken++
		}
		return taken
	}
	if got := count("ada", "192.0.2.1"); got != triesOfBoth {
		t.Errorf("%d tries for one name from one address", got)
	}
	if got := count("bob", "192.0.2.1") + count("carol", "192.0.2.1") + count("dan", "192.0.2.1"); got != triesOfSource-triesOfBoth {
		t.Errorf("%d more tries from one address", got)
	}
	all := 0
	for i := range 50 {
		all += count("ada", fmt.Sprintf("2001:db8:0:%x::1", i))
	}
	if all != triesOfName-triesOfBoth {
		t.Errorf("%d more tries for one name", all)
	}
	for i := range 20000 {
		_, _ = n.take(fmt.Sprint("u", i), fmt.Sprintf("2001:db8:1:%x::1", i), now)
	}
	if len(n.counts) > triesKept+3 {
		t.Errorf("%d counts are kept", len(n.counts))
	}
	give, err := n.take("ada", "192.0.2.9", now.Add(time.Minute))
	if err != nil {
		t.Error("a minute later nobody may try")
	}
	give()
	if n.counts["name ada"] != 0 {
		t.Error("a right password counts")
	}
}

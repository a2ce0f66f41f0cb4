package rotation_test

import (
	"path/filepath"
	"sync"
	"testing"

	"handrail.dev/handrail/internal/feature/rotation"
	"handrail.dev/handrail/internal/foundation/keyring"
	"handrail.dev/handrail/internal/foundation/store"
	"handrail.dev/handrail/test/house"
)

// Whoever brings a bundle puts it in force, and so does the loop that looks for what
// other servers brought: who comes second finds it done.
func TestTwoWhoLearnOfOneBundleAreBothContent(t *testing.T) {
	v := newVault(t)
	const bundles, learners = 8, 4
	over := make(chan struct{})
	var all sync.WaitGroup
	for range learners {
		all.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := v.x.Learn(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	before, _ := v.Ring.Bundle()
	for range bundles {
		_, now := v.Ring.Bundle()
		signed, err := keyring.SignVoucherTrust(filepath.Join(v.Dir, "root"), now, "", "")
		house.Must(t, err)
		if err := v.x.Trust(t.Context(), signed); err != nil {
			t.Error(err)
			break
		}
	}
	close(over)
	all.Wait()
	if now, _ := v.Ring.Bundle(); now.Version != before.Version+bundles {
		t.Errorf("bundle %d is in force after %d", now.Version, before.Version)
	}
	list, err := v.Store.Entries(t.Context(), store.EntryQuery{Action: string(rotation.Trusted), Limit: 100})
	if err != nil || len(list) != bundles {
		t.Errorf("%d entries (%v)", len(list), err)
	}
}

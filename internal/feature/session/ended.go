package session

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"handrail.dev/handrail/internal/feature/recording"
	"handrail.dev/handrail/internal/foundation/store"
)

// Ended tells the archive of recordings which of these sessions have ended here,
// with everything that the ledger will ever hold of their recordings.
func (s *Sessions) Ended(ctx context.Context, sessions []string) (map[string]recording.Ended, error) {
	found := map[string]recording.Ended{}
	for some := range slices.Chunk(sessions, 200) {
		marks, args := make([]string, len(some)), []any{StateEnded}
		for i, id := range some {
			marks[i], args = fmt.Sprintf("$%d", i+2), append(args, id)
		}
		var rows []Info
		err := s.d.Store.View(ctx, func(v *store.View) (err error) {
			rows, err = store.All[Info](v, `SELECT `+columns+` FROM sessions WHERE state = $1 AND recording_bytes > 0 AND id IN (`+strings.Join(marks, ", ")+`)`, args...)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, i := range rows {
			found[i.ID] = recording.Ended{Bytes: i.RecordingBytes, At: time.UnixMicro(i.Ended)}
		}
	}
	return found, nil
}

// Of are the sessions of a person, all of them.
func (s *Sessions) Of(ctx context.Context, person string) (ids []string, err error) {
	err = s.d.Store.View(ctx, func(v *store.View) error {
		ids, err = store.All[string](v, `SELECT id FROM sessions WHERE person = $1 ORDER BY id`, person)
		return err
	})
	return ids, err
}

package rpc

import (
	"context"
	"iter"
	"slices"

	"handrail.dev/handrail/internal/feature/notice"
)

// changes subscribes the caller to topics. The sequence ends with ctx; an
// empty id means that much changed: fetch anew. Subscribe before the snapshot,
// so that nothing falls between the two.
func (d *Deps) changes(ctx context.Context, topics ...notice.Topic) (iter.Seq2[notice.Topic, string], error) {
	sub, err := d.Notices.Subscribe(caller(ctx))
	if err != nil {
		return nil, err
	}
	return func(yield func(notice.Topic, string) bool) {
		defer sub.Close()
		for {
			e, err := sub.Next(ctx)
			if err != nil {
				return
			}
			if len(topics) > 0 && e.Topic != notice.Everything && !slices.Contains(topics, e.Topic) {
				continue
			}
			if !yield(e.Topic, e.ID) {
				return
			}
		}
	}, nil
}

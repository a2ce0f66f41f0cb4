package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"

	"handrail.dev/handrail/internal/foundation/fault"
)

// Try does with a blob of its own what a store must be able to do, and says
// what it cannot. folder begins the blob's name.
func Try(ctx context.Context, s Store, folder string) error {
	content := []byte("handrail tried whether it can write here; this may be deleted\n")
	name := folder + "/" + rand.Text()[:12]
	name = string(bytes.ToLower([]byte(name)))
	if err := s.Put(ctx, name, bytes.NewReader(content)); err != nil {
		return err
	}
	err := sameAs(ctx, s, name, content)
	if err == nil {
		err = overwrites(ctx, s, name, content)
	}
	if derr := s.Delete(ctx, name); err == nil {
		err = derr
	}
	return err
}

func sameAs(ctx context.Context, s Store, name string, content []byte) error {
	in, err := s.Get(ctx, name, 0, -1)
	if err != nil {
		return err
	}
	defer in.Close()
	got, err := io.ReadAll(io.LimitReader(in, MaxSize))
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read %s", name)
	}
	if !bytes.Equal(got, content) {
		return fault.New(fault.Conflict, "cannot trust the storage: %s does not hold what was put", name)
	}
	return nil
}

// overwrites asks with the condition alone, without looking first.
func overwrites(ctx context.Context, s Store, name string, content []byte) error {
	put := s.Put
	if b, ok := s.(*Bucket); ok {
		put = b.put
	}
	switch err := put(ctx, name, bytes.NewReader(content)); {
	case err == nil:
		return fault.New(fault.Partial, "cannot be sure that nothing is overwritten: the storage does not know If-None-Match").
			WithHint("each write looks first; let nobody else write into this bucket")
	case fault.KindOf(err) != fault.Conflict:
		return err
	}
	return nil
}

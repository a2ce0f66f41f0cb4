package fake

import (
	"encoding/base64"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// tree is a real Merkle tree over the story's leaves, so that proofs hold.
type tree struct {
	n      int64
	hashes []tlog.Hash
}

func (t tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = t.hashes[x]
	}
	return out, nil
}

func grow(entries []*v1.Entry) tree {
	var t tree
	for _, e := range entries {
		more, err := tlog.StoredHashes(t.n, []byte(e.LeafJson), t)
		if err != nil {
			panic(err) // a tree in memory reads its own hashes
		}
		t.hashes, t.n = append(t.hashes, more...), t.n+1
	}
	return t
}

func (t tree) checkpoint() string {
	root, err := tlog.TreeHash(t.n, t)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("acme.handrail.internal\n%d\n%s\n\n— acme.handrail.internal Vf3kq0n8AAECAwQFBgcICQoLDA0ODw==\n", t.n, base64.StdEncoding.EncodeToString(root[:]))
}

func (t tree) proof(index int64) [][]byte {
	p, err := tlog.ProveRecord(t.n, index, t)
	if err != nil {
		panic(err)
	}
	var out [][]byte
	for _, h := range p {
		out = append(out, h[:])
	}
	return out
}

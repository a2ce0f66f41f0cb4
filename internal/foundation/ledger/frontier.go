package ledger

import (
	"golang.org/x/mod/sumdb/tlog"

	"handrail.dev/handrail/internal/foundation/fault"
)

// TileWidth is how many hashes a tile holds; its height is TileHeight.
const (
	TileWidth  = 256
	TileHeight = 8
	TileBytes  = TileWidth * tlog.HashSize
	tileLevels = 8
)

// Frontier is the right edge of a growing tree: all that is needed to append a
// leaf and to know the root. Appending costs one node hash on average.
//
// A copy is a snapshot: it stays valid while the original grows, because the
// rows are only ever appended to. But only one of two copies may grow.
type Frontier struct {
	n     int64
	stack []tlog.Hash             // roots of the perfect subtrees, largest first
	rows  [tileLevels][]tlog.Hash // per tile level: hashes not yet in a full tile
}

// Size is the number of leaves.
func (f *Frontier) Size() int64 { return f.n }

// Tree is the size with the root hash.
func (f *Frontier) Tree() tlog.Tree {
	if f.n == 0 {
		return tlog.Tree{N: 0, Hash: emptyRoot}
	}
	h := f.stack[len(f.stack)-1]
	for i := len(f.stack) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.stack[i], h)
	}
	return tlog.Tree{N: f.n, Hash: h}
}

// emptyRoot is the hash of the empty tree: SHA-256 of nothing (RFC 6962).
var emptyRoot = tlog.Hash{0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
	0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55}

// Append adds a leaf hash. full is called with each tile that became full; it
// keeps the bytes.
func (f *Frontier) Append(h tlog.Hash, full func(level int, index int64, tile []byte)) {
	f.appendAt(0, h, full)
}

// appendTile adds the root of TileWidth leaves at once; full is not called for
// the lowest tile. The size must be a whole number of tiles.
func (f *Frontier) appendTile(root tlog.Hash, full func(level int, index int64, tile []byte)) {
	f.appendAt(TileHeight, root, full)
}

func (f *Frontier) appendAt(level int, h tlog.Hash, full func(level int, index int64, tile []byte)) {
	f.push(level/TileHeight, h)
	size := int64(1) << uint(level)
	for bit := f.n >> uint(level); bit&1 == 1; bit >>= 1 {
		last := len(f.stack) - 1
		h = tlog.NodeHash(f.stack[last], h)
		f.stack = f.stack[:last]
		if level++; level%TileHeight == 0 {
			row := level/TileHeight - 1
			if full != nil {
				full(row, f.n>>uint(level), packTile(f.rows[row]))
			}
			f.rows[row] = nil
			f.push(row+1, h)
		}
	}
	f.stack = append(f.stack, h)
	f.n += size
}

func (f *Frontier) push(row int, h tlog.Hash) {
	if row >= tileLevels {
		return
	}
	if f.rows[row] == nil {
		f.rows[row] = make([]tlog.Hash, 0, TileWidth)
	}
	f.rows[row] = append(f.rows[row], h)
}

// Snapshot returns a copy that stays as it is while f grows.
func (f *Frontier) Snapshot() Frontier {
	c := *f
	c.stack = append([]tlog.Hash(nil), f.stack...)
	return c
}

// Partial returns the hashes of the row that are not yet in a full tile.
func (f *Frontier) Partial(row int) []tlog.Hash { return f.rows[row] }

// Rebuild makes the frontier of a tree of n leaves from its stored tiles and
// the leaf hashes behind the last full one.
func Rebuild(n int64, tile func(level int, index int64) ([]byte, error), tail func(from int64) ([]tlog.Hash, error)) (*Frontier, error) {
	f := &Frontier{n: n}
	leaves, err := tail(n &^ (TileWidth - 1))
	if err != nil {
		return nil, err
	}
	if int64(len(leaves)) != n%TileWidth {
		return nil, fault.New(fault.Internal, "cannot rebuild tree of %d entries: %d of its last %d are there", n, len(leaves), n%TileWidth)
	}
	for _, h := range leaves {
		f.push(0, h)
	}
	for row := 1; row < tileLevels; row++ {
		count := n >> uint(row*TileHeight) // hashes in this row
		for i := count &^ (TileWidth - 1); i < count; i++ {
			b, err := tile(row-1, i)
			if err != nil {
				return nil, err
			}
			hashes, err := unpackTile(b)
			if err != nil {
				return nil, err
			}
			f.push(row, perfectRoot(hashes))
		}
	}
	for row := tileLevels - 1; row >= 0; row-- {
		f.stack = append(f.stack, perfectParts(f.rows[row])...)
	}
	return f, nil
}

// perfectParts are the roots of the perfect subtrees that cover the hashes.
func perfectParts(hashes []tlog.Hash) []tlog.Hash {
	var out []tlog.Hash
	for size := TileWidth / 2; size > 0; size /= 2 {
		if len(hashes) >= size {
			out = append(out, perfectRoot(hashes[:size]))
			hashes = hashes[size:]
		}
	}
	return out
}

// perfectRoot hashes a power of two of hashes up to their common root.
func perfectRoot(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	return perfectRootIn(hashes, make([]tlog.Hash, len(hashes)/2))
}

// perfectRootIn is perfectRoot of two or more, in a row that is half as long.
func perfectRootIn(hashes, row []tlog.Hash) tlog.Hash {
	for i := range row {
		row[i] = tlog.NodeHash(hashes[2*i], hashes[2*i+1])
	}
	for n := len(row); n > 1; n /= 2 {
		for i := 0; i < n/2; i++ {
			row[i] = tlog.NodeHash(row[2*i], row[2*i+1])
		}
	}
	return row[0]
}

func packTile(hashes []tlog.Hash) []byte {
	b := make([]byte, 0, len(hashes)*tlog.HashSize)
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	return b
}

func unpackTile(b []byte) ([]tlog.Hash, error) {
	if len(b) != TileBytes {
		return nil, fault.New(fault.Internal, "cannot read tile: %d bytes instead of %d", len(b), TileBytes)
	}
	out := make([]tlog.Hash, TileWidth)
	for i := range out {
		copy(out[i][:], b[i*tlog.HashSize:])
	}
	return out, nil
}

// Reader reads any stored hash of the tree, from full tiles and, behind them,
// from the frontier; tlog makes inclusion and consistency proofs from it.
func (f *Frontier) Reader(tile func(level int, index int64) ([]byte, error)) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			level, n := tlog.SplitStoredHashIndex(x)
			h, err := f.hash(level, n, tile)
			if err != nil {
				return nil, err
			}
			out[i] = h
		}
		return out, nil
	})
}

// hash is the root of the perfect subtree number n of height level.
func (f *Frontier) hash(level int, n int64, tile func(level int, index int64) ([]byte, error)) (tlog.Hash, error) {
	row, inner := level/TileHeight, uint(level%TileHeight)
	from, width := n<<inner, int64(1)<<inner // in hashes of the row
	if row >= tileLevels || (n+1)<<uint(level) > f.n {
		return tlog.Hash{}, fault.New(fault.Invalid, "cannot read hash %d of level %d: the tree holds %d entries", n, level, f.n)
	}
	index := from / TileWidth
	from -= index * TileWidth
	if full := f.n >> uint((row+1)*TileHeight); index >= full {
		part := f.rows[row]
		return perfectRoot(part[from : from+width]), nil
	}
	b, err := tile(row, index)
	if err != nil {
		return tlog.Hash{}, err
	}
	hashes, err := unpackTile(b)
	if err != nil {
		return tlog.Hash{}, err
	}
	return perfectRoot(hashes[from : from+width]), nil
}

package wire

import "crypto/ed25519"

// ByAny opens what one of several keys may have signed: while the order key is
// replaced, the former one counts beside it. The error is that of the first.
func ByAny[T any](keys []ed25519.PublicKey, open func(ed25519.PublicKey) (T, error)) (T, error) {
	var first error
	for _, key := range keys {
		v, err := open(key)
		if err == nil {
			return v, nil
		}
		if first == nil {
			first = err
		}
	}
	var none T
	return none, first
}

package keyring

import (
	"fmt"
	"log/slog"
)

// Secret is bytes that no log, error, dump or JSON shows. Reveal is the one
// way to them, so that a search for it finds every use.
type Secret struct{ b []byte }

// NewSecret takes the bytes over.
func NewSecret(b []byte) Secret { return Secret{b} }

// Reveal returns the bytes themselves, not a copy.
func (s Secret) Reveal() []byte { return s.b }

// Wipe overwrites the bytes.
func (s Secret) Wipe() { clear(s.b) }

const hidden = "***"

// String hides the secret.
func (s Secret) String() string { return hidden }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return hidden }

// Format hides the secret from every verb of fmt.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalText hides the secret from encoding/json and its like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// Package fault holds the kinds of error that people can act on. One table
// gives each kind its Connect code, HTTP status and exit code, so that an
// error means the same in the API, on a page and in a script.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what a person can do about an error.
type Kind uint8

const (
	// Internal is everything that nobody outside can act on.
	Internal Kind = iota
	// Invalid means that the input is wrong and stays wrong.
	Invalid
	// Unauthenticated means that it is not known who asks.
	Unauthenticated
	// Denied means that policy refuses.
	Denied
	// NeedsApproval means that a second person must agree first.
	NeedsApproval
	// NotFound means that the thing named does not exist, or may not be seen.
	NotFound
	// Conflict means that the state changed in between, or forbids this.
	Conflict
	// Exhausted means that a bound is reached: a quota, a rate, a disk.
	Exhausted
	// Unavailable means that something needed is away; trying again may help.
	Unavailable
	// Partial means that some of it was done.
	Partial
)

// row is one line of the table below.
type row struct {
	name    string
	connect uint32 // connect.Code, which follows gRPC's numbering
	http    int
	exit    int
}

// table maps each kind. Exit codes: 0 ok, 1 failed, 2 usage, 3 denied, 4 needs
// approval, 5 partly.
var table = [...]row{
	Internal:        {"internal", 13, 500, 1},
	Invalid:         {"invalid", 3, 400, 2},
	Unauthenticated: {"unauthenticated", 16, 401, 3},
	Denied:          {"denied", 7, 403, 3},
	NeedsApproval:   {"needs-approval", 9, 403, 4},
	NotFound:        {"not-found", 5, 404, 1},
	Conflict:        {"conflict", 10, 409, 1},
	Exhausted:       {"exhausted", 8, 429, 1},
	Unavailable:     {"unavailable", 14, 503, 1},
	Partial:         {"partial", 15, 207, 5},
}

func (k Kind) row() row {
	if int(k) < len(table) {
		return table[k]
	}
	return table[Internal]
}

// String is the kind's name on the wire and in `-o json`.
func (k Kind) String() string { return k.row().name }

// ConnectCode is the kind's Connect (gRPC) code.
func (k Kind) ConnectCode() uint32 { return k.row().connect }

// HTTPStatus is the kind's HTTP status.
func (k Kind) HTTPStatus() int { return k.row().http }

// ExitCode is what a command exits with.
func (k Kind) ExitCode() int { return k.row().exit }

// ParseKind returns the kind of that name; an unknown name is Internal.
func ParseKind(name string) Kind {
	for k, r := range table {
		if r.name == name {
			return Kind(k)
		}
	}
	return Internal
}

// Error is an error that a person can act on.
type Error struct {
	Kind  Kind
	Text  string // "cannot <verb> <object>: …"
	Hint  string // the person's next command, may be empty
	Rule  string // the policy rule that decided, may be empty
	Entry string // the ledger entry that records it ("#1234"), may be empty
	cause error
}

// New returns an error of that kind.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Text: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of that kind whose text ends with the cause.
func Wrap(k Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: k, Text: fmt.Sprintf(format, args...) + ": " + cause.Error(), cause: cause}
}

// Error returns the text without the hint; surfaces print the hint apart.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// WithHint sets the next command and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithRule names the policy rule that decided and returns e.
func (e *Error) WithRule(rule string) *Error {
	e.Rule = rule
	return e
}

// WithEntry names the ledger entry that records the refusal and returns e.
func (e *Error) WithEntry(seq int64) *Error {
	e.Entry = fmt.Sprintf("#%d", seq)
	return e
}

// From returns the fault inside err. What is not a fault becomes Internal,
// and keeps its text; surfaces that face strangers replace that text.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, Text: err.Error(), cause: err}
}

// KindOf returns the kind of err; nil and foreign errors are Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

package handrailv1connect

import (
	"errors"

	"connectrpc.com/connect"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
)

// NewError returns a Connect error that carries f.
func NewError(code uint32, f *handrailv1.Fault) *connect.Error {
	e := connect.NewError(connect.Code(code), errors.New(f.GetText()))
	if detail, err := connect.NewErrorDetail(f); err == nil {
		e.AddDetail(detail)
	}
	return e
}

// FaultOf returns the fault that err carries. An error without one (a network
// that is down, a proxy's answer) becomes a fault of its Connect code's kind,
// or "unavailable".
func FaultOf(err error) *handrailv1.Fault {
	var e *connect.Error
	if !errors.As(err, &e) {
		return &handrailv1.Fault{Kind: "unavailable", Text: err.Error()}
	}
	for _, d := range e.Details() {
		if v, err := d.Value(); err == nil {
			if f, ok := v.(*handrailv1.Fault); ok {
				return f
			}
		}
	}
	kinds := map[connect.Code]string{
		connect.CodeInvalidArgument: "invalid", connect.CodeUnauthenticated: "unauthenticated",
		connect.CodePermissionDenied: "denied", connect.CodeNotFound: "not-found",
		connect.CodeResourceExhausted: "exhausted", connect.CodeInternal: "internal",
	}
	kind, ok := kinds[e.Code()]
	if !ok {
		kind = "unavailable"
	}
	return &handrailv1.Fault{Kind: kind, Text: e.Message()}
}

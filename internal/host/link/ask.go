package link

import (
	"context"
	"crypto/tls"
	"strings"
	"time"

	"handrail.dev/handrail/internal/foundation/ledger"
)

// Ask calls one method of the API of the server that a token names. The server
// is known by the root key hash in the token; nothing is trusted on first use.
func Ask(ctx context.Context, token, path string, ask, reply any) (ledger.Token, error) {
	t, err := ledger.ParseToken(strings.TrimSpace(token))
	if err != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	j := joiner{token: token, t: t}
	if j.address, err = hostPort(t.Address); err != nil {
		return t, err
	}
	bundle, _, err := j.trust(ctx)
	if err != nil {
		return t, err
	}
	roots, err := pool(bundle)
	if err != nil {
		return t, err
	}
	return t, j.post(ctx, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: serverName}, path, ask, reply)
}

// askWithin bounds one question.
const askWithin = 30 * time.Second

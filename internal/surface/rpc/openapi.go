package rpc

import (
	"net/http"

	"handrail.dev/handrail/api"
)

// serveOpenAPI hands out what the API is, to whoever asks: it says nothing of
// this installation.
func serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(api.OpenAPI()) // whoever asked has left
}

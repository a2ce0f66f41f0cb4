package fake

import (
	"encoding/json"
	"net/http"
)

// frozen answers every call as a server does that is cut off from its database.
func frozen(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusServiceUnavailable)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": "unavailable",
		"message": "cannot do this here: this server is cut off from the database since 14:05:11 UTC; try south at south.example.org:7080"})
}

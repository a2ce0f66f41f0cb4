package cli

import (
	"github.com/spf13/cobra"

	"handrail.dev/handrail/api"
)

func (t *tool) apiCommand() *cobra.Command {
	c := t.command("api", "Print what the API is, as an OpenAPI 3.1 document",
		"handrail api > openapi.json                        # for generators of clients\nhandrail api | jq -r '.paths | keys[]'              # every call; a server tells the same at /v1/openapi.json",
		exactly(),
		func(*cobra.Command, []string) error {
			_, err := t.out().Write(api.OpenAPI())
			return err
		})
	c.Long = `Print what the API is, as an OpenAPI 3.1 document.

Every command and every page is a client of this API. A call is a POST of JSON
with a login as bearer token; the document says of each which policy action
decides it, and what it leaves in the ledger.`
	return c
}

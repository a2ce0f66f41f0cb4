package app

import (
	"io"
	"os"
	"path/filepath"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/fleet"
)

// natsSection is [nats]: a cluster of somebody else's over which servers, and
// never nodes, reach each other too.
type natsSection struct {
	URLs        []string `toml:"urls" json:"urls"`
	Credentials string   `toml:"credentials" json:"-"` // file
	CA          string   `toml:"ca" json:"-"`          // file

	CredentialsText string `toml:"-" json:"credentials,omitempty"`
	CAText          string `toml:"-" json:"ca,omitempty"`
}

// maxNATS bounds what a table may list.
const maxNATS = 16

func (n *natsSection) complete(config string) error {
	if n == nil {
		return nil
	}
	if len(n.URLs) == 0 || len(n.URLs) > maxNATS {
		return fault.New(fault.Invalid, "cannot use [nats]: it lists %d urls, 1 to %d are needed", len(n.URLs), maxNATS)
	}
	if n.Credentials != "" {
		secret, err := secretFile(config, n.Credentials)
		if err != nil {
			return err
		}
		n.CredentialsText = string(secret.Reveal())
	}
	if n.CA == "" {
		return nil
	}
	name := n.CA
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(config), name)
	}
	f, err := os.Open(name)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot read the authority of [nats]")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEM))
	n.CAText = string(text)
	return err
}

func (n *natsSection) outside() fleet.Outside {
	if n == nil {
		return fleet.Outside{}
	}
	return fleet.Outside{URLs: n.URLs, Credentials: []byte(n.CredentialsText), CA: []byte(n.CAText)}
}

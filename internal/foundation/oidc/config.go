package oidc

import (
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/keyring"
)

// Config is what an installation says about its provider: [oidc] of the
// configuration.
type Config struct {
	Issuer     string         `toml:"issuer" json:"issuer"`
	Name       string         `toml:"name" json:"name"` // on the button of the login page
	ClientID   string         `toml:"client-id" json:"client_id"`
	SecretFile string         `toml:"client-secret-file" json:"-"`
	Secret     keyring.Secret `toml:"-" json:"-"` // empty: a public client
	Scopes     []string       `toml:"scopes" json:"scopes"`

	PersonClaim string   `toml:"person-claim" json:"person_claim"` // which claim says who somebody is
	PersonIs    Kind     `toml:"person-is" json:"person_is"`       // what that claim holds
	MailDomains []string `toml:"mail-domains" json:"mail_domains"` // for PersonIs Mail

	GroupsClaim string            `toml:"groups-claim" json:"groups_claim"`
	Groups      map[string]string `toml:"groups" json:"groups"` // the provider's name to ours; what is not here is nothing

	Unknown   string `toml:"unknown" json:"unknown"`       // Refuse or Add
	NameClaim string `toml:"name-claim" json:"name_claim"` // the name of whom Add makes

	DeviceCode bool `toml:"device-code" json:"device_code"` // whether a machine without a browser may log in by a code
	MayApprove bool `toml:"credentials-may-approve" json:"may_approve"`
}

// Kind is what the claim about a person holds.
type Kind string

// The kinds.
const (
	Mail      Kind = "mail"      // a verified address of one of our domains; its local part is the name
	Name      Kind = "name"      // the name in handrail itself
	Directory Kind = "directory" // the lasting id of an entry of the directory
)

// What happens with somebody whom nobody knows.
const (
	Refuse = "refuse" // they are told whom to ask
	Add    = "add"    // they become a person without a group
)

const (
	maxWord  = 256 // of a setting
	maxItems = 500 // of a list or table of settings
)

var (
	domainShape = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$`)
	})
	groupShape = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9._-]{0,31}$`) })
)

// Complete fills in what was left out, and says what is wrong.
func (c Config) Complete() (Config, error) {
	orElse := func(s *string, other string) {
		if *s == "" {
			*s = other
		}
	}
	orElse(&c.Name, "your company")
	orElse(&c.PersonClaim, "email")
	orElse(&c.Unknown, Refuse)
	orElse(&c.NameClaim, "preferred_username")
	if c.PersonIs == "" && c.PersonClaim == "email" {
		c.PersonIs = Mail
	}
	if len(c.Scopes) == 0 {
		c.Scopes = []string{"openid", "email", "profile"}
	}
	return c, c.check()
}

func wrong(format string, args ...any) error {
	return fault.New(fault.Invalid, "cannot use [oidc]: "+format, args...).WithHint("handrail config explain --help")
}

func (c Config) check() error {
	switch {
	case c.Issuer == "" || c.ClientID == "":
		return wrong("issuer and client-id must be given")
	case safeURL(c.Issuer) != nil:
		return wrong("issuer: %v", safeURL(c.Issuer))
	case len(c.Name) > 64 || len(c.ClientID) > maxWord || len(c.PersonClaim) > maxWord || len(c.GroupsClaim) > maxWord || len(c.NameClaim) > maxWord:
		return wrong("a setting is longer than %d bytes", maxWord)
	case c.PersonIs != Mail && c.PersonIs != Name && c.PersonIs != Directory:
		return wrong("person-is says what %s holds: %q, %q or %q", c.PersonClaim, Mail, Name, Directory)
	case c.PersonIs == Mail && c.PersonClaim != "email":
		return wrong("only the claim email says whether it is verified, so person-is = %q goes with person-claim = \"email\"", Mail)
	case c.PersonIs == Mail && len(c.MailDomains) == 0:
		return wrong("mail-domains must name the domains whose addresses are your people's")
	case c.Unknown != Refuse && c.Unknown != Add:
		return wrong("unknown is %q or %q", Refuse, Add)
	case c.Unknown == Add && c.PersonIs == Directory:
		return wrong("with person-is = %q people come from the directory, so unknown is %q", Directory, Refuse)
	case len(c.Groups) > 0 && c.GroupsClaim == "":
		return wrong("groups-claim must name the claim that [oidc.groups] maps")
	case len(c.Groups) > maxItems || len(c.MailDomains) > maxItems || len(c.Scopes) > maxItems:
		return wrong("a list has more than %d items", maxItems)
	}
	openid := false
	for _, s := range c.Scopes {
		openid = openid || s == "openid"
	}
	if !openid {
		return wrong("scopes must hold openid")
	}
	for _, d := range c.MailDomains {
		if !domainShape().MatchString(d) {
			return wrong("mail-domains: %.60q is no domain in small letters", d)
		}
	}
	for theirs, ours := range c.Groups {
		if theirs == "" || len(theirs) > maxWord || !groupShape().MatchString(ours) {
			return wrong("groups: %.60q = %.60q: the right side is a group of ours, 1 to 32 of a-z 0-9 . _ - and a letter first", theirs, ours)
		}
	}
	return nil
}

// safeURL refuses an address over which somebody else could answer: what is
// said there decides who people are.
func safeURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || len(text) > 2048:
		return fault.New(fault.Invalid, "%.100q is no address like https://id.example.com", text)
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return fault.New(fault.Invalid, "%.100q is not https, and what is said there decides who people are", text)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

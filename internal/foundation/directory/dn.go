package directory

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
)

// maxDN bounds a distinguished name.
const maxDN = 2048

// ref stands for a distinguished name, whichever way it is written: what is
// kept of a million members is sixteen bytes each.
type ref [16]byte

// parseDN reads a distinguished name that is not empty.
func parseDN(text string) (*ldap.DN, error) {
	if len(text) > maxDN || !utf8.ValidString(text) {
		return nil, fmt.Errorf("it is no distinguished name, or longer than %d bytes", maxDN)
	}
	dn, err := ldap.ParseDN(text)
	if err != nil {
		return nil, fmt.Errorf("%.100q is no distinguished name: %w", text, err)
	}
	if len(dn.RDNs) == 0 {
		return nil, fmt.Errorf("a distinguished name is empty")
	}
	return dn, nil
}

// canonical is one text for all ways to write a name: attribute types and
// values without case, with single spaces, the parts of a multi-valued part in
// order, every length said so that no two names share it.
func canonical(dn *ldap.DN) string {
	var b strings.Builder
	for _, rdn := range dn.RDNs {
		parts := make([]string, len(rdn.Attributes))
		for i, a := range rdn.Attributes {
			kind, value := fold(a.Type), fold(a.Value)
			parts[i] = fmt.Sprintf("%d:%s=%d:%s", len(kind), kind, len(value), value)
		}
		slices.Sort(parts)
		fmt.Fprintf(&b, "%d{%s}", len(parts), strings.Join(parts, "+"))
	}
	return b.String()
}

func fold(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(s), unicode.IsSpace), " ")
}

// refOf is the reference of a distinguished name.
func refOf(text string) (ref, error) {
	dn, err := parseDN(text)
	if err != nil {
		return ref{}, err
	}
	return refText("dn " + canonical(dn)), nil
}

// refName is the reference of a login name, where groups name their members so.
func refName(name string) ref { return refText("uid " + fold(name)) }

func refText(text string) (r ref) {
	sum := sha256.Sum256([]byte(text))
	copy(r[:], sum[:])
	return r
}

// uuidText is the usual text of the sixteen bytes that name an entry for ever.
// Microsoft writes the first three fields of a GUID backwards.
func uuidText(b []byte, guid bool) (string, error) {
	if len(b) != 16 {
		return "", fmt.Errorf("an id has %d bytes", len(b))
	}
	b = slices.Clone(b)
	if guid {
		slices.Reverse(b[0:4])
		slices.Reverse(b[4:6])
		slices.Reverse(b[6:8])
	}
	if slices.Max(b) == 0 {
		return "", fmt.Errorf("an id is all zero")
	}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// uuidOf reads the text of an id, in its one form.
func uuidOf(text string) (string, error) {
	text = strings.ToLower(text)
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil {
		return "", fmt.Errorf("%.40q is no id", text)
	}
	again, err := uuidText(raw, false)
	if err != nil || again != text {
		return "", fmt.Errorf("%.40q is no id", text)
	}
	return again, nil
}

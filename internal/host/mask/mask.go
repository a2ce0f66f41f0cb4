// Package mask takes secrets out of what handrail outputs, on the host, before
// it crosses the wire: passwords, tokens, keys, credentials in addresses, card
// numbers. What was taken out is replaced by a word that says what kind it was,
// and counted.
//
// House rules: a doubt masks; a name stays, a value goes; the rules know forms,
// never a list of real secrets. Masking is the last wall, not the first: whoever
// reads for a person still may read only what the person may see.
package mask

import (
	"regexp"
	"strings"
	"sync"
)

// Kinds of what was masked, as they stand in the replacement.
const (
	Key      = "key"          // private keys, cloud keys
	Token    = "token"        // bearer tokens, JWT, tokens of known services
	Password = "password"     // a value that its name calls secret
	Login    = "login"        // credentials in an address
	Card     = "card number"  // digits that a card could have
	Unknown  = "unknown name" // the value of a variable that is not known to be harmless
)

// Hidden is what stands for a secret of that kind.
func Hidden(kind string) string { return "‹masked: " + kind + "›" }

// rule replaces a part of each match.
type rule struct {
	kind  string
	quick []string // one of them is in every text that can match, in lower case; none: always tried
	form  *regexp.Regexp
	group int // what is replaced; 0 is all of it
	check func(string) bool
}

var rules = sync.OnceValue(func() []rule {
	form := regexp.MustCompile
	return []rule{
		{kind: Key, quick: []string{"-----begin"}, form: form(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|$)`)},
		{kind: Key, quick: []string{"age-secret-key-"}, form: form(`(?i)AGE-SECRET-KEY-[A-Z0-9-]{20,}`)},
		{kind: Token, quick: []string{"eyj"}, form: form(`eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){0,3}`)},
		{kind: Key, quick: []string{"akia", "asia", "aroa", "aida"}, form: form(`\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,128}\b`)},
		{kind: Token, quick: []string{"gh", "glpat-", "xox", "npm_", "hvs.", "pypi-", "dop_v1_", "sk", "rk_", "whsec_", "sg.", "aiza", "ya29.", "lin_api_", "shpat_", "dckr_pat_", "atatt"},
			form: form(`\b(?:gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{16,64}|xox[abeoprs]-[A-Za-z0-9-]{10,255}|npm_[A-Za-z0-9]{30,64}|hvs\.[A-Za-z0-9_-]{20,255}|pypi-[A-Za-z0-9_-]{40,255}|dop_v1_[a-f0-9]{40,64}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,255}|sk-[A-Za-z0-9_-]{20,255}|whsec_[A-Za-z0-9+/=]{16,255}|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}|AIza[A-Za-z0-9_-]{30,64}|ya29\.[A-Za-z0-9_-]{20,1000}|lin_api_[A-Za-z0-9]{20,64}|shpat_[a-fA-F0-9]{20,64}|dckr_pat_[A-Za-z0-9_-]{16,64}|ATATT[A-Za-z0-9_=-]{20,255})`)},
		{kind: Token, quick: []string{"bearer", "basic", "negotiate", "digest"}, form: form(`(?i)\b(?:bearer|basic|negotiate|digest)[ \t]+([A-Za-z0-9._~+/=:-]{8,})`), group: 1},
		{kind: Card, form: form(`\b[0-9](?:[ -]?[0-9]){12,18}\b`), check: luhn},
	}
})

// Text returns s without what looks secret in it, and how much was taken out.
func Text(s string) (string, int) {
	if len(s) < 4 {
		return s, 0
	}
	s, count := forms(s)
	s, n := logins(s)
	s, m := named(s)
	return s, count + n + m
}

// forms takes out what is secret by its form alone.
func forms(s string) (string, int) {
	lower := strings.ToLower(s)
	count := 0
	for i := range rules() {
		r := &rules()[i]
		if !r.may(lower) {
			continue
		}
		var n int
		if s, n = r.apply(s); n > 0 {
			count += n
			lower = strings.ToLower(s)
		}
	}
	return s, count
}

func (r *rule) may(lower string) bool {
	if len(r.quick) == 0 {
		return true
	}
	for _, q := range r.quick {
		if strings.Contains(lower, q) {
			return true
		}
	}
	return false
}

func (r *rule) apply(s string) (string, int) {
	found := r.form.FindAllStringSubmatchIndex(s, -1)
	if len(found) == 0 {
		return s, 0
	}
	var b strings.Builder
	at, count := 0, 0
	for _, m := range found {
		from, to := m[2*r.group], m[2*r.group+1]
		if from < at || from < 0 || hiddenAt(s[from:]) || r.check != nil && !r.check(s[from:to]) {
			continue
		}
		b.WriteString(s[at:from])
		b.WriteString(Hidden(r.kind))
		at = to
		count++
	}
	if count == 0 {
		return s, 0
	}
	b.WriteString(s[at:])
	return b.String(), count
}

// hiddenAt says whether one of our own replacements begins here. A text that
// only looks like one hides nothing.
func hiddenAt(s string) bool {
	if !strings.HasPrefix(s, "‹masked: ") {
		return false
	}
	for _, kind := range [...]string{Key, Token, Password, Login, Card, Unknown} {
		if strings.HasPrefix(s, Hidden(kind)) {
			return true
		}
	}
	return false
}

// logins takes the password out of addresses: scheme://user:password@host. It
// is by hand, since a password may hold almost any character.
func logins(s string) (string, int) {
	var b strings.Builder
	at, count := 0, 0
	for {
		i := strings.Index(s[at:], "://")
		if i < 0 {
			break
		}
		i += at + len("://")
		from, to := passwordAt(s[i:])
		if to <= from || hiddenAt(s[i+from:]) {
			b.WriteString(s[at:i])
			at = i
			continue
		}
		b.WriteString(s[at : i+from])
		b.WriteString(Hidden(Login))
		at = i + to
		count++
	}
	if count == 0 {
		return s, 0
	}
	b.WriteString(s[at:])
	return b.String(), count
}

// maxLogin bounds how far a password in an address is looked for.
const maxLogin = 1024

// passwordAt is where the password lies in what follows "://"; to is 0 where
// there is none.
func passwordAt(s string) (from, to int) {
	s = s[:min(len(s), maxLogin)]
	if end := strings.IndexAny(s, " \t\r\n\"'<>`"); end >= 0 {
		s = s[:end]
	}
	colon, slash := strings.IndexByte(s, ':'), strings.IndexAny(s, "/?#")
	if colon < 0 || slash >= 0 && slash < colon {
		return 0, 0
	}
	if slash < 0 {
		slash = len(s)
	}
	if last := strings.LastIndexByte(s[:slash], '@'); last > colon {
		return colon + 1, last
	}
	port := strings.Trim(s[colon+1:slash], "0123456789") == ""
	if after := strings.IndexByte(s[slash:], '@'); after >= 0 && !port { // the password itself has a slash in it
		return colon + 1, slash + after
	}
	return 0, 0
}

// luhn says whether the digits could be a card's: the first digit is of an
// issuer, the length is of one, and the check digit fits.
func luhn(s string) bool {
	sum, n, first := 0, 0, byte(0)
	for i := len(s) - 1; i >= 0; i-- {
		c := s[i]
		if c < '0' || c > '9' {
			continue
		}
		d := int(c - '0')
		if n%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
		n++
		first = c
	}
	return n >= 13 && n <= 19 && sum%10 == 0 && first >= '2' && first <= '6'
}

// Code is Text for what names code or a place: there a colon or an equals sign
// does not make the next word a value.
func Code(s string) (string, int) {
	if len(s) < 12 {
		return s, 0
	}
	s, n := forms(s)
	s, m := logins(s)
	return s, n + m
}

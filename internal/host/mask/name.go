package mask

import (
	"regexp"
	"strings"
	"sync"
)

// secretWords make a name secret wherever they stand in it.
var secretWords = [...]string{"password", "passwd", "passphrase", "passcode", "passkey", "secret", "token", "apikey", "accesskey", "privatekey", "privkey",
	"encryptionkey", "signingkey", "masterkey", "authkey", "sshkey", "accountkey", "authorization", "credential", "cookie", "sessionid", "sessionkey",
	"signature", "connectionstring", "connstr", "webhookurl", "mnemonic", "bearer", "keytab", "pwd"}

// secretParts make a name secret when they are one of its words.
var secretParts = map[string]bool{"pass": true, "pw": true, "pin": true, "otp": true, "cvv": true, "cvc": true, "sig": true, "salt": true, "dsn": true,
	"jwt": true, "sas": true, "seed": true, "auth": true, "psk": true, "creds": true, "cred": true}

// notSecret are words that only look like those.
var notSecret = strings.NewReplacer("tokenizer", "", "tokenize", "", "tokenise", "", "tokencount", "", "tokenspersecond", "", "maxtokens", "",
	"secretary", "", "oldpwd", "")

// SecretName says whether a name calls its value secret: DB_PASSWORD,
// apiKey, x-auth-token, --client-secret.
func SecretName(name string) bool {
	flat := notSecret.Replace(strings.ToLower(separators.Replace(name)))
	if flat == "pwd" { // the working folder; whoever means a password writes more
		return name != "PWD"
	}
	for _, w := range secretWords {
		if strings.Contains(flat, w) {
			return true
		}
	}
	for _, part := range wordsOf(name) {
		if secretParts[part] {
			return true
		}
	}
	return false
}

var separators = strings.NewReplacer("_", "", "-", "", ".", "")

// wordsOf are the words of a name, in lower case: fooBar_baz is foo, bar, baz.
func wordsOf(name string) []string {
	var out []string
	var word []byte
	flush := func() {
		if len(word) > 0 {
			out = append(out, string(word))
			word = word[:0]
		}
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'A' && c <= 'Z':
			if i > 0 && name[i-1] >= 'a' && name[i-1] <= 'z' {
				flush()
			}
			word = append(word, c+'a'-'A')
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			word = append(word, c)
		default:
			flush()
		}
	}
	flush()
	return out
}

// pair is a name and what stands between it and its value: an equals sign or a
// colon, or, after a flag, a space.
var pair = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile("([A-Za-z_][A-Za-z0-9_.-]{0,63})(?:\\\\?[\"'`])?[ \t]{0,4}(?:=>|:=|=|:)[ \t]{0,4}|--?([A-Za-z][A-Za-z0-9_.-]{1,63})[ \t]{1,4}")
})

// named takes out the values of secret names.
func named(s string) (string, int) {
	if !strings.ContainsAny(s, "=:-") {
		return s, 0
	}
	found := pair().FindAllStringSubmatchIndex(s, -1)
	var b strings.Builder
	at, count := 0, 0
	for _, m := range found {
		if m[0] < at {
			continue
		}
		name, flag := group(s, m, 1), group(s, m, 2)
		sure := SecretName(name + flag)
		if !sure && !endsInKey(name) {
			continue
		}
		within := s
		if !sure { // each of many such names must not look through the whole text
			within = s[:min(len(s), m[1]+maxDense)]
		}
		from, to := valueAt(within, m[1], name)
		if from == to || hiddenAt(s[from:]) || flag != "" && s[from] == '-' || !sure && !dense(s[from:to]) {
			continue
		}
		b.WriteString(s[at:from])
		b.WriteString(Hidden(Password))
		at = to
		count++
	}
	if count == 0 {
		return s, 0
	}
	b.WriteString(s[at:])
	return b.String(), count
}

// maxDense is how much of a value is looked at to see whether it is a key.
const maxDense = 512

func group(s string, m []int, n int) string {
	if m[2*n] < 0 {
		return ""
	}
	return s[m[2*n]:m[2*n+1]]
}

func endsInKey(name string) bool {
	w := wordsOf(name)
	return len(w) > 0 && (w[len(w)-1] == "key" || w[len(w)-1] == "keys")
}

// valueAt is where the value that begins at i lies: within its quotes, or up
// to what ends a word. Headers of several words go on to the end of the line.
func valueAt(s string, i int, name string) (from, to int) {
	if i < len(s) && s[i] == '\\' {
		i++
	}
	if i < len(s) && (s[i] == '"' || s[i] == '\'' || s[i] == '`') {
		quote := s[i]
		for j := i + 1; j < len(s); j++ {
			switch s[j] {
			case '\\':
				j++
			case quote:
				return i + 1, j
			}
		}
		return i + 1, len(s)
	}
	lower := strings.ToLower(name)
	ends := " \t\r\n\"'`&;,)}]>"
	if strings.Contains(lower, "cookie") || strings.Contains(lower, "authorization") {
		ends = "\r\n\"'`"
	}
	if j := strings.IndexAny(s[i:], ends); j >= 0 {
		return i, i + j
	}
	return i, len(s)
}

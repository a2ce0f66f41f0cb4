package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"handrail.dev/handrail/internal/foundation/fault"
)

// writeYAML turns JSON into block YAML and keeps the order of its keys. JSON
// strings are YAML strings, so only plain words lose their quotes.
func writeYAML(w io.Writer, raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var b strings.Builder
	if err := yamlValue(d, &b, 0, false); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot print the answer as YAML")
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// plainWord is what YAML reads back as the same string without quotes.
var plainWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./@+-]*$`) })

var yamlWords = map[string]bool{"true": true, "false": true, "null": true, "yes": true, "no": true, "on": true, "off": true, "y": true, "n": true}

func yamlScalar(token json.Token) string {
	switch v := token.(type) {
	case nil:
		return "null"
	case string:
		if plainWord().MatchString(v) && !yamlWords[strings.ToLower(v)] {
			return v
		}
		quoted, _ := json.Marshal(v)
		return string(quoted)
	}
	return fmt.Sprint(token)
}

// yamlValue writes the next value; the cursor stands behind "key:" or "-".
func yamlValue(d *json.Decoder, b *strings.Builder, depth int, inList bool) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		fmt.Fprintf(b, " %s\n", yamlScalar(token))
		return nil
	}
	if !d.More() {
		b.WriteString(map[json.Delim]string{'{': " {}\n", '[': " []\n"}[delim])
		_, err := d.Token()
		return err
	}
	// The first key of an object in a list stands on the line of its dash.
	first := inList && delim == '{'
	if !first {
		b.WriteByte('\n')
	}
	for d.More() {
		if first {
			b.WriteByte(' ')
			first = false
		} else {
			b.WriteString(strings.Repeat("  ", depth))
		}
		if delim == '{' {
			key, err := d.Token()
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "%s:", yamlScalar(key))
		} else {
			b.WriteByte('-')
		}
		if err := yamlValue(d, b, depth+1, delim == '['); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

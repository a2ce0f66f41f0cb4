package api

import (
	"embed"
	"slices"
	"strings"
)

// The comments of the definitions are not in what protoc makes of them for Go,
// so they are read from the text itself.
//
//go:embed handrail/v1/*.proto
var texts embed.FS

// notes are the comments of all definitions, by full name, and of each file by
// its path.
func notes() map[string]string {
	all := map[string]string{}
	for _, f := range files() {
		text, err := texts.ReadFile(f.Path())
		if err == nil { // else its comments are missing, and a test says so
			readNotes(f.Path(), string(text), all)
		}
	}
	return all
}

// readNotes takes the comments of one file: those above a definition, and the
// one behind it on its line. It reads the form that our files have: one
// definition a line.
func readNotes(path, text string, all map[string]string) {
	var above []string
	var open []string // names of what is open; "" for what gives its fields no name
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		code, comment, _ := strings.Cut(line, "//")
		code, comment = strings.TrimSpace(code), strings.TrimSpace(comment)
		switch {
		case code == "" && strings.HasPrefix(line, "//"):
			above = append(above, comment)
			continue
		case strings.HasPrefix(code, "syntax"):
			all[path] = strings.Join(above, " ")
		default:
			if name := defined(code); name != "" {
				full := "handrail.v1." + strings.Join(append(slices.DeleteFunc(slices.Clone(open), func(n string) bool { return n == "" }), name), ".")
				if comment != "" {
					above = append(above, comment)
				}
				if len(above) > 0 {
					all[full] = strings.Join(above, " ")
				}
			}
		}
		above = nil
		switch opened, closed := strings.Count(code, "{"), strings.Count(code, "}"); {
		case opened > closed:
			open = append(open, defined(code))
		case closed > opened && len(open) > 0:
			open = open[:len(open)-1]
		}
	}
}

// defined is what a line of code defines, or nothing.
func defined(code string) string {
	words := strings.FieldsFunc(code, func(r rune) bool { return strings.ContainsRune(" \t({;=", r) })
	if len(words) < 2 {
		return ""
	}
	switch words[0] {
	case "service", "message", "enum", "rpc":
		return words[1]
	case "option", "import", "package", "extend", "oneof", "reserved", "syntax":
		return ""
	case "repeated", "optional":
		words = words[1:]
	}
	if strings.HasPrefix(words[0], "map<") {
		_, rest, _ := strings.Cut(code, ">")
		if words = strings.Fields(rest); len(words) > 0 {
			return words[0]
		}
		return ""
	}
	if len(words) >= 3 && strings.Contains(code, "=") {
		return words[1]
	}
	return ""
}

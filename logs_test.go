package handrail_test

import (
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// nameless are the fields of a log line: none of them holds whom somebody is
// called, or a secret. "person" and "subject" are random ids.
var nameless = strings.Fields(`action address after bundle error from host id in inspection kind left left_out message op order part path pause person
	pieces pinned role rule server session shown subject target text webhook what why issuer`)

// TestLogLinesAreConstantMessagesWithFields: facts go to the ledger, where names
// are sealed and can be erased; a line of log is not, and leaves by other ways.
func TestLogLinesAreConstantMessagesWithFields(t *testing.T) {
	lines := 0
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") || strings.HasPrefix(s.path, "test/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !logs(call) {
				return true
			}
			lines++
			for i, arg := range call.Args {
				word, constant := arg.(*ast.BasicLit)
				constant = constant && word.Kind == token.STRING
				switch {
				case i == 0 && !constant:
					t.Errorf("%s: the message is put together", s.set.Position(call.Pos()))
				case i%2 == 1 && !constant:
					t.Errorf("%s: the name of a field is put together", s.set.Position(call.Pos()))
				case i%2 == 1:
					if name, _ := strconv.Unquote(word.Value); !slices.Contains(nameless, name) {
						t.Errorf("%s: the field %q may name somebody; what never does is listed here", s.set.Position(call.Pos()), name)
					}
				}
			}
			return true
		})
	}
	if lines < 50 {
		t.Errorf("only %d lines of log were found", lines)
	}
}

// logs says whether a call writes a line of log.
func logs(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, f.Sel.Name) || len(call.Args) == 0 {
		return false
	}
	switch x := f.X.(type) {
	case *ast.Ident:
		return strings.EqualFold(x.Name, "log") || x.Name == "slog"
	case *ast.SelectorExpr:
		return strings.EqualFold(x.Sel.Name, "log") || x.Sel.Name == "Slog"
	case *ast.CallExpr:
		id, ok := x.Fun.(*ast.Ident)
		return ok && id.Name == "logger"
	}
	return false
}

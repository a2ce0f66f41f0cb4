package handrail_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	fileWarn, fileFail = 600, 800
	funcWarn, funcFail = 70, 120
)

var bannedNames = map[string]bool{
	"util": true, "utils": true, "common": true, "helper": true, "helpers": true, "model": true, "models": true,
	"types": true, "base": true, "core": true, "misc": true, "manager": true,
}

// source is one parsed Go file that somebody wrote by hand.
type source struct {
	path string
	file *ast.File
	set  *token.FileSet
	size int // lines
}

func generated(name string) bool {
	return strings.HasSuffix(name, ".pb.go") || strings.HasSuffix(name, ".connect.go") || strings.HasSuffix(name, "_templ.go")
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata" || (strings.HasPrefix(d.Name(), ".") && p != ".")) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, ".go") || generated(p) {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(set, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{p, f, set, strings.Count(string(text), "\n")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestFilesAndFunctionsStayReadable(t *testing.T) {
	for _, s := range sources(t) {
		if s.size > fileFail {
			t.Errorf("%s has %d lines, at most %d: split it by idea", s.path, s.size, fileFail)
		} else if s.size > fileWarn {
			t.Logf("warning: %s has %d lines", s.path, s.size)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line + 1
			if lines > funcFail {
				t.Errorf("%s: %s has %d lines, at most %d", s.path, f.Name.Name, lines, funcFail)
			} else if lines > funcWarn && !strings.HasSuffix(s.path, "_test.go") {
				t.Logf("warning: %s: %s has %d lines", s.path, f.Name.Name, lines)
			}
		}
	}
}

func TestPackagesAreNamedAndDocumented(t *testing.T) {
	documented := map[string]bool{}
	dirs := map[string]string{}
	for _, s := range sources(t) {
		dir := filepath.Dir(s.path)
		if strings.HasSuffix(s.path, "_test.go") {
			if _, ok := dirs[dir]; !ok && dir != "." {
				dirs[dir] = s.file.Name.Name
			}
		} else {
			dirs[dir] = s.file.Name.Name
		}
		if s.file.Doc != nil {
			documented[dir] = true
		}
		if bannedNames[s.file.Name.Name] || bannedNames[filepath.Base(dir)] {
			t.Errorf("%s: package name %s says nothing", s.path, s.file.Name.Name)
		}
	}
	for dir := range dirs {
		if !documented[dir] && dir != "." && !strings.HasSuffix(dir, "connect") {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func TestTestsDoNotSleep(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if id, ok := sel.X.(*ast.Ident); ok && id.Name == "time" && sel.Sel.Name == "Sleep" {
				t.Errorf("%s: time.Sleep in a test", s.set.Position(n.Pos()))
			}
			return true
		})
	}
}

func TestNoGlobalRegistration(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init() hides wiring; do it in app", s.path)
			}
		}
	}
}

// TestNoPatternIsCompiledAtTheStart: the program starts again for each session,
// and somebody waits for it. sync.OnceValue compiles when it is first needed.
func TestNoPatternIsCompiledAtTheStart(t *testing.T) {
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		for _, d := range s.file.Decls {
			v, ok := d.(*ast.GenDecl)
			if !ok || v.Tok != token.VAR {
				continue
			}
			ast.Inspect(v, func(n ast.Node) bool {
				switch x := n.(type) {
				case *ast.FuncLit:
					return false
				case *ast.SelectorExpr:
					if id, ok := x.X.(*ast.Ident); ok && id.Name == "regexp" && x.Sel.Name == "MustCompile" {
						t.Errorf("%s: a pattern is compiled at every start", s.set.Position(x.Pos()))
					}
				}
				return true
			})
		}
	}
}

// TestTheMapNamesEveryPackage keeps ARCHITECTURE.md honest: it names every
// package, and every `pkg.Symbol` it names exists.
func TestTheMapNamesEveryPackage(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	packages := map[string]string{}
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") {
			for _, d := range s.file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok {
					declared[f.Name.Name] = true
				}
			}
			continue
		}
		packages[s.file.Name.Name] = filepath.Dir(s.path)
		for _, d := range s.file.Decls {
			declare(declared, s.file.Name.Name, d)
		}
	}
	for name, dir := range packages {
		if name != "main" && strings.HasPrefix(dir, "internal/") && !strings.Contains(string(text), "**"+name+"**") {
			t.Errorf("ARCHITECTURE.md does not name package %s (%s) as **%s**", name, dir, name)
		}
	}
	for _, m := range regexp.MustCompile("`([a-z]+)\\.([A-Z][A-Za-z]*)(?:\\.([A-Z][A-Za-z]*))?`").FindAllStringSubmatch(string(text), -1) {
		if _, ours := packages[m[1]]; ours && !declared[m[1]+"."+m[2]] {
			t.Errorf("ARCHITECTURE.md names %s.%s, which does not exist", m[1], m[2])
		}
	}
	for _, m := range regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1) {
		if !declared[m[1]] {
			t.Errorf("ARCHITECTURE.md names %s, which does not exist", m[1])
		}
	}
}

func declare(declared map[string]bool, pkg string, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		declared[pkg+"."+d.Name.Name] = true
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				declared[pkg+"."+spec.Name.Name] = true
			case *ast.ValueSpec:
				for _, n := range spec.Names {
					declared[pkg+"."+n.Name] = true
				}
			}
		}
	}
}

// TestTheRepositorySpeaksOfHandrailAlone refuses paths of a machine.
func TestTheRepositorySpeaksOfHandrailAlone(t *testing.T) {
	machine := regexp.MustCompile(`/home/[a-z]+/|/Users/[a-z]+/`)
	for _, s := range sources(t) {
		text, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		if m := machine.Find(text); m != nil && s.path != "tidy_test.go" {
			t.Errorf("%s names a machine's path: %s", s.path, m)
		}
	}
}

package api

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// shape is of the document what the tests look at.
type shape struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string
		Description string
		Security    []any
		Action      string `json:"x-handrail-action"`
		Audit       string `json:"x-handrail-audit"`
		Stream      bool   `json:"x-handrail-stream"`
	}
	Components struct {
		Schemas map[string]struct {
			Description string
			Class       string `json:"x-handrail-class"`
			Properties  map[string]struct{ Description string }
		}
	}
}

func read(t *testing.T) shape {
	t.Helper()
	var s shape
	if err := json.Unmarshal(OpenAPI(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryCallIsInTheDocument(t *testing.T) {
	s := read(t)
	count := 0
	for _, f := range files() {
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				count++
				op, ok := s.Paths["/"+string(service.FullName())+"/"+string(m.Name())]["post"]
				if !ok {
					t.Errorf("%s is not in the document", m.FullName())
					continue
				}
				if op.Audit == "" || op.Audit == "unspecified" {
					t.Errorf("%s does not say what it leaves in the ledger", m.FullName())
				}
				if (op.Action == "") != (op.Security != nil && len(op.Security) == 0) {
					t.Errorf("%s: action %q and security %v do not fit", m.FullName(), op.Action, op.Security)
				}
				if op.Stream != (m.IsStreamingServer() || m.IsStreamingClient()) {
					t.Errorf("%s: a stream is said to be %v", m.FullName(), op.Stream)
				}
			}
		}
	}
	if count < 80 || len(s.Paths) != count+1 { // and the WebSocket
		t.Errorf("%d calls, %d in the document", count, len(s.Paths))
	}
	for name, schema := range s.Components.Schemas {
		if !strings.HasPrefix(name, "connect.") && (schema.Class == "" || schema.Class == "unspecified") {
			t.Errorf("%s does not say how secret it is", name)
		}
	}
}

// The comments are found by reading text: each definition that the text has must
// be one that the descriptors have, and each comment must have found its place.
func TestCommentsAreAtWhatTheyAreAbout(t *testing.T) {
	names := map[string]bool{}
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		names[string(m.FullName())] = true
		for i := range m.Fields().Len() {
			names[string(m.Fields().Get(i).FullName())] = true
		}
		for i := range m.Messages().Len() {
			walk(m.Messages().Get(i))
		}
	}
	for _, f := range files() {
		names[f.Path()] = true
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			names[string(s.FullName())] = true
			for j := range s.Methods().Len() {
				names[string(s.Methods().Get(j).FullName())] = true
			}
		}
		for i := range f.Messages().Len() {
			walk(f.Messages().Get(i))
		}
		for i := range f.Enums().Len() {
			e := f.Enums().Get(i)
			names[string(e.FullName())] = true
			for j := range e.Values().Len() {
				names[string(e.FullName().Append(e.Values().Get(j).Name()))] = true
			}
		}
		for i := range f.Extensions().Len() {
			names[string(f.Extensions().Get(i).FullName())] = true
		}
	}
	found := notes()
	for name := range found {
		if !names[name] {
			t.Errorf("a comment is of %s, which is nothing", name)
		}
	}
	s := read(t)
	if text := s.Components.Schemas["Session"].Properties["level"].Description; text != "read, write" {
		t.Errorf("the level of a session is described as %q", text)
	}
	if text := s.Paths["/handrail.v1.Sessions/Open"]["post"].Description; !strings.HasPrefix(text, "Open starts a session") {
		t.Errorf("opening a session is described as %q", text)
	}
	if text := s.Components.Schemas["AttachFrame"].Properties["resize"].Description; text != "both ways" {
		t.Errorf("a field of a oneof is described as %q", text)
	}
}

func FuzzNotes(f *testing.F) {
	f.Add("// a\nservice S {\n  // b\n  rpc M(A) returns (B) { }\n}\nmessage A { oneof x {\nint32 y = 1; // z\n}\n}}}}")
	f.Fuzz(func(t *testing.T, text string) { readNotes("x", text, map[string]string{}) })
}

// An implementation of somebody else's says whether it is OpenAPI 3.1.
func TestTheDocumentIsOpenAPI(t *testing.T) {
	outside, err := filepath.Abs("../test/outside")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "node_modules", "@seriousme", "openapi-schema-validator")); err != nil {
		t.Skip("openapi-schema-validator is missing (npm ci in test/outside)")
	}
	file := filepath.Join(t.TempDir(), "openapi.json")
	if err := os.WriteFile(file, OpenAPI(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "openapi.mjs", file)
	cmd.Dir = outside
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

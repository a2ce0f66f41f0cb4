// Package api describes the API for those who speak it without our libraries:
// OpenAPI 3.1, made from the protobuf definitions that the server itself is made
// of, with their comments.
//
//	proto descriptors (what the server does) ─┐
//	                                          ├─▶ OpenAPI
//	.proto text (what the comments say) ──────┘
package api

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
)

// object is a JSON object.
type object = map[string]any

// OpenAPI is the document, the same bytes each time.
var OpenAPI = sync.OnceValue(func() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(document()); err != nil {
		panic("cannot write the OpenAPI document: " + err.Error()) // maps of strings always encode
	}
	return b.Bytes()
})

const about = `Share production safely: read-only by default, write by agreement, all of it recorded.

Every call is a POST of one JSON message to /handrail.v1.SERVICE/METHOD (the Connect protocol), with the login as bearer token, and is decided and recorded at one doorway. x-handrail-action is what policy decides; x-handrail-audit is what a call leaves in the ledger: entry (one of its own), session (those of the session that it belongs to), summary (counted per person and minute) or none. x-handrail-class says how secret a message is.

A call with x-handrail-stream answers with a stream of Connect envelopes (one byte of flags, four bytes of length, JSON), content type application/connect+json. Numbers of 64 bits are strings, as in JSON of protobuf; fields that are left out have their empty value.`

// document is made anew from what is registered.
func document() object {
	d := &builder{schemas: object{}, notes: notes()}
	paths, tags := object{}, []object{}
	for _, f := range files() {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			tags = append(tags, tagOf(s, d.notes))
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				paths["/"+string(s.FullName())+"/"+string(m.Name())] = object{"post": d.operation(s, m)}
			}
		}
	}
	paths["/v1/sessions/{id}/attach"] = object{"get": d.attach()}
	for name, schema := range errorSchemas() {
		d.schemas[name] = schema
	}
	d.message((&handrailv1.Fault{}).ProtoReflect().Descriptor())
	slices.SortFunc(tags, func(a, b object) int { return strings.Compare(a["name"].(string), b["name"].(string)) })
	return object{
		"openapi": "3.1.0",
		"info":    object{"title": "handrail", "version": "v1", "description": about},
		"servers": []object{{"url": "/", "description": "the server that this document came from"}},
		"tags":    tags,
		"paths":   paths,
		"components": object{
			"schemas": d.schemas,
			"securitySchemes": object{"login": object{
				"type": "http", "scheme": "bearer",
				"description": "A login token: of a person (`handrail login`), or of a robot (Robots/Login).",
			}},
			"responses": object{"Error": object{
				"description": "An error: what, why and the next command, in a Fault beside the code of the Connect protocol.",
				"content":     jsonOf("#/components/schemas/connect.Error"),
			}},
		},
		"security": []object{{"login": []string{}}},
	}
}

// files are the protobuf files of the API, in the order of their names.
func files() (all []protoreflect.FileDescriptor) {
	protoregistry.GlobalFiles.RangeFilesByPackage("handrail.v1", func(f protoreflect.FileDescriptor) bool {
		all = append(all, f)
		return true
	})
	slices.SortFunc(all, func(a, b protoreflect.FileDescriptor) int { return strings.Compare(a.Path(), b.Path()) })
	return all
}

func tagOf(s protoreflect.ServiceDescriptor, n map[string]string) object {
	tag := object{"name": string(s.Name())}
	text := n[string(s.FullName())]
	if text == "" && s.Index() == 0 {
		text = n[s.ParentFile().Path()]
	}
	if text != "" {
		tag["description"] = text
	}
	return tag
}

// builder collects the schemas that operations speak of.
type builder struct {
	schemas object
	notes   map[string]string // by full name
}

func jsonOf(ref string) object {
	return object{"application/json": object{"schema": object{"$ref": ref}}}
}

func (d *builder) operation(s protoreflect.ServiceDescriptor, m protoreflect.MethodDescriptor) object {
	action := proto.GetExtension(m.Options(), handrailv1.E_Action).(string)
	audit := proto.GetExtension(m.Options(), handrailv1.E_Audit).(handrailv1.Audit)
	content := jsonOf(d.message(m.Output()))
	op := object{
		"operationId": string(s.Name()) + "." + string(m.Name()), "tags": []string{string(s.Name())},
		"requestBody":      object{"required": true, "content": jsonOf(d.message(m.Input()))},
		"x-handrail-audit": word(string(audit.Descriptor().Values().ByNumber(audit.Number()).Name())),
	}
	if m.IsStreamingServer() || m.IsStreamingClient() {
		op["x-handrail-stream"] = true
		op["requestBody"] = object{"required": true, "content": object{"application/connect+json": jsonOf(d.message(m.Input()))["application/json"]}}
		content = object{"application/connect+json": content["application/json"]}
	}
	op["responses"] = object{
		"200":     object{"description": "Done.", "content": content},
		"default": object{"$ref": "#/components/responses/Error"},
	}
	if text := d.notes[string(m.FullName())]; text != "" {
		op["description"] = text
	}
	if action == "" {
		op["security"] = []object{}
	} else {
		op["x-handrail-action"] = action
	}
	return op
}

// attach is the one call that is not a POST: a WebSocket.
func (d *builder) attach() object {
	frame := d.message((&handrailv1.AttachFrame{}).ProtoReflect().Descriptor())
	text := func(in, name, about string) object {
		return object{"name": name, "in": in, "required": true, "description": about, "schema": object{"type": "string"}}
	}
	return object{
		"operationId": "Sessions.attach", "tags": []string{"Sessions"}, "security": []object{},
		"description":      "The bytes of a session, as a WebSocket of AttachFrame messages (binary protobuf). The ticket of Sessions/Open or Sessions/Attach says who attaches, once.",
		"parameters":       []object{text("path", "id", "of the session"), text("query", "ticket", "from Sessions/Open or Sessions/Attach")},
		"responses":        object{"101": object{"description": "The WebSocket is open."}, "403": object{"description": "The ticket is not good, or another site asks."}},
		"x-handrail-audit": "session", "x-handrail-stream": true, "x-handrail-frame": object{"$ref": frame},
	}
}

// word is the last part of an enum's value: AUDIT_ENTRY is entry.
func word(name string) string {
	_, rest, _ := strings.Cut(name, "_")
	return strings.ToLower(rest)
}

// known are the messages that JSON writes in a form of their own.
var known = map[protoreflect.FullName]object{
	"google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
	"google.protobuf.Duration":  {"type": "string", "pattern": `^-?[0-9]+(\.[0-9]{1,9})?s$`},
	"google.protobuf.Empty":     {"type": "object"},
}

// message describes a message and returns the reference to it.
func (d *builder) message(m protoreflect.MessageDescriptor) string {
	name := strings.TrimPrefix(string(m.FullName()), "handrail.v1.")
	ref := "#/components/schemas/" + name
	if _, there := d.schemas[name]; there {
		return ref
	}
	properties := object{}
	class := proto.GetExtension(m.Options(), handrailv1.E_Class).(handrailv1.Class)
	schema := object{"type": "object", "properties": properties, "x-handrail-class": word(string(class.Descriptor().Values().ByNumber(class.Number()).Name()))}
	d.schemas[name] = schema // before its fields: a message may hold itself
	if text := d.notes[string(m.FullName())]; text != "" {
		schema["description"] = text
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		properties[f.JSONName()] = d.described(f)
	}
	var only []string
	for i := range m.Oneofs().Len() {
		if o := m.Oneofs().Get(i); !o.IsSynthetic() {
			for j := range o.Fields().Len() {
				only = append(only, o.Fields().Get(j).JSONName())
			}
		}
	}
	if only != nil {
		schema["x-handrail-one-of"] = only // at most one of these is there
	}
	return ref
}

func (d *builder) described(f protoreflect.FieldDescriptor) object {
	schema := d.field(f)
	if text := d.notes[string(f.FullName())]; text != "" {
		schema["description"] = text
	}
	return schema
}

func (d *builder) field(f protoreflect.FieldDescriptor) object {
	switch {
	case f.IsMap():
		return object{"type": "object", "additionalProperties": d.value(f.MapValue())}
	case f.IsList():
		return object{"type": "array", "items": d.value(f)}
	}
	return d.value(f)
}

// value is one value of a field, as JSON of protobuf writes it.
func (d *builder) value(f protoreflect.FieldDescriptor) object {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return object{"type": "boolean"}
	case protoreflect.StringKind:
		return object{"type": "string"}
	case protoreflect.BytesKind:
		return object{"type": "string", "contentEncoding": "base64"}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return object{"type": "integer", "format": "int32"}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return object{"type": "integer", "minimum": 0, "maximum": 1<<32 - 1}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return object{"type": "string", "pattern": `^-?[0-9]+$`}
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return object{"type": "string", "pattern": `^[0-9]+$`}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return object{"type": "number"}
	case protoreflect.EnumKind:
		var words []string
		for i := range f.Enum().Values().Len() {
			words = append(words, string(f.Enum().Values().Get(i).Name()))
		}
		return object{"type": "string", "enum": words}
	}
	if form, ok := known[f.Message().FullName()]; ok {
		copied := object{}
		for k, v := range form {
			copied[k] = v
		}
		return copied
	}
	return object{"$ref": d.message(f.Message())}
}

// errorSchemas are what the Connect protocol adds around a Fault.
func errorSchemas() object {
	return object{
		"connect.Error": object{
			"type": "object", "required": []string{"code"},
			"properties": object{
				"code": object{"type": "string", "enum": []string{
					"canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied", "resource_exhausted",
					"failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable", "data_loss", "unauthenticated",
				}},
				"message": object{"type": "string"},
				"details": object{"type": "array", "items": object{"$ref": "#/components/schemas/connect.Detail"}},
			},
		},
		"connect.Detail": object{
			"type": "object", "required": []string{"type", "value"},
			"properties": object{
				"type":  object{"type": "string", "description": "handrail.v1.Fault"},
				"value": object{"type": "string", "contentEncoding": "base64", "description": "the protobuf message, base64 without padding"},
				"debug": object{"$ref": "#/components/schemas/Fault", "description": "the same as JSON"},
			},
		},
	}
}

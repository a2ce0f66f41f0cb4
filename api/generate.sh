#!/usr/bin/env bash
# Regenerates the Go of the API beside its .proto files, and the pages. The
# generators are pinned; protoc comes from Debian's protobuf-compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v protoc >/dev/null || { echo "protoc is missing: apt-get install protobuf-compiler" >&2; exit 1; }
tools=$(mktemp -d); trap 'rm -rf "$tools"' EXIT
GOBIN=$tools go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$tools go install connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
PATH=$tools:$PATH protoc -I api --go_out=api --go_opt=paths=source_relative \
	--connect-go_out=api --connect-go_opt=paths=source_relative,simple api/handrail/v1/*.proto
go run github.com/a-h/templ/cmd/templ@v0.3.977 generate -path internal/surface/web

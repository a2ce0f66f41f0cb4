//go:build cgo

package warden

const cgo = true

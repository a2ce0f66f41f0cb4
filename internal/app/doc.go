// Package app is the one place that wires: NewServer makes everything a server
// is made of, in order; Up starts server, warden and link as processes of their
// own and watches them. It decides nothing that a feature should.
package app

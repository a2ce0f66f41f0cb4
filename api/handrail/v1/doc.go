// Package handrailv1 is the API between people and the server: messages and
// services, generated from the .proto files beside it.
package handrailv1

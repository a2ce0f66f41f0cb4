// Package outside holds what other people's implementations say of ours: the
// OpenAPI document, and the signatures of webhooks. It is npm's; the tests are
// beside what they test.
package outside

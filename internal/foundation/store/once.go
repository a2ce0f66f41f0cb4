package store

import "crypto/rand"

// Once is an id for Record that nothing else will ever have: 128 random bits,
// where an id for people has 40 and would meet its like after a million acts.
func Once() string { return "once-" + rand.Text() }

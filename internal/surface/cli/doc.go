// Package cli is the command line: what a person types on their own machine.
// It reaches the server only through the API, so it has no door that the page
// lacks, and it takes nobody's word for the server: the trust bundle is
// checked against the root key that the login token named, and the server's
// certificate against the bundle. There is no trust on first use.
//
// House rules, in force in every file here:
//   - stdout is data, stderr is words; data is written with out(), never with
//     cobra's Print, which writes to stderr.
//   - What came from somebody else (a reason, a host name, a fact) passes
//     clean() before it reaches a terminal: it must not be able to move the
//     cursor over what an approver reads. Session output is the exception; it
//     is a terminal's by nature.
//   - No prompt without a terminal: an error names the flag to use instead.
//   - Every command opens its help with two examples.
//   - A secret is never an argument: other people can list processes.
package cli

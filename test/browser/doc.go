// Package browser drives the pages in a real Chromium: every page is checked
// with axe in light and dark, narrow and wide, and the main flows are walked.
package browser

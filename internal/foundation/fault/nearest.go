package fault

import "strings"

// Nearest is the known word that a misspelt one most likely means, "" if none
// is near: at most two letters off, or begun alike. For hints.
func Nearest(word string, known []string) string {
	word = strings.ToLower(word)
	best, least := "", 3
	for _, k := range known {
		d := edits(word, k)
		if len(word) > 1 && strings.HasPrefix(k, word) {
			d = min(d, 2)
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}

// edits counts the letters to insert, drop or replace between two words
// (Levenshtein). Words above 40 letters are near to nothing.
func edits(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return 40
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		corner := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := corner
			if a[i-1] != b[j-1] {
				cost++
			}
			corner = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

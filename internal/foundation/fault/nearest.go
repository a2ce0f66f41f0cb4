package fault

import (
	"slices"
	"strings"
)

// Nearest is the known word that a misspelt one most likely means, "" if none
// is near.
func Nearest(word string, known []string) string {
	if all := Near(word, known); len(all) > 0 {
		return all[0]
	}
	return ""
}

// maxNear is how many words a hint can hold.
const maxNear = 3

// Near is the known words that a misspelt one may mean, the most likely first:
// at most two letters off, or begun alike. For hints.
func Near(word string, known []string) []string {
	word = strings.ToLower(word)
	type one struct {
		word string
		off  int
	}
	var near []one
	for _, k := range known {
		d := edits(word, k)
		if len(word) > 1 && strings.HasPrefix(k, word) {
			d = min(d, 2)
		}
		if d < 3 {
			near = append(near, one{k, d})
		}
	}
	slices.SortStableFunc(near, func(a, b one) int { return a.off - b.off })
	var out []string
	for _, n := range near[:min(len(near), maxNear)] {
		out = append(out, n.word)
	}
	return out
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

#!/usr/bin/env bash
# Runs every fuzz target of the repository for the given time each, goes on when
# one fails, and says at the end which ones did. What a failing target found lies
# in testdata/fuzz beside it, and is a regression test from then on.
#   fuzz.sh [TIME] [REGEXP]   only the targets whose "PACKAGE NAME" matches
set -uo pipefail
cd "$(dirname "$0")/.."
time=${1:-10m} only=${2:-.}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
ran=0 execs=0 failed=()
while read -r package target; do
	ran=$((ran + 1))
	printf '%-42s %-40s ' "$package" "$target"
	if go test -run "^$" -fuzzminimizetime 1s -fuzz "^$target\$" -fuzztime "$time" ${FUZZFLAGS:-} "$package" >"$log/out" 2>&1; then
		n=$(grep -oE 'execs: [0-9]+' "$log/out" | tail -1 | cut -d' ' -f2)
		execs=$((execs + ${n:-0}))
		echo "ok, ${n:-0} inputs, $(grep -oE 'total: [0-9]+' "$log/out" | tail -1 | cut -d' ' -f2) kept"
	else
		failed+=("$package $target")
		echo FAILED
		cat "$log/out"
	fi
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]*' |
	sed -E 's|^(.*)/[^/]*:func (.*)$|./\1 \2|' | sort | grep -E -- "$only")
echo "$ran targets, $time each, $execs inputs, ${#failed[@]} failed"
[ "$ran" -gt 0 ] || exit 1
[ "${#failed[@]}" -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }

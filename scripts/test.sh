#!/usr/bin/env bash
# Run the tests: scripts/test.sh PYTHON [--all | pytest arguments...]
# Without arguments, or with --all for the slow ones too, they run in two processes side by side,
# for what computes takes about as long as everything else. The browser that some need is installed
# where there is none. With other arguments pytest runs as it is.
set -uo pipefail
python=$1
shift
[ "$*" = "" ] || [ "$*" = --all ] || exec "$python" -m pytest "$@"
"$(dirname "$0")/browser.sh" "$python" >/dev/null || exit

numbers=(tests/{kernels,methods,engine,scoring,stats,embedded,answer,structure,tracking,page})
log=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null; rm -f "$log"' EXIT
"$python" -m pytest "$@" "${numbers[@]}" -p no:cacheprovider >"$log" 2>&1 &
"$python" -m pytest "$@" "${numbers[@]/#/--ignore=}"
others=$?
echo "tests of ${numbers[*]}:"
wait $!
status=$?
cat "$log"
exit $((others != 0 || status != 0))

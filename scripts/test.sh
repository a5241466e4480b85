#!/usr/bin/env bash
# Run the tests: scripts/test.sh PYTHON [pytest arguments...]
# Without arguments all of them, in two processes side by side, for what computes
# takes about as long as everything else, after looking for the browser that some need and, where
# there is none, installing it; with arguments pytest as it is.
set -uo pipefail
python=$1
shift
[ $# -eq 0 ] || exec "$python" -m pytest "$@"
"$(dirname "$0")/browser.sh" "$python" >/dev/null || exit

numbers=(tests/kernels tests/methods tests/engine tests/scoring tests/stats)
log=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null; rm -f "$log"' EXIT
"$python" -m pytest "${numbers[@]}" -p no:cacheprovider >"$log" 2>&1 &
"$python" -m pytest "${numbers[@]/#/--ignore=}"
others=$?
echo "tests of ${numbers[*]}:"
wait $!
status=$?
cat "$log"
exit $((others != 0 || status != 0))

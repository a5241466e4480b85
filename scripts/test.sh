#!/usr/bin/env bash
# Run the tests: scripts/test.sh PYTHON [pytest arguments...]
# Without arguments all of them, in two processes side by side, for the kernels and the policies
# take about as long as everything else; with arguments pytest as it is.
set -uo pipefail
python=$1
shift
[ $# -eq 0 ] || exec "$python" -m pytest "$@"

numbers=(tests/kernels tests/methods)
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

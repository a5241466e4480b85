#!/usr/bin/env bash
# Run the tests: scripts/test.sh PYTHON [--all | pytest arguments...]
# Without arguments, or with --all for the slow ones too, there is a process a core, 8 at most, and
# the browser that some tests need is installed where there is none. With other arguments pytest
# runs as it is.
set -euo pipefail
python=$1
shift
[ "$*" = "" ] || [ "$*" = --all ] || exec "$python" -m pytest "$@"
"$(dirname "$0")/browser.sh" "$python" >/dev/null
exec "$python" -m pytest "$@" -n logical --maxprocesses 8 --dist worksteal

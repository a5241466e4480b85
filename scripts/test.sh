#!/usr/bin/env bash
# Run the tests: scripts/test.sh PYTHON [--all | pytest arguments...]
# Without arguments, or with --all for the slow ones too, there is a process a core and one more,
# for tests wait for processes that they start; 8 at most. The browser that some tests need is
# installed where there is none. With other arguments pytest runs as it is.
set -euo pipefail
python=$1
shift
[ "$*" = "" ] || [ "$*" = --all ] || exec "$python" -m pytest "$@"
"$(dirname "$0")/browser.sh" "$python" >/dev/null
processes=$("$python" -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')
exec "$python" -m pytest "$@" -n "$processes" --dist worksteal

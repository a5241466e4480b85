#!/usr/bin/env bash
# Print the path of a Chromium, which the tests of the report page need: scripts/browser.sh PYTHON
# Takes the first that runs of $EVICTBENCH_CHROMIUM, those on PATH and playwright's own. Where there
# is none, playwright installs one, or else apt-get for root; FIND=1 only looks.
set -uo pipefail
python=$1

runs() { "$1" --version >/dev/null 2>&1 && command -v "$1"; }

own() { # where playwright puts its Chromium, there or not
  "$python" -c 'from playwright.sync_api import sync_playwright as start
with start() as playwright: print(playwright.chromium.executable_path)'
}

found() {
  [ -z "${EVICTBENCH_CHROMIUM:-}" ] || { runs "$EVICTBENCH_CHROMIUM"; return; }
  for name in chromium chromium-browser google-chrome google-chrome-stable \
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
    runs "$name" && return
  done
  runs "$(own)"
}

found && exit
if [ -z "${FIND:-}${EVICTBENCH_CHROMIUM:-}" ]; then
  echo "no Chromium found: installing one for the tests of the report page" >&2
  root=$([ "$(id -u)" = 0 ] && command -v apt-get)
  "$python" -m playwright install ${root:+--with-deps} chromium >/dev/null 2>&1 && found && exit
  [ -n "$root" ] && { apt-get update && apt-get install -y chromium; } >/dev/null 2>&1 && found && exit
fi
echo "error: no Chromium that runs was found for the tests of the report page: install chromium or" \
  "Google Chrome, or set EVICTBENCH_CHROMIUM to the path of one" >&2
exit 2

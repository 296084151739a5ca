#!/usr/bin/env bash
# Three steps: the virtual environment, the packages, the start. `./start.sh test` runs the checks instead.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

fail() { echo "qwenproxy: $1" >&2; exit 1; }

lock=requirements.lock
[ "${1-}" != test ] || lock=requirements-test.lock

# The copy of the lock is made last, so that an interrupted installation starts afresh.
if ! cmp -s "$lock" ".venv/$lock" || [ ! -x .venv/bin/python ]; then
  for python in python3 python3.14 python3.13 python3.12 python3.11 none; do
    ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break
  done
  [ "$python" != none ] || fail "Python 3.11 or newer is missing (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python)"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "Python's venv is missing (Debian, Ubuntu: apt install python3-venv)"
  echo "Installing the packages into .venv, once; this takes a minute" >&2
  "$python" -m venv --clear .venv
  pip=(.venv/bin/python -m pip --disable-pip-version-check install)
  "${pip[@]}" --require-hashes -r "$lock" | sed -n 's/^Collecting \([^ ]*\).*/  \1/p' >&2 || fail "the packages could not be installed"
  "${pip[@]}" --quiet --no-deps --no-build-isolation --editable .
  cp requirements.lock .venv/
  cp "$lock" ".venv/$lock"
fi

[ "${1-}" != test ] || exec tests/check.sh "${@:2}"
exec .venv/bin/python -m qwenproxy "$@"

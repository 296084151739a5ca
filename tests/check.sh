#!/usr/bin/env bash
# The one command that checks all; what it checks, nobody discusses. Arguments go to pytest.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python

# What the tests of windows, of failing disks and of the examples want; where we may, it is got.
wanted=()
command -v Xvfb >/dev/null || wanted+=(xvfb)
command -v strace >/dev/null || wanted+=(strace)
command -v curl >/dev/null || wanted+=(curl)
command -v node >/dev/null || wanted+=(nodejs)
command -v npm >/dev/null || wanted+=(npm)
if [ "${#wanted[@]}" -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get -q update
  DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install "${wanted[@]}"
fi

"$python" -m qwenproxy.browser
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
# One after the other: two Chromiums at once starve each other on two cores. `-n 2 --dist loadgroup` is faster.
"$python" -m pytest --cov --cov-report=term:skip-covered "$@"

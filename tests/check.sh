#!/usr/bin/env bash
# The one command that checks all; what it checks, nobody discusses. Arguments go to pytest.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python

"$python" -m qwenproxy.browser
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest --cov --cov-report=term:skip-covered "$@"

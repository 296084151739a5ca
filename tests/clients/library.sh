#!/usr/bin/env bash
# Tries the library of that name against the demo; what is done and checked, libraries.py tells.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
exec .venv/bin/python -m tests.clients.libraries "$1"

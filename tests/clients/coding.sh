#!/usr/bin/env bash
# Tries the coding program of that name against the demo; what is done and checked, coding.py tells.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
exec .venv/bin/python -m tests.clients.coding "$1"

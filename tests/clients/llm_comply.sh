#!/usr/bin/env bash
# The public conformance suite llm-comply against the demo: Responses, chat completions, Anthropic's Messages.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
exec .venv/bin/python -m tests.clients.conformance

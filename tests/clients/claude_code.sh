#!/usr/bin/env bash
# Claude Code, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/coding.sh" claude_code

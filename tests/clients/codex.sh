#!/usr/bin/env bash
# Codex CLI, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/coding.sh" codex

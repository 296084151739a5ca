#!/usr/bin/env bash
# opencode, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/coding.sh" opencode

#!/usr/bin/env bash
# aider, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/coding.sh" aider

#!/usr/bin/env bash
# llm, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/library.sh" llm

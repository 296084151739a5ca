#!/usr/bin/env bash
# Qwen Code, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/coding.sh" qwen_code

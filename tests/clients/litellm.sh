#!/usr/bin/env bash
# LiteLLM, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/library.sh" litellm

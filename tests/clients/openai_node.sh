#!/usr/bin/env bash
# The openai package for Node, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/library.sh" openai_node

#!/usr/bin/env bash
# LangChain, unmodified, against the demo.
exec "$(dirname -- "${BASH_SOURCE[0]}")/library.sh" langchain

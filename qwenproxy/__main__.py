from __future__ import annotations

import sys

try:
    from qwenproxy.cli import main
except KeyboardInterrupt:  # Ctrl-C while the packages still load
    sys.exit(0)

if __name__ == "__main__":
    sys.exit(main())

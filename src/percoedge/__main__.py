"""``python -m percoedge``: the command line."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from percoedge.runtime.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())

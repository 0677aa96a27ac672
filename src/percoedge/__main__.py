"""``python -m percoedge``: the command line."""

from __future__ import annotations

import sys

from percoedge.runtime.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

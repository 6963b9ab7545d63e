"""`python -m zolab`: the same as the command `zolab`."""

from __future__ import annotations

import sys

from zolab.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m audioldm2` and the console script `audioldm2`."""

import sys

from audioldm2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

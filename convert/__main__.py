"""`python -m convert` in a clone: the command `audioldm2 convert`."""

import sys

from audioldm2.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

"""`python -m pretrain CONFIG [--field value …]`: the same as `jaxseg pretrain CONFIG`."""

import sys

from jaxseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))

"""`python -m finetune CONFIG [--field value …]`: the same as `jaxseg finetune CONFIG`."""

import sys

from jaxseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))

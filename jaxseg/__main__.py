"""`python -m jaxseg VERB` is `jaxseg VERB`, where scripts are not on the path."""

import sys

from jaxseg.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m medimg``: the command line."""

import sys

from medimg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

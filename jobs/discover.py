"""`raygenesis discover` for `ray job submit`: takes the same options."""

import sys

from raygenesis.cli import main

if __name__ == "__main__":
    main(["discover", *sys.argv[1:]])

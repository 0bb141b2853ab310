"""`raygenesis run`, the whole pipeline, for `ray job submit`: takes the same options."""

import sys

from raygenesis.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])

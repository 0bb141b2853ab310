"""`raygenesis patterns` for `ray job submit`: takes the same subcommands and options."""

import sys

from raygenesis.cli import main

if __name__ == "__main__":
    main(["patterns", *sys.argv[1:]])

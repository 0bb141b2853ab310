"""The main job, `raygenesis run`, for `ray job submit`; `python -m raygenesis VERB` is any other verb's."""

import sys

from raygenesis.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])

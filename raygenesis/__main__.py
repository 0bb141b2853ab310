"""`python -m raygenesis`."""

from raygenesis.cli import main

if __name__ == "__main__":
    main()

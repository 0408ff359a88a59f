"""Score a detector on a series; the same as ``duet evaluate``."""

from duet.cli import main

if __name__ == "__main__":
    main("evaluate")

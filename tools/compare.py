"""Compare methods on a grid of runs: the same as ``duet compare``."""

from duet.cli import main

if __name__ == "__main__":
    main("compare")

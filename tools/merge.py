"""Merge models on disk: the same as ``duet merge``."""

from duet.cli import main

if __name__ == "__main__":
    main("merge")

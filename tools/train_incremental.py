"""Train a series task after task: the same as ``duet train``."""

from duet.cli import main

if __name__ == "__main__":
    main("train")

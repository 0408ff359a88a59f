"""Train a series task after task: the same as ``duet train``."""

import sys

from duet.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()

"""Fuse fine-tuned models of one pretrained model: the same as ``duet fuse``."""

from duet.cli import main

if __name__ == "__main__":
    main("fuse")

"""Check, convert, divide and show data, make domains and series: the same as ``duet data``."""

from duet.cli import main

if __name__ == "__main__":
    main("data")

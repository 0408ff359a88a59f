"""Grids of runs: methods × seeds × detectors × series, run in parallel and put side by side."""

"""Detectors behind one contract (``base``); the only modules that import a vendor."""

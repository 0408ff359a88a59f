"""Detectors behind one contract (``base``); the only modules that import a vendor."""

import os

# Ultralytics would otherwise pip-install packages at run time.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

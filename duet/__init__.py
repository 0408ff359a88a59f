"""DuET: dual incremental object detection, new classes in new domains without the old pictures."""

__version__ = "0.1.0"

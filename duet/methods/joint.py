"""Joint training: one model on all domains with all labels, the upper bound that incremental methods are held against.

It breaks the incremental protocol (every picture and every label at once) and is a reference, not a method to deploy.
"""

from duet.config import MethodSettings

METHOD = MethodSettings(name="joint", joint=True)

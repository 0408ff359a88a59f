"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): parameters that mattered for earlier tasks are held.

The Fisher information of each task is estimated on its images right after its training and added up; class rows are
not held. The weight was not tuned.
"""

from duet.config import EwcSettings, MethodSettings

METHOD = MethodSettings(
    name="ewc",
    old_rows="trained",
    negatives="all",
    batch_norm="current",
    ewc=EwcSettings(weight=1.0),
)

"""One model of its own per task, from the pretrained weights: nothing is shared and nothing can be forgotten.

What all models see is put together. It costs a model per task in storage and time, and no model has seen its classes in
another domain.
"""

from duet.config import MethodSettings

METHOD = MethodSettings(
    name="individual",
    start="pretrained",
    committee=True,
)

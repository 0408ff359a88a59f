"""Sequential fine-tuning ("Seq FT" in DuET, Tables 1 and 4): train on, keep nothing.

The head grows by the new classes, everything trains on the new labels, and old classes are background in the new
images. Nothing is merged, distilled or restored.
"""

from duet.config import MethodSettings

METHOD = MethodSettings(name="sequential", old_rows="trained", negatives="all", batch_norm="current")

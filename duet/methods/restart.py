"""Independent fine-tuning (DuET, Table 4, first row): each task anew from the pretrained weights; the last one counts.

Earlier classes have no output in it, so they score 0. (The paper's model keeps outputs for all classes and reports an
RI of 0.5 %.)
"""

from duet.config import MethodSettings

METHOD = MethodSettings(name="restart", start="pretrained")

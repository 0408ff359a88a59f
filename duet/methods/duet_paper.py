"""DuET with the paper's settings (section 5.1, supplement B): gamma 0.1, alpha_base 0.5, both loss weights 0.01.

Directional consistency per scalar parameter, the filtered distillation of supplement B, weight decay 0.0005 in the
first and 0.001 in later stages, cosine schedule, all layers trainable. Where the paper is silent: the head is one
Detect head with concatenated class rows, whose other tensors are the previous model's (what public reproductions
settled on), and BatchNorm statistics are merged with their layer's coefficients. Epochs, batch size and learning rate
are the series', not the paper's 100 epochs of 64 images.
"""

from duet.config import DirectionalSettings, DistillationSettings, MergeSettings, MethodSettings

METHOD = MethodSettings(
    name="duet-paper",
    towers="old",
    merge=MergeSettings(name="duet", options={"gamma": 0.1, "alpha_base": 0.5}),
    batch_norm="merge",
    weight_decay=1e-3,
    distillation=DistillationSettings(kind="paper", weight=0.01),
    directional_consistency=DirectionalSettings(weight=0.01, granularity="scalar"),
)

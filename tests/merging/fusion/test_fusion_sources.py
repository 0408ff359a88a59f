"""Every kind of source end to end, on models of a few kilobytes made here; and what is refused."""

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.fusion.config import parse_fusion
from merging.fusion.evaluation import accuracies
from merging.fusion.run import fuse
from merging.fusion.sources import build_problem

transformers = pytest.importorskip("transformers")
import tiny_images  # noqa: E402
import tiny_models  # noqa: E402

QUICK = {
    "task_arithmetic": {"scaling_factors": [0.3]},
    "ties": {"scaling_factors": [1.0]},
    "adamerging_task_wise": {"steps": 1, "batch": 2},
    "adamerging_layer_wise": {"steps": 2, "batch": 2, "evaluate_every": 1},
    "concrete_task_arithmetic": {"steps": 1, "batch": 2},
    "concrete_adamerging_task_wise": {"steps": 1, "coefficient_steps": 1, "batch": 2},
    "concrete_adamerging_layer_wise": {"steps": 1, "coefficient_steps": 1, "batch": 2},
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


REVIEWS = [(0, "bad film"), (1, "good film"), (1, "good good"), (0, "film is bad")]
QUESTIONS = [("thing", "what is a film"), ("person", "who is good"), ("other", "is film of photo")]


def settings(kind, root, tasks, **more):
    values = {"name": "test", "kind": kind, "pretrained": "pretrained", "root": str(root), "tasks": tasks}
    return parse_fusion({**values, "methods": QUICK, "length": 16, **more}, "test")


def text_tasks(root, **second):
    tiny_models.text_table(root / "reviews.tsv", REVIEWS)
    tiny_models.text_table(root / "questions.tsv", QUESTIONS)
    made = []
    for name, classes, file in (("one", ["0", "1"], "reviews"), ("two", ["thing", "person", "other"], "questions")):
        data = {"path": f"{file}.tsv", "format": "tsv", "columns": ["label", "text"]}
        made.append({"name": name, "model": name, "classes": classes, "unlabelled": data, "test": data})
    made[1].update(second)
    return made


def image_tasks(root, classes=("red", "green")):
    tiny_images.image_folders(root / "images", classes)
    data = {"path": "images"}
    return [
        {"name": name, "model": name, "classes": "folders", "unlabelled": data, "test": data} for name in ("one", "two")
    ]


def fused(tmp_path, given, kept=None):
    def keep(name, problem, state, provenance, average):
        if kept is not None:
            folder = tmp_path / "merged" / name
            folder.mkdir(parents=True)
            problem.save(state, folder)
            kept[name] = (folder, state, provenance)

    results = fuse(given, tmp_path / "cache", keep=keep)
    assert len(results["methods"]) == 11
    for line in results["methods"]:
        assert set(line["accuracy"]) == {"one", "two"} and all(-1 <= v <= 1 for v in line["accuracy"].values())
    return results


def test_text_classifiers_with_heads_of_their_own(tmp_path):
    tiny_models.bert_folders(tmp_path)
    kept = {}
    results = fused(tmp_path, settings("text", tmp_path, text_tasks(tmp_path)), kept)
    lines = {line["method"]: line for line in results["methods"]}
    assert lines["individual"]["average_normalised"] in (1.0, None)
    assert [point["step"] for point in lines["adamerging_layer_wise"]["curve"]] == [1, 2]
    assert len(lines["concrete_adamerging_layer_wise"]["losses"]) == 2
    assert lines["concrete_task_arithmetic"]["density"]
    folder, state, provenance = kept["task_arithmetic"]
    again = transformers.AutoModel.from_pretrained(folder)
    assert torch.allclose(
        again.state_dict()["embeddings.word_embeddings.weight"], state["embeddings.word_embeddings.weight"]
    )
    assert provenance["options"]["scaling_factor"] == 0.3
    assert provenance["base"]["name"] == "pretrained"
    assert [(model["task"], model["name"]) for model in provenance["models"]] == [("one", "one"), ("two", "two")]
    (file,) = provenance["models"][1]["files"]
    weights = tmp_path / "two" / "model.safetensors"
    assert file == {"path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert "transformers" in provenance["versions"] and "ICLR 2023" in provenance["paper"]
    assert "tensors outside 'bert.'" in provenance["heads"]
    assert "Concrete" in kept["concrete_task_arithmetic"][2]["paper"]
    assert transformers.AutoTokenizer.from_pretrained(folder)("good film")["input_ids"]


def test_the_individual_line_is_that_of_the_checkpoint_itself(tmp_path):
    tiny_models.bert_folders(tmp_path)
    results = fused(tmp_path, settings("text", tmp_path, text_tasks(tmp_path)))
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "one").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "pretrained")
    with torch.no_grad():
        batch = words([text for _, text in REVIEWS], padding=True, return_tensors="pt")
        right = (whole(**batch).logits.argmax(-1) == torch.tensor([label for label, _ in REVIEWS])).float().mean()
    assert results["methods"][0]["accuracy"]["one"] == right.item()


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_image_classifiers_and_clip(tmp_path, kind):
    (tiny_models.vit_folders if kind == "image" else tiny_models.clip_folders)(tmp_path)
    kept = {}
    fused(tmp_path, settings(kind, tmp_path, image_tasks(tmp_path)), kept)
    folder, _, _ = kept["concrete_adamerging_layer_wise"]
    assert (folder / "model.safetensors").is_file() and (folder / "config.json").is_file()
    if kind == "clip":  # the example of docs/fusion.md
        clip = transformers.CLIPModel.from_pretrained(tmp_path / "pretrained")
        clip.vision_model.load_state_dict(transformers.CLIPVisionModel.from_pretrained(folder).state_dict())


def test_clip_heads_agree_with_clip_itself(tmp_path):
    from PIL import Image

    tiny_models.clip_folders(tmp_path)
    tasks = image_tasks(tmp_path, ("good", "bad"))
    for task in tasks:
        task.update(model="pretrained", head={"templates": ["a photo of {}"]})
    tasks[0]["model"] = "one"
    results = fused(tmp_path, settings("clip", tmp_path, tasks))
    whole = transformers.CLIPModel.from_pretrained(tmp_path / "pretrained").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "pretrained")
    right = []
    for label, name in enumerate(("bad", "good")):
        for path in sorted((tmp_path / "images" / name).iterdir()):
            batch = processor(
                text=["a photo of bad", "a photo of good"], images=Image.open(path), return_tensors="pt", padding=True
            )
            with torch.no_grad():
                right.append(int(whole(**batch).logits_per_image.argmax()) == label)
    assert results["methods"][0]["accuracy"]["two"] == sum(right) / len(right)


@pytest.mark.parametrize("lora", [False, True])
def test_text_to_text_models(tmp_path, lora):
    if lora:
        pytest.importorskip("peft")
    tiny_models.t5_folders(tmp_path, lora=lora)
    tasks = text_tasks(tmp_path, classes=["thing", "person", "other"], class_names=["what", "who", "is"])
    tasks[0].update(class_names=["bad", "good"], prompt="is {text}")
    kept = {}
    fused(tmp_path, settings("text2text", tmp_path, tasks), kept)
    folder, state, _ = kept["averaging"]
    again = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    assert torch.allclose(again.shared.weight, state["shared.weight"])


def test_numbers_are_measured_by_rank_correlation(tmp_path):
    tiny_models.t5_folders(tmp_path)
    tasks = text_tasks(tmp_path, class_names=["what", "who", "is"])
    tasks[0].update(classes=["0", "1"], class_names=["no", "yes"], metric="spearman")
    results = fused(tmp_path, settings("text2text", tmp_path, tasks))
    assert results["tasks"][0]["metric"] == "spearman" and results["tasks"][0]["chance"] is None


@pytest.mark.parametrize("vectors", ["bfloat16", "disk"])
def test_task_vectors_in_half_precision_or_on_disk(tmp_path, vectors):
    tiny_models.bert_folders(tmp_path)
    results = fused(tmp_path, settings("text", tmp_path, text_tasks(tmp_path), vectors=vectors))
    plain = fused(tmp_path, settings("text", tmp_path, text_tasks(tmp_path)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    if vectors == "disk":  # the same numbers, elsewhere
        assert [line["losses"] for line in results["methods"]] == [line["losses"] for line in plain["methods"]]


def torchvision_files(root, count=(2, 2)):
    import torchvision

    name = "shufflenet_v2_x0_5"
    base = tiny_models.seeded(lambda: torchvision.models.get_model(name, num_classes=2))
    save_file(base.state_dict(), root / "pretrained.safetensors")
    for number, (file, classes) in enumerate(zip(("one", "two"), count), 1):
        tuned = tiny_models.seeded(lambda n=classes: torchvision.models.get_model(name, num_classes=n))
        save_file(tiny_models.moved(tuned, number, 0.001).state_dict(), root / f"{file}.safetensors")


def torchvision_settings(root, **more):
    tasks = [{**task, "model": task["model"] + ".safetensors"} for task in image_tasks(root)]
    return settings(
        "torchvision",
        root,
        tasks,
        pretrained="pretrained.safetensors",
        image_size=32,
        options={"architecture": "shufflenet_v2_x0_5"},
        **more,
    )


def test_torchvision_classifiers_with_batch_norm(tmp_path):
    import torchvision

    torchvision_files(tmp_path)
    kept = {}
    fused(tmp_path, torchvision_settings(tmp_path), kept)
    state = load_file(kept["averaging"][0] / "model.safetensors")
    assert (state["conv1.1.running_var"] > 0).all() and not any(key.startswith("fc") for key in state)
    assert "under 'fc.'" in kept["averaging"][2]["heads"]
    # The example of docs/fusion.md.
    model = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=2)
    head = {key: t for key, t in load_file(tmp_path / "one.safetensors").items() if key.startswith("fc.")}
    model.load_state_dict({**state, **head})


@pytest.mark.parametrize(
    ("given", "match"), [("resnet180", "architecture; did you mean 'resnet1"), ("", "architecture$")]
)
def test_an_unknown_architecture_is_one_short_sentence(tmp_path, given, match):
    torchvision_files(tmp_path)
    wrong = torchvision_settings(tmp_path).model_copy(update={"options": {"architecture": given}})
    refused(tmp_path, wrong, f"unknown torchvision architecture '{given}' in options.{match}")


def test_torchvision_checkpoints_in_half_precision(tmp_path):
    torchvision_files(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        halves = {key: t.half() if t.is_floating_point() else t for key, t in load_file(path).items()}
        save_file(halves, path)
    problem = build_problem(torchvision_settings(tmp_path), tmp_path)
    assert set(accuracies(problem, problem.tasks[0].model)) == {"one", "two"}


def refused(tmp_path, given, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        fuse(given, tmp_path / "cache")
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_head_with_another_class_count_is_refused(tmp_path):
    torchvision_files(tmp_path, (2, 3))
    refused(tmp_path, torchvision_settings(tmp_path), r"task 'two': the head of .* gives 3 classes, 2 are named")
    tiny_models.bert_folders(tmp_path / "text")
    tasks = text_tasks(tmp_path / "text", classes=["thing", "person"])
    refused(tmp_path, settings("text", tmp_path / "text", tasks), "task 'two': the head of two gives 3 classes")


def test_checkpoints_of_different_architectures_are_refused(tmp_path):
    tiny_models.bert_folders(tmp_path)
    wide = transformers.BertConfig.from_pretrained(tmp_path / "one")
    wide.intermediate_size = 32
    tiny_models.seeded(lambda: transformers.BertForSequenceClassification(wide)).save_pretrained(tmp_path / "one")
    wrong = r"task 'one' \(one\): '.*' has shape \(32, 16\), expected \(24, 16\) .*; nor do 2 more tensors fit"
    refused(tmp_path, settings("text", tmp_path, text_tasks(tmp_path)), wrong)
    shutil.rmtree(tmp_path / "one")
    refused(tmp_path, settings("text", tmp_path, text_tasks(tmp_path)), "one .*cannot be opened")


def test_nan_in_a_checkpoint_is_refused(tmp_path):
    torchvision_files(tmp_path)
    state = load_file(tmp_path / "two.safetensors")
    state["conv1.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "two.safetensors")
    refused(tmp_path, torchvision_settings(tmp_path), r"task 'two' \(two.safetensors\): 'conv1.0.weight' holds nan")


def test_sets_and_tasks_that_say_nothing_are_refused(tmp_path):
    tiny_models.bert_folders(tmp_path)
    tasks = text_tasks(tmp_path)
    (tmp_path / "empty.tsv").write_text("", encoding="utf-8")
    empty = {**tasks[1]["unlabelled"], "path": "empty.tsv"}
    tasks[1]["unlabelled"] = empty
    refused(tmp_path, settings("text", tmp_path, tasks), r"task 'two': the unlabelled set is empty \(.*empty.tsv\)")
    tiny_models.bert_folders(tmp_path / "single", (2, 1))
    tasks = text_tasks(tmp_path / "single", classes=["thing"])
    tiny_models.text_table(tmp_path / "single" / "questions.tsv", [("thing", "what")])
    refused(tmp_path, settings("text", tmp_path / "single", tasks), "task 'two': has 1 class; expected at least 2")
    tasks = text_tasks(tmp_path)
    tasks[1]["name"] = "one"
    refused(tmp_path, settings("text", tmp_path, tasks), "task 'one': the name is given twice")


def test_answers_that_begin_alike_are_refused(tmp_path):
    tiny_models.t5_folders(tmp_path)
    tasks = text_tasks(tmp_path, class_names=["what", "who", "what is"])
    tasks[0]["class_names"] = ["bad", "good"]
    refused(tmp_path, settings("text2text", tmp_path, tasks), "task 'two': two classes begin with the same token")


def test_unknown_kinds_and_options_are_refused(tmp_path):
    given = parse_fusion({"name": "a", "kind": "embedded-pictures", "options": {"trainning": 3}}, "a")
    refused(tmp_path, given, "unknown option of embedded-pictures 'trainning'; did you mean 'training'")
    wrong = {"epochs": "a whole number from 1", "test": "a whole number from 1", "learning_rate": "at least 0"}
    for name, expected in wrong.items():
        given = parse_fusion({"name": "a", "kind": "embedded-pictures", "options": {name: -1}}, "a")
        refused(tmp_path, given, f"{name}.*: expected {expected}")
    tasks = text_tasks(tmp_path)
    refused(tmp_path, settings("txt", tmp_path, tasks), "unknown kind 'txt'; did you mean 'text'")

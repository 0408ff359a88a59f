"""`duet fuse` on a small embedded problem: what it writes, prints and refuses."""

import csv
import json
import sys

import pytest
from safetensors.torch import load_file

from duet.cli import main
from duet.report.fusion import fusion_markdown, render_fusion

SMALL = [
    *("options.tasks=[digit, count]", "options.pretraining=64", "options.pretraining_epochs=1", "options.training=64"),
    *("options.unlabelled=16", "options.test=20", "options.epochs=1", "methods.ties=null", "methods.dare=null"),
    *("methods.task_arithmetic.scaling_factors=[0.3, 0.5]", "methods.adamerging_task_wise=null"),
    *("methods.adamerging_layer_wise={steps: 2, batch: 4, evaluate_every: 1}", "methods.concrete_task_arithmetic=null"),
    *("methods.concrete_adamerging_task_wise=null",),
    *("methods.concrete_adamerging_layer_wise={steps: 2, coefficient_steps: 1, batch: 4}",),
]


@pytest.fixture
def fuse(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments, small=True):
        options = [part for item in (SMALL if small else []) for part in ("--set", item)]
        monkeypatch.setattr(sys, "argv", ["duet", "fuse", *arguments[:1], *options, *arguments[1:]])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


def test_a_fusion_from_configuration_to_report(fuse, tmp_path):
    code, shown, _ = fuse("embedded-pictures", "--seed", "3", "--out", "out", "--keep", "all")
    assert code == 0, shown
    folder = tmp_path / "out"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    names = [line["method"] for line in results["methods"]]
    assert names == [
        *("individual", "pretrained", "averaging", "task_arithmetic", "adamerging_layer_wise"),
        "concrete_adamerging_layer_wise",
    ]
    assert results["seed"] == 3 and results["settings"]["options"]["test"] == 20
    assert fusion_markdown(results) == (folder / "table.md").read_text(encoding="utf-8")
    assert "Concrete layer-wise AdaMerging" in shown and "fuse.html" in shown
    assert shown.startswith("models and data\nIndividual models\nPretrained\nWeight averaging\nTask arithmetic")
    rows = list(csv.DictReader((folder / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * len(names)
    assert rows[0]["normalised"] == ("1.0" if float(rows[0]["accuracy"]) else "")
    page = (folder / "fuse.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    merged = folder / "merged" / "concrete_adamerging_layer_wise"
    assert len(load_file(merged / "model.safetensors")) == 20
    provenance = json.loads((merged / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["method"] == "concrete_adamerging" and provenance["options"]["steps"] == 2
    assert [model["task"] for model in provenance["models"]] == ["digit", "count"]
    assert all(len(model["files"][0]["sha256"]) == 64 for model in [provenance["base"], *provenance["models"]])
    assert sorted(path.name for path in (folder / "merged").iterdir()) == sorted(names[2:])

    code, _, told = fuse("embedded-pictures", "--out", "out")
    assert code == 2 and "holds the results of a fusion" in told
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    code, _, told = fuse("embedded-pictures", "--out", "out", "--overwrite")
    assert code == 2 and "mine.txt, which no fusion wrote" in told


def earlier_fusion(folder):
    (folder / "merged" / "ties").mkdir(parents=True)
    (folder / "merged" / "ties" / "provenance.json").write_text("{}", encoding="utf-8")
    (folder / "results.json").write_text('{"methods": []}', encoding="utf-8")


def test_an_earlier_fusion_survives_one_that_fails(fuse, tmp_path):
    earlier_fusion(tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, told = fuse("embedded-pictures", "--out", "out", "--overwrite", "--set", "options.tasks=[dgit]")
    assert code == 2 and "dgit" in told
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out" / "merged" / "mine").mkdir()
    code, _, told = fuse("embedded-pictures", "--out", "out", "--overwrite")
    assert code == 2 and "merged/mine, which no fusion wrote" in told


def test_folders_that_cannot_be_replaced_are_refused(fuse, tmp_path):
    code, _, told = fuse("embedded-pictures", "--out", ".")
    assert code == 2 and "choose a folder below it" in told
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    code, _, told = fuse("embedded-pictures", "--out", "link")
    assert code == 2 and "is a symbolic link" in told


def test_the_page_stands_without_curves_and_takes_the_place_of_an_earlier_fusion(fuse, tmp_path):
    earlier_fusion(tmp_path / "out")
    left_out = ["--set", "methods.concrete_adamerging_layer_wise=null", "--set", "methods.individual=null"]
    code, shown, _ = fuse("embedded-pictures", "--out", "out", "--keep", "none", "--overwrite", *left_out)
    assert code == 0, shown
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "out" / "merged").exists()
    assert all(line["average_normalised"] is None for line in results["methods"])
    for line in results["methods"]:
        line.update(losses=[], curve=[], scaling_factors=[])
    results["name"] = "<b>bold</b>"
    page = render_fusion(results)
    assert "<svg" not in page and "<b>bold" not in page and "&lt;b&gt;bold" in page


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["embeded-pictures"], "did you mean 'embedded-pictures'?"),
        (["embedded-pictures", "--keep", "some"], "expected best, all or none"),
        (["embedded-pictures", "--set", "methods.ties.densty=1"], "did you mean 'density'?"),
        (["absent.yaml"], "absent.yaml: cannot be read"),
        (["embedded-pictures", "--set", "options.tasks=[dgit]"], "dgit"),
        (
            ["embedded-pictures", "--set", "options.epochs=0"],
            "options.epochs: expected a whole number from 1",
        ),
        (["embedded-pictures", "--set", "name=../../esc"], "expected a name without slashes"),
        (["clip-vit-b32-eight", "--root", "/absent"], "root: /absent: no such folder"),
    ],
)
def test_what_is_wrong_is_one_sentence(fuse, arguments, match):
    code, _, told = fuse(*arguments, small=False)
    assert code == 2 and match in told and len(told.strip().splitlines()) == 1

"""The artefact: four files that belong together, and what is wrong with damaged ones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from duet.artefact import Artefact, Record, Start, TaskRecord, artefact_is_whole, open_artefact, write_artefact
from duet.cli import app
from duet.config import MethodSettings, TrainSettings
from duet.detectors.families import load_pretrained
from duet.errors import InputError
from duet.report.model_card import model_card


@pytest.fixture(scope="module")
def artefact():
    detector = load_pretrained("fcos-tiny.yaml").with_classes(("a|b", "c"), 0)
    record = Record(
        family="fcos",
        classes=detector.classes,
        image_size=160,
        tasks=(
            TaskRecord(domain="day", classes=("a|b",), images=3, boxes=4, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1)),
            TaskRecord(domain="night", classes=("c",)),
        ),
        start=Start(name="fcos-tiny", digest="00"),
        seed=3,
        method=MethodSettings(name="duet"),
        train=TrainSettings(),
        versions={"duet": "0"},
        scores=[{"domain": "day", "classes": ["c"], "map50": 0.5, "map50_95": None, "images": 2, "boxes": 3}],
    )
    shared = detector.split().shared[:3]
    return Artefact(detector, record, {key: detector.state()[key] + 1 for key in shared})


@pytest.fixture
def folder(artefact, tmp_path):
    write_artefact(tmp_path / "deployed", artefact)
    return tmp_path / "deployed"


def test_it_opens_as_it_was_written(artefact, folder):
    for path in (folder, folder / "detector.safetensors", folder / "detector.pt"):
        found = open_artefact(path)
        assert found.record == artefact.record
        assert found.detector.classes == ("a|b", "c")
        expected = artefact.detector.state()
        assert all(torch.equal(value, expected[key]) for key, value in found.detector.state().items())
        assert set(found.before) == set(artefact.before)
        assert all(torch.equal(found.before[key], value) for key, value in artefact.before.items())
        assert found.record.tasks[0].statistics.std == (0.3, 0.2, 0.1)
        assert found.record.tasks[1].statistics is None


def test_files_can_be_read_by_whoever_may_read_new_files(folder, tmp_path):
    (tmp_path / "new").write_text("")
    mode = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {mode}


def test_files_that_do_not_belong_together_are_noticed(folder):
    assert artefact_is_whole(folder)
    for name in ("detector.pt", "detector.safetensors", "detector.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-2])  # the last brace of JSON
        assert not artefact_is_whole(folder)
        for path in (folder, folder / "detector.pt"):
            with pytest.raises(InputError, match=name):
                open_artefact(path)
        (folder / name).unlink()
        assert not artefact_is_whole(folder)
        (folder / name).write_bytes(content)
    assert artefact_is_whole(folder)


def test_another_detector_in_the_place_of_one_is_named(folder, tmp_path):
    other = load_pretrained("fcos-tiny.yaml").with_classes(("x", "y"), 1)
    other.save_checkpoint(folder / "detector.pt")
    for path in (folder, folder / "detector.pt"):
        with pytest.raises(InputError, match=r"detector\.pt: is not the file that detector\.json lists"):
            open_artefact(path)
    (folder / "detector.json").unlink()
    with pytest.raises(InputError, match=r"detector\.json is missing"):
        open_artefact(folder / "detector.pt")
    shutil.copy(folder / "detector.pt", tmp_path / "detector.pt")
    assert open_artefact(tmp_path / "detector.pt").record is None


def test_a_changed_record_to_read_is_named(folder):
    values = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps({**values, "seed": 4}))
    with pytest.raises(InputError, match=r"detector\.json: was changed"):
        open_artefact(folder)


def test_the_card_is_for_people_to_add_to(folder):
    with (folder / "MODEL_CARD.md").open("a") as stream:
        stream.write("Owner: me\n")
    assert artefact_is_whole(folder) and open_artefact(folder / "detector.pt").record is not None
    (folder / "MODEL_CARD.md").unlink()
    assert not artefact_is_whole(folder)  # a run writes it again


def test_the_card_says_what_was_learned_and_scored(folder):
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| 1 | day | a\\|b | 3 | 4 |" in card
    assert "| 2 | night | c | – | – |" in card
    assert "| day | c | 0.500 | – | 2 | 3 |" in card
    assert "| method.name | duet |" in card


@pytest.mark.parametrize(
    ("family", "head", "tasks", "said"),
    [
        ("fcos", "rows", 2, "holds plain tensors"),
        ("yolo", "rows", 2, 'YOLO("detector.pt")'),
        ("rtdetr", "rows", 2, 'YOLO("detector.pt")'),
        ("yolo", "parallel", 1, 'YOLO("detector.pt")'),
        ("yolo", "parallel", 2, "opens where DuET is installed"),
    ],
)
def test_the_card_says_what_opens_the_checkpoint(artefact, family, head, tasks, said):
    method = artefact.record.method.model_copy(update={"head": head})
    changes = {"family": family, "method": method, "tasks": artefact.record.tasks[:tasks]}
    card = model_card(artefact.record.model_copy(update=changes).model_dump(mode="json"))
    assert said in card.split("## Use it")[1]
    assert "`duet inspect` prints" in card


def test_inspect_prints_and_gives_json(folder):
    printed = CliRunner().invoke(app, ["inspect", str(folder)])
    assert printed.exit_code == 0, printed.output
    assert "night" in printed.output
    assert "Kept for the next update" in printed.output
    plain = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    content = json.loads(plain.output)
    assert content["classes"] == ["a|b", "c"]
    assert content["record"]["seed"] == 3
    state = open_artefact(folder).detector.state()
    assert content["kept_bytes"]["weights"] == sum(value.nbytes for value in state.values())
    assert content["kept_bytes"]["task 2"] < 1000
    assert not any(name.startswith("task 3") for name in content["kept_bytes"])


def rewritten(folder, change):
    """The stored detector with another record in its header."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / "detector.safetensors"
    (folder / "detector.json").unlink(missing_ok=True)  # else its hash is what is named
    with safe_open(path, framework="pt") as stream:
        header = dict(stream.metadata())
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    header.pop("sha256")  # so that what is wrong with the content itself shows
    change(header, tensors)
    save_file(tensors, path, metadata=header)


def record_of(header, **changes):
    header["duet_record"] = json.dumps({**json.loads(header["duet_record"]), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: record_of(header, seed="x"), "record: key 'seed'"),
        (lambda header, tensors: record_of(header, sead=1), "record: unknown key 'sead'"),
        (lambda header, tensors: record_of(header, classes=["a|b"]), "name different classes"),
        (lambda header, tensors: header.update(duet_record="{"), "its record is not JSON"),
        (lambda header, tensors: header.update(duet_record="[1]"), "its record is no mapping"),
        (lambda header, tensors: header.update(description="{}"), "its description cannot be read"),
        (lambda header, tensors: header.update(format="other"), "not a stored detector"),
        (lambda header, tensors: tensors.pop(next(iter(tensors))), "do not fit its description"),
    ],
)
def test_a_damaged_record_is_named(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(InputError, match=rf"detector\.safetensors.*{message}"):
        open_artefact(folder)


def test_a_truncated_file_and_an_absent_one_are_named(folder, tmp_path):
    path = folder / "detector.safetensors"
    (folder / "detector.json").unlink()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"detector\.safetensors: not a readable safetensors file"):
        open_artefact(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"no detector\.safetensors in this folder"):
        open_artefact(folder)
    with pytest.raises(InputError, match="no such file or folder"):
        open_artefact(tmp_path / "nowhere")


def test_a_full_disk_leaves_what_was_there(artefact, folder, monkeypatch):
    def full(self, path):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    shutil.copytree(folder, folder.with_name("copy"))
    monkeypatch.setattr(type(artefact.detector), "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        write_artefact(folder, artefact)
    assert {path.name for path in folder.iterdir()} == {path.name for path in folder.with_name("copy").iterdir()}
    assert open_artefact(folder).record == artefact.record


def test_a_folder_is_a_detector_for_every_command(folder, artefact):
    found = load_pretrained(str(folder))
    assert found.classes == artefact.detector.classes
    assert all(torch.equal(value, found.state()[key]) for key, value in artefact.detector.state().items())
    with pytest.raises(InputError, match="nowhere"):
        load_pretrained(str(folder / "nowhere"))


def test_damage_says_what_it_is_and_a_whole_file_of_another_state_that_it_does_not_belong(folder, artefact):
    path = folder / "detector.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"detector\.safetensors: damaged, its content is not what was written"):
        open_artefact(folder)
    write_artefact(folder.with_name("other"), replace(artefact, before={}))
    shutil.copy(folder.with_name("other") / path.name, path)
    with pytest.raises(InputError, match=r"detector\.safetensors: is not the file that detector\.json lists"):
        open_artefact(folder)

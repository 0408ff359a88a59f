"""Grids from YAML: cells, labels, mergers, and every mistake by one sentence."""

import pytest

from duet.comparison.grid import cells_of, cells_that_train_alike, read_grid, shipped_grids
from duet.errors import InputError
from duet.methods import METHODS


def test_every_method_seed_and_detector_is_a_cell_and_joint_training_comes_first(make_cells):
    cells = make_cells(methods=["duet", "joint"], seeds=[0, 3], detectors=["yolo11n", "rtdetr-tiny"])
    assert [cell.name for cell in cells] == [
        "tiny/yolo11n/joint/seed-0",
        "tiny/yolo11n/joint/seed-3",
        "tiny/rtdetr-tiny/joint/seed-0",
        "tiny/rtdetr-tiny/joint/seed-3",
        "tiny/yolo11n/duet/seed-0",
        "tiny/yolo11n/duet/seed-3",
        "tiny/rtdetr-tiny/duet/seed-0",
        "tiny/rtdetr-tiny/duet/seed-3",
    ]
    assert [cell.config.seed for cell in cells[:2]] == [0, 3]
    assert cells[4].config.method.name == "duet" and cells[4].config.detector == "yolo11n"


def test_a_method_may_have_settings_and_a_label_of_its_own(make_cells):
    entry = {"label": "duet, no DC", "method": {"name": "duet", "directional_consistency": None}}
    plain, changed = make_cells(methods=["duet", entry], train={"epochs": 3}, evaluation={"reference": "none"})
    assert changed.label == "duet, no DC" and changed.name == "tiny/yolo11n/duet-no-DC/seed-0"
    assert plain.config.method.directional_consistency and changed.config.method.directional_consistency is None
    assert changed.config.method.distillation == plain.config.method.distillation
    assert changed.config.train.epochs == 3 and changed.config.evaluation.reference == "none"


def test_mergers_multiply_the_methods_that_have_something_to_merge(make_cells):
    cells = make_cells(methods=["joint", "individual", "sequential", "duet"], mergers=["own", "ties"])
    found = {cell.label: cell.config.method.merge and cell.config.method.merge.name for cell in cells}
    assert found == {
        "joint": None,
        "individual": None,
        "sequential": None,
        "sequential+ties": "ties",
        "duet": "duet",
        "duet+ties": "ties",
    }
    assert cells[-1].config.method.merge.options == {}  # the DuET merger's own options are not TIES'


def test_a_run_on_cpus_takes_one_thread_unless_the_grid_says_otherwise(make_cells, write_grid):
    assert make_cells(methods=["duet"])[0].config.train.threads == 1
    assert make_cells(methods=["duet"], train={"threads": 2})[0].config.train.threads == 2
    on_card = cells_of(read_grid(str(write_grid(methods=["duet"]))), device="0")[0].config.train
    assert on_card.device == "0" and on_card.threads == 0


def test_cells_of_a_seed_share_the_reference_and_the_first_stage(make_cells):
    joint, first, second, other = make_cells(methods=["joint", "duet", "lwf"], seeds=[0])[:3] + make_cells(
        methods=["duet"], seeds=[1]
    )
    both = first.shared & second.shared
    assert joint.shared < both and len(both) == 2
    assert first.shared.isdisjoint(other.shared)


def test_a_method_with_several_mergers_trains_its_later_stages_once(make_cells):
    def alike(**values):
        cells = make_cells(seeds=[0], **values)
        names = cells_that_train_alike(cells)
        return [cell.label for cell in cells if cell.name in names]

    assert alike(methods=["joint", "duet-paper", "lwf", "individual"]) == []
    assert alike(methods=["duet-paper", "joint"], mergers=["own", "ties"]) == ["duet-paper", "duet-paper+ties"]
    no_merge = {"label": "no merge", "method": {"name": "duet", "merge": None, "calibration_epochs": 0}}
    assert alike(methods=["duet", no_merge]) == ["duet", "no merge"]
    frozen = {"label": "current", "method": {"name": "duet", "batch_norm": "current"}}
    assert alike(methods=["duet", frozen]) == []


def test_cells_of_other_seeds_or_series_do_not_train_alike(make_cells):
    assert cells_that_train_alike(make_cells(methods=["duet"], seeds=[0, 1])) == frozenset()


def test_a_single_text_stands_for_a_list_of_it_and_loggers_reach_every_run(make_cells):
    (cell,) = make_cells(methods=["duet"], detectors="fcos-tiny", loggers="tensorboard")
    assert cell.detector == "fcos-tiny" and cell.config.loggers == ("tensorboard",)
    assert cell.config.deciding() == make_cells(methods=["duet"], detectors="fcos-tiny")[0].config.deciding()


def test_changes_replace_the_grids_keys(write_grid):
    path = write_grid(methods=["duet"], train={"epochs": 3, "batch": 4})
    grid = read_grid(str(path), {"seeds": [7], "train": {"epochs": 5}})
    assert grid.seeds == (7,) and grid.train == {"epochs": 5, "batch": 4} and grid.name == "grid"


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_grids_resolve(name):
    cells = cells_of(read_grid(name))
    assert len({cell.name for cell in cells}) == len(cells) > 1


def test_the_shipped_demo_compares_every_method_three_times():
    cells = cells_of(read_grid("demo"))
    assert {cell.label for cell in cells} == set(METHODS) - {"restart"}
    assert len(cells) == 3 * (len(METHODS) - 1)


@pytest.mark.parametrize(
    "values, said",
    [
        ({}, "key 'methods' is missing"),
        ({"methods": []}, "key 'methods'"),
        ({"methods": ["duett"]}, "unknown method 'duett'; did you mean 'duet'"),
        ({"methods": [3]}, "'methods.0' is 3"),
        ({"methods": [{"label": "x"}]}, "'methods.0': key 'method' is None"),
        ({"methods": [{"label": "x", "method": {"name": "duet", "tower": "old"}}]}, "unknown key 'tower'"),
        ({"methods": ["duet", "duet"]}, "two cells are called"),
        ({"methods": ["duet"], "seeds": [-1]}, "key 'seeds.0' is -1"),
        ({"methods": ["duet"], "seeds": [0, 1, 0]}, "names 0 twice"),
        ({"methods": ["duet"], "seeds": 3}, "expected a list such as [3]"),
        ({"methods": ["duet"], "name": "../out"}, "without slashes"),
        ({"methods": ["duet"], "loggers": ["tensorbord"]}, "tensorbord"),
        ({"methods": ["duet"], "seed": [0]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"methods": ["duet"], "mergers": ["tie"]}, "tie"),
        ({"methods": ["duet"], "series": ["nowhere"]}, "nowhere"),
        ({"methods": ["duet"], "train": {"processes": 2}}, "several processes for one run"),
    ],
)
def test_a_wrong_grid_is_one_sentence(write_grid, values, said):
    with pytest.raises(InputError) as caught:
        cells_of(read_grid(str(write_grid(**values))))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_grid_names_the_nearest():
    with pytest.raises(InputError, match=r"ablations: no such file.*did you mean 'ablation'"):
        read_grid("ablations")

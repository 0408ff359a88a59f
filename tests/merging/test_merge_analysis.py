import math

import pytest
import torch
from merging_cases import network, tuned
from safetensors.torch import save_file

import merging
from merging.plots import plot_comparison

A = {
    "a.weight": torch.tensor([3.0, 0.0]),
    "a.bias": torch.tensor([4.0]),
    "b.weight": torch.tensor([1.0]),
    "n": torch.tensor(1),
}
B = {
    "a.weight": torch.tensor([3.0, 0.0]),
    "a.bias": torch.tensor([-4.0]),
    "b.weight": torch.tensor([2.0]),
    "n": torch.tensor(5),
}


def test_layers_and_total_by_hand():
    comparison = merging.diff(A, B)
    first, second = comparison.layers
    assert (first.name, first.scalars, first.norm_a, first.norm_b, first.norm_difference) == ("a", 3, 5, 5, 8)
    assert first.cosine == pytest.approx((9 - 16) / 25)
    assert first.sign_conflict == 1 / 3
    assert (second.name, second.norm_difference, second.cosine, second.sign_conflict) == ("b", 1, 1, 0)
    total = comparison.total
    assert total.scalars == 4
    assert total.norm_a == pytest.approx(math.sqrt(26))
    assert total.cosine == pytest.approx((9 - 16 + 2) / math.sqrt(26) / math.sqrt(29))
    assert total.sign_conflict == 1 / 4


def test_with_a_base_task_vectors_are_compared():
    base = {
        "a.weight": torch.tensor([1.0, 0.0]),
        "a.bias": torch.tensor([0.0]),
        "b.weight": torch.tensor([1.5]),
        "n": torch.tensor(0),
    }
    comparison = merging.diff(A, B, base=base)
    assert comparison.base == "base"
    assert comparison.layers[1].cosine == -1
    assert comparison.layers[1].sign_conflict == 1
    vectors = [merging.task_vector(base, model) for model in (A, B)]
    assert comparison.total.sign_conflict == merging.sign_conflict_rate(*vectors)
    assert {row.name: row.sign_conflict for row in comparison.layers} == merging.sign_conflict_per_layer(*vectors)


def test_statistics_are_left_out_and_zero_vectors_have_no_angle():
    base = network(0)
    comparison = merging.diff(base, tuned(base, 1), base=base)
    assert [row.name for row in comparison.layers] == ["0", "1", "3"]
    assert next(row for row in comparison.layers if row.name == "1").scalars == 8
    assert math.isnan(comparison.total.cosine)
    assert comparison.total.norm_a == 0


def test_the_table_has_a_line_per_layer_and_the_total():
    lines = merging.diff(A, B).table().splitlines()
    assert lines[0] == "a = a, b = b (weights)"
    assert lines[1].split() == ["layer", "scalars", "norm", "a", "norm", "b", "norm", "a-b", "cosine", "conflict"]
    assert lines[2].split() == ["a", "3", "5", "5", "8", "-0.2800", "33.33%"]
    assert [line.split()[0] for line in lines[2:]] == ["a", "b", "total"]


def test_models_on_disk_and_what_does_not_fit(tmp_path):
    save_file(A, tmp_path / "a.safetensors")
    save_file({**B, "b.weight": torch.ones(2)}, tmp_path / "b.safetensors")
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match=f"{paths[1]}: 'b.weight' has shape"):
        merging.diff(*paths)
    comparison = merging.diff(*paths, policy="intersection")
    assert comparison.left_out == ("b.weight",)
    assert [row.name for row in comparison.layers] == ["a"]
    assert comparison.table().splitlines()[-1] == "left out: 1 tensors that do not fit, the first is 'b.weight'"


def test_the_plot_has_a_bar_per_layer(tmp_path):
    comparison = merging.diff(A, B)
    figure = plot_comparison(comparison, tmp_path / "diff.png")
    upper, lower = figure.axes
    assert [bar.get_height() for bar in upper.patches] == [row.cosine for row in comparison.layers]
    assert [bar.get_height() for bar in lower.patches] == [100 * row.sign_conflict for row in comparison.layers]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["a", "b"]
    assert (tmp_path / "diff.png").read_bytes().startswith(b"\x89PNG")

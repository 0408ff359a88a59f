"""Tables of a comparison: terminal, CSV, Markdown and LaTeX say the same, and no name breaks them."""

import csv
import io
import re

import numpy as np
import pytest
from fake_grid import failed_run, make_grid_runs, write_replicates
from fake_run import TASKS
from rich.console import Console
from safetensors.numpy import load_file, save_file

from duet.evaluation.indices import METRICS
from duet.report.comparison import compare_rows, comparison_table
from duet.report.comparison_page import render_comparison
from duet.report.comparison_tables import comparison_csv, comparison_latex, comparison_markdown, latex_escape
from duet.report.rows import number

LABELS = ("lwf", "duet", "replay")


@pytest.fixture(scope="module")
def blocks():
    return compare_rows([*make_grid_runs(LABELS, seeds=(0, 1), tasks=TASKS[:2]), failed_run("duet", 3)])


def cell(blocks, label, key):
    row = next(row for row in blocks[0].rows if row.label == label)
    found = row.indices["map50"][key]
    return f"{number(found.mean)} ± {number(found.sd)}"


def printed(blocks, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(blocks))
    return console.file.getvalue()


def test_terminal_shows_values_failures_and_the_closing_sentence(blocks):
    text = printed(blocks)
    for label in LABELS:
        assert cell(blocks, label, "overall").replace("± ", "±") in text
    assert "2 of 3" in text
    assert "duet, seed 3 failed: training diverged" in text and "  RuntimeError: loss is NaN" in text
    assert "In Overall, duet leads. Its lead over lwf (+" in text


def test_narrow_terminal_cuts_no_number(blocks):
    text = printed(blocks, width=80)
    for label in LABELS:
        for key in ("overall", "rai", "avg_gi", "mean_map"):
            mean, spread = cell(blocks, label, key).split(" ± ")
            assert f" {mean} " in text and f"±{spread}" in text
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_csv_has_every_seed_and_the_mean(blocks):
    lines = list(csv.DictReader(io.StringIO(comparison_csv(blocks))))
    mine = [line for line in lines if (line["label"], line["metric"], line["index"]) == ("duet", "map50", "overall")]
    assert [line["seed"] for line in mine] == ["0", "1", "mean"]
    found = blocks[0].rows[1].indices["map50"]["overall"]
    assert [float(line["value"]) for line in mine] == [*found.values, found.mean]
    assert float(mine[2]["sd"]) == found.sd and mine[2]["low"] == ""
    failed = [line for line in lines if line["status"] == "failed"]
    assert [(line["label"], line["seed"], line["value"]) for line in failed] == [("duet", "3", "")]
    assert {line["index"] for line in lines} >= {"fwt", "bwt", "sign_conflict", "train_seconds", "mean_map", ""}


def test_markdown_marks_the_best_exemplar_free_method(blocks):
    text = comparison_markdown(blocks)
    assert f"| duet | 2 of 3 | **{cell(blocks, 'duet', 'overall')}** |" in text
    assert f"| lwf | 2 | {cell(blocks, 'lwf', 'overall')} |" in text
    assert "| replay (keeps old images) | 2 |" in text  # better than duet, but no rival
    rows = [line for line in text.split("mAP50 after")[0].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_the_final_grid_stands_in_markdown_and_csv(blocks):
    row = next(row for row in blocks[0].rows if row.label == "lwf")
    grids = [{(cell["domain"], cell["task"]): cell for cell in run["stages"][-1]["grid"]} for run in row.results]
    table = comparison_markdown(blocks).split("mAP50 after the last task")[1]
    head, line = (
        next(line for line in table.splitlines() if line.startswith(f"| {name} |")) for name in ("Method", "lwf")
    )
    titles, values = ([text.strip() for text in line.split("|")[2:-1]] for line in (head, line))
    assert len(titles) == len(grids[0]) == len(set(titles))
    for domain, task in grids[0]:
        mean = sum(grid[domain, task]["map50"] for grid in grids) / len(grids)
        assert values[titles.index(f"Task {task}, {domain}")] == number(mean)
    lines = [line for line in csv.DictReader(io.StringIO(comparison_csv(blocks))) if line["label"] == "lwf"]
    for domain, task in grids[0]:
        found = [line for line in lines if (line["metric"], line["index"]) == (METRICS[1], f"final/{domain}/{task}")]
        assert [line["seed"] for line in found] == ["0", "1"]
        assert [float(line["value"]) for line in found] == [grid[domain, task][METRICS[1]] for grid in grids]


def test_interval_stands_in_the_markdown_when_there_is_one(tmp_path):
    runs = make_grid_runs(("duet", "lwf"), seeds=(0, 1), tasks=TASKS[:2], root=tmp_path)
    for run in runs:
        write_replicates(run)
    blocks = compare_rows(runs)
    found = blocks[0].rows[0].indices["map50"]["overall"]
    assert found.low < found.mean < found.high
    assert f"[{number(found.low)}, {number(found.high)}]" in comparison_markdown(blocks)


def test_resamples_without_a_value_are_said(tmp_path):
    runs = make_grid_runs(("duet", "lwf"), seeds=(0,), tasks=TASKS[:2], root=tmp_path)
    for run in runs:
        write_replicates(run)
    path = runs[0].folder / "bootstrap.safetensors"
    values = load_file(path)
    values["map50/avg_ri"][:3] = np.nan
    save_file(values, path)
    text = comparison_markdown(compare_rows(runs))
    assert "duet, Avg RI: 3 resamples without a value, left out of the interval" in text
    assert text.count("without a value") == 1
    page = render_comparison(compare_rows(runs), [], "demo", None)
    assert page.count("duet, Avg RI: 3 resamples without a value") == 1


def test_latex_is_booktabs_with_upper_bounds_apart(blocks):
    lines = comparison_latex(blocks).splitlines()
    rules = [place for place, line in enumerate(lines) if line == "\\midrule"]
    names = [line.split(" & ")[0] for line in lines]
    assert rules[0] < names.index("lwf") < names.index("duet") < rules[1] < names.index("replay (keeps old images)")
    assert names.index("joint (all images at once)") > rules[1]
    duet, replay = (next(line for line in lines if line.startswith(name)) for name in ("duet", "replay"))
    best = cell(blocks, "duet", "overall").replace("±", r"$\pm$")
    assert rf"\textbf{{{best}}}" in duet
    assert "\\textbf" not in replay
    assert {line.count(" & ") for line in lines if line.endswith("\\\\")} == {7}
    assert "\\toprule" in lines and "\\bottomrule" in lines


@pytest.mark.parametrize(
    "text,escaped",
    [
        ("duet_paper", r"duet\_paper"),
        ("50 % & more", r"50 \% \& more"),
        ("a\\b", r"a\textbackslash{}b"),
        ("{x}^2~$y$#1", r"\{x\}\textasciicircum{}2\textasciitilde{}\$y\$\#1"),
        ("0.5 ± 0.1", r"0.5 $\pm$ 0.1"),
        ("<b>", r"\textless{}b\textgreater{}"),
        ("", ""),
    ],
)
def test_latex_escaping(text, escaped):
    assert latex_escape(text) == escaped


def test_odd_labels_break_no_table():
    odd = "a|b & c_d [red]<i>\\%"
    runs = [run for run in make_grid_runs(("duet",), seeds=(0,), tasks=TASKS[:2]) if run.label == "duet"]
    object.__setattr__(runs[0], "label", odd)
    blocks = compare_rows(runs)
    latex, markdown = comparison_latex(blocks), comparison_markdown(blocks)
    assert r"a\textbar{}b \& c\_d [red]\textless{}i\textgreater{}\textbackslash{}\%" in latex
    assert r"| a\|b & c\_d \[red\]\<i\>\\% |" in markdown
    assert "[red]" in re.sub(r"\s+", " ", printed(blocks, 300))
    assert list(csv.reader(io.StringIO(comparison_csv(blocks))))[1][2] == odd

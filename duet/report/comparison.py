"""The outputs of a comparison: table.csv, table.md, table.tex, compare.json and compare.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from duet.report.compared import ComparedRun, ComparedScene
from duet.report.comparison_noise import LEVEL, Estimate
from duet.report.comparison_page import render_comparison
from duet.report.comparison_rows import COMPARED, METRICS, ComparedBlock, ComparedRow, compare_rows
from duet.report.comparison_tables import comparison_csv, comparison_latex, comparison_markdown, comparison_table
from duet.report.comparison_verdicts import all_differences, verdict_of
from duet.state import write_json, write_text

__all__ = [
    "ComparedBlock",
    "ComparedRow",
    "ComparedRun",
    "ComparedScene",
    "compare_rows",
    "comparison_table",
    "write_comparison",
]

SCHEMA = 1


def write_comparison(
    runs: Sequence[ComparedRun],
    folder: Path,
    name: str,
    scenes: Sequence[ComparedScene] = (),
    date: str | None = None,
) -> list[ComparedBlock]:
    """Write table.csv, table.md, table.tex, compare.json and compare.html; each appears complete or not at all.

    Args:
        runs: the cells of the grid in its order, whatever their status.
        folder: where the files go; made when absent.
        name: what the comparison is called.
        scenes: test pictures where the methods differ; may be empty.
        date: when it ended, as it shall be printed; left out when None.

    Returns:
        The blocks, for ``comparison_table``.

    Raises:
        ValueError: when there is no run, or as ``compare_rows``; nothing is written then.
        InputError: when bootstrap replicates of a run folder are damaged; nothing is written then.
    """
    if not runs:
        raise ValueError(f"comparison '{name}': there is no run to compare")
    blocks = compare_rows(runs)
    document = comparison_document(blocks, name, date)
    texts = {
        "table.csv": comparison_csv(blocks),
        "table.md": comparison_markdown(blocks),
        "table.tex": comparison_latex(blocks),
        "compare.html": render_comparison(blocks, scenes, name, date),
    }
    write_json(folder / "compare.json", document)
    for file, text in texts.items():
        write_text(folder / file, text)
    return blocks


def comparison_document(blocks: Sequence[ComparedBlock], name: str, date: str | None = None) -> dict[str, Any]:
    """The content of compare.json: rows and differences of every block."""
    return {
        "schema": SCHEMA,
        "name": name,
        "date": date,
        "level": LEVEL,
        "blocks": [_block(block) for block in blocks],
    }


def _block(block: ComparedBlock) -> dict[str, Any]:
    verdict = verdict_of(block)
    return {
        "series": block.series,
        "detector": block.detector,
        "reference": list(block.references),
        "rows": [_row(row) for row in block.rows],
        "published": {"table": block.table, "rows": [row.model_dump(mode="json") for row in block.published]},
        "leader": verdict.leader.label if verdict.leader else None,
        "index": verdict.index.key,
        "sentence": verdict.sentence,
        "differences": [
            {"metric": metric, "index": key, **asdict(difference)}
            for metric in METRICS
            for key, difference in all_differences(block, metric)
        ],
    }


def _row(row: ComparedRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "kind": row.kind,
        "seeds": list(row.seeds),
        "failed": [{"seed": run.seed, "error": run.error, "log_tail": list(run.log_tail)} for run in row.failed],
        "pending": list(row.pending),
        "indices": {
            metric: {name.key: _estimate(row.indices[metric][name.key]) for name in COMPARED} for metric in METRICS
        },
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)

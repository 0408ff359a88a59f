"""The lines of a comparison: every method of a grid with its seeds, its indices and what failed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from duet.evaluation.indices import METRICS
from duet.report.compared import ComparedRun, Kind
from duet.report.comparison_noise import Estimate, Samples, estimate, read_replicates
from duet.report.published import PublishedRow, published_rows
from duet.report.rows import INDEX_NAMES, MEAN_MAP, IndexName, index_value

SIGN_CONFLICT = IndexName(
    "sign_conflict", "Sign conflict", "Share of shared weights whose update turned against the one before, per merge."
)
SECONDS = IndexName("train_seconds", "Training", "Seconds of training, merging and calibrating, all stages.", False)
COMPARED = (*INDEX_NAMES, MEAN_MAP, SIGN_CONFLICT, SECONDS)
LOWER_IS_BETTER = frozenset({"forgetting", "sign_conflict", "train_seconds"})
KIND_NOTES: Mapping[Kind, str] = {
    "method": "",
    "exemplars": "keeps old images",
    "committee": "one detector per task",
    "joint": "all images at once",
}
LEARNING = ("statistics", "train", "merge", "calibrate")  # parts of a stage's timing


@dataclass(frozen=True)
class ComparedRow:
    """One method of a block, over its seeds.

    Args:
        label: the method's name in the grid.
        kind: of its runs; only a ``method`` is a rival of the others.
        finished: its finished runs by rising seed; the order of every estimate's values.
        failed: its failed runs by rising seed.
        pending: seeds that have not run yet.
        indices: per metric and key of ``COMPARED``, the estimate over seeds; None where no seed has a value.
    """

    label: str
    kind: Kind
    finished: tuple[ComparedRun, ...]
    failed: tuple[ComparedRun, ...]
    pending: tuple[int, ...]
    indices: Mapping[str, Mapping[str, Estimate | None]]
    samples: Mapping[str, Mapping[str, Samples]] = field(repr=False, default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that finished."""
        return tuple(run.seed for run in self.finished)

    @property
    def results(self) -> tuple[Mapping[str, Any], ...]:
        """Contents of results.json by rising seed."""
        return tuple(run.results for run in self.finished if run.results)

    def mean(self, key: str, metric: str = "map50") -> float | None:
        """Mean over seeds of one index, or None."""
        found = self.indices[metric].get(key)
        return found.mean if found else None


@dataclass(frozen=True)
class ComparedBlock:
    """All methods of one series and detector.

    Args:
        series: name of the series.
        detector: name of the detector.
        rows: one per method, in order of first appearance.
        table: number of the published table of this series, or empty.
        published: its lines for this detector.
    """

    series: str
    detector: str
    rows: tuple[ComparedRow, ...]
    table: str = ""
    published: tuple[PublishedRow, ...] = ()

    @property
    def sample(self) -> Mapping[str, Any] | None:
        """Any results of the block, for its series; those of a whole run are preferred to a joint one's."""
        found = [results for row in self.rows for results in row.results]
        return min(found, key=lambda results: results["stages"][0]["task"] == 0, default=None)

    @property
    def references(self) -> tuple[str, ...]:
        """The kinds of reference that the runs divide by; more than one cannot be compared."""
        kinds = [(item.get("reference") or {}).get("kind") or "none" for row in self.rivals for item in row.results]
        return tuple(dict.fromkeys(kinds))

    @property
    def rivals(self) -> tuple[ComparedRow, ...]:
        """The exemplar-free methods."""
        return tuple(row for row in self.rows if row.kind == "method")

    @property
    def upper_bounds(self) -> tuple[ComparedRow, ...]:
        """The methods that break a rule."""
        return tuple(row for row in self.rows if row.kind != "method")


def compare_rows(runs: Sequence[ComparedRun]) -> list[ComparedBlock]:
    """One block per series and detector, one row per label, both in order of first appearance.

    Args:
        runs: the cells of the grid in its order; may be empty.

    Raises:
        ValueError: when two runs of a method have the same seed, a finished run lacks stages, or runs of one series
            have different tasks.
    """
    blocks: dict[tuple[str, str], dict[str, list[ComparedRun]]] = {}
    for run in runs:
        _refuse_unfinished(run)
        blocks.setdefault((run.series, run.detector), {}).setdefault(run.label, []).append(run)
    return [_block(series, detector, labels) for (series, detector), labels in blocks.items()]


def best_label(rows: Iterable[ComparedRow], key: str, metric: str = "map50") -> str | None:
    """The label of the row with the best mean of an index; None when no row has one."""
    sign = -1 if key in LOWER_IS_BETTER else 1
    found = [(sign * mean, row.label) for row in rows if (mean := row.mean(key, metric)) is not None]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _block(series: str, detector: str, labels: Mapping[str, Sequence[ComparedRun]]) -> ComparedBlock:
    rows = tuple(_row(label, runs) for label, runs in labels.items())
    block = ComparedBlock(series, detector, rows)
    _refuse_other_tasks(block)
    if block.sample is None:
        return block
    table, lines = published_rows(block.sample)
    return ComparedBlock(series, detector, rows, table, lines)


def _row(label: str, runs: Sequence[ComparedRun]) -> ComparedRow:
    ordered = sorted(runs, key=lambda run: run.seed)
    seeds = [run.seed for run in ordered]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{ordered[0].series} · {label}: two runs have the same seed, {seeds}")
    finished = tuple(run for run in ordered if run.status == "finished")
    samples = _samples(finished)
    return ComparedRow(
        label=label,
        kind=ordered[0].kind,
        finished=finished,
        failed=tuple(run for run in ordered if run.status == "failed"),
        pending=tuple(run.seed for run in ordered if run.status == "pending"),
        indices={metric: {key: estimate(item) for key, item in keys.items()} for metric, keys in samples.items()},
        samples=samples,
    )


def _samples(finished: Sequence[ComparedRun]) -> dict[str, dict[str, Samples]]:
    replicates = [read_replicates(run.folder) for run in finished]
    return {
        metric: {
            name.key: Samples(
                seeds=tuple(run.seed for run in finished),
                values=tuple(_value(run.results or {}, name.key, metric) for run in finished),
                replicates=tuple(found.get(f"{metric}/{name.key}") for found in replicates),
            )
            for name in COMPARED
        }
        for metric in METRICS
    }


def _value(results: Mapping[str, Any], key: str, metric: str) -> float | None:
    if key == SIGN_CONFLICT.key:
        rates = [(stage.get("merge") or {}).get("sign_conflict_rate") for stage in results["stages"]]
        known = [rate for rate in rates if rate is not None]
        return statistics.fmean(known) if known else None
    if key == SECONDS.key:
        parts = [stage["timing"].get(part) for stage in results["stages"] for part in LEARNING]
        return sum(part for part in parts if part is not None)
    return index_value(results, key, metric)


def _refuse_unfinished(run: ComparedRun) -> None:
    if run.status != "finished" or not run.results:
        return
    done = len(run.results["stages"])
    wanted = 1 if run.kind == "joint" else len(run.results["series"]["tasks"])
    if done < wanted:
        raise ValueError(f"{run.name}: called finished, but {done} of {wanted} stages are")


def _refuse_other_tasks(block: ComparedBlock) -> None:
    first: ComparedRun | None = None
    for run in (run for row in block.rows for run in row.finished):
        first = first or run
        if run.results["series"]["tasks"] != first.results["series"]["tasks"]:
            raise ValueError(f"{run.name}: its tasks are not those of {first.label}, seed {first.seed}")

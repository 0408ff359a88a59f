"""What a comparison says in sentences: who leads, and which differences are larger than the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from duet.evaluation.indices import Metric
from duet.report.comparison_noise import Difference, paired_difference
from duet.report.comparison_rows import LOWER_IS_BETTER, ComparedBlock, ComparedRow, best_label
from duet.report.rows import INDEX_NAMES, MEAN_MAP, IndexName, signed

JUDGED = ("overall", "rai", "ni", "avg_ri", "avg_gi", "mean_map")
_NAMES = {name.key: name for name in (*INDEX_NAMES, MEAN_MAP)}


@dataclass(frozen=True)
class Verdict:
    """Who leads a block and by how much.

    Args:
        index: the index that decides: Overall, or the mean mAP where no run has an Overall.
        leader: the exemplar-free method with the best mean; None when no run has finished.
        differences: the leader minus every other exemplar-free method, by falling mean of the other.
        judgement: which differences are larger than the noise, a sentence of its own.
        alone: whether there is no other method that it could be held against.
    """

    index: IndexName
    leader: ComparedRow | None
    differences: tuple[Difference, ...]
    judgement: str
    alone: bool = False

    @property
    def sentence(self) -> str:
        """The closing sentence: who leads, and what the lead is worth."""
        if self.leader is None or self.alone:
            return self.judgement
        return f"In {self.index.title}, {self.leader.label} leads. {self.judgement}"


def verdict_of(block: ComparedBlock, metric: Metric = "map50") -> Verdict:
    """Judge the exemplar-free methods of a block.

    The intervals are those of single comparisons, not corrected for their number.
    """
    index = _NAMES["overall"] if best_label(block.rivals, "overall", metric) else MEAN_MAP
    label = best_label(block.rivals, index.key, metric)
    if label is None:
        return Verdict(index, None, (), "No exemplar-free method has finished: there is nothing to judge.")
    rows = ranked(block.rivals, index.key, metric)
    leader, others = rows[0], rows[1:]
    found = [_difference(leader, other, index.key, metric) for other in others]
    differences = tuple(item for item in found if item is not None)
    if not others:
        text = f"{leader.label} is the only exemplar-free method that has finished: there is nothing to compare."
        return Verdict(index, leader, (), text, alone=True)
    if not differences:
        none = "It shares no seed with another exemplar-free method: there is nothing to compare."
        return Verdict(index, leader, (), none)
    return Verdict(index, leader, differences, _judgement(differences))


def ranked(rows: Sequence[ComparedRow], key: str, metric: Metric = "map50") -> list[ComparedRow]:
    """The rows that have a value of the index, best first."""
    sign = 1 if key in LOWER_IS_BETTER else -1
    known = [row for row in rows if row.mean(key, metric) is not None]
    return sorted(known, key=lambda row: sign * row.mean(key, metric))


def shown_rows(block: ComparedBlock, metric: Metric = "map50") -> list[ComparedRow]:
    """The order of the page: exemplar-free methods by falling Overall (or mean mAP), then the upper bounds alike."""
    key = "overall" if best_label(block.rivals, "overall", metric) else MEAN_MAP.key
    shown = []
    for rows in (block.rivals, block.upper_bounds):
        order = ranked(rows, key, metric)
        shown += [*order, *(row for row in rows if row not in order)]
    return shown


def all_differences(block: ComparedBlock, metric: Metric = "map50") -> list[tuple[str, Difference]]:
    """(index, better minus worse) of every pair of methods, upper bounds included, for the judged indices."""
    found = []
    for key in JUDGED:
        for first, second in combinations(ranked(block.rows, key, metric), 2):
            difference = _difference(first, second, key, metric)
            if difference is not None:
                found.append((key, difference))
    return found


def _difference(first: ComparedRow, second: ComparedRow, key: str, metric: Metric) -> Difference | None:
    samples = (first.label, first.samples[metric][key]), (second.label, second.samples[metric][key])
    return paired_difference(*samples)


def _judgement(differences: Sequence[Difference]) -> str:
    clear = [item for item in differences if item.larger_than_noise]
    noise = [item for item in differences if item.larger_than_noise is False]
    unknown = [item for item in differences if item.larger_than_noise is None]
    parts = []
    if clear:
        parts.append(f"Its lead over {_list(clear)} is larger than the noise.")
    if noise:
        parts.append(f"Its lead over {_list(noise)} is not larger than the noise.")
    if unknown:
        parts.append(f"Of its lead over {_list(unknown)} nothing can be said: one seed, and no bootstrap.")
    return " ".join(parts)


def _list(differences: Sequence[Difference]) -> str:
    texts = [f"{item.second} ({signed(item.mean)})" for item in differences]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"

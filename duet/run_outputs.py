"""What a run leaves beside its stages: results, artefact, report, confidence intervals."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from torch import Tensor

from duet.artefact import Artefact, artefact_is_whole, record_of_run, write_artefact
from duet.config import RunConfig
from duet.datasets.images import LabelledImage
from duet.detectors.families import restore_detector
from duet.documents import read_json
from duet.errors import InputError
from duet.evaluation.run import DomainScores
from duet.monitor import Monitor
from duet.report.tables import indices_table, results_csv
from duet.results import results_document
from duet.series import Series
from duet.state import RunState, write_json, write_text
from duet.uncertainty import lacks_intervals, write_intervals

EXAMPLES = 4  # test images per domain whose detections are kept for the report
EXAMPLE_SCORE = 0.25


@dataclass(frozen=True)
class RunOutputs:
    """Writes what a run folder holds beside its stages, from what the stages left.

    Args:
        config: of the run.
        series: its series.
        state: the record of its folder.
        tests: test images by domain.
        start_digest: digest of the pretrained weights.
        monitor: progress.
    """

    config: RunConfig
    series: Series
    state: RunState
    tests: Mapping[str, Sequence[LabelledImage]]
    start_digest: str
    monitor: Monitor

    def finish(self, reference: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Results and report of a run whose stages are done; what a kill left unwritten is written now.

        Args:
            reference: gives the content of reference.json, should the results have to be written again.
        """
        self.state.verify()
        document = self._written_results()
        if document is None:
            document = self.write_results(reference())
        if not (self.state.is_whole("detector.json") and artefact_is_whole(self.state.folder)):
            self.write_artefact()
        document = self._with_intervals(document)
        if not self.state.is_whole("report.html"):
            self._write_report(document)
            self.state.keep("report.html")
        self.monitor.show(indices_table(document))
        return document

    def write_artefact(self) -> None:
        """Write the detector of the last finished stage, deployable, and what its next update needs."""
        if self.config.method.start == "pretrained":
            return  # there is no one detector to deploy
        count = self.state.finished_stages
        metrics = [read_json(self.state.stage_file(number, "metrics")) for number in range(1, count + 1)]
        detector = restore_detector(self.state.stage_file(count, "model"))
        before: dict[str, Tensor] = {}
        if count > 1:
            shared = detector.split(self.config.method.towers == "shared").shared
            state = restore_detector(self.state.stage_file(count - 1, "model")).state()
            before = {key: state[key] for key in shared}
        record = record_of_run(self.config, self.series, metrics, detector, self.start_digest)
        write_artefact(self.state.folder, Artefact(detector, record, before))
        self.state.keep("detector.json")

    def write_results(self, reference: dict[str, Any]) -> dict[str, Any]:
        """Write results.json and results.csv of the finished stages; the content of results.json."""
        document = self.results(self.state.finished_stages, reference)
        write_json(self.state.folder / "results.json", document)
        write_text(self.state.folder / "results.csv", results_csv(document))
        self.state.keep("results.json", "results.csv")
        return document

    def results(self, count: int, reference: dict[str, Any]) -> dict[str, Any]:
        """Content of results.json after ``count`` stages."""
        stages = [read_json(self.state.stage_file(number, "metrics"))["stage"] for number in range(1, count + 1)]
        seconds = sum(sum(stage["timing"].values()) for stage in stages)
        timing = {"reference": reference["seconds"], "total": seconds + reference["seconds"]}
        return results_document(self.config, self.series, stages, reference["reference"], timing)

    def _with_intervals(self, document: dict[str, Any]) -> dict[str, Any]:
        """The results with confidence intervals, if they are asked for and the run has what they are made of."""
        if not lacks_intervals(document, self.state.folder, self.config.evaluation.bootstrap):
            return document
        try:
            document = write_intervals(document, self.state, self.tests, self.config.evaluation, self.monitor)
        except InputError as error:
            self.monitor.show(escape(f"No confidence intervals: {error}"))
            return document
        (self.state.folder / "report.html").unlink(missing_ok=True)  # it was made without them
        write_text(self.state.folder / "results.csv", results_csv(document))
        write_json(self.state.folder / "results.json", document)
        self.state.keep("results.json", "results.csv")
        return document

    def _written_results(self) -> dict[str, Any] | None:
        """results.json, or None when it or results.csv is absent, damaged, or older than the last stage."""
        if not self.state.is_whole("results.json", "results.csv"):
            return None
        document = read_json(self.state.folder / "results.json")
        current = isinstance(document, dict) and len(document.get("stages", ())) == self.state.finished_stages
        return document if current else None

    def _write_report(self, document: dict[str, Any]) -> None:
        from duet.report.html import write_report
        from duet.report.scenes import scene_panels

        count = self.state.finished_stages
        first = read_json(self.state.stage_file(1, "examples"))
        final = read_json(self.state.stage_file(count, "examples"))
        panels = scene_panels(self.tests, first, final, EXAMPLES)
        today = datetime.date.today().isoformat()
        write_report(document, panels, self.state.folder / "report.html", date=today)


def example_detections(
    scores: Mapping[str, DomainScores], tests: Mapping[str, Sequence[LabelledImage]]
) -> dict[str, list[dict[str, Any]]]:
    """Confident detections in the first test images of each domain, for the report."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for name, value in scores.items():
        examples[name] = []
        for image in tests[name][:EXAMPLES]:
            found = value.detections[image.path].one_per_box()
            sure = [index for index, score in enumerate(found.scores.tolist()) if score >= EXAMPLE_SCORE]
            examples[name].append(
                {
                    "boxes_xyxy": [[round(v, 2) for v in found.boxes_xyxy[index].tolist()] for index in sure],
                    "scores": [round(float(found.scores[index]), 4) for index in sure],
                    "labels": [found.labels[index] for index in sure],
                }
            )
    return examples

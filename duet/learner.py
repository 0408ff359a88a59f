"""The loop: for each task train → merge → extend the head → evaluate → save (DuET, Algorithm 1).

Of earlier tasks only θ_0, the merged θ_(t−1), the previous update direction and six colour numbers per domain are
needed; no earlier training image is read again. A run that was stopped goes on at the stage where it stood.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml

from duet.committee import Committee
from duet.config import RunConfig
from duet.datasets.domain import content_digest, open_domains
from duet.datasets.images import LabelledImage
from duet.datasets.series_file import find_series
from duet.datasets.training import TrainingSet, colour_statistics, write_training_set
from duet.detectors.base import Detector, DomainStatistics, refuse_head, refuse_several
from duet.detectors.families import load_pretrained, restore_detector, restore_tensors, store_detector, store_tensors
from duet.disk import disk_error
from duet.documents import read_json
from duet.errors import InputError, TrainingStopped
from duet.evaluation.run import DomainScores, score_domain
from duet.evaluation.stored import store_detections
from duet.kept_trainings import KeptTrainings
from duet.loggers import LoggedMonitor, RunLoggers
from duet.monitor import Monitor
from duet.planning import planned_steps, refuse_bad_training_data
from duet.reference import score_references
from duet.report.tables import stage_table
from duet.resolve import what_differs
from duet.results import stage_entry
from duet.run_outputs import RunOutputs, example_detections
from duet.shared_training import SharedTrainer
from duet.stage import StageInput, StageResult, first_stage, later_stage, weighs_by_fisher
from duet.stage_data import exemplars, label_by_teacher, own_labels
from duet.state import RunState, digest_of, only_user, write_json, write_text
from duet.uncertainty import REFERENCE_FILE
from duet.way_on import way_on
from duet.weights import weights_digest

EXAMPLES = 4  # test images per domain whose detections are kept for the report
EXAMPLE_SCORE = 0.25


class Learner:
    """One incremental run in one folder.

    Args:
        config: the resolved configuration.
        out: the run folder.
        monitor: progress; silent by default.
        trust: open pretrained weights that could run code.
        trainings: folder where the trainings of later stages are kept for runs that train alike; none by default.

    Raises:
        InputError: when the series, its data or the weights are not usable; nothing is written then.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        monitor: Monitor | None = None,
        trust: bool = False,
        trainings: Path | None = None,
    ) -> None:
        out = Path(out)  # from Python it may come as text
        self.config, self.out, self.monitor = config, out, monitor or Monitor()
        self.trainings = KeptTrainings(trainings, self.monitor) if trainings is not None else None
        self.source = find_series(config.series, Path(config.root) if config.root else None)
        self.series = self.source.series
        self.domains = open_domains(self.source, self._write_progress)
        self.start = load_pretrained(config.detector, trust)
        refuse_several(self.start, config.train)
        refuse_head(self.start, config.method.head)
        self.theta_0 = self.start.state()
        self.start_digest = weights_digest(self.theta_0)
        self.tests = {name: self.domains[name].test() for name in self.series.test_domains}
        fingerprint = digest_of([config.deciding(), self.source.identity(), self.start_digest])
        self.loggers = RunLoggers(config, out, fingerprint)
        if config.loggers:
            self.monitor = LoggedMonitor(self.monitor, self.loggers)
        resumed = (out / "state.json").exists()
        if not resumed:
            refuse_bad_training_data(self.source, self.domains)
        self.state = RunState(out, fingerprint, lambda: what_differs(out / "config.yaml", config))
        self.outputs = RunOutputs(config, self.series, self.state, self.tests, self.start_digest, self.monitor)

    def run(self) -> dict[str, Any]:
        """Train what is not trained yet and return results.json's content.

        Raises:
            InputError: when files of the run folder are damaged, the data changed since the run began, or another
                process is working on it.
            RuntimeError: when training fails; finished stages stay.
        """
        try:
            with only_user(self.out), self.loggers:
                return self._run()
        except OSError as error:  # what the trainer writes by itself names no file when the disk is full
            explained = disk_error(error, Path(error.filename or self.out))
            if explained is None:
                raise
            raise explained from error

    def _run(self) -> dict[str, Any]:
        if not self.state.is_whole("config.yaml"):
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_text(self.out / "config.yaml", text)
            self.state.keep("config.yaml")
        digests = self._data_digests()
        stages = 1 if self.config.method.joint else len(self.series)
        self._log_finished(digests)
        if self.state.finished_stages < stages:
            self.monitor.plan(planned_steps(self._trainer(digests), self.state))
            reference = self._reference(digests)
            if self.config.method.joint:
                self._joint_stage(digests, reference)
            else:
                self._incremental_stages(digests, reference)
        return self.outputs.finish(lambda: self._reference(digests))

    def _log_finished(self, digests: Mapping[str, str]) -> None:
        """What a kill, or a logger that was not asked for then, left unlogged of finished stages."""
        if self.loggers.is_behind(self.state.finished_stages):
            reference = self._reference(digests)
            for number in range(1, self.state.finished_stages + 1):
                self.loggers.finish(number, self.outputs.results(number, reference))

    def _incremental_stages(self, digests: Mapping[str, str], reference: dict[str, Any]) -> None:
        first = self.state.finished_stages + 1
        for task in range(first, len(self.series) + 1):
            try:
                self._stage(task, digests, reference)
            except TrainingStopped as error:
                shutil.rmtree(self.out / "stages" / str(task), ignore_errors=True)
                raise TrainingStopped(way_on(self.out, self.series, task, error), error.option) from error

    def _stage(self, task: int, digests: Mapping[str, str], reference: dict[str, Any]) -> None:
        domain = self.series.domains[task - 1]
        images = self.domains[domain].train()
        if content_digest(images) != digests[domain]:
            raise InputError(f"domain '{domain}': its training images or labels changed since the run began")
        folder = self.out / "stages" / str(task)
        shutil.rmtree(folder, ignore_errors=True)
        item = self._stage_input(task, images, folder)
        self.loggers.begin(task)
        if item.previous is None:
            trained = self._trainer(digests).alone(task)
            result = first_stage(trained.detector, trained.outcome, item, self.config)
        else:
            steps = self.config.later_train(item.data.images).steps(item.data.images)
            self.monitor.begin(f"stage {task}/{len(self.series)}: {domain}", steps)
            result = later_stage(item, self.config, self.monitor.train_step, self.trainings)
        self._close_stage(task, item.statistics, result, folder, reference, item.data)

    def _stage_input(self, task: int, images: Sequence[LabelledImage], folder: Path) -> StageInput:
        classes, method = self.series.tasks[task - 1].classes, self.config.method
        anew = method.start == "pretrained"
        previous = before = None
        if task > 1 and not anew:
            previous = restore_detector(self.state.stage_file(task - 1, "model"))
            before = restore_detector(self.state.stage_file(task - 2, "model")).state() if task > 2 else self.theta_0
        known = classes if anew else self.series.classes_until(task)
        trained, labelled, other = self._trained_on(task, images, previous, folder)
        data = write_training_set(
            trained, labelled, known, folder / "data", other, self.source.section.unlabelled_images
        )
        own = own_labels(images, classes, self.source.section.unlabelled_images)
        fisher = weighs_by_fisher(self.config)
        shared = self.start.split(method.towers == "shared").shared
        return StageInput(
            task=task,
            classes=classes,
            data=data,
            images=own,
            folder=folder / "train",
            statistics=colour_statistics(own),
            past=self._past_statistics(task),
            base={key: self.theta_0[key] for key in shared},
            previous=previous,
            before_previous=before,
            fisher=restore_tensors(self.state.stage_file(task - 1, "fisher")) if task > 1 and fisher else None,
        )

    def _trained_on(
        self, task: int, images: Sequence[LabelledImage], previous: Detector | None, folder: Path
    ) -> tuple[Sequence[LabelledImage], tuple[str, ...], Literal["error", "drop"]]:
        """Images of a stage, the classes whose labels count, and what happens to labels of others."""
        method, classes = self.config.method, self.series.tasks[task - 1].classes
        if previous is None or (method.pseudo_labels is None and method.exemplars is None):
            return images, classes, self.source.section.other_labels
        trained = own_labels(images, classes, self.source.section.unlabelled_images)
        if method.pseudo_labels is not None:
            known = self.series.classes_until(task)
            trained = label_by_teacher(trained, known, previous, self.config, folder, self.monitor)
        if method.exemplars is not None:
            earlier = [(item.domain, item.classes) for item in self.series.tasks[: task - 1]]
            kept = {domain: self.domains[domain].train() for domain, _ in earlier}
            trained = [*trained, *exemplars(kept, earlier, method.exemplars, self.config.seed)]
        return trained, self.series.classes_until(task), "drop"

    def _close_stage(
        self,
        task: int,
        statistics: DomainStatistics,
        result: StageResult,
        folder: Path,
        reference: dict[str, Any],
        data: TrainingSet | None = None,
    ) -> None:
        started = time.perf_counter()
        scores = self._scores(result.detector, f"evaluate stage {task}")
        timing = {**result.seconds, "evaluate": time.perf_counter() - started}
        slices = self.series.slices(task) if task else ()
        entry = stage_entry(task, self.series, slices, scores, result.merge, result.losses, timing)
        files = {
            "model": folder / "model.safetensors",
            "metrics": folder / "metrics.json",
            "examples": folder / "examples.json",
            "detections": folder / "detections.safetensors",
        }
        store_detector(result.detector, files["model"])
        if result.fisher is not None:
            files["fisher"] = folder / "fisher.safetensors"
            store_tensors(result.fisher, files["fisher"])
        write_json(files["examples"], example_detections(scores, self.tests))
        found = {name: [scores[name].detections[image.path] for image in self.tests[name]] for name in scores}
        store_detections(found, self.series.classes, files["detections"])
        training = {"images": data.images, "boxes": data.boxes} if data else None
        write_json(files["metrics"], {"stage": entry, "statistics": asdict(statistics), "training": training})
        shutil.rmtree(folder / "data", ignore_errors=True)
        shutil.rmtree(folder / "train" / "weights", ignore_errors=True)
        self.state.finish_stage(files)
        self.outputs.write_artefact()
        document = self.outputs.write_results(reference)
        self.loggers.finish(self.state.finished_stages, document)
        self.monitor.show(stage_table(document, task))

    def _joint_stage(self, digests: Mapping[str, str], reference: dict[str, Any]) -> None:
        trained = self._trainer(digests).joint()
        losses = [dict(epoch) for epoch in trained.outcome.losses]
        result = StageResult(trained.detector, losses, None, {"train": trained.outcome.seconds})
        statistics = DomainStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self._close_stage(0, statistics, result, self.out / "stages" / "joint", reference)

    def _scores(self, detector: Detector, title: str) -> dict[str, DomainScores]:
        scores = {}
        if self.config.method.committee:
            earlier = range(1, self.state.finished_stages + 1)
            detector = Committee([*(restore_detector(self.state.stage_file(n, "model")) for n in earlier), detector])
        for name in self.series.test_domains:
            self.monitor.begin(f"{title}: {name}", len(self.tests[name]))
            scores[name] = score_domain(
                detector,
                name,
                self.tests[name],
                self.series.classes,
                self.config.train.image_size,
                self.config.evaluation,
                lambda done, total: self.monitor.advance(done),
            )
        return scores

    def _reference(self, digests: Mapping[str, str]) -> dict[str, Any]:
        path = self.state.kept("reference.json")
        if path is not None:
            return read_json(path)
        path = self.out / "reference.json"
        scores = score_references(self._trainer(digests), self.tests)
        store_detections(scores.detections, self.series.classes, self.out / REFERENCE_FILE)
        write_json(path, {"reference": scores.entry, "seconds": scores.seconds})
        self.state.keep(path.name)
        return read_json(path)

    def _trainer(self, digests: Mapping[str, str]) -> SharedTrainer:
        return SharedTrainer(
            self.source, self.domains, digests, self.config, self.start, self.start_digest, self.monitor
        )

    def _data_digests(self) -> dict[str, str]:
        path = self.state.kept("data.json")
        if path is not None:
            return read_json(path)
        digests = {name: content_digest(self.domains[name].train()) for name in self.series.domains}
        write_json(self.out / "data.json", digests)
        self.state.keep("data.json")
        return digests

    def _past_statistics(self, task: int) -> tuple[DomainStatistics, ...]:
        found = []
        for number in range(1, task):
            values = read_json(self.state.stage_file(number, "metrics"))["statistics"]
            found.append(DomainStatistics(tuple(values["mean"]), tuple(values["std"])))
        return tuple(found)

    def _write_progress(self, what: str, done: int, total: int) -> None:
        if done == 1:
            self.monitor.begin(what, total)
        self.monitor.advance(done)

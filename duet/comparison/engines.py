"""Where cells run: processes on this machine, or a Ray cluster. Both run the same worker."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from duet.comparison.worker import Job, job_values, launch
from duet.errors import InputError

ENGINES = ("local", "ray")
SECONDS_TO_END = 10


class Engine(Protocol):
    """Runs jobs, ``slots`` at a time."""

    slots: int

    def start(self, job: Job) -> Any:
        """Start a job and return its handle."""

    def ended(self, handles: Sequence[Any], seconds: float) -> list[tuple[Any, int]]:
        """Those of the handles that ended within so many seconds, with their exit codes."""

    def stop(self) -> None:
        """End every job that runs."""


class LocalEngine:
    """Processes on this machine.

    Args:
        slots: how many at a time.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pool = ThreadPoolExecutor(slots)
        self._processes: list[subprocess.Popen] = []
        self._guard = threading.Lock()

    def start(self, job: Job) -> Future:
        """Start a process; the returned future gives its exit code."""
        return self._pool.submit(launch, job_values(job), self._remember)

    def ended(self, handles: Sequence[Future], seconds: float) -> list[tuple[Future, int]]:
        """Wait for the first to end."""
        done, _ = wait(handles, timeout=seconds, return_when=FIRST_COMPLETED)
        return [(handle, handle.result()) for handle in handles if handle in done]

    def stop(self) -> None:
        """Ask the processes to end, then make them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._guard:
            running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()

    def _remember(self, process: subprocess.Popen) -> None:
        with self._guard:
            self._processes = [known for known in self._processes if known.poll() is None]
            self._processes.append(process)


class RayEngine:
    """A Ray cluster; its machines share the disk of the grid's folder and have this package installed.

    Args:
        slots: how many at a time; None takes what the cluster's processors (or cards) allow.
        cpus: processors that a job takes.
        gpus: graphics cards that a job takes.
        address: of the cluster; None takes the one of the environment, or starts one on this machine.

    Raises:
        InputError: when Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, slots: int | None, cpus: int, gpus: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("--engine ray needs the package ray: pip install 'duet-detection[ray]'") from error
        self._ray = ray
        try:
            # On a cluster of our own, as many processors as the slots ask for.
            own = {"num_cpus": slots * cpus} if slots is not None and address is None else {}
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"Ray cluster {address or 'on this machine'}: {str(error).splitlines()[0]}") from error
        have = ray.cluster_resources()
        fit = int(min(have.get("CPU", 0) // cpus, have.get("GPU", 0) // gpus if gpus else float("inf")))
        if fit < 1:
            ray.shutdown()
            raise InputError(f"Ray cluster: no room for a job of {cpus} processors and {gpus} graphics cards")
        self.slots = fit if slots is None else min(slots, fit)
        self._launch = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(launch)

    def start(self, job: Job) -> Any:
        """Hand the job to the cluster."""
        return self._launch.remote(job_values(job))

    def ended(self, handles: Sequence[Any], seconds: float) -> list[tuple[Any, int]]:
        """Wait for the first to end; a machine that died ends its job with code 1."""
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=seconds)
        return [(handle, self._code(handle)) for handle in done]

    def stop(self) -> None:
        """Leave the cluster; its workers end with the tasks that started them."""
        with contextlib.suppress(Exception):
            self._ray.shutdown()

    def _code(self, handle: Any) -> int:
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayError:
            return 1


def make_engine(name: str, settings: Mapping[str, Any]) -> Engine:
    """An engine by its name.

    Args:
        name: ``local`` or ``ray``.
        settings: ``slots`` (None: the engine decides), ``cpus``, ``gpus``, ``address``.

    Raises:
        InputError: when the name is unknown or the engine cannot be had.
    """
    refuse_unknown_engine(name)
    if name == "local":
        return LocalEngine(settings["slots"] or 1)
    return RayEngine(settings["slots"], settings["cpus"], settings["gpus"], settings.get("address"))


def refuse_unknown_engine(name: str) -> None:
    """Refuse what :func:`make_engine` does not know.

    Raises:
        InputError: naming the engines.
    """
    if name not in ENGINES:
        raise InputError(f"--engine is '{name}': expected {' or '.join(ENGINES)}")

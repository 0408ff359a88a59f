"""Several processes that train a stage together: torchrun starts them, the first one leads.

The leader runs the application as a single process would: it alone reads and writes the run folder, merges, evaluates
and shows progress. For every training it hands the others a job with all that the training needs, the merged weights
included, and they take part in it. So nothing but a training knows of them.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from duet.config import TrainSettings
from duet.errors import InputError

Result = TypeVar("Result")

BETWEEN_JOBS = timedelta(days=30)  # the others wait while the leader merges and evaluates
WITHIN_A_STEP = timedelta(hours=3)  # as Ultralytics allows


class NeedsProcesses(Exception):
    """The command has to be started again as several processes.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"needs {count} processes; torchrun --nproc_per_node {count} starts them")
        self.count = count


def started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process; the leader is 0."""
    return int(os.environ.get("RANK", "0"))


def forget_a_single_process() -> None:
    """Make a process that torchrun started alone an ordinary one; to be called before Ultralytics is imported."""
    if started() == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)


def lead(train: TrainSettings, work: Callable[[], Result]) -> Result | None:
    """Do the work in the leader while the other processes take part in its trainings.

    Args:
        train: settings of the trainings.
        work: what a single process would do.

    Returns:
        What ``work`` returns; None in the other processes, when the leader is done.

    Raises:
        InputError: when processes, devices and batch do not fit together.
        NeedsProcesses: when there is one process and there have to be more.
    """
    _refuse_misfit(train)
    if train.process_count == 1:
        return work()
    if started() == 1:
        raise NeedsProcesses(train.process_count)
    control = _join(train.device)
    if rank() > 0:
        return _follow(control)
    result = work()
    _send(None, control)
    distributed.destroy_process_group()
    return result


def run_together(job: Callable[[], Result], for_others: Callable[[], object]) -> Result:
    """Run a job in this process and its counterpart in the others; only the leader calls this.

    Args:
        job: what this process does; it may use the process group.
        for_others: what the others do; it is pickled.

    Raises:
        RuntimeError: when a process ended meanwhile.
    """
    control = _control.get("group")
    if control is None:
        return job()
    try:
        _send(for_others, control)
        return job()
    except RuntimeError as error:
        if any(word in str(error).lower() for word in ("gloo", "nccl", "connection closed")):
            raise RuntimeError("another process of this run ended during a training") from error
        raise


def refuse_other_count(train: TrainSettings) -> None:
    """Refuse to train in fewer or more processes than the settings say: other numbers would come out.

    Raises:
        InputError: naming both counts.
    """
    running = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if running != train.process_count:
        raise InputError(
            f"the settings ask for {train.process_count} processes, but this training has {running}; "
            f"`duet train` starts as many, or torchrun --nproc_per_node {train.process_count}"
        )


def threads_of(train: TrainSettings) -> int:
    """CPU threads of each process: as set, or an equal share of the cores that this one may use."""
    return train.threads or max(usable_cores() // train.process_count, 1)


def usable_cores() -> int:
    """Cores that this process may run on; schedulers and containers may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def average(values: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their means over the processes, in place; values that are equal everywhere stay to the bit."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    for value in values:
        first = value.clone()
        distributed.broadcast(first, src=0)
        value -= first
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
        value += first


def add_up(values: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their sums over the processes, in place."""
    if distributed.is_available() and distributed.is_initialized():
        for value in values:
            distributed.all_reduce(value)


def is_first_to_fail() -> bool:
    """Whether no other process has asked this before: the first one to fail says why, the others follow it silently."""
    if started() == 1:
        return True
    try:
        return _store().add("failures", 1) == 1
    except RuntimeError:  # whoever kept the count is gone already
        return rank() == 0


def launch(count: int, arguments: Sequence[str]) -> int:
    """Start the command again as several processes of this machine and wait for them.

    Args:
        count: how many.
        arguments: of the ``duet`` command.

    Returns:
        Its exit code: of the first process that failed, else 0.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the process itself said why it failed
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "duet.cli", *arguments)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    return 0


_control: dict[str, distributed.ProcessGroup] = {}


def _join(device: str) -> distributed.ProcessGroup:
    """Join the process group; its own collectives use the devices, a second group on CPUs carries the jobs."""
    devices = device.split(",")
    if len(devices) > 1:
        torch.cuda.set_device(int(devices[int(os.environ["LOCAL_RANK"])]))
    distributed.init_process_group(
        "nccl" if len(devices) > 1 else "gloo",
        store=distributed.PrefixStore("group", _store()),
        rank=rank(),
        world_size=started(),
        timeout=WITHIN_A_STEP,
    )
    _control["group"] = distributed.new_group(backend="gloo", timeout=BETWEEN_JOBS)
    return _control["group"]


@functools.cache
def _store() -> distributed.Store:
    store, _, _ = next(iter(distributed.rendezvous("env://", rank(), started())))
    return distributed.PrefixStore("duet", store)


def _follow(control: distributed.ProcessGroup) -> None:
    while True:
        received: list[Callable[[], object] | None] = [None]
        distributed.broadcast_object_list(received, src=0, group=control)
        if received[0] is None:
            break
        received[0]()
    distributed.destroy_process_group()


def _send(job: Callable[[], object] | None, control: distributed.ProcessGroup) -> None:
    distributed.broadcast_object_list([job], src=0, group=control)


def _refuse_misfit(train: TrainSettings) -> None:
    devices, count = train.device.split(","), train.process_count
    if len(devices) > 1:
        if len(set(devices)) < len(devices):
            raise InputError(f"train.device is '{train.device}': a device is named twice")
        if train.processes not in (1, len(devices)):
            raise InputError(f"train.processes is {train.processes}, but train.device names {len(devices)} devices")
        if max(map(int, devices)) >= torch.cuda.device_count():
            raise InputError(
                f"train.device is '{train.device}', but this machine has {torch.cuda.device_count()} CUDA devices"
            )
    elif count > 1 and train.device != "cpu":
        raise InputError(f"{count} processes need train.device cpu or a list of {count} devices, not '{train.device}'")
    if train.batch % count:
        raise InputError(f"train.batch is {train.batch}: {count} processes cannot share it equally")
    if started() > 1 and started() != count:
        raise InputError(
            f"train.processes and train.device ask for {count} processes, but torchrun started {started()}"
        )


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code  # ended by a signal

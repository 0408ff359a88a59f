"""Ultralytics' data-parallel training inside a process group that exists already, on CPUs too.

Ultralytics opens a process group of its own for each training and only knows accelerators: on CPUs it would train the
same model in every process. What is replaced is that opening and, on CPUs, the wrapping of the network; sampling,
division of the batch, loss scale and the averaging of gradients are Ultralytics' and torch's own.

BatchNorm: each process normalises by its own part of the batch, as Ultralytics does; the running statistics that are
kept are the means over the processes (Ultralytics keeps the first process's).
"""

from __future__ import annotations

import gc
import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ultralytics.utils import DEFAULT_CFG, RANK
from ultralytics.utils.torch_utils import TORCH_2_13, get_torch_device_backend, unwrap_model

from duet import processes


class ProcessGroupTraining:
    """Comes before an Ultralytics trainer's class; in a single process it changes nothing."""

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None) -> None:
        super().__init__(cfg, overrides, _callbacks)
        self.processes = 1 if RANK == -1 else processes.started()

    def loss_factor(self) -> float:
        """Factor of a process's loss.

        Ultralytics multiplies it by the number of processes, and averaging the gradients divides by it again: what is
        stepped on is the sum over processes. That is right for losses that are sums over images; for one that is a mean
        over them this factor makes it the mean again (Ultralytics leaves it a sum). Terms that do not depend on images
        at all, as directional consistency, then count once.
        """
        return 1.0 / self.processes

    def stay_alone(self) -> None:
        """Compute in this process without wrapping the network; to be called before the training is set up."""
        if self.world_size > 1:
            self._setup_ddp()
        self.world_size = self.processes = 1

    def _setup_ddp(self) -> None:
        index = int(self.args.device.split(",")[int(os.environ["LOCAL_RANK"])])
        self.device = torch.device("cuda", index)
        self.accelerator = get_torch_device_backend(self.device)
        self.accelerator.set_device(index)

    def _setup_train(self) -> None:
        if self._shares_cpus:
            self.args.amp = False  # as in a single process on a CPU; only the first would find out by itself
            self.world_size = 1  # until the network is wrapped here instead
        super()._setup_train()

    def _build_train_pipeline(self) -> None:
        if self._shares_cpus:
            self.world_size = self.processes
            buffers = {"forward_sync_buffers" if TORCH_2_13 else "broadcast_buffers": False}
            self.model = DistributedDataParallel(self.model, find_unused_parameters=True, **buffers)
        super()._build_train_pipeline()

    @property
    def _shares_cpus(self) -> bool:
        return self.processes > 1 and self.device.type == "cpu"


def whole_network(trainer: ProcessGroupTraining) -> nn.Module:
    """The averaged (EMA) network of a finished training, with the BatchNorm statistics of all processes.

    The trained network itself is freed from its wrapping.
    """
    network = trainer.ema.ema
    if trainer.processes > 1:
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        processes.average([value for norm in norms for value in (norm.running_mean, norm.running_var)])
        trainer.model = unwrap_model(trainer.model)
        gc.collect()  # torch's wrapper hangs on to the parameters until it is gone
    return network

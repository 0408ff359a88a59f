"""Reading the models of a merge block by block, in float64, on several threads."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from merging.plan import MergePlan
from merging.sources import TensorSource

# PyTorch runs operations on fewer than 32,768 scalars on the calling thread, so that results depend neither on its
# thread count nor on ours, and a block of every model stays in the processor's cache. (Boolean indexing is the
# exception, hence NumPy's where it is needed.) DARE's masks are defined per block.
BLOCK = 32_000
_BATCH = 8
_ALONE = 1 << 22

Progress = Callable[[str, int, int], None]
Result = TypeVar("Result")


class Range(NamedTuple):
    """Scalars ``[start, stop)`` of one flattened tensor."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True)
class Inputs:
    """The models of one merge, as its arithmetic sees them.

    All arithmetic is in float64, whatever the stored dtype: with float32 differences base + (model − base) would not
    return the model.

    Args:
        base: the common ancestor.
        models: the models to merge, in order.
        plan: what fits.
        keys: the keys the method itself merges: ``plan.merged``, without BatchNorm statistics where another policy
            treats these.
        workers: number of threads; ``None`` chooses one for small models, else one per processor, at most four.
        progress: called with the name of the phase, the scalars done and the scalars in total.
    """

    base: TensorSource
    models: tuple[TensorSource, ...]
    plan: MergePlan
    keys: tuple[str, ...]
    workers: int | None = None
    progress: Progress | None = None

    def ranges(self, keys: Iterable[str]) -> list[Range]:
        """The blocks of the given tensors, in order; none for an empty tensor."""
        return [
            Range(key, start, min(start + BLOCK, size))
            for key in keys
            for size in (self.plan.specs[key].numel,)
            for start in range(0, size, BLOCK)
        ]

    def read(self, source: TensorSource, at: Range, check: bool = True) -> Tensor:
        """One block of one model as float64, ``(stop - start,)``; a new tensor.

        Args:
            source: the model.
            at: the block.
            check: whether to look for NaN and infinity; needless where either would show in the merged block.

        Returns:
            The block.

        Raises:
            ValueError: when it holds NaN or infinity.
        """
        block = source.read(*at).to(torch.float64, copy=True)
        if not check:
            return block
        # The sum is non-finite whenever an entry is, and far cheaper than looking at each; it may also overflow.
        if not math.isfinite(block.sum().item()) and not block.isfinite().all():
            value = block[~block.isfinite()][0].item()
            raise ValueError(f"{source.name}: '{at.key}' holds {value}; expected finite numbers only")
        return block

    def read_base(self, at: Range, check: bool = True) -> Tensor:
        """One block of the base, float64."""
        return self.read(self.base, at, check)

    def read_models(self, at: Range, check: bool = True) -> list[Tensor]:
        """The same block of every model, float64."""
        return [self.read(model, at, check) for model in self.models]

    def task_vectors(self, at: Range) -> list[Tensor]:
        """The same block of every task vector θ_k − θ_0, float64."""
        base = self.read_base(at)
        return [block.sub_(base) for block in self.read_models(at)]

    def each(
        self, work: Callable[[Range], Result], ranges: Sequence[Range], phase: str
    ) -> Iterator[tuple[Range, Result]]:
        """Run ``work`` on every block, on several threads; blocks and results come in the order of the blocks."""
        total = sum(at.stop - at.start for at in ranges)
        done = 0
        for batch, results in _in_order(work, ranges, self._threads(total)):
            done += sum(at.stop - at.start for at in batch)
            if self.progress:
                self.progress(phase, done, total)
            yield from zip(batch, results)

    def sums(self, work: Callable[[Range], Sequence[float]], keys: Iterable[str], phase: str) -> dict[str, list[float]]:
        """Add up numbers over the blocks of each tensor, correctly rounded, hence in any order.

        Args:
            work: gives the numbers of one block, always as many.
            keys: the tensors.
            phase: name for the progress.

        Returns:
            key → sums; no entry for an empty tensor.
        """
        parts: dict[str, list[Sequence[float]]] = {}
        for at, numbers in self.each(work, self.ranges(keys), phase):
            parts.setdefault(at.key, []).append(numbers)
        return {key: [math.fsum(column) for column in zip(*rows)] for key, rows in parts.items()}

    def _threads(self, scalars: int) -> int:
        if self.workers is not None:
            return self.workers
        return 1 if scalars < _ALONE else min(4, os.cpu_count() or 1)


def _in_order(
    work: Callable[[Range], Result], ranges: Sequence[Range], threads: int
) -> Iterator[tuple[Sequence[Range], list[Result]]]:
    batches = [ranges[start : start + _BATCH] for start in range(0, len(ranges), _BATCH)]

    def run(batch: Sequence[Range]) -> list[Result]:
        with torch.inference_mode():
            return [work(at) for at in batch]

    if threads == 1:
        yield from ((batch, run(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(run, batch)))
                if len(waiting) > 2 * threads:  # bounds the blocks in memory
                    batch, future = waiting.popleft()
                    yield batch, future.result()
            for batch, future in waiting:
                yield batch, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

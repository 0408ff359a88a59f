"""The k-th smallest magnitude of a model too large to sort: exact, in passes over blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merging.blocks import Inputs, Range

# A magnitude rounded to float32 keeps its order. The upper 17 of its 31 bits (8 exponent, 9 mantissa) number the bins
# of the first pass, the lower 14 those of the second.
_LOW_BITS = 14
_BINS = 1 << 17
# More values than this in the wanted bin are counted once more, by the lower bits, before any is stored.
_CROWD = 1 << 20
# So many stored values may wait to be joined with equal ones.
_WAITING = 1 << 18

Vectors = Callable[[Range], Sequence[Tensor]]


def kth_smallest_magnitudes(inputs: Inputs, vectors: Vectors, keys: Iterable[str], ranks: Sequence[int]) -> list[float]:
    """The k-th smallest |value| of several long vectors, exactly that of a full sort.

    The first pass counts magnitudes in bins of relative width 2⁻⁹. The second stores those of the bin that holds the
    k-th and sorts them; where that bin is crowded, a pass in between narrows it to magnitudes that are equal when
    rounded to float32. Equal values are stored once with their count.

    Args:
        inputs: gives the blocks and the threads.
        vectors: the vectors' values in a range, float64, finite; may be changed afterwards.
        keys: the tensors that make up the vectors.
        ranks: k per vector, from 1 to the number of scalars.

    Returns:
        The k-th smallest magnitude of each vector.
    """
    ranges = inputs.ranges(keys)
    searches = [_Search(rank) for rank in ranks]
    _pass(inputs, vectors, ranges, searches, "threshold: count")
    for search in searches:
        search.choose_bin()
    crowded = [search for search in searches if search.size > _CROWD]
    if crowded:
        _pass(inputs, vectors, ranges, searches, "threshold: refine")
        for search in crowded:
            search.choose_bin()
    for search in searches:
        search.start_storing()
    _pass(inputs, vectors, ranges, searches, "threshold: select")
    return [search.value() for search in searches]


@dataclass
class _Bins:
    """Counts of magnitudes by some bits of their float32 rounding."""

    low: int  # smallest bit pattern of the first bin
    shift: int
    counts: np.ndarray


class _Search:
    """The search for one vector's k-th smallest magnitude."""

    def __init__(self, rank: int) -> None:
        self._rank = rank  # among the candidates
        self._low, self._high = 0, 1 << 31  # the candidates' bit patterns, half open
        self._bins: _Bins | None = _Bins(0, _LOW_BITS, np.zeros(_BINS, dtype=np.int64))
        self._stored: _Multiset | None = None
        self._lock = threading.Lock()
        self.size = 0

    def see(self, magnitudes: Tensor) -> None:
        """Take one block of magnitudes into account, in whichever way this pass asks for."""
        if self._bins is None and self._stored is None:
            return
        bits, values = magnitudes.to(torch.float32).view(torch.int32).numpy(), magnitudes.numpy()
        if self._high - self._low < 1 << 31:
            inside = (bits >= self._low) & (bits < self._high)
            bits, values = bits[inside], values[inside]
        if not len(bits):
            return
        if self._stored is not None:
            with self._lock:
                self._stored.add(torch.from_numpy(values))
        else:
            self._count(bits)

    def choose_bin(self) -> None:
        """Narrow the candidates to the bin that holds the k-th."""
        bins = self._bins
        assert bins is not None
        above = np.cumsum(bins.counts)
        index = int(np.searchsorted(above, self._rank))
        self._rank -= int(above[index - 1]) if index else 0
        self.size = int(bins.counts[index])
        self._low = bins.low + (index << bins.shift)
        self._high = self._low + (1 << bins.shift)
        crowded = bins.shift > 0 and self.size > _CROWD
        self._bins = _Bins(self._low, 0, np.zeros(1 << bins.shift, dtype=np.int64)) if crowded else None

    def start_storing(self) -> None:
        """From now on keep the candidates themselves."""
        self._stored = _Multiset()

    def value(self) -> float:
        """The k-th smallest magnitude."""
        assert self._stored is not None
        return self._stored.kth(self._rank)

    def _count(self, bits: np.ndarray) -> None:
        bins = self._bins
        assert bins is not None
        index = (bits - bins.low) >> bins.shift
        first = int(index.min())
        counts = np.bincount(index - first)
        with self._lock:
            bins.counts[first : first + len(counts)] += counts


class _Multiset:
    """Values with their counts; equal ones are joined whenever many have come.

    Values are copied into one buffer: kept as small tensors, each would split a freed block of memory, which then could
    not serve the next block.
    """

    def __init__(self) -> None:
        self._values = torch.empty(0, dtype=torch.float64)
        self._counts = torch.empty(0, dtype=torch.int64)
        self._buffer = torch.empty(_WAITING, dtype=torch.float64)
        self._filled = 0
        self._alike: dict[float, int] = {}

    def add(self, values: Tensor) -> None:
        low, high = (bound.item() for bound in torch.aminmax(values))
        if low == high:  # a crowded bin is mostly one value
            self._alike[low] = self._alike.get(low, 0) + len(values)
            return
        for part in values.split(_WAITING):
            if self._filled + len(part) > _WAITING:
                self._join()
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)

    def kth(self, rank: int) -> float:
        self._join()
        index = int(torch.searchsorted(torch.cumsum(self._counts, 0), rank))
        return self._values[index].item()

    def _join(self) -> None:
        alike = torch.tensor(list(self._alike), dtype=torch.float64)
        values = torch.cat([self._values, self._buffer[: self._filled], alike])
        ones = torch.ones(self._filled, dtype=torch.int64)
        counts = torch.cat([self._counts, ones, torch.tensor(list(self._alike.values()), dtype=torch.int64)])
        self._values, place = torch.unique(values, return_inverse=True)
        self._counts = torch.zeros(len(self._values), dtype=torch.int64).index_add_(0, place, counts)
        self._filled = 0
        self._alike.clear()


def _pass(inputs: Inputs, vectors: Vectors, ranges: Sequence[Range], searches: Sequence[_Search], phase: str) -> None:
    def see(at: Range) -> None:
        for search, vector in zip(searches, vectors(at)):
            search.see(vector.abs())

    for _ in inputs.each(see, ranges, phase):
        pass

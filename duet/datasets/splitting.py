"""Seeded splits of a data set into train, val and test, written as lists of image names."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from duet.datasets.dataset_folder import DatasetFolder
from duet.datasets.faults import refuse
from duet.datasets.readers import open_reader
from duet.datasets.source import Source
from duet.errors import InputError
from duet.state import write_text


def split_names(names: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Divide names at random; the result depends on the names, the shares and the seed alone.

    Args:
        names: in any order, without duplicates.
        shares: part of each split; they add up to 1, and a split of 0 is left out.
        seed: of the shuffle.

    Raises:
        InputError: when the shares do not add up to 1, or a split would stay empty.
    """
    wanted = {split: share for split, share in shares.items() if share}
    if min(wanted.values(), default=0) < 0 or not abs(sum(wanted.values()) - 1) <= 1e-6:  # NaN is not
        text = ", ".join(f"{split} {share:g}" for split, share in shares.items())
        raise InputError(f"shares of the splits: expected numbers from 0 that add up to 1, found {text}")
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    divided, start, total = {}, 0, 0.0
    for split, share in wanted.items():
        total += share
        end = round(total * len(shuffled))
        if end == start:
            raise InputError(f"split '{split}' of {len(shuffled)} images would hold none")
        divided[split], start = sorted(shuffled[start:end]), end
    return divided


def write_split(
    dataset: DatasetFolder, shares: Mapping[str, float], seed: int, overwrite: bool, of: str | None = None
) -> dict[str, int]:
    """Write the lists where the formats look for them: ImageSets/Main for VOC, beside the labels for the others.

    Args:
        dataset: what to divide.
        shares: part of each split.
        seed: of the shuffle.
        overwrite: whether lists that are there may be replaced.
        of: divide this split alone: ``train`` becomes ``train-train`` and ``train-val``, and stays itself, so that
            settings can be chosen on training images.

    Returns:
        The number of images by split.

    Raises:
        InputError: when a data set that has its splits in folders is to be divided as a whole, there is no split of
            that name, or a list is there and may not be replaced.
    """
    if of is not None and of not in dataset.splits:
        raise InputError(f"{dataset.path}: no split '{of}'; it has {', '.join(dataset.splits)}")
    sources = list(dataset.splits.values()) if of is None else [dataset.splits[of]]
    if len({(source.images, source.labels) for source in sources}) > 1:
        raise InputError(f"{dataset.path}: its splits lie in folders of their own; --of names the one to divide")
    images, labels = sources[0].images, sources[0].labels
    listed = sources[0].listed if of is not None else None
    whole = open_reader(Source(dataset.format, images, labels, dataset.names, listed), refuse)
    folder = {"voc": images.parent / "ImageSets" / "Main", "coco": labels.parent, "yolo": images.parent}[dataset.format]
    divided = split_names(whole.images, shares, seed)
    lists = {split: folder / f"{split if of is None else f'{of}-{split}'}.txt" for split in shares}
    stale = [path for split, path in lists.items() if split not in divided and path.exists()]
    if stale:
        raise InputError(f"{stale[0]}: this earlier list would share images with the new ones; remove it first")
    files = {lists[split]: names for split, names in divided.items()}
    present = [path for path in files if path.exists()]
    if present and not overwrite:
        raise InputError(f"{present[0]}: there is such a list; --overwrite replaces it")
    for path, names in files.items():
        lines = [Path(name).stem if dataset.format == "voc" else Path(name).name for name in names]
        write_text(path, "".join(f"{line}\n" for line in lines))
    return {path.stem: len(names) for path, names in files.items()}

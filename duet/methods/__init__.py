"""The methods: one file each, one literal table."""

from duet.config import MethodSettings
from duet.errors import InputError, nearest
from duet.methods import (
    duet,
    duet_paper,
    erd,
    ewc,
    frozen,
    individual,
    joint,
    lwf,
    pseudo_label,
    replay,
    restart,
    sequential,
)

METHODS: dict[str, MethodSettings] = {
    "duet": duet.METHOD,
    "duet-paper": duet_paper.METHOD,
    "sequential": sequential.METHOD,
    "frozen": frozen.METHOD,
    "lwf": lwf.METHOD,
    "erd": erd.METHOD,
    "ewc": ewc.METHOD,
    "pseudo-label": pseudo_label.METHOD,
    "replay": replay.METHOD,
    "individual": individual.METHOD,
    "restart": restart.METHOD,
    "joint": joint.METHOD,
}


def method_settings(name: str) -> MethodSettings:
    """The settings of a method by its name.

    Raises:
        InputError: naming the nearest known method.
    """
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'" + nearest(name, METHODS))
    return METHODS[name]

"""Provisional first methods."""

from __future__ import annotations

import difflib
import inspect
import math

import torch

from merging.layers import is_statistic, layer_of
from merging.result import MergeResult


def _check(base, models):
    if not models:
        raise ValueError("expected at least one model, got none")
    for i, m in enumerate(models):
        missing = [k for k in base if k not in m] + [k for k in m if k not in base]
        if missing:
            raise ValueError(f"model {i + 1} and the base differ in '{missing[0]}'")
        for k in base:
            if m[k].shape != base[k].shape:
                raise ValueError(
                    f"'{k}' has shape {tuple(m[k].shape)} in model {i + 1}, {tuple(base[k].shape)} in the base"
                )


def weight_averaging(base, models, *, weights=None):
    _check(base, models)
    w = [1.0] * len(models) if weights is None else list(weights)
    out = {}
    for k, b in base.items():
        if not b.is_floating_point():
            out[k] = b.detach().clone()
            continue
        ts = [m[k].detach().double() for m in models]
        mean = sum(wi * t for wi, t in zip(w, ts)) / sum(w)
        st = torch.stack(ts)
        out[k] = mean.clamp(st.amin(0), st.amax(0)).to(b.dtype)
    return MergeResult(out, {"method": "averaging"})


def task_arithmetic(base, models, *, scaling_factor=0.3):
    _check(base, models)
    out = {}
    for k, b in base.items():
        if not b.is_floating_point():
            out[k] = b.detach().clone()
            continue
        b64 = b.detach().double()
        out[k] = (b64 + scaling_factor * sum(m[k].detach().double() - b64 for m in models)).to(b.dtype)
    return MergeResult(out, {"method": "task_arithmetic"})


def duet_merging(base, models, *, gamma=0.1, alpha_base=0.5, epsilon=1e-8, scope="layer"):
    _check(base, models)
    if len(models) != 2:
        raise ValueError(f"DuET merges exactly two models (previous, current), got {len(models)}")
    previous, current = models
    groups = {}
    for k, b in base.items():
        if b.is_floating_point():
            groups.setdefault(layer_of(k) if scope == "layer" else k, []).append(k)
    coefficients = {}
    for name, keys in groups.items():
        basis = [k for k in keys if not is_statistic(k)] or keys
        old = cur = both = 0.0
        for k in basis:
            b = base[k].detach().double()
            o, c = previous[k].detach().double() - b, current[k].detach().double() - b
            old, cur, both = old + float(o.abs().sum()), cur + float(c.abs().sum()), both + float((o + c).abs().sum())
        p = (old - cur) / (both + epsilon)
        coefficients[name] = alpha_base + max(-gamma, min(gamma, gamma * math.tanh(p)))
    out = {}
    for k, b in base.items():
        if not b.is_floating_point():
            out[k] = current[k].detach().clone()
            continue
        o, c = previous[k].detach().double(), current[k].detach().double()
        beta = 1.0 - coefficients[layer_of(k) if scope == "layer" else k]
        out[k] = (o + beta * (c - o)).to(b.dtype)
    return MergeResult(out, {"method": "duet"}, coefficients)


METHODS = {"averaging": weight_averaging, "task_arithmetic": task_arithmetic, "duet": duet_merging}


def merge(method, base, models, **options):
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1)
        raise ValueError(f"unknown method '{method}'" + (f", did you mean '{near[0]}'?" if near else ""))
    known = inspect.signature(METHODS[method]).parameters
    for o in options:
        if o not in known:
            near = difflib.get_close_matches(o, known, 1)
            raise ValueError(f"unknown option '{o}' of {method}" + (f", did you mean '{near[0]}'?" if near else ""))
    return METHODS[method](base, models, **options)

"""TargetProfile: what a class of devices can do. The built-in table is targets.toml, beside this file."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import sys
from collections.abc import Mapping

import msgspec

from edgekit.errors import NotFoundError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device class can do, keyed by its features and not by its board's name.

    Attributes:
        name: For example ``raspberry-pi-4``.
        title: For people.
        arch: ``aarch64``, ``x86_64`` or ``any``.
        runtimes: What it can run, the default first: ``litert``, ``onnxruntime``.
        providers: ONNX Runtime execution providers, the preferred first.
        cpu_features: As Linux names them (``asimddp`` is int8 dot product, ``asimdhp`` half precision arithmetic).
        memory_mib: Typical memory of the smallest member.
        precisions: Candidate precisions that it gains from or can run.
        speed: Throughput of one multiply-add relative to float32, by precision; for cost estimates.
        int8_symmetric: True where activations must have zero point 0 (TensorRT).
        free_batch: True where artifacts keep a free batch axis (servers); False means batch 1.
        agent: False where edgekit-agent cannot run.
    """

    name: str
    title: str
    arch: str
    runtimes: tuple[str, ...]
    memory_mib: int
    precisions: tuple[str, ...]
    speed: dict[str, float]
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    cpu_features: tuple[str, ...] = ()
    int8_symmetric: bool = False
    free_batch: bool = False
    agent: bool = True


def find_target(name: str, table: Mapping[str, TargetProfile]) -> TargetProfile:
    """The profile called `name`.

    Raises:
        NotFoundError: there is none; names the nearest.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise NotFoundError(f"there is no target {name!r}", advice=f"{hint}`edgekit targets` lists them.")


def parse_targets(text: str) -> dict[str, TargetProfile]:
    """Profiles of a TOML table, by name.

    Raises:
        msgspec.ValidationError: a profile lacks a field, has an unknown one or an ill-typed one.
    """
    return {
        name: msgspec.convert({"name": name, **values}, TargetProfile) for name, values in tomllib.loads(text).items()
    }


@functools.lru_cache(maxsize=1)
def builtin_targets() -> Mapping[str, TargetProfile]:
    """The profiles that edgekit ships, by name: constants that are kept as TOML beside this module."""
    return parse_targets(importlib.resources.files("edgekit").joinpath("targets.toml").read_text(encoding="utf-8"))

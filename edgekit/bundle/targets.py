"""Target profiles: the abilities of device classes. The built-in table is targets.toml, beside this file."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import sys
from collections.abc import Mapping

import msgspec

from edgekit.bundle.recipe import PRECISIONS
from edgekit.errors import NotFoundError, SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class TargetProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Abilities of a device class, described by features and not by board names.

    Attributes:
        name: For example ``raspberry-pi-4``.
        title: Name for people.
        arch: ``aarch64``, ``x86_64`` or ``any``.
        runtimes: Runtimes of the class, the default first: ``litert``, ``onnxruntime``.
        providers: ONNX Runtime execution providers, the preferred first.
        cpu_features: Linux names (``asimddp`` is int8 dot product, ``asimdhp`` half precision arithmetic).
        memory_mib: Typical memory of the smallest device of the class.
        precisions: Precisions of the candidates for this class.
        speed: For an accelerator, the throughput of multiply-adds relative to float32, by precision. Empty for CPUs,
            whose cost follows from their features.
        int8_symmetric: True if activations must have zero point 0 (TensorRT).
        free_batch: True if artifacts keep a free batch axis (servers); False means batch 1.
        tensorrt: The oldest TensorRT of the class, for example ``8.5``; empty if there is none.
        accelerator: ``edgetpu`` or ``ethos-u55``, which run integer models with certain operators only; empty for none.
        agent: False if edgekit-agent cannot run on the class.
        core: The ARM core whose instructions are counted for this class, for example ``cortex-a53``; empty takes the
            Cortex-A76 where there is an int8 dot product, and the Cortex-A72 elsewhere.
    """

    name: str
    title: str
    arch: str
    runtimes: tuple[str, ...]
    memory_mib: int
    precisions: tuple[str, ...]
    speed: dict[str, float] = {}
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    cpu_features: tuple[str, ...] = ()
    int8_symmetric: bool = False
    free_batch: bool = False
    tensorrt: str = ""
    accelerator: str = ""
    agent: bool = True
    core: str = ""


def known_targets(text: str | None = None) -> Mapping[str, TargetProfile]:
    """The built-in profiles, extended or overridden by those of the TOML `text`. Raises as `parse_targets`."""
    return builtin_targets() if text is None else {**builtin_targets(), **parse_targets(text)}


def find_target(name: str, table: Mapping[str, TargetProfile]) -> TargetProfile:
    """The profile called `name`.

    Raises:
        NotFoundError: There is no such target; the advice names the nearest.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise NotFoundError(f"there is no target {name!r}", advice=f"{hint}`edgekit targets` lists them.")


def parse_targets(text: str) -> dict[str, TargetProfile]:
    """Parse target profiles from TOML, by name.

    Raises:
        SettingsError: The text is not TOML, or a field of a profile is missing, unknown or of a wrong type.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the target profiles are not valid TOML: {error}") from error
    profiles, faults = {}, []
    for name, values in tables.items():
        try:
            profiles[name] = _profile(name, values)
        except (msgspec.ValidationError, TypeError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise SettingsError("; ".join(faults), advice=f"A profile's keys are {', '.join(_KEYS)}.")
    return profiles


def _profile(name: str, values: object) -> TargetProfile:
    if not isinstance(values, dict):
        raise TypeError(f"value is {type(values).__name__}, expected a table")
    profile = msgspec.convert({"name": name, **values}, TargetProfile)
    unknown = [precision for precision in profile.precisions if precision not in PRECISIONS]
    if unknown or not profile.precisions:
        raise TypeError(f"precisions are {', '.join(unknown) or 'none'}, expected some of {', '.join(PRECISIONS)}")
    if not profile.runtimes:
        raise TypeError("runtimes is empty, expected at least one")
    return profile


_KEYS = tuple(field for field in TargetProfile.__struct_fields__ if field != "name")


@functools.lru_cache(maxsize=1)
def builtin_targets() -> Mapping[str, TargetProfile]:
    """The built-in profiles by name, from targets.toml beside this module."""
    return parse_targets(
        importlib.resources.files("edgekit.bundle").joinpath("targets.toml").read_text(encoding="utf-8")
    )

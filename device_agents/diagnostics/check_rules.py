"""Rules of `edgekit-agent check`: they judge given values and read nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from device_agents.control.renewal_rules import is_due, renewal_time
from device_agents.update.evidence_rules import Policy, refuses_start
from edgekit.bundle.evidence import Standing, made_with, standing_text
from edgekit.bundle.manifest import Manifest
from edgekit.errors import SettingsError, UnavailableError
from edgekit.preprocess import Processing, output_labels, raw_inputs
from edgekit.serving.oip.tensor_data import NAMES
from edgekit.tensors import DType, TensorSpec

TIER_CLOCK_SLACK_SECONDS = 300.0
CLOCK_SLACK_SECONDS = 24 * 3600.0
_FORMAT = "%Y-%m-%d %H:%M:%S UTC"


def judge_clock(now: float, traces: Mapping[str, float]) -> str:
    """Check the clock; a board without a battery starts in the past, where certificates are not valid yet.

    Args:
        now: Wall clock, seconds since 1970.
        traces: Events that have happened, such as the writing of a file, with their times.

    Returns:
        The time as text.

    Raises:
        UnavailableError: the clock is more than a day before one of the events.
    """
    text = time.strftime(_FORMAT, time.gmtime(now))
    for event, at in sorted(traces.items(), key=lambda trace: -trace[1]):
        if now < at - CLOCK_SLACK_SECONDS:
            raise UnavailableError(
                f"the clock says {text}, but {event} is dated {time.strftime(_FORMAT, time.gmtime(at))}.",
                advice="With a wrong clock no signature or certificate can be checked: set the clock, see timedatectl.",
            )
    return text


def states_interface(document: Mapping[str, Any]) -> bool:
    """True where a model's metadata names its tensors. Models of MLServer and KServe may leave them out."""
    return any(isinstance(document.get(kind), list) and document[kind] for kind in ("inputs", "outputs"))


def bytes_faults(document: Mapping[str, Any], processing: Processing, inputs: Sequence[TensorSpec]) -> list[str]:
    """Why the cloud tier's model cannot decode the bytes that clients of the device send; empty where it can.

    Args:
        document: The metadata that the cloud tier gave, unchecked: ``edgekit_bytes``, or inputs of the datatype BYTES.
        processing: The steps around the device's model.
        inputs: Logical inputs of the device's model.
    """
    kinds = {one["name"]: one.get("kind") for one in _tables(document, "edgekit_bytes") if "name" in one}
    plain = [one.get("name") for one in _tables(document, "inputs") if one.get("datatype") == NAMES[DType.BYTES]]
    faults = []
    for raw in raw_inputs(processing, inputs):
        if raw.name in kinds and kinds[raw.name] not in (None, raw.kind):
            faults.append(f"input {raw.name!r} takes {kinds[raw.name]} there, and {raw.kind} on the device")
        if raw.name not in kinds and raw.name not in plain:
            has = ", ".join(map(repr, [*kinds, *plain])) or "none"
            faults.append(f"input {raw.name!r} cannot be sent as bytes (cloud_inputs = original); it takes {has}")
    return faults + _label_faults(document, output_labels(processing))


def _label_faults(document: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> list[str]:
    """Classes in another order would be answered under wrong names, and nothing else would show it."""
    there = {one.get("name"): one.get("labels") for one in _tables(document, "edgekit_answers")}
    return [
        f"the classes of output {name!r} have other names or another order than the device's"
        for name, names in labels.items()
        if isinstance(there.get(name), list) and there[name] != list(names)
    ]


def _tables(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def interface_faults(
    document: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    decoded_there: Collection[str] = (),
) -> list[str]:
    """Where the cloud tier's model has another interface than the device's; empty where an answer can be used.

    Args:
        document: The metadata that the cloud tier gave, unchecked.
        inputs, outputs: Logical tensors of the device's model. Further outputs in the cloud tier do not matter.
        decoded_there: Inputs of the device's model that the cloud tier gets as bytes; then the tier's own inputs, which
            it fills from them, are not compared.
    """
    faults = []
    sent = [spec for spec in inputs if spec.name not in decoded_there]
    for kind, specs in (("input", sent), ("output", outputs)):
        there = {one.get("name"): one for one in _tables(document, f"{kind}s")}
        for spec in specs:
            if spec.name not in there:
                faults.append(f"{kind} {spec.name!r} is missing; it has {', '.join(map(repr, there)) or 'none'}")
                continue
            datatype, shape = there[spec.name].get("datatype"), there[spec.name].get("shape")
            if datatype != NAMES[spec.dtype]:
                faults.append(f"{kind} {spec.name!r} is {datatype}, the device's is {NAMES[spec.dtype]}")
            if not _fits(shape, spec.shape):
                faults.append(f"{kind} {spec.name!r} has the shape {shape}, the device's is {spec.shape_text}")
        if kind == "input" and not decoded_there:
            known = {spec.name for spec in specs}
            faults += [
                f"input {name!r} is needed there, and the device has none" for name in there if name not in known
            ]
    return faults


def _fits(stated: object, shape: Sequence[int | None]) -> bool:
    """False for another number of axes, or another size of an axis that is fixed on both sides."""
    if not isinstance(stated, list) or len(stated) != len(shape):
        return False
    return all(want is None or have in (-1, None, want) for have, want in zip(stated, shape, strict=True))


def clock_fault(date: str | None, now: float) -> str:
    """How far this clock is from the cloud tier's ``Date``; empty where it is near enough, or unknown."""
    if not date:
        return ""
    try:
        away = now - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return ""
    if abs(away) <= TIER_CLOCK_SLACK_SECONDS:
        return ""
    return f"this clock is {abs(away):.0f} s {'ahead of' if away > 0 else 'behind'} the cloud tier's"


def judge_providers(present: Sequence[str], wanted: Sequence[str], *, required: bool) -> str:
    """Check ONNX Runtime's execution providers.

    Args:
        present: Providers of the installed ONNX Runtime; empty when it is not installed.
        wanted: Providers in the settings.
        required: Whether a missing provider is an error.

    Returns:
        The present and the missing providers, as text.

    Raises:
        SettingsError: a required provider is missing.
    """
    missing = [name for name in wanted if name not in present]
    has = ", ".join(present) or "none, because ONNX Runtime is not installed"
    if missing and required:
        raise SettingsError(
            f"missing providers: {', '.join(missing)}; present: {has}.",
            advice="Install an ONNX Runtime with it (for GPUs: edgekit[onnx-gpu]), or remove it from agent.toml.",
        )
    return f"{has}; missing: {', '.join(missing)}" if missing else has


def _text(at: float) -> str:
    return time.strftime(_FORMAT, time.gmtime(at))


def judge_certificate(begin: float, end: float, now: float, *, renews: bool) -> str:
    """Check the end of this device's TLS certificate.

    Args:
        begin, end: Its validity, wall clock seconds.
        now: Wall clock seconds.
        renews: The agent renews it, because its key is in a file of its own.

    Returns:
        Until when it is valid, and who renews it when.

    Raises:
        UnavailableError: it is not valid now, or is due and nobody renews it.
    """
    until = f"valid until {_text(end)}"
    if now < begin:
        raise UnavailableError(f"valid from {_text(begin)}, and now is {_text(now)}", advice="Set the clock.")
    if now >= end:
        raise UnavailableError(
            f"it has expired: {until}, and now is {_text(now)}",
            advice="Get a new one with an enrollment code: edgekit-agent join URL --code CODE --again",
        )
    if not renews:
        if is_due(begin, end, now):
            raise UnavailableError(
                f"{until}, and the agent does not renew it",
                advice="Replace it, or set broker_key: the agent renews a certificate whose key is in its own file.",
            )
        return f"{until}; the agent does not renew it, because broker_key is not set"
    if is_due(begin, end, now):
        return f"{until}; the agent renews it when it is connected"
    return f"{until}; the agent renews it from {_text(renewal_time(begin, end))} on"


def judge_evidence(manifest: Manifest, running: str, found: Standing, policy: Policy) -> str:
    """Check the version of the runtime that runs an installed bundle.

    Args:
        manifest: The bundle.
        running: Package and version that provide its runtime here.
        found: What is known of the bundle with that version.
        policy: The setting `unproven_runtime`.

    Returns:
        The finding, as text.

    Raises:
        UnavailableError: the version gave wrong answers, or the policy refuses one without evidence.
    """
    if found is Standing.PROVEN:
        return f"{manifest.name} {manifest.version} is proven with {running or 'no runtime'}"
    text = standing_text(manifest, running, found)
    if found is Standing.REFUTED or refuses_start(found, policy):
        raise UnavailableError(
            text,
            advice=f"Install {made_with(manifest)}, or run where the bundle is: edgekit recheck BUNDLE --runtime "
            f"{running.replace(' ', '==')} --registry URL",
        )
    return text

"""Compares a bundle on another runtime version with the one that it was made with."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from converters.cost.measuring.process import HOST
from converters.recheck.differences import (
    Budget,
    OutputDifference,
    Share,
    compare_output,
    finite,
    limits_of,
    verdict_of,
)
from converters.recheck.environment import environment_for
from converters.recheck.messages import GOLDEN, Result
from converters.recheck.packages import check_runs
from converters.recheck.running import Answers, RowSet, measure_bundle, run_bundle
from converters.recheck.samples import Looked, golden_rows, proof_rows, report_facts
from edgekit import __version__
from edgekit.bundle.evidence import FAILED, RuntimeVersion, made_with
from edgekit.bundle.golden import judge, read_golden
from edgekit.bundle.manifest import Manifest
from edgekit.errors import RuntimeLoadError, SettingsError
from edgekit.registry import check_bundle
from edgekit.versions import runtime_version

MOST_ROWS, MOST_EMULATED_ROWS = 10_000, 256
REPORT_FORMAT = 1


class Cost(msgspec.Struct, frozen=True):
    """One inference on one version; `memory_bytes` as in `edgekit profile`, instructions None where not counted."""

    memory_bytes: int
    instructions: float | None
    not_counted: str = ""


class Recheck(msgspec.Struct, frozen=True, kw_only=True):
    """The report of one recheck.

    Attributes:
        name, version, target, digest: The bundle.
        runtime: Package and version that was compared.
        against: Package and version that it was compared with.
        where: ``host`` or the emulated core.
        arch: Processor architecture of the comparison.
        outcome: ``equal``, ``within-budget``, ``worse`` or ``failed``.
        reasons: Why it is worse or failed; empty otherwise.
        looked: The samples that were compared.
        notes: What was not looked at.
        budget: The budget of the conversion.
        outputs: The differences, by samples and output; empty where it failed.
        golden_faults: Faults of the bundle's golden self-test with the compared version.
        before, after: One inference on the version that the bundle was made with, and on the compared one; None where
            it failed.
        edgekit: Version of edgekit.
    """

    name: str
    version: str
    target: str
    digest: str
    runtime: str
    against: str
    where: str
    arch: str
    outcome: str
    reasons: tuple[str, ...]
    looked: tuple[Looked, ...]
    notes: tuple[str, ...]
    budget: Budget
    outputs: tuple[OutputDifference, ...] = ()
    golden_faults: tuple[str, ...] = ()
    before: Cost | None = None
    after: Cost | None = None
    edgekit: str = __version__
    format: int = REPORT_FORMAT

    def to_json(self) -> bytes:
        """The bytes of the report; the same comparison has the same bytes, but for memory and instructions."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    @property
    def samples(self) -> int:
        """Number of samples that were compared; 0 where it failed."""
        return sum(one.n for one in self.looked) if self.outputs else 0

    @property
    def changed(self) -> Share | None:
        """The changed decisions on the largest set of samples; None where the bundle has no decisions."""
        found = [one for one in self.outputs if one.decisions is not None]
        return max(found, key=lambda one: one.n).decisions if found else None


def recheck(
    folder: Path, wanted: RuntimeVersion, *, where: str = HOST, data: Path | None = None, rows: int | None = None
) -> Recheck:
    """Run a bundle on `wanted` and on the version that it was made with, and compare.

    Args:
        folder: The bundle.
        wanted: The runtime version to compare.
        where: `HOST` or an emulated core; both versions run there.
        data: Data of the conversion, for its proof rows, or other data; None for the golden samples only.
        rows: Largest number of rows of the data; None for MOST_ROWS, or MOST_EMULATED_ROWS on an emulated core.

    Raises:
        ManifestError: the folder is not a bundle.
        SettingsError: the bundle is sealed, or `wanted` does not run it or is the version that it was made with.
        DataError: the data does not fit the model.
        NotFoundError, UnavailableError: a version cannot be had or started here.
        RuntimeLoadError: the version that the bundle was made with cannot run it.
    """
    manifest = check_bundle(folder)
    against, notes = _reference(manifest)
    check_runs(manifest, wanted)
    if manifest.sealed is not None:
        raise SettingsError(
            f"{folder} is sealed, and a sealed model is opened in the memory of its own process only",
            advice="Recheck the bundle that edgekit convert wrote, before it was sealed.",
        )
    _check_other(manifest, wanted, against)
    facts = report_facts(manifest, folder)
    golden, golden_file = golden_rows(manifest, folder)
    sets, looked = {GOLDEN: golden}, [Looked(GOLDEN, len(golden), len(golden))]
    if data is not None:
        most = rows or (MOST_ROWS if where == HOST else MOST_EMULATED_ROWS)
        proof, seen = proof_rows(manifest, data, facts.split, most)
        sets[proof.name] = proof
        looked.append(seen)
    else:
        notes.append("the proof rows were not looked at: they are not in the bundle, and no --data was given")
    first, second = environment_for(against, where), environment_for(wanted, where)
    _check_other(manifest, second.wanted, first.wanted)
    before = run_bundle(folder, first, sets)
    if before.fault:
        raise RuntimeLoadError(f"{manifest.name} {manifest.version} does not run as it was made: {before.fault}")
    after = run_bundle(folder, second, sets)
    made = Recheck(
        name=manifest.name,
        version=manifest.version,
        target=manifest.target,
        digest=manifest.digest,
        runtime=str(second.wanted),
        against=str(first.wanted),
        where=where,
        arch=_arch(where),
        outcome=FAILED,
        reasons=(after.fault,) if after.fault else (),
        looked=tuple(looked),
        notes=tuple(notes),
        budget=facts.budget,
    )
    if after.fault:
        return made
    costs = [_cost(measure_bundle(folder, one, before.first)) for one in (first, second)]
    made = msgspec.structs.replace(made, before=costs[0], after=costs[1])
    return _judged(made, manifest, sets, golden_file, before, after)


def _check_other(manifest: Manifest, wanted: RuntimeVersion, against: RuntimeVersion) -> None:
    if wanted == against:
        raise SettingsError(
            f"{manifest.name} {manifest.version} was made with {wanted}, so there is nothing to compare",
            advice="Name another version; see: pip index versions " + wanted.package,
        )


def _judged(
    made: Recheck, manifest: Manifest, sets: dict[str, RowSet], golden_file: bytes, before: Answers, after: Answers
) -> Recheck:
    tolerances = {one.output: one.max_abs for one in manifest.golden.tolerances if one.runtime == manifest.runtime}
    decision = manifest.task.output if manifest.task.kind == "classification" else ""
    outputs = tuple(
        compare_output(
            name,
            rows,
            reference,
            after.answers[rows].get(name),
            decisions=name == decision,
            limit=limits_of(tolerances, name),
            budget=made.budget,
        )
        for rows in sets
        for name, reference in before.answers[rows].items()
    )
    faults = judge(manifest, read_golden(golden_file)[1], after.answers[GOLDEN]).faults
    outcome = verdict_of(outputs, faults)
    worse = [f"{one.output}, {one.rows} samples: {one.reason}" for one in outputs if one.verdict == outcome == "worse"]
    return msgspec.structs.replace(
        made,
        outcome=outcome,
        reasons=(*worse, *(f"golden self-test: {fault}" for fault in faults)),
        outputs=tuple(msgspec.structs.replace(one, drop=finite(one.drop) or 0.0) for one in outputs),
        golden_faults=faults,
    )


def _reference(manifest: Manifest) -> tuple[RuntimeVersion, list[str]]:
    """The version to compare with, and notes on it."""
    found = made_with(manifest)
    if found is not None:
        return found, []
    package, _, version = runtime_version(manifest.runtime).partition(" ")
    if not version:
        raise SettingsError(
            f"{manifest.name} {manifest.version} does not say which {manifest.runtime} it was made with, and none is "
            "installed here",
            advice="Install the runtime that it was made with.",
        )
    return RuntimeVersion(package, version), [
        f"the bundle does not say which version it was made with; the installed {package} {version} stands for it"
    ]


def _arch(where: str) -> str:
    if where != HOST:
        return "aarch64"
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _cost(found: Result) -> Cost:
    return Cost(found.memory_bytes, found.instructions, found.not_counted or found.fault)

"""What one conversion is asked to do, checked before any work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from converters.backends import leads_to, precisions_of
from converters.candidates.strategy import candidates
from converters.data.preprocessing import AUTO, read_steps
from converters.quality.selection import AIMS, Budget
from edgekit.bundle.manifest import NAME, VERSION
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import TargetProfile, find_target, known_targets
from edgekit.errors import ManifestError, RecipeError, SettingsError

PRUNES = ("auto", "none")


class Plan(msgspec.Struct, frozen=True):
    """What one conversion is asked to do, checked before any work.

    Attributes:
        model: Path of the source model.
        profiles: The targets, each with the runtime that was chosen for it.
        output: Where bundles are written.
        name, version: The bundles' identity.
        data, test: Data files; None for none.
        metric: Name of the metric; None for the default.
        aim: ``cost`` or ``size``.
        budget: What may be lost.
        accept_unproven: Take a point estimate for a proof.
        recipe: The only recipe to try; None for all that the target can do.
        prune: ``auto`` takes away dead channels, ``none`` leaves all.
        preprocess: A file of steps, or ``auto``; None detects them where the data are a folder of images.
    """

    model: Path
    profiles: tuple[tuple[TargetProfile, str], ...]
    output: Path
    name: str
    version: str
    data: Path | None
    test: Path | None
    metric: str | None
    aim: str
    budget: Budget
    accept_unproven: bool
    recipe: Recipe | None
    preprocess: str | None = None
    prune: str = "auto"

    def bundle_name(self, profile: TargetProfile) -> str:
        """Name of the folder that a target's bundle is written to."""
        return f"{self.name}-{self.version}-{profile.name}"

    def recipes(self, profile: TargetProfile, runtime: str) -> list[Recipe]:
        """The candidates of one target by the lowered route, or the one that was asked for.

        Raises:
            RecipeError: the target cannot do the recipe that was asked for, or can only do int8 and there is no data.
        """
        known = precisions_of(profile, runtime)
        found = candidates(profile, known, with_data=self.data is not None, runtime=runtime)
        if self.recipe is None:
            if not found:
                raise RecipeError(
                    f"target {profile.name} runs int8 only, which needs samples to calibrate with",
                    advice="Give --data with real samples.",
                )
            return found
        if self.recipe.precision not in known:
            raise RecipeError(f"target {profile.name} takes {', '.join(known)}, not {self.recipe.precision}")
        if self.recipe.direct and not leads_to(profile, runtime):
            runs = profile.accelerator or runtime
            raise RecipeError(
                f"the recipe asks for the direct route, and target {profile.name} runs {runs}",
                advice="It leads to LiteRT on a CPU; leave route out of the recipe.",
            )
        if self.recipe.precision == "int8" and self.data is None:
            raise RecipeError("an int8 recipe needs samples to calibrate with", advice="Give --data with real samples.")
        if self.recipe.pruned and self.data is None:
            raise RecipeError("a pruned recipe needs samples to look on", advice="Give --data with real samples.")
        by_precision = {recipe.precision: recipe for recipe in found}
        symmetric = self.recipe.symmetric or by_precision[self.recipe.precision].symmetric
        return [msgspec.structs.replace(self.recipe, symmetric=symmetric)]


def make_plan(
    model: str | Path,
    *,
    targets: Sequence[str],
    data: str | Path | None = None,
    test: str | Path | None = None,
    metric: str | None = None,
    aim: str = "cost",
    max_drop: float = 0.01,
    confidence: float = 0.95,
    accept_unproven: bool = False,
    max_bytes: int | None = None,
    max_cost: float | None = None,
    recipe: Recipe | None = None,
    runtime: str | None = None,
    targets_file: str | Path | None = None,
    name: str | None = None,
    version: str = "1.0.0",
    output: str | Path = "bundles",
    preprocess: str | Path | None = None,
    prune: str = "auto",
) -> Plan:
    """Check what was asked for; the arguments are those of `convert`.

    Raises:
        NotFoundError: there is no such target.
        SettingsError: a value is out of its range, a target cannot run `runtime`, or `targets_file` cannot be used.
        ManifestError: the name or version cannot be a bundle's.
        RecipeError: as Plan.recipes, or the file of steps cannot be read.
    """
    table = known_targets(_text(Path(targets_file)) if targets_file is not None else None)
    profiles = tuple(
        (profile, _runtime_of(profile, runtime)) for profile in (find_target(t, table) for t in dict.fromkeys(targets))
    )
    if not profiles:
        raise SettingsError("no target was named", advice="Give --target; `edgekit targets` lists them.")
    if aim not in AIMS:
        raise SettingsError(f"aim is {aim!r}, expected {' or '.join(AIMS)}")
    if prune not in PRUNES:
        raise SettingsError(f"prune is {prune!r}, expected {' or '.join(PRUNES)}")
    if not 0.5 <= confidence < 1.0 or not max_drop >= 0:
        raise SettingsError(
            f"confidence is {confidence}, expected 0.5 to 1; max_drop is {max_drop}, expected 0 or more"
        )
    for option, limit in (("max_bytes", max_bytes), ("max_cost", max_cost)):
        if limit is not None and not limit > 0:
            raise SettingsError(f"{option} is {limit}, expected more than 0")
    if preprocess is not None and str(preprocess) != AUTO:
        read_steps(Path(preprocess))  # a slip in it is told before the model is loaded
    stem = name or re.sub(r"[^a-z0-9._-]+", "-", Path(model).stem.lower()).strip("-._") or "model"
    if not NAME.fullmatch(stem):
        raise ManifestError(f"name {stem!r} is not of the form {NAME.pattern}", advice="Give another with --name.")
    if not VERSION.fullmatch(version):
        raise ManifestError(f"version {version!r} is not of the form X.Y.Z", advice="For example 1.0.0.")
    plan = Plan(
        model=Path(model),
        profiles=profiles,
        output=Path(output),
        name=stem,
        version=version,
        data=Path(data) if data is not None else None,
        test=Path(test) if test is not None else None,
        metric=metric,
        aim=aim,
        budget=Budget(max_drop, confidence, max_bytes, max_cost),
        accept_unproven=accept_unproven,
        recipe=recipe,
        preprocess=str(preprocess) if preprocess is not None else None,
        prune=prune,
    )
    for profile, chosen in profiles:
        plan.recipes(profile, chosen)
    return plan


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"target profiles {path} cannot be read: {error}") from error


def _runtime_of(profile: TargetProfile, runtime: str | None) -> str:
    if runtime is None:
        return profile.runtimes[0]
    if runtime not in profile.runtimes:
        raise SettingsError(f"target {profile.name} runs {', '.join(profile.runtimes)}, not {runtime!r}")
    return runtime

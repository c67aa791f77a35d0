"""The plan of one conversion: targets, runtimes and recipes, checked before any work."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from converters.backends import direct_route_fits, precisions_of
from converters.candidates.strategy import candidates
from converters.data.preprocessing import DETECT, read_steps
from converters.graph.stated import NOTHING, Stated
from converters.graph.task import parse_task
from converters.options import PRUNES, ConversionOptions, require_name
from converters.quality.measured import Budget
from edgekit.bundle.recipe import Recipe
from edgekit.bundle.targets import TargetProfile, find_target, known_targets
from edgekit.errors import RecipeError, SettingsError

DATA_ADVICE = "Give --data with real samples."


class ConversionPlan(msgspec.Struct, frozen=True):
    """The plan of one conversion. `make_plan` builds and checks it.

    Attributes:
        model: Path of the source model.
        profiles: The targets, each with the runtime that was chosen for it.
        output: Folder that the bundles are written to.
        name, version: The bundles' identity.
        data, test: Data files; None without data.
        metric: Metric of the decision output; None for the default.
        metrics: Metrics of other outputs, by the output's name.
        ignore_outputs: Outputs that are not judged.
        task: The task that the user named, as `parse_task` takes it; empty to detect it.
        aim: ``cost`` or ``size``.
        budget: Limits on the drop, the size and the cost.
        accept_unproven: Accept a point estimate where the drop cannot be proven.
        recipe: The only recipe to try; None for all recipes that the target supports.
        preprocess: File of preprocessing steps, or ``auto``; None detects steps where the data are images.
        prune: ``auto`` removes dead channels and searches which others can go, ``dead`` removes dead ones only,
            ``none`` keeps all, and a share such as ``0.5`` keeps that share of the bytes or the cost, as the aim says.
        seed: Seed of everything that is drawn at random.
        finetune: The user's training loop for pruned graphs, ``module:function``; empty without one.
        signature: Name of a SavedModel's signature; empty for the default one.
        stated: What the user stated of the inputs, without the data.
        send_inputs: What devices may send to the cloud tier at most.
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
    signature: str = ""
    stated: Stated = NOTHING
    metrics: dict[str, str] = {}
    ignore_outputs: tuple[str, ...] = ()
    task: str = ""
    seed: int = 0
    finetune: str = ""
    send_inputs: str = "allowed"

    @property
    def share(self) -> float | None:
        """The share that ``--prune`` keeps; None where it is a word."""
        return None if self.prune in PRUNES else float(self.prune)

    @property
    def own_code(self) -> bool:
        """True where a metric or the training loop is a function of the user, whose code may change."""
        return bool(self.finetune) or any(":" in name for name in (self.metric or "", *self.metrics.values()))

    def bundle_name(self, profile: TargetProfile) -> str:
        """Name of the folder that a target's bundle is written to."""
        return f"{self.name}-{self.version}-{profile.name}"

    def recipes(self, profile: TargetProfile, runtime: str) -> list[Recipe]:
        """The candidates of one target by the lowered route, or only the recipe that the user gave.

        Raises:
            RecipeError: the target does not support the given recipe, or supports int8 only and there is no data.
        """
        known = precisions_of(profile, runtime)
        recipes = candidates(profile, known, with_data=self.data is not None, runtime=runtime)
        if self.recipe is None:
            if not recipes:
                raise RecipeError(
                    f"target {profile.name} runs int8 only, and int8 needs calibration samples", advice=DATA_ADVICE
                )
            return recipes
        if self.recipe.precision not in known:
            raise RecipeError(
                f"target {profile.name} supports {', '.join(known)}; the recipe has {self.recipe.precision}"
            )
        if self.recipe.direct and not direct_route_fits(profile, runtime):
            runs = profile.accelerator or runtime
            raise RecipeError(
                f"the recipe takes the direct route, and target {profile.name} runs {runs}",
                advice="The direct route makes files for LiteRT on a CPU only; remove route from the recipe.",
            )
        if self.recipe.precision == "int8" and self.data is None:
            raise RecipeError("an int8 recipe needs calibration samples", advice=DATA_ADVICE)
        if self.recipe.pruned and self.data is None:
            raise RecipeError("a pruned recipe needs samples of its channels", advice=DATA_ADVICE)
        if self.recipe.own and not self.finetune:
            raise RecipeError(
                "the recipe was made with a training loop of the user, and none is given",
                advice="Give --finetune module:function, or remove 'own' from the recipe's recovery.",
            )
        by_precision = {recipe.precision: recipe for recipe in recipes}
        symmetric = self.recipe.symmetric or by_precision[self.recipe.precision].symmetric
        return [msgspec.structs.replace(self.recipe, symmetric=symmetric)]


def make_plan(model: str | Path, options: ConversionOptions) -> ConversionPlan:
    """Resolve targets, runtimes and recipes of one conversion, and check that they fit each other.

    Raises:
        NotFoundError: there is no such target.
        SettingsError: a target does not support the runtime, or the file of target profiles cannot be used.
        ManifestError: the model's file name gives no valid bundle name.
        RecipeError: as `ConversionPlan.recipes`, or the file of preprocessing steps cannot be read.
    """
    extra = read_profiles(Path(options.targets_file)) if options.targets_file is not None else None
    table = known_targets(extra)
    profiles = tuple(
        (profile, _runtime_of(profile, options.runtime))
        for profile in (find_target(name, table) for name in dict.fromkeys(options.targets))
    )
    if options.preprocess is not None and str(options.preprocess) != DETECT:
        read_steps(Path(options.preprocess))  # so that a fault in the file is reported before the model is loaded
    name = options.name or re.sub(r"[^a-z0-9._-]+", "-", Path(model).stem.lower()).strip("-._") or "model"
    require_name(name)
    plan = ConversionPlan(
        model=Path(model),
        profiles=profiles,
        output=Path(options.output),
        name=name,
        version=options.version,
        data=Path(options.data) if options.data is not None else None,
        test=Path(options.test) if options.test is not None else None,
        metric=options.metric,
        aim=options.aim,
        budget=Budget(
            options.max_drop,
            options.confidence,
            options.max_bytes,
            options.max_cost,
            dict(options.max_drops),
            options.max_drop_any_class,
        ),
        accept_unproven=options.accept_unproven,
        recipe=options.recipe,
        preprocess=str(options.preprocess) if options.preprocess is not None else None,
        prune=options.prune,
        seed=options.seed,
        finetune=options.finetune or "",
        metrics=dict(options.metrics),
        ignore_outputs=tuple(options.ignore_outputs),
        task=_checked_task(options.task),
        signature=options.signature or "",
        send_inputs=options.send_inputs,
        stated=Stated(options.input_shapes, options.dims, options.fixed, state=options.state, cut=tuple(options.cut)),
    )
    for profile, runtime in profiles:
        plan.recipes(profile, runtime)
    return plan


def _checked_task(text: str | None) -> str:
    if text is not None:
        parse_task(text)
    return text or ""


def read_profiles(path: Path) -> str:
    """The text of a file of target profiles.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"target profiles {path} cannot be read: {error}") from error


def _runtime_of(profile: TargetProfile, runtime: str | None) -> str:
    if runtime is None:
        return profile.runtimes[0]
    if runtime not in profile.runtimes:
        raise SettingsError(f"target {profile.name} runs {', '.join(profile.runtimes)}; the runtime given is {runtime}")
    return runtime

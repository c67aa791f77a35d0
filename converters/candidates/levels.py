"""Levels of pruning of one conversion: the pruned and refitted graphs that recipes start from, by share of the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import msgspec
import onnx

from converters.backends import ConversionContext
from converters.cache import CacheScope
from converters.cost.estimate import computes_in_float, estimate
from converters.graph.graph import Graph
from converters.passes.channels.dead_channels import layer_channels
from converters.progress import StepCallback, no_step
from converters.pruning.pruner import LEAST_ROWS, ChannelPruner, parameters
from converters.pruning.recovery import LOST, Chosen, Recovered, Recovery, chosen_by, labels_for
from converters.report.channels import ChannelReport, CurvePoint, LayerWidth, RecoveryStep
from edgekit.bundle.recipe import CHANNELS, OWN, WHOLE, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import ConversionError, EdgekitError, ParityError

NO_DATA = "Only dead channels were looked for: without --data, nothing says which other channels matter."
OPAQUE = "No channels were pruned: the operators of this model are not known."
FEW = "Only dead channels were looked for: {rows} calibration samples are too few, expected at least {least}."
FAULT = "Channels were not pruned, because pruning failed on this model: {error}"
FIXED = "No layer of this model can lose channels that are not dead."
FAST_MACS = 5e9  # of the calibration split
CACHED_BYTES = 32 << 20  # larger graphs are made again
COMPUTED_TOGETHER = 8  # outputs of a float product, which with 50 takes more instructions than with 56 (`is_partial`)
NEAR = 0.05  # a level that misses its share by more is not used: the graph cannot shrink so far


class PruningLevel(msgspec.Struct, frozen=True):
    """One level.

    Attributes:
        base: The recipe with this pruning alone.
        share: The share of the cost that was aimed at.
        left: The share of the cost that is left of the float graph.
        parameters: The share of the parameters that is left.
        divergence: From the float model's answers on the calibration split, after the refit; for a recovered graph
            times the gain on held-out rows.
        steps: The steps of its recovery that were tried.
    """

    base: Recipe
    share: float
    left: float
    parameters: float
    divergence: float
    steps: tuple[RecoveryStep, ...] = ()


class Levels:
    """The levels of one conversion. Each is made once, when it is first asked for.

    Args:
        context: The context of the backends, which stores the pruned graphs.
        decision: The output that holds class scores; empty without classes.
        looked_at: The outputs that count.
        seed: Seed of the positions that the fits sample, and of training.
        trains: Recover graphs by training, in TensorFlow.
        own: The user's training loop, ``module:function``; empty without one.
        cache_scope: Levels that earlier runs made of the same inputs.
        step: Called with the name of each step.
        note: Called with messages for the user.
    """

    def __init__(
        self,
        context: ConversionContext,
        decision: str,
        looked_at: tuple[str, ...],
        seed: int,
        *,
        trains: bool = False,
        own: str = "",
        cache_scope: CacheScope | None = None,
        step: StepCallback = no_step,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._context = context
        self._cache_scope = cache_scope or CacheScope()
        self._step, self._note = step, note
        self._seed = seed
        self._judged = decision, looked_at
        self._pruner: ChannelPruner | None = None
        self._fault = ""
        self._made: dict[tuple[str, float], PruningLevel | None] = {}
        self._recovered: dict[Recipe, list[PruningLevel]] = {}
        self._trains, self._own = trains, own
        self._chosen: Chosen | None = None  # by the first recovery

    @property
    def obstacle(self) -> str:
        """Why no channel can go, as a sentence for people; empty where some can."""
        if self._context.graph.opaque is not None:
            return OPAQUE
        if not self._context.has_samples:
            return NO_DATA
        if len(self._context.samples) < LEAST_ROWS:
            return FEW.format(rows=len(self._context.samples), least=LEAST_ROWS)
        try:
            return self._fault or ("" if self.pruner.families else FIXED)
        except Exception as error:  # pruning only adds candidates: a fault in it must not end the conversion
            self._fault = FAULT.format(error=error)
            return self._fault

    @property
    def frozen(self) -> dict[str, str]:
        """The reason why a layer keeps all its channels, by its name; empty where no layer was looked at."""
        return self.pruner.frozen if self.obstacle in ("", FIXED) else {}

    @property
    def fast(self) -> bool:
        """True where a level takes about a second, so that many can be made."""
        return sum(self._context.graph.macs.values()) * len(self._context.samples) < FAST_MACS

    @property
    def pruner(self) -> ChannelPruner:
        """The pruner of the canonical graph. Raises CalibrationError as `ChannelPruner` and without data."""
        if self._pruner is None:
            self._pruner = ChannelPruner(self._context.graph, self._context.samples, self._judged, self._seed)
        return self._pruner

    @cached_property
    def recovery(self) -> Recovery:
        """Recovers what `pruner` made. Raises as `pruner`."""
        process = self._context.child if self._trains or self._own else None
        labels = labels_for(self._context.samples, self._judged[0])
        return Recovery(self.pruner, process, labels, self._own)

    @property
    def has_own_loop(self) -> bool:
        """True where the user gave a training loop, which has to run on the graphs that are tried."""
        return bool(self._own)

    @property
    def made(self) -> list[PruningLevel]:
        """The levels made so far, the largest share first; each is followed by what recovery made of it."""
        plain = [one for one in self._made.values() if one is not None and one.parameters]
        levels = sorted(plain, key=lambda one: -one.share)
        found: list[PruningLevel] = []
        for level in levels:
            variants = self._recovered.get(level.base, [level])
            found += variants if level.base == variants[0].base else [level, *variants]
        return found

    def widths(self, recipe: Recipe, channels: Mapping[str, int]) -> tuple[LayerWidth, ...]:
        """The layers that the pruning of `recipe` makes smaller, depthwise ones too; `channels` are the source's."""
        if not recipe.lossy:
            return ()
        before = layer_channels(self._context.graph)
        after = layer_channels(self._context.base_graph(self._context.graph, recipe))
        return tuple(
            LayerWidth(name, channels.get(name, before[name]), count)
            for name, count in after.items()
            if count < before[name]
        )

    def at(self, share: float, profile: TargetProfile, aim: str, cheapest: Recipe) -> PruningLevel | None:
        """The level that leaves `share` of the bytes or of the cost; None where the graph cannot shrink so far.

        Args:
            share: More than 0 and less than 1.
            profile: The target, whose cost is meant where `aim` is ``cost``.
            aim: ``cost`` or ``size``.
            cheapest: The recipe whose precision the cost is estimated in.
        """
        name, _ = key = _key(share, profile, aim, cheapest)
        if key not in self._made:
            self._made[key] = self._known(key)
        if self._made[key] is None and not self._fault:
            try:
                with self._step(f"{profile.name}: prune to {share:.0%}"):
                    self._made[key] = self._make(name, share, profile, aim, cheapest)
            except Exception as error:  # pruning only adds candidates: a fault in it must not end the conversion
                self._fault = FAULT.format(error=error)
                return None
            self._cache_scope.put(("level", self._seed, *key), self._made[key])
        made = self._made[key]
        return made if made is not None and made.parameters else None

    def _known(self, key: tuple[str, float]) -> PruningLevel | None:
        """The level that an earlier run made, with its graph; None where there is none."""
        level = self._cache_scope.get(("level", self._seed, *key), PruningLevel)
        if level is None or not level.parameters:
            return level
        return level if self._load(level.base) else None

    def recovered(self, level: PruningLevel) -> list[PruningLevel]:
        """Recover a level: the result is one level, or two where the user's loop changes it too.

        It is the level itself where the refit lost little, where no step helps, and where there are too few rows.
        """
        if level.base not in self._recovered:
            self._recovered[level.base] = self._recover(level) if self.is_recoverable(level) else [level]
        return self._recovered[level.base]

    def is_recoverable(self, level: PruningLevel) -> bool:
        """True where the refit lost something, or the user's loop has to run, and there are enough rows."""
        return self.recovery.possible and (bool(self._own) or level.divergence >= LOST)

    def remake(self, base: Recipe) -> None:
        """Make the recovered graph that a recipe of the user starts from, and store it in the context.

        Raises:
            ConversionError: The recipe does not fit the model, or the data.
        """
        self._context.bases.store(base, self.recovery.remake(base.kept or (), base.recovery or ()))

    def _recover(self, level: PruningLevel) -> list[PruningLevel]:
        if self._own:  # its code may have changed, so nothing of it is cached
            return self._with_own(level, *self._recovered_anew(level))
        key = "recovered", level.base, self._trains, self._chosen
        made = self._cache_scope.get(key, PruningLevel)
        if made is None or not (made.base == level.base or self._load(made.base)):
            made, _ = self._recovered_anew(level)
            self._cache_scope.put(key, made)
        self._chosen = self._chosen or chosen_by(made.base.recovery or (), made.steps)
        return [made]

    def _recovered_anew(self, level: PruningLevel) -> tuple[PruningLevel, Recovered]:
        with self._step(f"recover the graph of {level.share:.0%}"):
            try:
                recovered = self.recovery.recover(level.base.kept or (), self._plain(level), self._chosen)
                made = self._level_of(level, recovered)
            except EdgekitError as error:  # recovery only adds candidates
                step = RecoveryStep("recovery", level.divergence, level.divergence, note=str(error))
                recovered, made = Recovered(None, (), (step,)), msgspec.structs.replace(level, steps=(step,))
        self._chosen = self._chosen or chosen_by(recovered.recovery, recovered.steps)
        return made, recovered

    def _with_own(self, level: PruningLevel, made: PruningLevel, recovered: Recovered) -> list[PruningLevel]:
        """The recovered level, and beside it the one after the user's loop, whose fault ends only its candidates."""
        base = msgspec.structs.replace(level.base, recovery=(*recovered.recovery, OWN))
        with self._step(f"run the training loop on the graph of {level.share:.0%}"):
            try:
                result = self.recovery.own(level.base.kept or (), recovered)
                if result.graph is None:
                    self._note(_of_no_use(result.steps[-1], level.share))
                    return [msgspec.structs.replace(made, steps=result.steps)]
                return [made, self._level_of(level, result)]
            except (ConversionError, ParityError) as error:
                self._note(f"the graph of {level.share:.0%}: {error}")
                self._context.bases.store_fault(base, ConversionError(str(error)))
                step = RecoveryStep(OWN, made.divergence, made.divergence, note=str(error))
                return [made, msgspec.structs.replace(made, base=base, steps=(*recovered.steps, step))]

    def _level_of(self, level: PruningLevel, recovered: Recovered) -> PruningLevel:
        """The level with a recovered graph. Raises ParityError."""
        if recovered.graph is None:
            return msgspec.structs.replace(level, steps=recovered.steps)
        base = msgspec.structs.replace(level.base, recovery=recovered.recovery)
        self._context.bases.store(base, recovered.graph)
        if len(data := recovered.graph.to_bytes()) <= CACHED_BYTES:
            self._cache_scope.put(("base", base), data)
        divergence = level.divergence * recovered.gain
        return msgspec.structs.replace(level, base=base, divergence=divergence, steps=recovered.steps)

    def _plain(self, level: PruningLevel) -> Graph:
        return self._context.base_graph(self._context.graph, level.base)

    def _load(self, base: Recipe) -> bool:
        """Load the graph that an earlier run made of `base`. False where there is none."""
        data = self._cache_scope.get(("base", base), bytes)
        if data is not None:
            self._context.bases.store(base, Graph(onnx.load_model_from_string(data)))
        return data is not None

    def kinds_at(self, share: float, profile: TargetProfile, aim: str, kinds: Sequence[Recipe]) -> list[Recipe]:
        """`kinds` of the lowered route, pruned to the share that the user asked for.

        Raises:
            ConversionError: the channels of the model cannot be pruned so far.
        """
        obstacle, level, refusal = self.obstacle, None, ""
        lowered = [kind for kind in kinds if not kind.direct]
        if not obstacle:
            cheapest = min(lowered, key=lambda kind: estimate(self._context.fixed, profile, kind).value)
            level = self.at(share, profile, aim, cheapest)
            refusal = _out_of_reach(self._made.get(_key(share, profile, aim, cheapest)), share, aim)
        if level is None:
            reasons = [f"{name}: {reason}" for name, reason in self.frozen.items()]
            raise ConversionError(
                self._fault or obstacle or refusal,
                advice="; ".join(reasons[:5]) if reasons else "Give --data with real samples, or --prune auto.",
            )
        return [with_base(kind, one.base) for one in self.recovered(level) for kind in lowered]

    def _make(self, name: str, share: float, profile: TargetProfile, aim: str, cheapest: Recipe) -> PruningLevel:
        """The level; one without parameters where the graph cannot shrink so far."""
        plain = Recipe(cheapest.precision)
        costs = parameters if aim == "size" else (lambda graph: estimate(graph, profile, plain).value)
        block = COMPUTED_TOGETHER if aim != "size" and computes_in_float(plain) else 1
        level = self.pruner.level(share, costs, name, block)
        if not level.kept or level.left > share + NEAR:
            return PruningLevel(WHOLE, share, level.left, 0.0, 0.0)
        base = Recipe(prune=CHANNELS, kept=level.kept, share=share, seed=self._seed)
        made = self.pruner.pruned(level.kept)
        try:
            self._context.bases.store(base, made.graph)
        except ParityError:  # the graph with a batch of 1 differs; the search goes on without this level
            return PruningLevel(WHOLE, share, level.left, 0.0, 0.0)
        if len(data := made.graph.to_bytes()) <= CACHED_BYTES:
            self._cache_scope.put(("base", base), data)
        whole = self._context.graph.parameters
        return PruningLevel(base, share, level.left, made.graph.parameters / whole, made.divergence)


def _key(share: float, profile: TargetProfile, aim: str, cheapest: Recipe) -> tuple[str, float]:
    """The key of a level: the name of its cost, and its share."""
    return "size" if aim == "size" else f"{profile.name} {cheapest.precision}", share


def _out_of_reach(made: PruningLevel | None, share: float, aim: str) -> str:
    """The refusal of a share for which there is no level; empty where nothing was tried."""
    if made is None:
        return ""
    if made.left <= share + NEAR:
        return f"this model cannot shrink to {share:.0%}: with a batch of 1 the pruned graph gives other answers"
    of = "its parameters are" if aim == "size" else "its estimated cost is"
    return (
        f"this model cannot shrink to {share:.0%} by pruning channels: "
        f"without all channels that can go, {made.left:.0%} of {of} left"
    )


def _of_no_use(step: RecoveryStep, share: float) -> str:
    return (
        f"the training loop left the graph of {share:.0%} no nearer to the float model on samples that it did not see "
        f"(divergence {step.after:.3g}, {step.before:.3g} before), so its result is not used"
    )


def channel_report(
    levels: Levels, asked: str, chosen: Recipe, recipes: Sequence[Recipe], channels: Mapping[str, int]
) -> ChannelReport:
    """The report of the levels that were made.

    Args:
        levels: The levels.
        asked: ``auto`` or a share.
        chosen: The chosen recipe.
        recipes: The recipes of all candidates.
        channels: Number of channels of each layer of the source model.
    """
    obstacle = levels.obstacle
    if obstacle and not levels.made:
        return ChannelReport(asked, note=obstacle, frozen=levels.frozen)
    curve = tuple(
        CurvePoint(
            one.share,
            one.left,
            one.parameters,
            one.divergence,
            tuple(recipe.id for recipe in recipes if recipe.lossy and recipe.base == one.base),
            one.steps,
        )
        for one in levels.made
    )
    return ChannelReport(asked, curve, levels.widths(chosen, channels), levels.frozen, taken=chosen.recovery or ())


def with_base(recipe: Recipe, base: Recipe) -> Recipe:
    """`recipe` with the pruning of `base`."""
    return msgspec.structs.replace(
        recipe, prune=base.prune, kept=base.kept, share=base.share, seed=base.seed, recovery=base.recovery
    )

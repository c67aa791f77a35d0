"""Makes the candidates of every target. Targets that run the same artifact share it; each has its own cost of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from converters.backends import Backend, Layer, backend_for
from converters.backends.context import COARSER_STEPS
from converters.backends.contract import PreparedInputs
from converters.cache import CacheScope
from converters.calibration.calibrate import Calibration
from converters.candidates.candidate import Candidate, failed, make_candidate
from converters.candidates.channel_search import ChannelSearch, PrunedShare
from converters.candidates.levels import Levels, PruningLevel, with_base
from converters.candidates.sensitivity import Sensitivity, float_answers, sensitivities
from converters.candidates.strategy import Make, Search, base_of
from converters.candidates.task_context import TaskContext
from converters.candidates.task_pool import TaskPool
from converters.cost.estimate import ESTIMATE, INSTRUCTIONS, estimate, median_error
from converters.cost.file_estimate import core_of_target, fit_of, instructions
from converters.graph.graph import Graph
from converters.progress import ConversionCallbacks, ProgressCallback, no_progress
from converters.quality.measured import Measured
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import DIRECT, STATIC, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import EdgekitError
from edgekit.tensors import Array

MOST_RECOVERED = 2  # levels of a target; each takes as long as a few candidates
CANDIDATES, PREPARING, LAYERS = "candidates", "weights of candidates", "layers"  # kinds of tasks of the pool


class CandidateBuilder:
    """Makes the candidates of one conversion.

    Args:
        task_context: The state that tasks work with.
        pool: Runs the tasks.
        callbacks: Progress callbacks.
        cache_scope: Candidates and scores that earlier runs made of the same inputs.
    """

    def __init__(
        self, task_context: TaskContext, pool: TaskPool, callbacks: ConversionCallbacks, cache_scope: CacheScope
    ) -> None:
        self._task_context = task_context
        self._context = task_context.context
        self._pool = pool
        self._step = callbacks.step
        self._cache_scope = cache_scope
        self._report_candidate = callbacks.found
        self._made: dict[Any, Candidate] = {}
        self._scores: dict[tuple[Recipe, tuple[Layer, ...]], list[Sensitivity]] = {}

    def candidates(
        self,
        profile: TargetProfile,
        runtime: str,
        kinds: Sequence[Recipe],
        *,
        search: bool,
        levels: Levels | None = None,
        aim: str = "cost",
    ) -> list[Candidate]:
        """The candidates of one target: first `kinds`, in this order, then the recipes that a search proposes.

        Args:
            profile, runtime: The target.
            kinds: The first recipes.
            search: Search for further ones.
            levels: Levels of pruning that the search can use; None for none.
            aim: ``cost`` or ``size``: what the pruned candidates make small.

        Raises:
            As `make_candidate`.
        """
        direct = self._context.direct.sha256 if self._context.direct else ""
        target = _BuildTarget(profile, runtime, backend_for(profile, runtime, self._context), direct)
        candidates: list[Candidate] = []

        def make(recipes: list[Recipe]) -> list[Measured]:
            made = self._make(target, recipes)
            candidates.extend(made)
            return [candidate.measured for candidate in made]

        if search:
            scores = functools.partial(self._sensitivities, target.backend, base=base_of(kinds))
            measured = Search(make, budget=self._task_context.budget).run(kinds, scores)
            if levels is not None and not levels.obstacle:
                self._prune(target, make, levels, aim, measured)
        else:
            make(list(kinds))
        return candidates

    def _prune(self, target: _BuildTarget, make: Make, levels: Levels, aim: str, measured: Sequence[Measured]) -> None:
        """Make pruned candidates beside those of `measured`."""
        made = [one for one in measured if not one.fault]
        if not made:  # the target cannot run this structure, with fewer channels neither
            return
        cheapest = min(made, key=lambda one: one.cost.value).recipe
        costs: dict[str, float] = {}

        made_levels: dict[Recipe, PruningLevel] = {}
        tried: set[Recipe] = set()

        def known(level: PruningLevel) -> PrunedShare:
            made_levels[level.base] = level
            return PrunedShare(level.share, level.base, level.parameters, level.divergence)

        def level_at(share: float) -> PrunedShare | None:
            level = levels.at(share, target.profile, aim, cheapest)
            return known(level) if level else None

        def recovered(level: PrunedShare) -> list[PrunedShare]:
            made = made_levels[level.base]
            if len(tried | {made.base}) > MOST_RECOVERED or not levels.is_recoverable(made):
                return [level]
            tried.add(made.base)
            return [known(one) for one in levels.recovered(made)]

        def cost_of(recipe: Recipe) -> float:
            if recipe.id not in costs:
                costs[recipe.id] = self._cost(target, recipe).value
            return costs[recipe.id]

        search = ChannelSearch(
            make,
            level_at,
            cost_of,
            with_base,
            budget=self._task_context.budget,
            aim=aim,
            recovered=recovered,
            recovers_all=levels.has_own_loop,
            rows=len(self._task_context.evidence.choice),
            halves=levels.fast,
        )
        search.run(measured)

    def sensitivity(self, profile: TargetProfile, runtime: str, base: Recipe) -> tuple[Sensitivity, ...]:
        """The scores of this target's layers, in the graph that `base` starts from; empty where none were needed."""
        return tuple(self._scores.get((base, backend_for(profile, runtime, self._context).layers(base)), ()))

    def _make(self, target: _BuildTarget, recipes: Sequence[Recipe]) -> list[Candidate]:
        """The candidates of `recipes`, in this order: in this process as long as that is faster, then in others."""
        for recipe in recipes:
            if fault := self._context.bases.fault(recipe):
                self._store(target, recipe, fault)
        todo = [recipe for recipe in recipes if not self._is_made(target, recipe)]
        # Direct ones first: they are quick, and their file exists in this process only.
        todo.sort(key=lambda recipe: not recipe.direct)
        total = len(todo)
        while todo and (todo[0].direct or self._pool.at_a_time(CANDIDATES, len(todo)) == 1):
            recipe = todo.pop(0)
            with self._step(f"{target.profile.name}: {recipe.id}") as progress:
                seconds = self._pool.seconds_left(CANDIDATES, len(todo) + 1)
                (progress or no_progress)(total - len(todo) - 1, total, seconds)
                self._store(target, recipe, self._make_local(target, recipe))
        if todo:
            jobs = self._pool.at_a_time(CANDIDATES, len(todo))
            with self._step(f"{target.profile.name}: {len(todo)} candidates, {jobs} at a time") as progress:
                self._make_remote(target, todo, progress or no_progress)
        return [self._with_cost(target, recipe) for recipe in recipes]

    def _make_local(self, target: _BuildTarget, recipe: Recipe) -> Candidate | EdgekitError:
        """Make one candidate in this process."""
        graph = target.backend.graph
        if not self._context.is_prepared(recipe, graph):
            prepared = self._pool.run_local(PREPARING, prepare, recipe, target.profile, target.runtime)
            if isinstance(prepared, EdgekitError):
                return prepared
        try:  # before the task, because the start of TensorFlow would distort the mean time of candidates
            if target.backend.lowers:
                self._context.float_file(recipe, self._context.graph_to_lower(recipe))
        except EdgekitError as error:
            return error
        kind = DIRECT if recipe.direct else CANDIDATES  # the two take different times
        made = self._pool.run_local(kind, measure, target.profile, target.runtime, recipe, None)
        return cast("Candidate | EdgekitError", made)

    def _make_remote(self, target: _BuildTarget, recipes: Sequence[Recipe], progress: ProgressCallback) -> None:
        """Make `recipes` in other processes. While these prepare weights, this process lowers the finished graphs."""
        prepared_inputs: dict[Recipe, PreparedInputs] = {}
        faults: dict[Recipe, EdgekitError] = {}
        for recipe, outcome in self._prepare_remote(target, recipes):
            if isinstance(outcome, EdgekitError):
                faults[recipe] = outcome
            else:
                prepared_inputs[recipe] = outcome
        tasks = [(target.profile, target.runtime, recipe, inputs) for recipe, inputs in prepared_inputs.items()]
        total, left = len(recipes), len(tasks)
        for index, made in self._pool.run_remote(CANDIDATES, measure, tasks) if tasks else ():
            left -= 1
            progress(total - left, total, self._pool.seconds_left(CANDIDATES, left))
            if isinstance(made, EdgekitError):
                faults[tasks[index][2]] = made
            else:
                self._store(target, tasks[index][2], made)
        for recipe in recipes:  # in a fixed order, so that of several fatal errors always the same is raised
            if recipe in faults:
                self._store(target, recipe, faults[recipe])

    def _prepare_remote(
        self, target: _BuildTarget, recipes: Sequence[Recipe]
    ) -> Iterator[tuple[Recipe, PreparedInputs | EdgekitError]]:
        """Inputs that `recipes` need in other processes, in order of completion."""
        context, graph = self._context, target.backend.graph
        sharing: dict[Any, list[Recipe]] = {}
        for recipe in recipes:
            sharing.setdefault(context.preparation_key(recipe, graph), []).append(recipe)
        ready = [group for group in sharing.values() if context.is_prepared(group[0], graph)]
        others = [group for group in sharing.values() if group not in ready]
        tasks = [(group[0], target.profile, target.runtime, context.packed_base(group[0])) for group in others]
        made_groups = self._run_all(PREPARING, prepare, tasks, like=CANDIDATES)
        outcomes = itertools.chain(((group, None) for group in ready), ((others[i], made) for i, made in made_groups))
        for group, made in outcomes:
            if isinstance(made, Graph):
                context.store_prepared(group[0], graph, made)
            for recipe in group:
                yield recipe, made if isinstance(made, EdgekitError) else self._prepared_inputs(target, recipe)

    def _prepared_inputs(self, target: _BuildTarget, recipe: Recipe) -> PreparedInputs | EdgekitError:
        try:
            return self._context.prepared_inputs(recipe, target.backend.graph, lower=target.backend.lowers)
        except EdgekitError as error:
            return error

    def _is_made(self, target: _BuildTarget, recipe: Recipe) -> bool:
        """True where the candidate was made for another target or by an earlier run; reports it then."""
        key = target.key(recipe)
        if key not in self._made:
            cached = self._cache_scope.get(key, Candidate)
            if cached is None:
                return False
            self._made[key] = self._on_disk(cached)
        self._report_candidate(target.profile, self._with_cost(target, recipe).measured)
        return True

    def _store(self, target: _BuildTarget, recipe: Recipe, made: Candidate | EdgekitError) -> None:
        if isinstance(made, EdgekitError):
            made = failed(recipe, self._cost(target, recipe), made)
        self._made[target.key(recipe)] = self._on_disk(made)
        # Faults may be temporary, and artifacts for accelerators depend on the compilers that are installed.
        if not made.measured.fault and not target.profile.accelerator:
            self._cache_scope.put(target.key(recipe), made)
        self._report_candidate(target.profile, self._with_cost(target, recipe).measured)

    def _on_disk(self, made: Candidate) -> Candidate:
        artifact = made.artifact and made.artifact.moved(self._context.folder / "made")
        return msgspec.structs.replace(made, artifact=artifact)

    def _with_cost(self, target: _BuildTarget, recipe: Recipe) -> Candidate:
        """The candidate, with its cost on this target."""
        made = self._made[target.key(recipe)]
        fit = fit_of(target.runtime, core_of_target(target.profile)) if made.operations is not None else None
        if fit is not None and made.operations is not None:
            cost = Cost(ESTIMATE, float(round(instructions(fit, made.operations))), INSTRUCTIONS)
            error = fit.error(recipe)
        else:
            cost = self._cost(target, recipe)
            error = median_error(target.profile, target.runtime, recipe) or 0.0
        measured = msgspec.structs.replace(made.measured, cost=cost, cost_error=error)
        return msgspec.structs.replace(made, measured=measured)

    def _cost(self, target: _BuildTarget, recipe: Recipe) -> Cost:
        known = recipe.without_own if self._context.bases.fault(recipe) else recipe
        graph = self._context.base_graph(self._context.fixed, known)
        return estimate(graph, target.profile, recipe, self._context.overhead(recipe))

    def _sensitivities(self, backend: Backend, *, base: Recipe) -> list[Sensitivity]:
        key = base, backend.layers(base)
        if key not in self._scores:
            scores = self._cache_scope.get(("sensitivity", *key), list[Sensitivity])
            if scores is None:
                scores = self._score_layers(*key)
                self._cache_scope.put(("sensitivity", *key), scores)
            self._scores[key] = scores
        return self._scores[key]

    def _score_layers(self, base: Recipe, layers: tuple[Layer, ...]) -> list[Sensitivity]:
        by_layer: dict[int, list[Sensitivity]] = {}
        with self._step(f"sensitivity of {len(layers)} layers") as progress:
            context = self._context
            expected = float_answers(context.base_graph(context.fixed, base), context.samples, layers)
            static = msgspec.structs.replace(base, precision=STATIC)
            measured = context.calibration_of(static, context.fixed) if base.pruned else None
            own = measured.coarser(COARSER_STEPS) if measured else None
            graphs = context.packed_base(base)
            tasks = [(layer, expected, base, own, graphs) for layer in layers]
            for index, scores in self._run_all(LAYERS, score_layer, tasks):
                if isinstance(scores, EdgekitError):
                    raise scores
                by_layer[index] = scores
                seconds = self._pool.seconds_left(LAYERS, len(tasks) - len(by_layer))
                (progress or no_progress)(len(by_layer), len(tasks), seconds)
        return [score for index in sorted(by_layer) for score in by_layer[index]]

    def _run_all(
        self, kind: str, work: Callable[..., Any], tasks: Sequence[Any], *, like: str = ""
    ) -> Iterator[tuple[int, Any]]:
        """(index in `tasks`, result or EdgekitError): in this process, and in others as soon as that is faster."""
        done = 0
        while done < len(tasks) and self._pool.at_a_time(kind, len(tasks) - done, like=like) == 1:
            yield done, self._pool.run_local(kind, work, *tasks[done])
            done += 1
        for index, result in self._pool.run_remote(kind, work, tasks[done:]) if done < len(tasks) else ():
            yield done + index, result


class _BuildTarget(msgspec.Struct, frozen=True):
    """A target with its runtime and backend; `direct` is the digest of the direct route's file."""

    profile: TargetProfile
    runtime: str
    backend: Backend
    direct: str

    def key(self, recipe: Recipe) -> tuple[Any, ...]:
        """The key under which the artifact of `recipe` is stored."""
        return (*artifact_key(self.profile, self.runtime), recipe, *((self.direct,) if recipe.direct else ()))


def artifact_key(profile: TargetProfile, runtime: str) -> tuple[Any, ...]:
    """The parts of a target that its artifacts depend on. Targets with the same key share artifacts."""
    return (runtime, profile.accelerator, profile.providers, profile.tensorrt, profile.free_batch)


def load_libraries() -> None:
    """Do nothing. A process that unpickles this function imports this module and all libraries of the tasks below."""


# --- tasks of a TaskPool, which run in this process or in another


def measure(
    task_context: TaskContext,
    profile: TargetProfile,
    runtime: str,
    recipe: Recipe,
    prepared_inputs: PreparedInputs | None,
) -> Candidate:
    """Make one candidate. Raises as `make_candidate`."""
    with task_context.for_task() as context:
        backend = backend_for(profile, runtime, context)
        if prepared_inputs is not None:
            context.store_inputs(recipe, backend.graph, prepared_inputs)
        return make_candidate(
            backend,
            recipe,
            graph=context.base_graph(context.fixed, recipe),
            profile=profile,
            evidence=task_context.evidence,
            budget=task_context.budget,
            folder=context.folder / profile.name,
            overhead=context.overhead(recipe),
        )


def prepare(
    task_context: TaskContext, recipe: Recipe, profile: TargetProfile, runtime: str, base: tuple[Array, ...] = ()
) -> Graph:
    """The graph with the weights of one candidate. Raises as `ConversionContext.prepared`.

    Args:
        task_context: The state of the conversion.
        recipe, profile, runtime: The candidate.
        base: The graphs that the recipe starts from, as `ConversionContext.packed_base` gives them.
    """
    with task_context.for_task() as context:
        context.store_base(recipe, base)
        return context.prepared(recipe, backend_for(profile, runtime, context).graph)


def score_layer(
    task_context: TaskContext,
    layer: Layer,
    expected: Mapping[str, Array],
    base: Recipe,
    own: Calibration | None,
    graphs: tuple[Array, ...],
) -> list[Sensitivity]:
    """The scores of one layer; empty where fixing the batch merged it into another layer.

    Args:
        task_context: The state of the conversion.
        layer: A layer of the fixed graph that `base` starts from.
        expected: `float_answers` of that graph.
        base: A recipe with this pruning alone.
        own: Calibration of that graph; None for the shared calibration.
        graphs: The graphs that `base` starts from, as `ConversionContext.packed_base` gives them.
    """
    with task_context.for_task() as context:
        context.store_base(base, graphs)
        graph, evidence = context.base_graph(context.fixed, base), task_context.evidence
        calibration = own or context.calibration()
        judged = evidence.decision, evidence.looked_at
        return list(sensitivities(graph, [layer], context.samples, calibration, judged, expected))

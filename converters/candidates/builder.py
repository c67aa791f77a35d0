"""Makes candidates and keeps them: targets that run the same artifact share it, and differ in what it costs them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from converters.backends import Backend, Layer, backend_for
from converters.backends.context import KEPT_COARSER
from converters.backends.contract import Furnishing
from converters.cache import Shelf
from converters.calibration.calibrate import Calibration
from converters.candidates.candidate import Candidate, failed, make_candidate
from converters.candidates.sensitivity import Sensitivity, float_answers, sensitivities
from converters.candidates.strategy import Search
from converters.candidates.task_context import Setting
from converters.candidates.task_pool import Crew
from converters.cost.estimate import estimate
from converters.graph.graph import Graph
from converters.progress import Tell, Watch, untold
from converters.quality.selection import Measured
from edgekit.bundle.manifest import Cost
from edgekit.bundle.recipe import DIRECT, PRUNED, STATIC, Recipe
from edgekit.bundle.targets import TargetProfile
from edgekit.errors import EdgekitError
from edgekit.tensors import Array

CANDIDATES, PREPARING, LAYERS = "candidates", "weights of candidates", "layers"  # kinds of tasks


class Workshop:
    """What the candidates of one conversion are made with.

    Args:
        setting: What tasks work with.
        crew: What does them.
        watch: What is called of it.
        shelf: What earlier runs made of the same.
    """

    def __init__(self, setting: Setting, crew: Crew, watch: Watch, shelf: Shelf) -> None:
        self._setting = setting
        self._bench = setting.bench
        self._crew = crew
        self._step = watch.step
        self._shelf = shelf
        self._found = watch.found
        self._made: dict[Any, Candidate] = {}
        self._scores: dict[tuple[bool, tuple[Layer, ...]], list[Sensitivity]] = {}

    def candidates(
        self, profile: TargetProfile, runtime: str, kinds: Sequence[Recipe], *, search: bool
    ) -> list[Candidate]:
        """The candidates of one target in the order in which they were asked for: `kinds`, then what `search` suggests.

        Raises:
            As `make_candidate`.
        """
        direct = self._bench.direct.sha256 if self._bench.direct else ""
        line = _Line(profile, runtime, backend_for(profile, runtime, self._bench), direct)
        found: list[Candidate] = []

        def make(recipes: Sequence[Recipe]) -> list[Measured]:
            made = self._wave(line, recipes)
            found.extend(made)
            return [candidate.measured for candidate in made]

        if search:
            scores = functools.partial(self._sensitivities, line.backend, pruned=any(one.pruned for one in kinds))
            Search(make, max_drop=self._setting.budget.max_drop).run(kinds, scores)
        else:
            make(kinds)
        return found

    def sensitivity(self, profile: TargetProfile, runtime: str, *, pruned: bool) -> tuple[Sensitivity, ...]:
        """What the search asked of each layer of this target's artifacts; nothing where it did not ask."""
        return tuple(self._scores.get((pruned, backend_for(profile, runtime, self._bench).layers(pruned=pruned)), ()))

    def _wave(self, line: _Line, recipes: Sequence[Recipe]) -> list[Candidate]:
        """The candidates of `recipes`, in their order. They are made here while that is the faster way."""
        todo = [recipe for recipe in recipes if not self._is_kept(line, recipe)]
        todo.sort(key=lambda recipe: not recipe.direct)  # these first, for they are quick and their file is only here
        total = len(todo)
        while todo and (todo[0].direct or self._crew.at_a_time(CANDIDATES, len(todo)) == 1):
            recipe = todo.pop(0)
            with self._step(f"{line.profile.name}: {recipe.id}") as told:
                (told or untold)(total - len(todo) - 1, total, self._crew.left(CANDIDATES, len(todo) + 1))
                self._keep(line, recipe, self._here(line, recipe))
        if todo:
            jobs = self._crew.at_a_time(CANDIDATES, len(todo))
            with self._step(f"{line.profile.name}: {len(todo)} candidates, {jobs} at a time") as told:
                self._away(line, todo, told or untold)
        return [self._priced(line, recipe) for recipe in recipes]

    def _here(self, line: _Line, recipe: Recipe) -> Candidate | EdgekitError:
        graph = line.backend.graph
        if not self._bench.is_prepared(recipe, graph):
            made = self._crew.here(PREPARING, prepare, recipe, line.profile, line.runtime)
            if isinstance(made, EdgekitError):
                return made
        try:  # TensorFlow takes its time to start, which says nothing of the candidates to come
            if line.backend.lowers:
                self._bench.float_file(recipe, self._bench.to_lower(recipe))
        except EdgekitError as error:
            return error
        kind = DIRECT if recipe.direct else CANDIDATES  # their seconds say nothing of each other
        made = self._crew.here(kind, measure, line.profile, line.runtime, recipe, None)
        return cast("Candidate | EdgekitError", made)

    def _away(self, line: _Line, recipes: Sequence[Recipe], told: Tell) -> None:
        """Make `recipes` elsewhere: their weights, while others are lowered here, then all that follows."""
        furnished: dict[Recipe, Furnishing] = {}
        faults: dict[Recipe, EdgekitError] = {}
        for recipe, outcome in self._furnished(line, recipes):
            if isinstance(outcome, EdgekitError):
                faults[recipe] = outcome
            else:
                furnished[recipe] = outcome
        tasks = [(line.profile, line.runtime, recipe, one) for recipe, one in furnished.items()]
        total, left = len(recipes), len(tasks)
        for place, made in self._crew.away(CANDIDATES, measure, tasks) if tasks else ():
            left -= 1
            told(total - left, total, self._crew.left(CANDIDATES, left))
            if isinstance(made, EdgekitError):
                faults[tasks[place][2]] = made
            else:
                self._keep(line, tasks[place][2], made)
        for recipe in recipes:  # in their order, so that of several that end the conversion it is always the same
            if recipe in faults:
                self._keep(line, recipe, faults[recipe])

    def _furnished(self, line: _Line, recipes: Sequence[Recipe]) -> Iterator[tuple[Recipe, Furnishing | EdgekitError]]:
        """What `recipes` need in other processes, as soon as it is there."""
        bench, graph = self._bench, line.backend.graph
        sharing: dict[Any, list[Recipe]] = {}
        for recipe in recipes:
            sharing.setdefault(bench.preparation(recipe, graph), []).append(recipe)
        ready = [group for group in sharing.values() if bench.is_prepared(group[0], graph)]
        others = [group for group in sharing.values() if group not in ready]
        work = self._each(
            PREPARING, prepare, [(group[0], line.profile, line.runtime) for group in others], like=CANDIDATES
        )
        for group, made in itertools.chain(((group, None) for group in ready), ((others[i], made) for i, made in work)):
            if isinstance(made, Graph):
                bench.take(group[0], graph, made)
            for recipe in group:
                yield recipe, made if isinstance(made, EdgekitError) else self._furnishing(line, recipe)

    def _furnishing(self, line: _Line, recipe: Recipe) -> Furnishing | EdgekitError:
        try:
            return self._bench.furnishing(recipe, line.backend.graph, lower=line.backend.lowers)
        except EdgekitError as error:
            return error

    def _is_kept(self, line: _Line, recipe: Recipe) -> bool:
        """True where `recipe` was made for another target, or by an earlier run."""
        key = line.key(recipe)
        if key not in self._made:
            kept = self._shelf.get(key, Candidate)
            if kept is None:
                return False
            self._made[key] = kept
        self._found(line.profile, self._priced(line, recipe).measured)
        return True

    def _keep(self, line: _Line, recipe: Recipe, made: Candidate | EdgekitError) -> None:
        if isinstance(made, EdgekitError):
            made = failed(recipe, self._cost(line, recipe), made)
        self._made[line.key(recipe)] = made
        # A fault may pass, and what an accelerator gets depends on the compilers that are installed.
        if not made.measured.fault and not line.profile.accelerator:
            self._shelf.put(line.key(recipe), made)
        self._found(line.profile, self._priced(line, recipe).measured)

    def _priced(self, line: _Line, recipe: Recipe) -> Candidate:
        """The candidate, with what it costs this target."""
        made = self._made[line.key(recipe)]
        measured = msgspec.structs.replace(made.measured, cost=self._cost(line, recipe))
        return msgspec.structs.replace(made, measured=measured)

    def _cost(self, line: _Line, recipe: Recipe) -> Cost:
        graph = self._bench.start(self._bench.fixed, pruned=recipe.pruned)
        return estimate(graph, line.profile, recipe, self._bench.overhead(recipe))

    def _sensitivities(self, backend: Backend, *, pruned: bool) -> list[Sensitivity]:
        key = pruned, backend.layers(pruned=pruned)
        if key not in self._scores:
            found = self._shelf.get(("sensitivity", *key), list[Sensitivity])
            if found is None:
                found = self._scored(*key)
                self._shelf.put(("sensitivity", *key), found)
            self._scores[key] = found
        return self._scores[key]

    def _scored(self, pruned: bool, layers: tuple[Layer, ...]) -> list[Sensitivity]:
        found: dict[int, list[Sensitivity]] = {}
        with self._step(f"sensitivity of {len(layers)} layers") as told:
            bench = self._bench
            expected = float_answers(bench.start(bench.fixed, pruned=pruned), bench.samples)
            measured = bench.calibration_of(Recipe(STATIC, prune=PRUNED), bench.fixed) if pruned else None
            own = measured.coarser(KEPT_COARSER) if measured else None
            tasks = [(layer, expected, pruned, own) for layer in layers]
            for place, scores in self._each(LAYERS, score_layer, tasks):
                if isinstance(scores, EdgekitError):
                    raise scores
                found[place] = scores
                (told or untold)(len(found), len(tasks), self._crew.left(LAYERS, len(tasks) - len(found)))
        return [score for place in sorted(found) for score in found[place]]

    def _each(
        self, kind: str, work: Callable[..., Any], tasks: Sequence[Any], *, like: str = ""
    ) -> Iterator[tuple[int, Any]]:
        """(place in `tasks`, result or EdgekitError) as they come: here, and elsewhere as soon as that pays."""
        done = 0
        while done < len(tasks) and self._crew.at_a_time(kind, len(tasks) - done, like=like) == 1:
            yield done, self._crew.here(kind, work, *tasks[done])
            done += 1
        for place, found in self._crew.away(kind, work, tasks[done:]) if done < len(tasks) else ():
            yield done + place, found


class _Line(msgspec.Struct, frozen=True):
    """What artifacts of one target are made by; `direct` is the digest of the file of the direct route."""

    profile: TargetProfile
    runtime: str
    backend: Backend
    direct: str

    def key(self, recipe: Recipe) -> tuple[Any, ...]:
        """What the artifact of `recipe` is kept by."""
        return (*artifact_key(self.profile, self.runtime), recipe, *((self.direct,) if recipe.direct else ()))


def artifact_key(profile: TargetProfile, runtime: str) -> tuple[Any, ...]:
    """What of a target its artifacts depend on: two with the same can share them."""
    return (runtime, profile.accelerator, profile.providers, profile.tensorrt, profile.free_batch)


# --- tasks: what a Crew does, in this process or in another


def measure(
    setting: Setting, profile: TargetProfile, runtime: str, recipe: Recipe, furnishing: Furnishing | None
) -> Candidate:
    """Make one candidate. Raises as `make_candidate`."""
    with setting.at_work() as bench:
        backend = backend_for(profile, runtime, bench)
        if furnishing is not None:
            bench.furnish(recipe, backend.graph, furnishing)
        return make_candidate(
            backend,
            recipe,
            graph=bench.start(bench.fixed, pruned=recipe.pruned),
            profile=profile,
            evidence=setting.evidence,
            budget=setting.budget,
            folder=bench.folder / profile.name,
            overhead=bench.overhead(recipe),
        )


def prepare(setting: Setting, recipe: Recipe, profile: TargetProfile, runtime: str) -> Graph:
    """The graph with the weights of one candidate. Raises as `Workbench.prepared`."""
    with setting.at_work() as bench:
        return bench.prepared(recipe, backend_for(profile, runtime, bench).graph)


def score_layer(
    setting: Setting, layer: Layer, expected: Mapping[str, Array], pruned: bool, own: Calibration | None
) -> list[Sensitivity]:
    """The scores of one layer; none where fixing the batch folded it into another.

    Args:
        setting: What it works with.
        layer: One of those of the fixed graph, or where `pruned` of that without dead channels.
        expected: As `float_answers` of that graph.
        pruned: Which graph.
        own: That graph's calibration; None for the one that all share.
    """
    with setting.at_work() as bench:
        graph, decision = bench.start(bench.fixed, pruned=pruned), setting.evidence.decision
        return list(sensitivities(graph, [layer], bench.samples, own or bench.calibration, decision, expected))

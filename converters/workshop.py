"""Makes candidates and keeps them: targets that run the same artifact share it, and differ in what it costs them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from converters.backends import Backend, Layer, Workbench, backend_for
from converters.cache import Shelf
from converters.candidates import Candidate, Evidence, make_candidate
from converters.cost import estimate
from converters.proof import Budget, Measured
from converters.search import Search
from converters.sensitivity import Sensitivity, sensitivities
from edgekit.recipe import Recipe
from edgekit.targets import TargetProfile

Step = Callable[[str], contextlib.AbstractContextManager[None]]


class Workshop:
    """What the candidates of one conversion are made with.

    Args:
        bench: What backends work with.
        evidence: What candidates are asked and judged by.
        budget: What may be lost.
        step: Called with the name of each step; its context lasts as long as the step.
        shelf: What earlier runs made of the same.
    """

    def __init__(self, bench: Workbench, evidence: Evidence, budget: Budget, step: Step, shelf: Shelf) -> None:
        self._bench = bench
        self._evidence = evidence
        self._budget = budget
        self._step = step
        self._shelf = shelf
        self._made: dict[Any, Candidate] = {}
        self._scores: dict[tuple[Layer, ...], list[Sensitivity]] = {}

    def candidates(
        self, profile: TargetProfile, runtime: str, kinds: Sequence[Recipe], *, search: bool
    ) -> list[Candidate]:
        """The candidates of one target in the order in which they were made: `kinds`, then what `search` suggests.

        Raises:
            As `make_candidate`.
        """
        backend = backend_for(profile, runtime, self._bench)
        found: list[Candidate] = []

        def make(recipes: Sequence[Recipe]) -> list[Measured]:
            made = [self._candidate(backend, profile, runtime, recipe) for recipe in recipes]
            found.extend(made)
            return [candidate.measured for candidate in made]

        if search:
            Search(make, max_drop=self._budget.max_drop).run(kinds, functools.partial(self._sensitivities, backend))
        else:
            make(kinds)
        return found

    def sensitivity(self, profile: TargetProfile, runtime: str) -> tuple[Sensitivity, ...]:
        """What the search asked of each layer of this target's artifacts; nothing where it did not ask."""
        return tuple(self._scores.get(backend_for(profile, runtime, self._bench).layers(), ()))

    def _candidate(self, backend: Backend, profile: TargetProfile, runtime: str, recipe: Recipe) -> Candidate:
        key = (*artifact_key(profile, runtime), recipe)
        if key not in self._made:
            self._made[key] = self._shelf.get(key, Candidate) or self._new(backend, profile, recipe, key)
        made = self._made[key]
        cost = estimate(self._bench.fixed, profile, recipe)
        return msgspec.structs.replace(made, measured=msgspec.structs.replace(made.measured, cost=cost))

    def _new(self, backend: Backend, profile: TargetProfile, recipe: Recipe, key: tuple[Any, ...]) -> Candidate:
        with self._step(f"{profile.name}: {recipe.id}"):
            made = make_candidate(
                backend,
                recipe,
                graph=self._bench.fixed,
                profile=profile,
                evidence=self._evidence,
                budget=self._budget,
                folder=self._bench.folder / profile.name,
            )
        # A fault may pass, and what an accelerator gets depends on the compilers that are installed.
        if not made.measured.fault and not profile.accelerator:
            self._shelf.put(key, made)
        return made

    def _sensitivities(self, backend: Backend) -> list[Sensitivity]:
        layers = backend.layers()
        if layers not in self._scores:
            found = self._shelf.get(("sensitivity", layers), list[Sensitivity])
            if found is None:
                found = self._scored(layers)
                self._shelf.put(("sensitivity", layers), found)
            self._scores[layers] = found
        return self._scores[layers]

    def _scored(self, layers: tuple[Layer, ...]) -> list[Sensitivity]:
        with self._step(f"sensitivity of {len(layers)} layers"):
            bench, decision = self._bench, self._evidence.decision
            return list(sensitivities(bench.fixed, layers, bench.samples, bench.calibration, decision))


def artifact_key(profile: TargetProfile, runtime: str) -> tuple[Any, ...]:
    """What of a target its artifacts depend on: two with the same can share them."""
    return (runtime, profile.accelerator, profile.providers, profile.tensorrt, profile.free_batch)

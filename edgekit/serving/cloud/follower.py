"""Keeps the cloud tier's models at the versions that the registry's channels name, while they answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgekit.bundle.manifest import Manifest
from edgekit.daemon_threads import in_daemon_thread
from edgekit.errors import EdgekitError, NotFoundError, UnavailableError
from edgekit.registry.catalogue import CatalogueEntry
from edgekit.serving.cloud.loaded import LoadedVersion
from edgekit.serving.cloud.models import CloudModels
from edgekit.serving.cloud.versions import ServedVersions, choose_versions
from edgekit.serving.models.cloud_options import CloudModelOptions
from edgekit.serving.session.session import Load
from edgekit.waiting import within

RETRY_SECONDS = 600.0  # after a bundle failed to load for a reason of its own


class Bundles(Protocol):
    """A registry's bundles. All methods block."""

    def rows(self) -> Sequence[CatalogueEntry]:
        """The current catalogue, fetched and verified. Raises EdgekitError."""
        ...

    def fetch(self, row: CatalogueEntry) -> tuple[Manifest, Path]:
        """A bundle's manifest, and a folder of its own with the verified files. Raises EdgekitError."""
        ...


class Follower:
    """Loads new versions beside the old ones, switches, and frees the old ones. Use `start`, then `follow`.

    A version that cannot be fetched or loaded changes nothing: the served ones go on. So does the served version of a
    model that was named, where its channel is empty now.

    Args:
        models: Serves the versions.
        bundles: The registry's bundles.
        load: Opens a bundle's runtime.
        names: Models to serve; None for every model that has a bundle for the target.
        target: Name of the target profile.
        options: Returns how a model is served, by its name.
        tell: Called with a sentence for each change and each failure.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        models: CloudModels,
        bundles: Bundles,
        load: Load,
        *,
        names: Sequence[str] | None,
        target: str,
        options: Callable[[str], CloudModelOptions],
        tell: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._models, self._bundles, self._load = models, bundles, load
        self._names, self._target, self._options = names, target, options
        self._tell, self._clock = tell, clock
        self._failed: dict[str, float] = {}  # when a bundle may be tried again, by digest
        self._told: dict[str, str] = {}  # the last failure by model; "" for the registry
        self._woken = asyncio.Event()

    async def start(self) -> None:
        """Load every model for the first time. Where none is named, the failure of one leaves the others alone.

        A canary that fails, or a version beside the main one, is told and keeps no model from being served: otherwise
        the next restart of a tier with a faulty canary would end it.

        Raises:
            NotFoundError: a named model has no bundle to serve, or none is there.
            EdgekitError: the main version of a named model, or of all models, cannot be fetched or loaded.
        """
        rows = await in_daemon_thread(self._bundles.rows)
        names = self._wanted(rows)
        if not names:
            raise NotFoundError(f"the registry has no model for {self._target!r}", advice="See: edgekit registry list")
        failure: EdgekitError | None = None
        for name in names:
            try:
                await self._update(name, _of(rows, name), is_first=True)
            except EdgekitError as error:
                if self._names is not None and name not in self._models.models():
                    raise
                self._fail(name, str(error), at_start=True)
                failure = error
        if failure is not None and not self._models.models():
            raise failure

    async def follow(self, seconds: float) -> None:
        """Look for changes every `seconds`, and after each `wake`; 0 for the latter only. Runs until cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(seconds or None, self._woken.wait())
            self._woken.clear()
            await self.update()

    def wake(self) -> None:
        """Look for changes now."""
        self._woken.set()

    async def update(self) -> None:
        """Look for changes once. Failures are told and change nothing."""
        try:
            rows = await in_daemon_thread(self._bundles.rows)
        except EdgekitError as error:
            self._fail("", f"the registry cannot be followed: {error}")
            return
        self._told.pop("", None)
        names, before = self._wanted(rows), set(self._models.models())
        for name in names:
            try:
                await self._update(name, _of(rows, name))
            except EdgekitError as error:
                self._fail(name, str(error))
            else:
                self._told.pop(name, None)
                if name not in before:
                    self._tell(f"{name} {self._models.version(name)} is served now")
        for name in set(self._models.models()) - set(names):
            self._models.remove(name)
            self._tell(f"{name} is served no more: the registry has no version of it for {self._target}")

    def _wanted(self, rows: Sequence[CatalogueEntry]) -> list[str]:
        if self._names is not None:
            return list(dict.fromkeys(self._names))
        named = dict.fromkeys(row.name for row in rows)
        return [name for name in named if choose_versions(_of(rows, name), self._target, self._options(name)).main]

    async def _update(self, name: str, rows: Sequence[CatalogueEntry], *, is_first: bool = False) -> None:
        """Serve what the catalogue says of one model. Raises EdgekitError where the main version cannot be served."""
        options = self._options(name)
        chosen = choose_versions(rows, self._target, options)
        if not chosen.main:
            raise _nothing(name, rows, self._target, options.channel)
        before = {one.session.digest: one for one in self._models.loaded(name).values()}
        now_served = self._models.version(name) if before else ""
        serving: list[LoadedVersion] = []
        failure: EdgekitError | None = None
        for row in chosen.all:
            try:
                serving.append(before.get(row.sha256) or await self._open(row, options, is_first=is_first))
            except EdgekitError as error:
                if row is chosen.main[0] and not before:  # there is nothing that could be served instead
                    for one in serving:
                        await one.close()
                    raise
                failure = failure or error
        self._switch(name, chosen, serving, now_served, options)
        if failure is not None:
            raise failure

    def _switch(
        self,
        name: str,
        chosen: ServedVersions,
        serving: list[LoadedVersion],
        now_served: str,
        options: CloudModelOptions,
    ) -> None:
        """Serve what could be loaded; where the main version could not, the present one stays the main version."""
        earlier = dict(self._models.loaded(name))
        if not serving or serving[0].session.digest != chosen.main[0].sha256:
            kept = earlier[now_served]
            serving = [kept, *(one for one in serving if one is not kept)]
        canary = chosen.canary.version if chosen.canary is not None else ""
        if canary not in {one.version for one in serving[1:]}:
            canary = ""
        after = {one.version for one in serving}
        self._models.serve(name, serving, canary=canary, share=options.canary_share)
        if now_served and (after, serving[0].version) != (set(earlier), now_served):
            extra = f", canary {canary} for {options.canary_share:.3g} of the requests" if canary else ""
            others = ", ".join(one.version for one in serving[1:] if one.version != canary)
            extra += f", beside it {others}" if others else ""
            before = "" if now_served == serving[0].version else f" (before: {now_served})"
            self._tell(f"{name} {serving[0].version} is served now{before}{extra}")

    async def _open(self, row: CatalogueEntry, options: CloudModelOptions, *, is_first: bool) -> LoadedVersion:
        left = self._failed.get(row.sha256, 0.0) - self._clock()
        if left > 0 and not is_first:
            raise UnavailableError(self._told.get(row.name, f"{row.name} {row.version} failed to load before"))
        try:
            manifest, folder = await in_daemon_thread(self._bundles.fetch, row)
            with contextlib.ExitStack() as on_error:
                remove = on_error.callback(functools.partial(shutil.rmtree, folder, ignore_errors=True))
                loaded = await LoadedVersion.open(manifest, folder, self._load, options)
                on_error.pop_all()
        except EdgekitError as error:
            if not isinstance(error, UnavailableError):
                self._failed[row.sha256] = self._clock() + RETRY_SECONDS
            raise
        loaded.on_closed = remove
        return loaded

    def _fail(self, name: str, message: str, *, at_start: bool = False) -> None:
        """Tell a failure once, until it changes or ends. It names the model; "" is the registry."""
        if name and not message.startswith((f"{name} ", f"{name}: ")) and repr(name) not in message:
            message = f"{name}: {message}"
        if self._told.get(name) == message:
            return
        self._told[name] = message
        if name and name not in self._models.models():
            outcome = "it is not served"
        else:
            outcome = f"{self._models.version(name)} is served" if at_start else "what was served before is served on"
        self._tell(f"{message}; {outcome}")


def _of(rows: Sequence[CatalogueEntry], name: str) -> list[CatalogueEntry]:
    return [row for row in rows if row.name == name]


def _nothing(name: str, rows: Sequence[CatalogueEntry], target: str, channel: str) -> NotFoundError:
    if not rows:
        return NotFoundError(f"the registry has no model {name!r}", advice="See: edgekit registry list")
    published = ", ".join(_title(row) for row in rows)
    wanted = f"current version{f' in channel {channel!r}' if channel else ''}"
    return NotFoundError(f"model {name!r} has no {wanted} for {target!r}", advice=f"Published: {published}.")


def _title(row: CatalogueEntry) -> str:
    marks: Mapping[str, bool] = {"retired": row.retired, f"channel {row.channel}": bool(row.channel)}
    told = ", ".join(mark for mark, holds in marks.items() if holds)
    return f"{row.version} for {row.target}{f' ({told})' if told else ''}"

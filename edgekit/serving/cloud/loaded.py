"""One loaded version of a model in the cloud tier: it is freed when its last request is answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.bundle.golden import self_test
from edgekit.bundle.manifest import ROLE_GOLDEN, Manifest
from edgekit.errors import ManifestError, SelfTestError
from edgekit.sealing.opening import read_file
from edgekit.serving.models.options import ModelOptions
from edgekit.serving.session.latency import Latency
from edgekit.serving.session.session import Load, Session
from edgekit.serving.session.stream_table import StreamLimits


class LoadedVersion:
    """A session, and the requests that use it.

    Attributes:
        session: Answers requests.
        latency: Durations of its answered requests, from arrival to answer.
        on_closed: Called when the model is freed.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.latency = Latency()
        self.on_closed: Callable[[], object] = lambda: None
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    async def open(cls, manifest: Manifest, folder: Path, load: Load, options: ModelOptions) -> LoadedVersion:
        """Load and self-test a bundle, and measure whether joining its requests pays.

        Raises:
            SelfTestError: its answers differ from those of its float model by more than the tolerance.
            EdgekitError: any error of the runtime.
        """
        limits = StreamLimits(options.max_streams, options.stream_idle_seconds)
        session = await Session.open(
            manifest, folder, load, queue_limit=options.queue_limit, instances=options.instances, limits=limits
        )
        async with contextlib.AsyncExitStack() as on_error:
            on_error.push_async_callback(session.close)
            await _self_test(session)
            await session.warm()
            await session.measure()
            if options.batch == "auto":
                await session.calibrate()
            else:
                session.batch_rows = options.batch
            on_error.pop_all()
        return cls(session)

    @property
    def version(self) -> str:
        """The version X.Y.Z."""
        return self.session.manifest.version

    @contextlib.contextmanager
    def used(self) -> Iterator[Session]:
        """The session; it is not closed before the block ends."""
        self._users += 1
        self._unused.clear()
        try:
            yield self.session
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def close(self) -> None:
        """Wait for the requests that use the session, then free the model. No new request may use it."""
        await self._unused.wait()
        await self.session.close()
        self.on_closed()


async def _self_test(session: Session) -> None:
    manifest = session.manifest
    try:
        golden = read_file(manifest, session.folder, manifest.file(ROLE_GOLDEN))
    except OSError as error:
        raise ManifestError(f"golden samples cannot be read: {error}") from error
    result = await session.call(lambda runtime: self_test(runtime, manifest, golden))
    if not result.passed:
        raise SelfTestError(f"{manifest.name} {manifest.version} failed its self-test: {'; '.join(result.faults)}")

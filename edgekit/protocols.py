"""The seams: what a service is given, and what tests implement in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edgekit.tensors import Array, TensorSpec


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def monotonic(self) -> float:
        """Seconds that only rise; for deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 (UTC) as this machine believes; for expiry and reports only."""
        ...


class Message(msgspec.Struct, frozen=True):
    """One message as it arrived."""

    topic: str
    payload: bytes
    retained: bool = False


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes when this client is lost (QoS 1)."""

    topic: str
    payload: bytes
    retain: bool = True


Handler = Callable[[Message], None]


class Transport(Protocol):
    """Publish and subscribe over one broker connection that mends itself.

    Delivery is at most once at QoS 0 and at least once at QoS 1; duplicates and losses are the caller's to tolerate.
    Handlers run on the event loop, must return quickly, and cannot kill the connection by raising.
    """

    @property
    def connected(self) -> bool:
        """True while the broker has accepted this client."""
        ...

    async def start(self) -> None:
        """Begin to connect, and keep connecting; returns at once. Await `wait_connected` for the first success."""
        ...

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait until connected.

        Raises:
            TransportError: not connected within the time; says why the last attempt failed.
        """
        ...

    async def stop(self) -> None:
        """Disconnect cleanly; the will is not published."""
        ...

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expiry_seconds: int | None = None
    ) -> None:
        """Send one message; at QoS 1 returns once the broker has it.

        Raises:
            TransportError: not connected, the outgoing queue is full, the payload is too large, or no answer came.
        """
        ...

    async def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, group: str = "") -> None:
        """Call `handler` for each message; the subscription is made anew on every connect.

        With `group`, messages are shared among the subscribers of that group where the broker can (MQTT 5).
        """
        ...

    async def unsubscribe(self, topic_filter: str) -> None:
        """Stop calling the handler of `topic_filter`."""
        ...

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(connected)` after every change, when subscriptions are in place."""
        ...


class Store(Protocol):
    """Blobs under names with slashes. A write is seen whole or not at all."""

    def get(self, name: str) -> bytes:
        """The whole blob.

        Raises:
            NotFoundError: there is none.
            StoreError: the store failed.
        """
        ...

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; shorter at the end. Raises as `get`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of the blob. Raises as `get`."""
        ...

    def put(self, name: str, data: bytes | Path) -> None:
        """Write a blob, atomically, replacing an older one; a Path is streamed from disk.

        Raises:
            StoreError: the store failed; what was there before is still there.
        """
        ...

    def exists(self, name: str) -> bool:
        """True when the blob is there."""
        ...

    def list(self, prefix: str) -> Iterable[str]:
        """Names below `prefix`, sorted."""
        ...


class Disk(Protocol):
    """The device's folder: everything durable goes through here, so that a test can cut the power at any call.

    Names are relative to the disk's root, with slashes; a name that leaves the root is a ValueError.
    Every method raises DiskError where the file system refuses (full, read only, failing).
    """

    def path(self, name: str) -> Path:
        """The real path of `name`, for a library that must open the file itself to read."""
        ...

    def exists(self, name: str) -> bool:
        """True when a file or folder is there."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError when it is not there."""
        ...

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def list(self, name: str) -> list[str]:
        """Names in a folder, sorted; empty when there is no such folder."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically and durably: temporary file, fsync, rename, fsync of the folder."""
        ...

    def preallocate(self, name: str, size: int) -> None:
        """Create or resize a file to `size` bytes, with space reserved where the file system can."""
        ...

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Write into an existing file; not durable until `sync`."""
        ...

    def sync(self, name: str) -> None:
        """Fsync a file or a folder."""
        ...

    def make_folder(self, name: str) -> None:
        """Create a folder and its parents; no error when it is there."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename atomically, replacing a file at `target`, then fsync the folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; no error when it is not there."""
        ...

    def free_bytes(self) -> int:
        """Space left for this process."""
        ...


class Runtime(Protocol):
    """A loaded model. Not safe for concurrent `run`: the caller serialises."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Logical inputs."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Logical outputs."""
        ...

    @property
    def provider(self) -> str:
        """What really runs it, for example ``XNNPACK`` or ``CPUExecutionProvider``."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: One array per input, by name, of the dtype and shape of its spec.

        Returns:
            One array per output, by name.

        Raises:
            DataError: an input is missing, unknown, or of the wrong shape or dtype; names all faults.
            RuntimeLoadError: the runtime failed.
        """
        ...

    def close(self) -> None:
        """Free the model; `run` must not be called again."""
        ...


class CloudTier(Protocol):
    """Where an answer comes from when the device is unsure."""

    async def infer(self, model: str, inputs: Mapping[str, Array], *, timeout_seconds: float) -> dict[str, Array]:
        """Ask the cloud tier.

        Raises:
            CloudError: no usable answer within the time.
        """
        ...


class BlockSource(Protocol):
    """Where verified bytes of a bundle come from."""

    def blocks(
        self, digest: str, wanted: Iterable[int], hashes: Sequence[str] = ()
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (index, bytes) as they arrive, in any order; the caller verifies each one.

        With `hashes`, the sha256 (hex) of each block of the blob, it may ask others than the controllers too, and drops
        what is wrong of theirs itself.
        """
        ...

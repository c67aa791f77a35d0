"""Protocols of the adapters that services use; tests implement them in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edgekit.tensors import Array, TensorSpec


class Clock(Protocol):
    """Time, replaceable by tests."""

    def monotonic(self) -> float:
        """Seconds that never decrease; for deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 (UTC) by this machine's clock; for expiry and reports only."""
        ...


class Message(msgspec.Struct, frozen=True):
    """One received message."""

    topic: str
    payload: bytes
    retained: bool = False


class Will(msgspec.Struct, frozen=True):
    """The message that the broker publishes when it loses this client (QoS 1)."""

    topic: str
    payload: bytes
    retain: bool = True


Handler = Callable[[Message], None]


class Transport(Protocol):
    """Publish and subscribe over one broker connection that reconnects by itself.

    Delivery is at most once at QoS 0 and at least once at QoS 1; the caller must tolerate duplicates and losses.
    Handlers run on the event loop and must return quickly. An exception of a handler does not end the connection.
    """

    @property
    def connected(self) -> bool:
        """True while the broker has accepted this client."""
        ...

    @property
    def packet_limit(self) -> int:
        """The largest packet that the broker accepts, in bytes; 0 while it is not known."""
        ...

    @property
    def shares(self) -> bool:
        """True where the broker shares the messages of a `group` among its subscribers; False while not connected."""
        ...

    @property
    def takeovers(self) -> int:
        """Connections that the broker ended because another client connected under the same name (MQTT 5 says so)."""
        ...

    async def start(self) -> None:
        """Start connecting, and reconnecting, in the background; `wait_connected` waits for the first success."""
        ...

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Wait until connected.

        Raises:
            TransportError: Not connected within the time; the message says why the last attempt failed.
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
            PacketTooLargeError: The message is larger than the broker accepts; sending it again does not help.
            TransportError: Not connected, the outgoing queue is full, or no answer came.
        """
        ...

    async def subscribe(self, topic_filter: str, handler: Handler, *, qos: int = 1, group: str = "") -> None:
        """Call `handler` for each message; the transport subscribes again on every connect.

        With `group`, the broker shares messages among the group's subscribers, if it can (MQTT 5).
        """
        ...

    async def unsubscribe(self, topic_filter: str) -> None:
        """Stop calling the handler of `topic_filter`."""
        ...

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(connected)` after every change; on connect, after subscribing."""
        ...

    def spread_reconnects(self, seconds: float) -> None:
        """Wait a random part of `seconds` before connecting again, so that not all clients of a broker come at once."""
        ...


class Store(Protocol):
    """A blob store; names contain slashes, and writes are atomic."""

    def get(self, name: str) -> bytes:
        """The whole blob.

        Raises:
            NotFoundError: The blob does not exist.
            StoreError: The store failed.
        """
        ...

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; shorter at the end. Raises as `get`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of the blob. Raises as `get`."""
        ...

    def put(self, name: str, data: bytes | Path) -> None:
        """Write or replace a blob atomically; a Path is streamed from disk.

        Raises:
            StoreError: The store failed; the previous blob is unchanged.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a blob; no error if it does not exist. Raises StoreError."""
        ...

    def exists(self, name: str) -> bool:
        """True if the blob exists."""
        ...

    def list(self, prefix: str) -> Iterable[str]:
        """Names below `prefix`, sorted."""
        ...


class Disk(Protocol):
    """The device's folder. All durable data goes through it, so that tests can simulate a power cut at any call.

    Names are relative to the disk's root, with slashes; a name outside the root raises ValueError.
    Every method raises DiskError if the file system fails (full, read only, damaged).
    """

    def path(self, name: str) -> Path:
        """The real path of `name`, for a library that reads the file itself."""
        ...

    def exists(self, name: str) -> bool:
        """True if a file or folder exists."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError if it does not exist."""
        ...

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def list(self, name: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically and durably: temporary file, fsync, rename, fsync of the folder."""
        ...

    def preallocate(self, name: str, size: int) -> None:
        """Create or resize a file to `size` bytes, and reserve the space if the file system can."""
        ...

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Write into an existing file; not durable until `sync`."""
        ...

    def sync(self, name: str) -> None:
        """Fsync a file or a folder."""
        ...

    def make_folder(self, name: str) -> None:
        """Create a folder and its parents, unless it exists."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename atomically, replacing a file at `target`, then fsync the folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if it exists."""
        ...

    def free_bytes(self) -> int:
        """Free space for this process, in bytes."""
        ...


class Runtime(Protocol):
    """A loaded model. Concurrent `run` is not safe: the caller must serialize calls."""

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
        """The delegate or provider in use, for example ``XNNPACK`` or ``CPUExecutionProvider``."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: One array per input, by name, of the dtype and shape of its spec.

        Returns:
            One array per output, by name.

        Raises:
            DataError: An input is missing, unknown, or of the wrong shape or dtype; the message names all faults.
            RuntimeLoadError: The runtime failed.
        """
        ...

    def close(self) -> None:
        """Free the model; `run` must not be called again."""
        ...


class CloudAnswer(msgspec.Struct, frozen=True):
    """An answer of the cloud tier.

    Attributes:
        outputs: Arrays by name.
        version: Version of the model that answered; empty where the server does not say.
        digest: Digest of the bundle that answered; empty where the server does not say.
        endpoint: URL of the server that answered; empty where there is only one client without a name.
    """

    outputs: dict[str, Array]
    version: str = ""
    digest: str = ""
    endpoint: str = ""


class CloudTier(Protocol):
    """Client of the cloud tier, which answers when the device is unsure."""

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        timeout_seconds: float,
        wanted: Collection[str] | None = None,
        postprocess: bool | None = None,
    ) -> CloudAnswer:
        """Send one request to the cloud tier. The answer is not checked against the device's model.

        Args:
            model: Name of the model there.
            inputs: Logical inputs, or bytes that the tier's model decodes.
            timeout_seconds: Longest wait; it is sent with the request, so that the tier does not run it later.
            wanted: Outputs that are needed; others may be left out of the answer. None for all.
            postprocess: Whether the tier does the steps after its model; None leaves that to the tier.

        Raises:
            CloudError: No answer that follows the protocol came within the time.
        """
        ...


class BlockSource(Protocol):
    """A source of a bundle's blocks."""

    def blocks(
        self,
        digest: str,
        wanted: Iterable[int],
        hashes: Sequence[str] = (),
        *,
        wasted: Callable[[int], None] = lambda size: None,
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (index, bytes) as they arrive, in any order; the caller verifies each one.

        `hashes` are the sha256 (hex) of each block of the blob. With them the source may also use peers other than the
        controllers, and drops wrong blocks of theirs itself. It calls `wasted` with the bytes of what it drops: wrong,
        doubled and broken-off blocks.
        """
        ...

"""The command `profile`: downloads a published bundle, measures it in a process of its own, and removes it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from tuf.api.metadata import TargetFile

from device_agents.condition.rules import Condition, facts_of
from device_agents.download.bundle import BundleDownload
from device_agents.profiling.measuring import Measured, MeasuringJob
from device_agents.remote.answer import CommandAnswer
from device_agents.remote.logs import printable_line
from device_agents.storage.slots import verify_file
from device_agents.threads import in_thread
from edgekit.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, parse_manifest, target_path
from edgekit.deltas.description import parse_offers
from edgekit.errors import (
    CompatibilityError,
    DiskError,
    NotFoundError,
    RuntimeLoadError,
    VerificationError,
)
from edgekit.mqtt.command_arguments import ProfileArguments
from edgekit.protocols import BlockSource, Disk

log = logging.getLogger(__name__)

FOLDER = "profiling"
MODULE = "device_agents.profiling.measured_process"
GRACE_SECONDS = 5.0  # the process ends itself at its limit; after this time more the agent ends it
ERROR_LINES = 3


class ProfileOptions(msgspec.Struct, frozen=True):
    """Limits and options of measurements.

    Attributes:
        max_bundle_bytes: Largest bundle.
        threads: Threads of the runtime, as when the agent serves.
        class_keys: Key files of device classes, for sealed bundles.
    """

    max_bundle_bytes: int
    threads: int = 1
    class_keys: tuple[str, ...] = ()


class Profiler:
    """Runs the command `profile`.

    Args:
        disk: The device's folder.
        find_target: Gives the fresh catalogue's entry for a path; None if there is none.
        blob: Fetches a small blob, given its digest, length and name.
        source: Source of blocks.
        counters: Counts transfers.
        check_cost: Called with the bytes fetched so far; raises when no more may be fetched at present.
        mismatches: Gives every reason why a manifest does not fit this device.
        condition: Reads the temperature.
        options: Limits.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        find_target: Callable[[str], Awaitable[TargetFile | None]],
        blob: Callable[[str, int, str], Awaitable[bytes]],
        source: BlockSource,
        counters: Counter[str],
        check_cost: Callable[[int], None],
        mismatches: Callable[[Manifest], Sequence[str]],
        condition: Callable[[], Condition],
        options: ProfileOptions,
    ) -> None:
        self._disk, self._find_target, self._blob, self._source = disk, find_target, blob, source
        self._counters, self._check_cost, self._mismatches = counters, check_cost, mismatches
        self._condition, self._options = condition, options

    async def answer(self, arguments: ProfileArguments) -> CommandAnswer:
        """Measure a bundle; everything that was downloaded is removed afterwards.

        Raises:
            VerificationError: the catalogue does not have this bundle, or a file is not the signed one.
            CompatibilityError: it does not fit this device.
            UnavailableError: it cannot be fetched now.
            RuntimeLoadError: it cannot be loaded or run within the limits.
        """
        self._check_cost(0)
        manifest, file = await self._resolve(arguments)
        try:
            await self._fetch(manifest, file)
            before = await in_thread(self._condition)
            measured = await self._measure(arguments)
            after = await in_thread(self._condition)
        finally:
            await in_thread(remove_measured, self._disk)
        return _answer(manifest, measured, before, after, self._options.threads)

    async def _resolve(self, asked: ProfileArguments) -> tuple[Manifest, TargetFile]:
        path = target_path(asked.model, asked.target, asked.version)
        file = await self._find_target(path)
        if file is None:
            raise NotFoundError(f"the catalogue has no {path}", advice="Publish it: edgekit registry publish")
        digest = file.hashes.get("sha256", "")
        if digest != asked.digest or file.length > MAX_MANIFEST_BYTES:
            raise VerificationError(f"the catalogue's {path} is {digest[:12]}, the command names {asked.digest[:12]}")
        manifest = parse_manifest(await self._blob(digest, file.length, f"manifest {path}"))
        if target_path(manifest.name, manifest.target, manifest.version) != path:
            raise VerificationError(f"{path} holds the manifest of {manifest.name} {manifest.version}")
        reasons, limit = list(self._mismatches(manifest)), self._options.max_bundle_bytes
        if manifest.total_bytes > limit:
            reasons.append(f"it has {manifest.total_bytes} bytes, this device takes {limit}")
        if reasons:
            raise CompatibilityError(reasons)
        return manifest, file

    async def _fetch(self, manifest: Manifest, file: TargetFile) -> None:
        await in_thread(remove_measured, self._disk)
        await in_thread(self._disk.write, f"{FOLDER}/{MANIFEST_NAME}", manifest.canonical_bytes())
        offers = parse_offers(file.custom or {})
        download = BundleDownload(self._disk, self._source, self._counters, offers=offers, check_cost=self._check_cost)
        await download.run(manifest, FOLDER, make_room=lambda: None)
        for entry in manifest.files:
            await in_thread(verify_file, self._disk, f"{FOLDER}/{entry.path}", entry)

    async def _measure(self, asked: ProfileArguments) -> Measured:
        job = MeasuringJob(
            seconds=asked.seconds,
            limit_seconds=asked.limit_seconds,
            memory_bytes=asked.memory_mib * 2**20,
            threads=self._options.threads,
            class_keys=self._options.class_keys,
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", MODULE, str(self._disk.path(FOLDER)), msgspec.json.encode(job).decode()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said, errors = await asyncio.wait_for(process.communicate(), asked.limit_seconds + GRACE_SECONDS)
        except asyncio.TimeoutError as error:
            raise RuntimeLoadError(f"it was not measured within {asked.limit_seconds:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return read_measured(process.returncode or 0, said, errors, asked)


def remove_measured(disk: Disk) -> None:
    """Remove what a measurement left, also one that was interrupted. A disk that cannot be written is logged."""
    try:
        disk.remove(FOLDER)
    except DiskError as error:
        log.warning("the folder of a measurement cannot be removed: %s", error)


def read_measured(status: int, said: bytes, errors: bytes, asked: ProfileArguments) -> Measured:
    """The result of the process.

    Args:
        status: Its exit status; negative: the signal that ended it.
        said, errors: What it printed on stdout and stderr.
        asked: The limits, for the message.

    Raises:
        RuntimeLoadError: it was ended, failed, or printed no result.
    """
    if status == -signal.SIGALRM:
        raise RuntimeLoadError(f"it was not measured within {asked.limit_seconds:g} s")
    try:
        measured = msgspec.json.decode(said.splitlines()[-1] if said else b"", type=Measured)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        lines = errors.decode(errors="replace").strip().splitlines()[-ERROR_LINES:]
        last = " ".join(printable_line(line) for line in lines)
        raise RuntimeLoadError(
            f"its process ended with {how}; it may use {asked.memory_mib} MiB of memory. {last}".rstrip()
        ) from error
    if measured.fault:
        raise RuntimeLoadError(f"{measured.fault} (its process may use {asked.memory_mib} MiB of memory)")
    return measured


def _answer(manifest: Manifest, measured: Measured, before: Condition, after: Condition, threads: int) -> CommandAnswer:
    heat = {name: value for name, value in facts_of(after).items() if name in ("temperature_celsius", "throttled")}
    detail = {
        "model": manifest.name,
        "version": manifest.version,
        "target": manifest.target,
        "digest": manifest.digest,
        "threads": threads,
        **{name: value for name, value in msgspec.structs.asdict(measured).items() if name != "fault"},
        **heat,
    }
    if before.temperature_celsius is not None:
        detail["temperature_before_celsius"] = before.temperature_celsius
    message = (
        f"{manifest.name} {manifest.version}: p50 {measured.p50_ms:.3g} ms, p95 {measured.p95_ms:.3g} ms, "
        f"{measured.peak_bytes / 2**20:.0f} MiB"
    )
    return CommandAnswer(True, message, detail)

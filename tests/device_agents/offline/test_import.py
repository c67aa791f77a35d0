"""Updates by file: written by the control side, imported by the real agent, refused as over a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from device_agents.assembly.control import make_agent
from device_agents.assembly.serving import make_inference
from device_agents.deployment import Deployment, UpdateRecord
from device_agents.facts import measure_facts
from device_agents.offline.importing import Imported, follow_file
from device_agents.offline.transport import FileTransport
from edgekit.bundle.manifest import MANIFEST_NAME, file_entry
from edgekit.errors import ClockError, DiskError, ExpiredError, UnavailableError, VerificationError
from edgekit.mqtt.broker import start_broker
from edgekit.registry import publish
from edgekit.registry.offline import Order, export_update
from edgekit.rollout.cohort import Device
from edgekit.rollout.plan import parse_waves
from edgekit.rollout.values import RolloutState
from edgekit.settings import AgentSettings, load_settings
from edgekit.state.rollout.assignments import assign
from edgekit.trust.assignment import Assignment
from edgekit.trust.keys import generate_key
from edgekit.update_file import UpdateFile
from tests.simulators.agent_process import AgentProcess
from tests.simulators.control import FLEET, ControlSide
from tests.simulators.small_models import onnx_bundle

LONG_SECONDS = 30
PATIENCE_SECONDS = 120.0
BALLAST_BYTES = 3_000_000
PULLED_BLOCKS = 20


def enroll(side: ControlSide, name: str) -> Path:
    folder = side.folder / name
    folder.mkdir()
    generate_key(folder / "device.key")
    (folder / "root.json").write_bytes(side.root)
    (folder / "agent.toml").write_text(
        f'device = "{name}"\nfleet = "{FLEET}"\ntarget = "x86-64"\nbroker = "{side.url or "mqtt://127.0.0.1:9"}"\n'
        'http = "127.0.0.1:0"\nprobation_seconds = 0.1\nquiet_hours = "00:00-23:59"\nmetered = true\n'
    )
    pem = (folder / "device.pub").read_text()
    side.state.devices.enroll(Device(name, "x86-64", pem, enrolled=side.clock.wall()))
    return folder


async def until(holds: Callable[[], object]) -> None:
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not happen within {PATIENCE_SECONDS} s")


async def assigned(side: ControlSide, version: str, *devices: str) -> None:
    """Publish a version with some megabytes, and wait for its signed assignments."""
    folder = side.folder / "made" / version
    manifest = onnx_bundle(folder, version=version)
    ballast = random.Random(version).randbytes(BALLAST_BYTES)
    (folder / "labels.bin").write_bytes(ballast)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, file_entry("labels.bin", "labels", ballast)))
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    publish(side.store, side.repository, folder)
    side.start("small", version, "x86-64", waves=parse_waves("100%"))
    stored = side.state.assignments.get
    await until(lambda: all((one := stored(name)) and one.payload and one.entries for name in devices))


def export(side: ControlSide, path: Path, *devices: str) -> Path:
    orders = []
    for name in devices:
        stored = side.state.assignments.get(name)
        orders.append(Order(name, stored.payload, tuple(stored.entries.values()), stored.expires))
    done = export_update(path, side.store, side.root, FLEET, orders, now=side.clock.wall())
    assert done.expires > side.clock.wall() + 86_400
    return path


async def agent_import(folder: Path, path: Path, expect: int = 0) -> tuple[list[dict[str, str]], str]:
    command = [sys.executable, "-m", "device_agents", "import", str(path), "--json"]
    command += ["--config", str(folder / "agent.toml")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == expect, done.stderr
    return json.loads(done.stdout or "[]"), done.stderr


def changed(path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of an update file in which one entry differs."""
    copy = path.with_name(f"changed-{random.randrange(10**6)}.edgekit")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for one in old.namelist():
            data = old.read(one)
            new.writestr(one, change(data) if one.startswith(name) else data)
    return copy


class Pulled(FileTransport):
    """A stick that is pulled after some blocks: requests get no answer any more."""

    async def publish(self, topic: str, payload: bytes, **how: object) -> None:
        """Answer a request while there is a stick."""
        if self.blocks_sent < PULLED_BLOCKS:
            await super().publish(topic, payload, **how)


class Unreadable(FileTransport):
    """A stick that is pulled after some blocks: the system cannot read the open file any more."""

    async def publish(self, topic: str, payload: bytes, **how: object) -> None:
        """Answer a request; after some blocks, a folder stands for the file, which cannot be read."""
        if self.blocks_sent >= PULLED_BLOCKS:
            folder = os.open("/", os.O_RDONLY)
            os.dup2(folder, self._file._file.fileno())
            os.close(folder)
        await super().publish(topic, payload, **how)


@contextlib.asynccontextmanager
async def importing(
    folder: Path, path: Path, kind: type[FileTransport] = FileTransport
) -> AsyncIterator[tuple[object, FileTransport, Callable[[], object]]]:
    """An agent in this process that may import a file."""
    settings = load_settings(AgentSettings, file=folder / "agent.toml", environ={})
    settings = msgspec.structs.replace(settings, quiet_hours="", metered=False)
    inference, _ = make_inference(settings)
    with UpdateFile(path) as file:
        transport = kind(file, FLEET, settings.device)
        async with inference:
            agent = make_agent(settings, inference, measure_facts("x86-64"), transport=transport)
            await agent.start()
            yield agent, transport, lambda: follow_file(agent, transport, file, file.desired(settings.device))


async def test_a_device_without_a_network_is_updated_and_reports_later(tmp_path: Path) -> None:
    """Import, import again, run; when there is a broker, the rollout hears of it and finishes."""
    async with await start_broker("127.0.0.1", 0, tmp_path / "b") as broker, ControlSide(tmp_path, broker.url) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        stick = tmp_path / "stick"
        stick.mkdir()
        path = export(side, stick / "one.edgekit", "pi-1")
        (stick / "broken.edgekit").write_bytes(b"PK nothing")
        (row,), _ = await agent_import(folder, stick)
        assert (row["model"], row["version"], row["result"]) == ("small", "1.0.0", "succeeded")
        (row,), _ = await agent_import(folder, path)
        assert row["result"] == "current"
        assert side.rollout().state is RolloutState.RUNNING
        agent = AgentProcess(folder)
        await agent.start()
        try:
            assert await agent.ask("small") == "1.0.0"
            _, err = await agent_import(folder, path, expect=1)
            assert "another agent runs" in err
            await until(lambda: side.rollout().state is RolloutState.FINISHED)
        finally:
            await agent.kill()


async def test_a_model_is_taken_off_a_device_without_a_network(tmp_path: Path) -> None:
    """The order has no bundle; importing it again removes nothing and is no error."""
    async with ControlSide(tmp_path) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        await agent_import(folder, export(side, tmp_path / "one.edgekit", "pi-1"))
        assert list((folder / "state" / "models" / "small").iterdir())
        before = side.state.assignments.get("pi-1").version
        with side.state.assignments._writing() as connection:
            assign(connection, FLEET, "pi-1", "small", None, uninstall=True)
        await until(lambda: (one := side.state.assignments.get("pi-1")).version > before and one.payload)
        path = export(side, tmp_path / "two.edgekit", "pi-1")
        (row,), _ = await agent_import(folder, path)
        assert (row["model"], row["version"], row["result"]) == ("small", "1.0.0", "uninstalled")
        assert not (folder / "state" / "models" / "small").exists()
        (row,), _ = await agent_import(folder, path)
        assert (row["version"], row["result"]) == ("", "uninstalled")


async def test_what_the_network_way_refuses_is_refused(tmp_path: Path) -> None:
    """Foreign devices, changed metadata, changed blobs, missing parts, an older assignment; nothing is installed."""
    async with ControlSide(tmp_path) as side:
        folder, other = enroll(side, "pi-1"), enroll(side, "pi-2")
        await assigned(side, "1.0.0", "pi-1", "pi-2")
        path = export(side, tmp_path / "one.edgekit", "pi-1")
        _, err = await agent_import(other, path, expect=1)
        assert "has no assignment for 'pi-2'; it has some for pi-1" in err
        stolen = changed(path, "none", bytes)
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(stolen, "a") as new:
            new.writestr("desired/pi-2.json", old.read("desired/pi-1.json"))
        _, err = await agent_import(other, stolen, expect=3)
        assert "is for device 'pi-1'" in err
        later = changed(path, "metadata/timestamp", lambda data: data.replace(b'"expires":"20', b'"expires":"21'))
        _, err = await agent_import(folder, later, expect=3)
        assert "not signed by the trusted keys" in err
        _, err = await agent_import(folder, changed(path, "blobs/", lambda data: data[:-1] + b"?"), expect=3)
        assert "manifest models/small/x86-64/1.0.0/manifest.json" in err
        assert not (folder / "state" / "models").exists()
        missing = changed(path, "none", bytes)
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(missing, "w") as new:
            for name in old.namelist():
                if not name.startswith("blobs/"):
                    new.writestr(name, old.read(name))
        _, err = await agent_import(folder, missing, expect=1)
        assert "has no blobs/" in err
        rows, _ = await agent_import(folder, path)
        assert rows[0]["result"] == "succeeded", "a damaged copy is no failed deployment"


async def test_expired_metadata_and_a_wrong_clock_are_refused(tmp_path: Path) -> None:
    """By the device's own clock, as over a network."""
    async with ControlSide(tmp_path) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        path = export(side, tmp_path / "one.edgekit", "pi-1")
        for seconds, error in ((side.clock.wall() + 40 * 86_400, ExpiredError), (1000.0, ClockError)):
            async with importing(folder, path) as (agent, _transport, follow):
                agent._parts.clock.wall = lambda seconds=seconds: seconds
                with pytest.raises(error):
                    await follow()
                assert agent.states == {}


async def test_an_older_assignment_is_refused_after_a_newer_one(tmp_path: Path) -> None:
    """An old stick changes nothing."""
    async with ControlSide(tmp_path) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        old = export(side, tmp_path / "old.edgekit", "pi-1")
        version = side.state.assignments.get("pi-1").version
        side.state.assignments.renew("pi-1", version)
        await until(lambda: (one := side.state.assignments.get("pi-1")).version > version and one.payload)
        new = export(side, tmp_path / "new.edgekit", "pi-1")
        async with importing(folder, new) as (_, _transport, follow):
            assert await follow() == [Imported("small", "1.0.0", "succeeded")]
        async with importing(folder, old) as (_, _transport, follow):
            with pytest.raises(VerificationError, match="expected at least 2"):
                await follow()


async def test_an_interrupted_import_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """The stick was pulled in the middle: verified blocks are not read again."""
    async with ControlSide(tmp_path) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        path = export(side, tmp_path / "one.edgekit", "pi-1")
        whole = BALLAST_BYTES // 65_536
        async with importing(folder, path, Pulled) as (_, transport, follow):
            task = asyncio.ensure_future(follow())
            await until(lambda: transport.blocks_sent >= PULLED_BLOCKS)
            await asyncio.sleep(0.2)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert transport.blocks_sent < whole
        async with importing(folder, path) as (_, transport, follow):
            assert await follow() == [Imported("small", "1.0.0", "succeeded")]
            assert transport.blocks_sent <= whole - PULLED_BLOCKS // 2


async def test_a_stick_that_is_pulled_makes_no_failed_deployment(tmp_path: Path) -> None:
    """The import ends with the reason, and goes on when the stick is there again: a failed one is not tried again."""
    async with ControlSide(tmp_path) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        path = export(side, tmp_path / "one.edgekit", "pi-1")
        async with importing(folder, path, Unreadable) as (agent, _transport, follow):
            with pytest.raises(DiskError, match=r"the import stops: .*one\.edgekit cannot be read"):
                await follow()
            assert agent.states["small"].outcome is None
        async with importing(folder, path) as (_, transport, follow):
            assert await follow() == [Imported("small", "1.0.0", "succeeded")]
            assert transport.blocks_sent <= BALLAST_BYTES // 65_536 - PULLED_BLOCKS // 2


async def test_the_same_delay_as_at_an_earlier_import_ends_this_one_too(tmp_path: Path) -> None:
    """The journal has its reason already, so no event says it again: the import must not wait for one."""
    async with ControlSide(tmp_path) as side:
        folder = enroll(side, "pi-1")
        await assigned(side, "1.0.0", "pi-1")
        path = export(side, tmp_path / "one.edgekit", "pi-1")
        async with importing(folder, path) as (agent, _transport, follow):

            def resting(assignment: Assignment) -> None:
                entry = assignment.entries["small"]
                names = ("path", "length", "name", "version", "target", "release")
                pending = Deployment(entry.sha256, assignment=1, **{name: getattr(entry, name) for name in names})
                state = UpdateRecord(deployment=pending, note="SpaceError: the disk is full")
                agent._updaters["small"] = SimpleNamespace(state=state)

            agent.follow = resting
            with pytest.raises(UnavailableError, match="small waits: SpaceError: the disk is full"):
                await asyncio.wait_for(follow(), 30)

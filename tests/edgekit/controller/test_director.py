"""The director's key changes while a controller runs: it goes on with the new one, or signs nothing and says why."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgekit.controller import director as director_module
from edgekit.rollout.values import RolloutState
from edgekit.trust.assignment import open_assignment
from edgekit.trust.repository import Repository
from edgekit.trust.rotation import KeyManager
from tests.simulators.control import ControlSide


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(director_module, "CHECK_SECONDS", 0.05)


async def start(side: ControlSide) -> str:
    """Start a rollout after the controller has looked at its key; returns the key's id."""
    side.publish("digits", "1.0.0")
    await side.device("pi-1")
    await side.until(lambda: not side.controller.director.due)
    return side.controller.director.signer.public_key.keyid


async def test_a_rotated_key_signs_from_then_on(tmp_path: Path) -> None:
    """What the old key has signed is signed again, and devices accept what comes next, without a restart."""
    async with ControlSide(tmp_path) as side:
        side.load_director = side.repository.director
        await side.stop_controller()
        await side.start_controller()
        old = await start(side)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        KeyManager(side.store, side.folder / "keys").rotate("director")
        await side.until(lambda: side.controller.director.signer.public_key.keyid != old)
        new = side.repository.director().public_key.keyid
        assert side.controller.director.signer.public_key.keyid == new
        await side.until(lambda: side.devices["pi-1"].versions == [1, 2])
        (stored,) = side.state.assignments.all(["pi-1"])
        assert open_assignment(stored.payload, side.repository.director().public_key).version == 2


async def test_a_controller_without_the_new_key_signs_nothing_until_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A controller on another machine has the old key: devices would refuse all that it signs."""
    async with ControlSide(tmp_path) as side:
        held = Repository(side.store, tmp_path / "controller-keys")
        side.load_director = held.director
        await side.stop_controller()
        await side.start_controller()
        await start(side)
        KeyManager(side.store, side.folder / "keys").rotate("director")
        await side.until(lambda: not side.controller.director.trusted)
        with caplog.at_level(logging.ERROR):
            await side.until(lambda: "rollouts and commands stand still" in caplog.text)
        assert caplog.text.count("stand still") == 1, "said once"
        side.start("digits", "1.0.0")
        await side.until(lambda: side.controller.director.due)
        assert side.devices["pi-1"].versions == []
        new = side.repository.director()
        (tmp_path / "controller-keys").mkdir(exist_ok=True)
        for path in (tmp_path / "keys").iterdir():
            (tmp_path / "controller-keys" / path.name).write_bytes(path.read_bytes())
            (tmp_path / "controller-keys" / path.name).chmod(0o600)
        await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
        assert side.controller.director.signer.public_key.keyid == new.public_key.keyid

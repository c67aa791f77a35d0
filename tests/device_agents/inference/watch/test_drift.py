"""The test of drift in the service: what is counted, what is told, and what survives a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agents.inference.options import ServiceOptions
from device_agents.inference.service import InferenceService
from device_agents.inference.watch.drift import FILE_NAME, DriftWatch
from edgekit.bundle.manifest import Manifest
from edgekit.drift.reference import REFERENCE_NAME
from edgekit.protocols import CloudAnswer
from edgekit.sealing.bundles import seal_bundle
from edgekit.sealing.class_keys import add_class, class_path, content_secret, find_class
from edgekit.sealing.keyring import Keyring
from edgekit.sealing.opening import use_keyring
from edgekit.storage.disk import FolderDisk
from tests.simulators.drifting import ROWS, bundle_with_reference
from tests.simulators.small_models import onnx_bundle

OFTEN = ServiceOptions(drift_seconds=1e-9, fallback_threshold=0.0)


@asynccontextmanager
async def serving(folder: Path, manifest: Manifest, bundle: Path, **options: object) -> AsyncIterator[tuple]:
    """A service with the bundle active, and what it tells."""
    told: list[tuple] = []
    async with InferenceService(service=OFTEN, disk=FolderDisk(folder), **options) as service:
        await service.activate("digits", manifest, bundle)
        service.listen_drift(lambda *one: told.append(one))
        yield service, told


async def send(service: InferenceService, rows: np.ndarray) -> None:
    for row in rows:
        await service.infer("digits", {"x": row[None]})


async def test_normal_inputs_raise_nothing_and_others_are_told(tmp_path: Path) -> None:
    """The input by its name, with a statistic, and the answers that follow from it; once each."""
    manifest, rng = bundle_with_reference(tmp_path / "b"), np.random.default_rng(3)
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, told):
        await send(service, rng.permutation(ROWS))
        assert (told, service.gauges()["digits"]["drifting"]) == ([], 0)
        await send(service, ROWS[:60] + np.array([9.0, 0.0, 0.0], np.float32))
        assert service.gauges()["digits"]["drift_samples"] == 460
    kinds = {(kind, model, error) for kind, model, error, _, _ in told}
    assert {("drift", "digits", "input.x"), ("drift", "digits", "class")} <= kinds
    assert len(told) == len(kinds) <= 3
    details = {detail["subject"]: detail for *_, detail in told}
    assert details["input.x"]["statistic"] == "input.x.feature.0"
    assert details["input.x"]["samples"] <= 128
    assert 0.3 < details["input.x"]["moved"] <= 1.0


async def test_a_drift_is_known_after_a_restart_and_ends_with_a_new_version(tmp_path: Path) -> None:
    """The event is repeated, because it may have been lost with the process; another bundle has a test of its own."""
    manifest, shift = bundle_with_reference(tmp_path / "b"), np.array([30.0, 0.0, 0.0], np.float32)
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, told):
        await send(service, ROWS[:40] + shift)
        before = service.gauges()["digits"]
    message = next(one[3] for one in told if one[2] == "input.x")
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, told):
        assert service.gauges()["digits"]["drift_samples"] == before["drift_samples"] == 40
        assert ("drift", "digits", "input.x", message, {"subject": "input.x", "again": True}) in told
        told.clear()
        other = bundle_with_reference(tmp_path / "c", "1.1.0")
        await service.activate("digits", other, tmp_path / "c")
        assert {(kind, error, detail["subject"]) for kind, _, error, _, detail in told} >= {
            ("drift-ended", "", "input.x")
        }
        assert service.gauges()["digits"]["drifting"] == 0


async def test_a_new_version_while_the_agent_was_off_ends_the_drift_too(tmp_path: Path) -> None:
    """What was stored is of another bundle."""
    manifest, shift = bundle_with_reference(tmp_path / "b"), np.array([30.0, 0.0, 0.0], np.float32)
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, _):
        await send(service, ROWS[:40] + shift)
    other = bundle_with_reference(tmp_path / "c", "1.1.0")
    async with serving(tmp_path, other, tmp_path / "c") as (service, told):
        assert {detail["subject"] for kind, *_, detail in told if kind == "drift-ended"} >= {"input.x"}
        await service.deactivate("digits")
    assert json.loads((tmp_path / FILE_NAME).read_bytes()) == {}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"digits":{"digest":1}}', b"\xff\x00", b'{"d\xff":1}'])
async def test_a_damaged_file_begins_the_tests_anew(tmp_path: Path, damage: bytes) -> None:
    """The models answer, and the next store mends it."""
    manifest = bundle_with_reference(tmp_path / "b")
    (tmp_path / FILE_NAME).write_bytes(damage)
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, told):
        await send(service, ROWS[:5])
        assert (service.gauges()["digits"]["drift_samples"], told) == (5, [])
    assert json.loads((tmp_path / FILE_NAME).read_bytes())["digits"]["samples"] == 5


@pytest.mark.parametrize("fault", ["changed", "none", "gone"])
async def test_a_bundle_without_a_usable_reference_answers_as_before(tmp_path: Path, fault: str) -> None:
    """An older bundle, and a file that was damaged on the disk: nothing is tested."""
    folder = tmp_path / "b"
    manifest = onnx_bundle(folder, name="digits") if fault == "none" else bundle_with_reference(folder)
    if fault == "changed":
        (folder / REFERENCE_NAME).write_bytes((folder / REFERENCE_NAME).read_bytes().replace(b"score", b"SCORE"))
    elif fault == "gone":
        (folder / REFERENCE_NAME).unlink()
    async with serving(tmp_path, manifest, folder) as (service, told):
        await send(service, ROWS[:50] + 90)
        assert (told, "drifting" in service.gauges()["digits"]) == ([], False)


class AllOnes:
    """A cloud tier whose answers are always the first class."""

    async def infer(self, model: str, inputs: object, **_: object) -> CloudAnswer:
        return CloudAnswer({"scores": np.array([[1.0, 0.0, 0.0]], np.float32), "tag": np.zeros((1, 1), np.float32)})

    async def close(self) -> None:
        return


async def test_the_local_answer_counts_and_not_the_clouds(tmp_path: Path) -> None:
    """Unsure answers are replaced by the cloud tier's. Their scores and classes belong to the distribution too."""
    manifest, told = bundle_with_reference(tmp_path / "b"), []
    options = msgspec.structs.replace(OFTEN, fallback_threshold=0.9)
    async with InferenceService(service=options, cloud=AllOnes()) as service:
        await service.activate("digits", manifest, tmp_path / "b")
        service.listen_drift(lambda *one: told.append(one))
        answers = [
            await service.infer("digits", {"x": row[None]}) for row in np.random.default_rng(5).permutation(ROWS)
        ]
        assert service.gauges()["digits"]["drift_samples"] == 400
    routes = [one.parameters["edgekit_route"] for one in answers]
    assert routes.count("cloud") > 50, "so many that the classes of the answers to clients differ"
    assert told == []


async def test_one_row_of_a_batch_counts_and_one_request_an_interval(tmp_path: Path) -> None:
    """Rows of a request have much in common, and so have requests that follow each other closely."""
    manifest = bundle_with_reference(tmp_path / "b", batch=None)
    async with InferenceService(service=ServiceOptions(drift_seconds=3600.0, fallback_threshold=0.0)) as service:
        await service.activate("digits", manifest, tmp_path / "b")
        for _ in range(3):
            await service.infer("digits", {"x": ROWS[:50]})
        assert service.gauges()["digits"]["drift_samples"] == 1


async def test_the_test_can_be_switched_off(tmp_path: Path) -> None:
    """Nothing is counted, and no file is written."""
    manifest = bundle_with_reference(tmp_path / "b")
    off = ServiceOptions(drift_seconds=0.0, fallback_threshold=0.0)
    async with InferenceService(service=off, disk=FolderDisk(tmp_path)) as service:
        await service.activate("digits", manifest, tmp_path / "b")
        await send(service, ROWS[:50] + 90)
        assert "drifting" not in service.gauges()["digits"]
    assert not (tmp_path / FILE_NAME).exists()


async def test_switching_the_test_off_ends_what_it_found(tmp_path: Path) -> None:
    """Nobody else could: the controller would show the alarm for ever."""
    manifest = bundle_with_reference(tmp_path / "b")
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, _):
        await send(service, ROWS[:40] + 90)
    told: list[tuple] = []
    off = ServiceOptions(drift_seconds=0.0, fallback_threshold=0.0)
    async with InferenceService(service=off, disk=FolderDisk(tmp_path)) as service:
        await service.activate("digits", manifest, tmp_path / "b")
        service.listen_drift(lambda *one: told.append(one))
    assert {(kind, detail["subject"]) for kind, *_, detail in told} >= {("drift-ended", "input.x")}
    assert json.loads((tmp_path / FILE_NAME).read_bytes()) == {}


async def test_an_empty_batch_is_answered_and_not_counted(tmp_path: Path) -> None:
    """There is no row to count."""
    manifest = bundle_with_reference(tmp_path / "b", batch=None)
    async with serving(tmp_path, manifest, tmp_path / "b") as (service, told):
        await service.infer("digits", {"x": ROWS[:0]})
        assert (service.gauges()["digits"]["drift_samples"], told) == (0, [])


async def test_a_full_disk_does_not_stop_the_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; drifts are told all the same."""
    manifest = bundle_with_reference(tmp_path / "b")
    (tmp_path / "state").mkdir()
    async with serving(tmp_path / "state", manifest, tmp_path / "b") as (service, told):
        (tmp_path / "state" / FILE_NAME).unlink(missing_ok=True)
        await asyncio.sleep(0.1)
        (tmp_path / "state" / FILE_NAME).unlink(missing_ok=True)
        (tmp_path / "state" / FILE_NAME).mkdir()  # no file can take its place
        await send(service, ROWS[:40] + 90)
        assert told
    assert "cannot be stored" in caplog.text


def test_a_watch_without_a_disk_or_a_listener_keeps_news_until_there_is_one() -> None:
    """As an application that embeds the service may do."""
    watch = DriftWatch(1.0, 0.001, _Still(), None)
    watch._tell("drift", "digits", "score", "text", {})
    told: list[tuple] = []
    watch.listen(lambda *one: told.append(one))
    assert told == [("drift", "digits", "score", "text", {})]


class _Still:
    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0


async def test_a_sealed_bundle_is_tested_too(tmp_path: Path) -> None:
    """Its reference is sealed like its other files, and opened with the key of the device's class."""
    keys, plain, sealed = tmp_path / "keys", tmp_path / "b", tmp_path / "sealed"
    keys.mkdir()
    add_class(keys, "cameras")
    made = bundle_with_reference(plain)
    manifest = seal_bundle(plain, made, sealed, classes=[find_class(keys, "cameras")], secret=content_secret(keys))
    use_keyring(Keyring([class_path(keys, "cameras")]))
    try:
        async with serving(tmp_path, manifest, sealed) as (service, told):
            await send(service, ROWS[:40] + 90)
            assert b"feature" not in (sealed / REFERENCE_NAME).read_bytes()
            assert {one[2] for one in told} >= {"input.x"}
    finally:
        use_keyring(None)

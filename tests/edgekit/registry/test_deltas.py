"""Publishing with deltas: they are signed with the bundle, listed in the catalogue and re-hashed by verify."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekit.bundle.manifest import Manifest
from edgekit.cli.main import edgekit
from edgekit.errors import NotFoundError
from edgekit.mqtt.messages import Reported, Running
from edgekit.registry import RegistryReader, blob_name, check_bundle, publish
from edgekit.registry.deltas import find_bases, make_deltas
from edgekit.registry.verification import verify
from edgekit.rollout.cohort import Device
from edgekit.state import open_fleet_state
from tests.simulators.bundles import write_bundle
from tests.simulators.control import TARGET, ControlSide
from tests.simulators.publisher import Registry
from tests.simulators.weights import int8_weights, onnx_file, retrained

WEIGHTS = int8_weights(1, 300_000)
MODELS = {
    "1.0.0": onnx_file(WEIGHTS),
    "1.1.0": onnx_file(retrained(WEIGHTS, 2)),
    "2.0.0": onnx_file(int8_weights(5, 9)),
}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def reader(registry: Registry, tmp_path: Path) -> RegistryReader:
    return RegistryReader(registry.store, registry.root, tmp_path / "cache")


def put(registry: Registry, reader: RegistryReader, folder: Path, version: str, *bases: str) -> Manifest:
    bundle = folder / f"digits-{version}-pi"
    if not bundle.exists():
        write_bundle(folder, version=version, model=MODELS[version])
    manifest = check_bundle(bundle)
    made = []
    if bases:
        reader.refresh()
        made = make_deltas(reader, bundle, manifest, find_bases(reader, manifest, bases))
    publish(registry.store, registry.repository, bundle, deltas=[delta for _, delta in made if delta])
    reader.refresh()
    return manifest


def test_a_delta_is_signed_with_its_bundle(registry: Registry, reader: RegistryReader, tmp_path: Path) -> None:
    """The catalogue names both files, the description's digest and the sizes; the blobs are in the store."""
    old = put(registry, reader, tmp_path, "1.0.0")
    new = put(registry, reader, tmp_path, "1.1.0", "1.0.0")
    (offer,) = reader.list()[-1].deltas
    assert (offer.base, offer.result) == (old.file("model").sha256, new.file("model").sha256)
    assert offer.size < 0.07 * new.file("model").size
    data = registry.store.get(blob_name(offer.description))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (offer.length, offer.description)
    assert verify(registry.store, registry.root) == []


def test_deltas_are_added_to_a_published_version(registry: Registry, reader: RegistryReader, tmp_path: Path) -> None:
    """Publishing again with another base keeps the release and the earlier deltas."""
    put(registry, reader, tmp_path, "1.0.0")
    put(registry, reader, tmp_path, "1.1.0")
    put(registry, reader, tmp_path, "1.1.0", "1.0.0")
    before = reader.list()[-1]
    assert (len(before.deltas), before.release) == (1, 2)
    put(registry, reader, tmp_path, "1.1.0", "1.0.0")
    assert reader.list()[-1] == before
    put(registry, reader, tmp_path, "1.1.0")
    assert reader.list()[-1] == before


def test_no_delta_from_what_is_unlike_or_not_there(registry: Registry, reader: RegistryReader, tmp_path: Path) -> None:
    """A delta that saves too little is not made; an unknown base is an error that lists the published versions."""
    put(registry, reader, tmp_path, "2.0.0")
    put(registry, reader, tmp_path, "1.1.0", "2.0.0")
    assert [row.deltas for row in reader.list()] == [(), ()]
    with pytest.raises(NotFoundError, match=r"no version 9\.9\.9") as caught:
        put(registry, reader, tmp_path, "1.0.0", "9.9.9")
    assert "2.0.0" in caught.value.advice


@pytest.mark.parametrize("damage", ["description gone", "description changed", "payload gone", "payload changed"])
def test_verify_names_a_damaged_delta(registry: Registry, reader: RegistryReader, tmp_path: Path, damage: str) -> None:
    """The two blobs of a delta are hashed like all others."""
    put(registry, reader, tmp_path, "1.0.0")
    before = set(registry.store.blobs)
    put(registry, reader, tmp_path, "1.1.0", "1.0.0")
    (offer,) = reader.list()[-1].deltas
    description = blob_name(offer.description)
    (payload,) = (name for name in set(registry.store.blobs) - before if len(registry.store.blobs[name]) == offer.size)
    name = description if damage.startswith("description") else payload
    if damage.endswith("gone"):
        del registry.store.blobs[name]
    else:
        registry.store.blobs[name] = b"?" + registry.store.blobs[name][1:]
    (fault,) = verify(registry.store, registry.root)
    assert f"delta from {offer.base[:12]}" in fault


# --- as it is typed


def type_in(*words: str) -> str:
    result = CliRunner().invoke(edgekit, ["registry", *words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def offers(version: str) -> list[dict[str, object]]:
    return next(row["deltas"] for row in json.loads(type_in("list", "--json")) if row["version"] == version)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EDGEKIT_PASSPHRASE", "EDGEKIT_REGISTRY", "EDGEKIT_KEYS", "EDGEKIT_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for version, model in MODELS.items():
        write_bundle(tmp_path, version=version, model=model)
    type_in("init")
    type_in("publish", "digits-1.0.0-pi")
    return tmp_path


def test_delta_from_names_a_version(folder: Path) -> None:
    """A delta from a named version is printed with its size and shown with the version."""
    assert "delta from 1.0.0: " in type_in("publish", "digits-1.1.0-pi", "--delta-from", "1.0.0")
    (offer,) = offers("1.1.0")
    assert f"from sha256 {str(offer['base'])[:12]}" in type_in("show", "digits", "1.1.0")
    assert "save too little" in type_in("publish", "digits-2.0.0-pi", "--delta-from", "1.0.0", "--delta-from", "1.1.0")
    assert not (folder / "edgekit.db").exists()


def test_a_dry_run_names_the_versions_that_deltas_would_start_from(folder: Path) -> None:
    """In the table and as JSON; a dry run makes nothing, and an unknown version is an error."""
    before = sorted(folder.rglob("*"))
    said = type_in("publish", "digits-1.1.0-pi", "--delta-from", "1.0.0", "--dry-run")
    assert "deltas from" in said
    assert said.splitlines()[-1].split()[-1] == "1.0.0"
    (plan,) = json.loads(type_in("publish", "digits-1.1.0-pi", "--delta-from", "1.0.0", "--dry-run", "--json"))
    assert plan["deltas_from"] == ["1.0.0"]
    (plan,) = json.loads(type_in("publish", "digits-1.1.0-pi", "--delta-from", "none", "--dry-run", "--json"))
    assert plan["deltas_from"] == []
    command = ["registry", "publish", "digits-1.1.0-pi", "--delta-from", "9.0.0", "--dry-run"]
    assert isinstance(CliRunner().invoke(edgekit, command).exception, NotFoundError)
    assert sorted(folder.rglob("*")) == before


def test_without_a_word_the_versions_that_the_fleet_runs_are_taken(folder: Path) -> None:
    """Only devices of the same target count; 'none' makes no delta."""
    state = open_fleet_state("sqlite:///edgekit.db", "default")
    for name, target in (("pi-1", "pi"), ("other", "elsewhere")):
        state.devices.enroll(Device(name, target, "", enrolled=time.time()))
        running = {"digits": Running("d", "1.0.0" if target == "pi" else "2.0.0")}
        state.devices.save_report(Reported(name, "default", 1, 0.0, 1, running, {}), time.time())
    state.close()
    type_in("publish", "digits-2.0.0-pi")
    assert offers("2.0.0") == []
    type_in("publish", "digits-1.1.0-pi", "--delta-from", "none")
    assert offers("1.1.0") == []
    said = type_in("publish", "digits-1.1.0-pi", "--dry-run", "--json")
    assert "1.1.0 for pi is lower than 2.0.0" in said  # the warning, which is not part of the JSON
    (plan,) = json.loads(said[said.index("[") :])
    assert plan["deltas_from"] == ["1.0.0"]
    said = type_in("publish", "digits-1.1.0-pi")
    assert "delta from 1.0.0: " in said
    assert "delta from 2.0.0" not in said
    assert len(offers("1.1.0")) == 1


# --- the whole way


async def test_a_device_fetches_the_difference(tmp_path: Path) -> None:
    """Real controller and real agent: the second version needs a few blocks only."""
    from tests.simulators.device import DEVICE
    from tests.simulators.device import Device as SimulatedDevice

    async with ControlSide(tmp_path) as side:
        reader = RegistryReader(side.store, side.root, tmp_path / "reader")
        folder = tmp_path / "digits"
        device = SimulatedDevice(tmp_path / "device", side.broker, side.root)
        pem = (tmp_path / "device" / "device.pub").read_text()
        side.state.devices.enroll(Device(DEVICE, TARGET, pem, enrolled=side.clock.wall()))
        await device.start()
        try:
            fetched = []
            for version in ("1.0.0", "1.1.0"):
                bundle = write_bundle(folder, "digits", version, TARGET, MODELS[version])
                manifest = check_bundle(bundle)
                reader.refresh()
                bases = find_bases(reader, manifest, [row.version for row in reader.list()])
                made = [delta for _, delta in make_deltas(reader, bundle, manifest, bases) if delta]
                publish(side.store, side.repository, bundle, deltas=made)
                side.start("digits", version)
                await side.until(lambda version=version: device.inference.live == {"digits": version})
                await side.until(lambda: side.rollout().state.value == "FINISHED")
                fetched.append(device.agent._effects.transfers["bytes_fetched"])
            assert fetched[0] >= len(MODELS["1.0.0"])
            assert fetched[1] - fetched[0] < 0.07 * len(MODELS["1.1.0"])
        finally:
            await device.stop()

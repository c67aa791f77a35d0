"""Registries of earlier releases can be verified, read, downloaded, renewed and extended."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from edgekit.bundle.manifest import ROLE_MODEL
from edgekit.cli.main import edgekit
from edgekit.deltas.description import parse_delta
from edgekit.deltas.making import apply_delta
from edgekit.errors import ExpiredError, SignatureError
from edgekit.registry import RegistryReader, blob_name
from edgekit.registry.publishing import check_bundle
from edgekit.storage.stores import open_store
from edgekit.trust.client import TrustClient

TARGET = "raspberry-pi-4"
DAY = 86_400.0


@pytest.fixture
def control(release, tmp_path):
    return release.control(tmp_path)


@pytest.fixture
def store(control):
    return open_store(f"file://{control / 'registry'}")


@pytest.fixture
def reader(release, control, store, tmp_path):
    """A reader of the registry at the time of the release."""
    reader = RegistryReader(store, (control / "keys" / "root.json").read_bytes(), tmp_path / "cache")
    reader.refresh(release.made_at)
    return reader


def test_catalogue_is_verified_and_read(reader):
    """The catalogue lists versions, release numbers, channels, retired versions and deltas."""
    rows = {(row.name, row.version): row for row in reader.list()}
    assert sorted(rows) == [("digits", "1.0.0"), ("digits", "1.1.0"), ("shapes", "1.0.0"), ("shapes", "1.1.0")]
    assert [rows["digits", version].channel for version in ("1.0.0", "1.1.0")] == ["stable", ""]
    assert [rows["digits", version].release for version in ("1.0.0", "1.1.0")] == [1, 2]
    assert [rows["shapes", version].retired for version in ("1.0.0", "1.1.0")] == [False, True]
    assert [len(rows["digits", version].deltas) for version in ("1.0.0", "1.1.0")] == [0, 1]


def test_versions_are_resolved(reader):
    """Resolving gives the newest version, a given version or the channel's version, and never a retired one."""
    assert reader.resolve("digits", TARGET).manifest.version == "1.1.0"
    assert reader.resolve("digits", TARGET, "1.0.0").manifest.version == "1.0.0"
    assert reader.resolve("digits", TARGET, channel="stable").manifest.version == "1.0.0"
    assert reader.resolve("shapes", TARGET).manifest.version == "1.0.0"


def test_every_bundle_is_fetched(reader, tmp_path):
    """Every file of a downloaded bundle has its signed digest."""
    for row in reader.list():
        manifest = reader.load(row).manifest
        folder = tmp_path / f"{row.name}-{row.version}"
        reader.download(manifest, folder)
        assert check_bundle(folder) == manifest


def test_delta_makes_the_new_file(reader, store):
    """The current code reads the delta and turns the old artifact into the new one."""
    (old,), (new,) = ([row for row in reader.list("digits") if row.version == v] for v in ("1.0.0", "1.1.0"))
    (offer,) = new.deltas
    base, result = (reader.load(row).manifest.file(ROLE_MODEL) for row in (old, new))
    data = store.get(blob_name(offer.description))
    delta = parse_delta(data, offer, base_size=base.size, result_size=result.size)
    payload = store.get(blob_name(delta.payload_entry("delta").sha256))
    assert len(payload) < result.size / 4
    assert apply_delta(delta, payload, reader.read(base)) == reader.read(result)


def test_a_device_of_the_release_follows_the_chain_of_roots(release, store, tmp_path):
    """A device follows the roots from its enrolled root to the second one, which has another timestamp key."""
    device = release.device(tmp_path, "committed")
    client = TrustClient(
        tmp_path / "tuf", (device / "root.json").read_bytes(), lambda name: store.get(f"metadata/{name}")
    )
    client.refresh(release.made_at)
    assert client.versions["root"] == 2
    assert client.versions["time"] <= release.made_at
    client.refresh(release.made_at + DAY)
    with pytest.raises(ExpiredError):
        client.refresh(release.made_at + 10 * 365 * DAY)


def test_a_changed_byte_is_noticed(release, control, store, tmp_path):
    """A changed byte of the stored metadata is a SignatureError, so the tests above do verify."""
    path = control / "registry" / "metadata" / "timestamp.json"
    path.write_bytes(path.read_bytes().replace(b'"expires":"2', b'"expires":"3', 1))
    changed = RegistryReader(store, (control / "keys" / "root.json").read_bytes(), tmp_path / "cache")
    with pytest.raises(SignatureError):
        changed.refresh(release.made_at)


def test_commands_renew_and_use_it(control, monkeypatch):
    """`registry renew` signs expired metadata again with the release's keys, and all registry commands work."""
    monkeypatch.chdir(control)
    for name in ("EDGEKIT_PASSPHRASE", "EDGEKIT_REGISTRY", "EDGEKIT_KEYS"):
        monkeypatch.delenv(name, raising=False)
    renewed = json.loads(ran("registry", "renew", "--json"))["renewed"]
    assert {"root", "targets", "snapshot", "timestamp", "publisher-digits", "publisher-shapes"} <= set(renewed)
    assert json.loads(ran("registry", "verify", "--json")) == {"sound": True, "faults": []}
    assert len(json.loads(ran("registry", "list", "--json"))) == 4
    ran("registry", "promote", "digits", "1.1.0", "stable")
    rows = json.loads(ran("registry", "show", "digits", "--json"))
    assert [row["channel"] for row in rows] == ["stable", "stable"]
    assert "sealed   for gates" in ran("registry", "show", "shapes", "1.0.0")
    assert [row["name"] for row in json.loads(ran("registry", "class", "list", "--json"))] == ["doors", "gates"]


def ran(*words):
    result = CliRunner().invoke(edgekit, list(words))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_what_is_published_today_joins_it(release, control, monkeypatch):
    """A new version is published by the same publisher and gets the next release number."""
    monkeypatch.chdir(control)
    ran("registry", "renew")
    source = release.folder / "bundles" / f"shapes-1.0.0-{TARGET}"
    manifest = check_bundle(source)
    bundle = control / "next"
    bundle.mkdir()
    for entry in manifest.files:
        (bundle / entry.path).write_bytes((source / entry.path).read_bytes())
    newer = msgspec.structs.replace(manifest, version="1.2.0")
    (bundle / "manifest.json").write_bytes(newer.canonical_bytes())
    (published,) = json.loads(ran("registry", "publish", "next", "--delta-from", "none", "--json"))
    assert (published["version"], published["release"]) == ("1.2.0", 3)

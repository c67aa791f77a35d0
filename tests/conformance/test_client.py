"""The main cases of the TUF conformance suite, with the same three commands and a real HTTP server.

The suite itself also uses ``tests/conformance/client.py``; docs/trust.md has its results.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from tests.conformance import client

SCRIPT = Path(client.__file__)
TOP = ("root", "timestamp", "snapshot", "targets")


class Site:
    """A TUF repository with one key per role, served over HTTP. Change `signed`, then call `publish`.

    Attributes:
        files: Content of each file, by path.
        requests: Paths of all requests so far.
        keys: Signing keys, by role.
        signed: The metadata to sign, by role.
        first_root: The first root.json.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in TOP}
        later = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=9)
        self.signed: dict[str, Signed] = {"root": Root(expires=later, consistent_snapshot=True)}
        self.signed |= {"timestamp": Timestamp(expires=later), "snapshot": Snapshot(expires=later)}
        self.signed |= {"targets": Targets(expires=later)}
        for role in TOP:
            self.root.add_key(self.keys[role][0].public_key, role)
        self.publish("root")
        self.first_root = self.files["metadata/1.root.json"]
        self.publish("targets", "snapshot", "timestamp")

    @property
    def root(self) -> Root:
        return self.signed["root"]  # type: ignore[return-value]

    def publish(self, *roles: str) -> None:
        """Sign roles and serve them. Snapshot and timestamp name the current versions of the other roles."""
        for role in roles:
            signed = self.signed[role]
            if role == "snapshot":
                for name, child in self.signed.items():
                    if isinstance(child, Targets):
                        signed.meta[f"{name}.json"] = MetaFile(child.version)
            if role == "timestamp":
                signed.snapshot_meta = MetaFile(self.signed["snapshot"].version)
            document = Metadata(signed)
            for key in self.keys[role]:
                document.sign(key, append=True)
            name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
            self.files[f"metadata/{name}"] = document.to_bytes()

    def raised(self, *roles: str) -> None:
        """Raise the version of the roles by one, then publish them."""
        for role in roles:
            self.signed[role].version += 1
        self.publish(*roles)

    def add_target(self, name: str, data: bytes, role: str = "targets") -> None:
        file = TargetFile.from_data(name, data, ["sha256"])
        self.signed[role].targets[name] = file
        folder, slash, last = name.rpartition("/")
        self.files[f"targets/{folder}{slash}{hashlib.sha256(data).hexdigest()}.{last}"] = data


class Client:
    """Runs the three commands against one site in one folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.metadata, self.downloads, self._url = folder / "metadata", folder / "targets", url
        self.metadata.mkdir()
        self.downloads.mkdir()

    def init(self, root: bytes) -> int:
        (self.metadata.parent / "trusted").write_bytes(root)
        return client.main(["--metadata-dir", str(self.metadata), "init", str(self.metadata.parent / "trusted")])

    def words(self, *more: str) -> list[str]:
        return ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self._url}/metadata", *more]

    def refresh(self) -> int:
        return client.main(self.words("refresh"))

    def download(self, *names: str) -> int:
        wanted = [word for name in names for word in ("--target-name", name)]
        base = ["--target-base-url", f"{self._url}/targets", "--target-dir", str(self.downloads)]
        return client.main(self.words(*wanted, *base, "download"))

    def version(self, role: str) -> int:
        return int(json.loads((self.metadata / f"{role}.json").read_bytes())["signed"]["version"])


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            site.requests.append(name.removeprefix("metadata/"))
            data = site.files.get(name)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def device(site: Site, url: str, tmp_path: Path) -> Client:
    device = Client(tmp_path, url)
    assert device.init(site.first_root) == 0
    assert site.requests == []
    return device


def test_the_script_runs_as_the_suite_runs_it(site: Site, device: Client) -> None:
    """The process sends four requests in order and exits 0; without a signature it exits 1 with a one-line reason."""
    command = [sys.executable, str(SCRIPT), *device.words("refresh")]
    environ = {"PYTHONPATH": str(SCRIPT.parents[2])}
    assert subprocess.run(command, env=environ, check=False).returncode == 0
    assert site.requests == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    site.keys["timestamp"] = []
    site.raised("timestamp")
    failed = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("SignatureError:")
    assert failed.stderr.count("\n") == 1


def test_what_is_trusted_is_kept_byte_for_byte(site: Site, device: Client) -> None:
    """The metadata folder has exactly the bytes that were signed."""
    assert device.refresh() == 0
    for role in TOP:
        served = "timestamp.json" if role == "timestamp" else f"1.{role}.json"
        assert (device.metadata / f"{role}.json").read_bytes() == site.files[f"metadata/{served}"]


@pytest.mark.parametrize("role", TOP)
def test_unsigned_metadata_is_refused(site: Site, device: Client, role: str) -> None:
    """A new version of any role without the right signature is refused, and the trusted version stays."""
    assert device.refresh() == 0
    site.keys[role] = [CryptoSigner.generate_ed25519()]
    site.raised(*[r for r in ("root", "targets", "snapshot", "timestamp") if r == role or role == "targets"])
    if role == "snapshot":
        site.raised("timestamp")
    assert device.refresh() == 1
    assert device.version(role) == 1


@pytest.mark.parametrize("role", TOP)
def test_expired_metadata_is_refused(site: Site, device: Client, role: str) -> None:
    """Expired metadata is refused although it is signed; after a renewal the refresh succeeds."""
    good = site.signed[role].expires
    site.signed[role].expires = datetime(2024, 1, 1, tzinfo=timezone.utc)
    site.raised("root", "targets", "snapshot", "timestamp")
    assert device.refresh() == 1
    site.signed[role].expires = good
    site.raised("root", "targets", "snapshot", "timestamp")
    assert device.refresh() == 0
    assert device.version("root") == 3  # an expired intermediate root is only a step to the next one


def older_timestamp(site: Site) -> None:
    site.signed["timestamp"].version = 1
    site.publish("timestamp")


def older_snapshot(site: Site) -> None:
    site.signed["snapshot"].version = 1
    site.raised("timestamp")


def older_targets(site: Site) -> None:
    site.signed["targets"].version = 1
    site.raised("snapshot", "timestamp")


def targets_left_out(site: Site) -> None:
    site.signed["snapshot"].meta.clear()
    site.signed["snapshot"].meta["other.json"] = MetaFile(1)
    targets = site.signed.pop("targets")
    site.raised("snapshot", "timestamp")
    site.signed["targets"] = targets


@pytest.mark.parametrize("attack", [older_timestamp, older_snapshot, older_targets, targets_left_out])
def test_no_role_goes_back(site: Site, device: Client, attack: Callable[[Site], None]) -> None:
    """Older versions of timestamp, snapshot and targets are refused, and a snapshot without targets too."""
    site.raised("targets", "snapshot", "timestamp")
    assert device.refresh() == 0
    attack(site)
    assert device.refresh() == 1
    assert device.version("targets") == 2


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_a_missing_file_fails_the_refresh(site: Site, device: Client, name: str) -> None:
    """A missing metadata file fails the refresh, and the older targets stay trusted."""
    assert device.refresh() == 0
    site.raised("targets", "snapshot", "timestamp")
    del site.files[f"metadata/{name}"]
    assert device.refresh() == 1
    assert device.version("targets") == 1


def test_a_chain_of_roots_is_followed_and_a_gap_in_it_is_the_end(site: Site, device: Client) -> None:
    """The client follows roots signed by the keys of the previous root, and stops at a gap or a missing signature."""
    for _ in range(4):
        old = site.keys["root"]
        new = CryptoSigner.generate_ed25519()
        site.root.revoke_key(old[0].public_key.keyid, "root")
        site.root.add_key(new.public_key, "root")
        site.keys["root"] = [old[0], new]
        site.raised("root")
        site.keys["root"] = [new]
    fourth_root = site.files.pop("metadata/4.root.json")
    assert device.refresh() == 0
    assert device.version("root") == 3
    site.files["metadata/4.root.json"] = fourth_root
    assert device.refresh() == 0
    assert device.version("root") == 5
    new = CryptoSigner.generate_ed25519()
    site.keys["root"] = [new]  # the next root has no signature by the previous keys
    site.root.add_key(new.public_key, "root")
    site.raised("root")
    assert device.refresh() == 1
    assert device.version("root") == 5


def test_one_key_counts_once_towards_a_threshold(site: Site, device: Client) -> None:
    """Two signatures by one key do not meet a threshold of two; signatures by two keys do."""
    site.root.roles["timestamp"].threshold = 2
    second = CryptoSigner.generate_ed25519()
    site.root.add_key(second.public_key, "timestamp")
    site.raised("root", "timestamp")
    document = json.loads(site.files["metadata/timestamp.json"])
    document["signatures"] *= 2
    site.files["metadata/timestamp.json"] = json.dumps(document).encode()
    assert device.refresh() == 1
    site.keys["timestamp"].append(second)
    site.raised("timestamp")
    assert device.refresh() == 0


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_fast_forward_is_recovered_from_by_new_keys(site: Site, device: Client, role: str) -> None:
    """After a thief signed a very high version, rotating the key lets clients accept the lower version again."""
    version = site.signed[role].version
    site.signed[role].version = 99_999
    site.publish(*dict.fromkeys((role, "timestamp")))
    site.raised("timestamp")
    assert device.refresh() == 0
    assert device.version(role) >= 99_999
    site.signed[role].version = version
    for rotated in {role, "timestamp"}:  # the device has the timestamp that names the high snapshot
        new = CryptoSigner.generate_ed25519()
        site.root.revoke_key(site.keys[rotated][0].public_key.keyid, rotated)
        site.root.add_key(new.public_key, rotated)
        site.keys[rotated] = [new]
    site.raised("root", "snapshot", "timestamp")
    assert device.refresh() == 0
    assert device.version(role) == version + 1


def test_a_target_is_fetched_once_while_it_stays_the_same(site: Site, device: Client) -> None:
    """A target is downloaded by its hash-prefixed name, and again only after its content has changed."""
    site.add_target("a/b.bin", b"one")
    site.add_target("c", b"other")
    site.raised("targets", "snapshot", "timestamp")
    assert device.download("a/b.bin", "c") == 0
    site.requests.clear()
    assert device.download("a/b.bin") == 0
    assert site.requests == ["2.root.json", "timestamp.json"]
    site.add_target("a/b.bin", b"two")
    site.raised("targets", "snapshot", "timestamp")
    assert device.download("a/b.bin") == 0
    assert (device.downloads / "a%2Fb.bin").read_bytes() == b"two"
    assert device.download("a/b.bin", "absent") == 1


@pytest.mark.parametrize("data", [b"evil", b"two", b"one and more", b""])
def test_a_substituted_target_is_refused(site: Site, device: Client, data: bytes) -> None:
    """Other bytes of the same length, of another length or none are refused, and nothing is written."""
    site.add_target("x", b"one")
    site.raised("targets", "snapshot", "timestamp")
    site.files[f"targets/{hashlib.sha256(b'one').hexdigest()}.x"] = data
    assert device.download("x") == 1
    assert list(device.downloads.iterdir()) == []


@pytest.mark.parametrize("name", ["?", "#", "../role", "/role", "ü"])
def test_a_role_of_any_name_is_asked_for_quoted_and_stays_in_the_folder(
    site: Site, device: Client, tmp_path: Path, name: str
) -> None:
    """Delegated roles can have any name: it is quoted in URLs, and no file is written outside the metadata folder."""
    key = CryptoSigner.generate_ed25519()
    role = DelegatedRole(name, [], 1, True, paths=["d/*"])
    top = site.signed["targets"]
    top.delegations = Delegations({}, {name: role})
    top.add_key(key.public_key, name)
    site.keys[name], site.signed[name] = [key], Targets(expires=top.expires)
    site.add_target("d/x", b"data", role=name)
    site.publish(name)
    quoted = name.replace("?", "%3F").replace("#", "%23").replace("/", "%2F").replace("ü", "%C3%BC")
    site.files[f"metadata/1.{quoted}.json"] = site.files.pop(f"metadata/1.{name}.json")
    site.raised("targets", "snapshot", "timestamp")
    assert device.download("d/x") == 0
    assert f"1.{quoted}.json" in site.requests
    assert {path.name for path in tmp_path.iterdir()} == {"metadata", "targets", "trusted"}


@pytest.mark.parametrize("root", [b"", b"{}", b"\xff"])
def test_a_damaged_first_root_trusts_nothing(site: Site, url: str, tmp_path: Path, root: bytes) -> None:
    """A damaged first root is refused by the refresh, before any request."""
    device = Client(tmp_path, url)
    device.init(root)
    assert device.refresh() == 1
    assert site.requests == []

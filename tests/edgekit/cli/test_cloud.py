"""`edgekit cloud serve` as a process over a real registry."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from device_agents.inference.cloud.failures import CloudRefusedError
from device_agents.inference.cloud.http_client import HttpClient
from device_agents.inference.cloud_client import CloudClient
from edgekit.cli.cloud import cloud, read_api_key
from edgekit.cli.common.cloud_files import LogFile
from edgekit.errors import SettingsError
from edgekit.registry import publish
from edgekit.serving.api.keys import digest_of, parse_keys
from edgekit.serving.http.addresses import is_loopback
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from tests.simulators.pki import Pki
from tests.simulators.small_models import SURE, onnx_bundle, softmax

KEY = "a-key-of-the-test"


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A working folder with a registry that holds ``big`` 1.0.0 and 1.1.0 for servers."""
    store = open_store(f"file://{tmp_path}/registry")
    repository = Repository(store, tmp_path / "keys")
    repository.create()
    for version, gain in (("1.0.0", 1.0), ("1.1.0", 5.0)):
        onnx_bundle(tmp_path / version, name="big", version=version, target="server", batch=None, gain=gain)
        publish(store, repository, tmp_path / version)
    return tmp_path


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
    return subprocess.Popen(
        [sys.executable, "-c", "from edgekit.cli.main import main; main()", "cloud", "serve", *arguments],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the URL of its ready line."""
    with command(folder, *arguments) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            line = child.stdout.readline()
            found = re.fullmatch(r"cloud tier ready at (http://127\.0\.0\.1:\d+) \(big 1\.1\.0\)\n", line)
            assert found, line + child.stderr.read()
            yield child, found.group(1)
        finally:
            if child.poll() is None:
                child.kill()


def test_grpc_is_served_beside_http_where_it_is_asked_for(registry: Path) -> None:
    """The ready line names both; without the port there is no gRPC."""
    with command(registry, "big", "--port", "0", "--grpc-port", "0") as child:
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            found = re.search(r"ready at http://\S+, grpc (127\.0\.0\.1:\d+) \(big 1\.1\.0\)\n", line)
            assert found, line
            with grpc.insecure_channel(found.group(1)) as channel:
                said = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=60)
            assert said == b"\x08\x01"  # field 1, live: true
        finally:
            child.terminate()  # and not killed, which would leave its bundles in the temporary folder


def test_a_registry_that_does_not_answer_does_not_keep_the_tier_from_stopping(registry: Path) -> None:
    """Its thread waits for the store, and the process waited for the thread."""
    with running(registry, "big", "--port", "0") as (child, _):
        timestamp = registry / "registry" / "metadata" / "timestamp.json"
        timestamp.unlink()
        os.mkfifo(timestamp)  # whoever opens it waits
        child.send_signal(signal.SIGHUP)
        time.sleep(1)
        child.terminate()
        _, err = child.communicate(timeout=30)
    assert child.returncode == 0, err


def test_handshakes_that_fail_write_nothing(registry: Path) -> None:
    """gRPC wrote a line for each to stderr: strangers could fill the log."""
    Pki(registry, names=("server",))
    options = ("--tls-certificate", "server.pem", "--tls-key", "server.key", "--client-ca", "ca.pem")
    with command(registry, "big", "--port", "0", "--grpc-port", "0", *options) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        ports = re.findall(r"127\.0\.0\.1:(\d+)", line)
        assert len(ports) == 2, line
        for port in map(int, ports):
            for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                    client.sendall(data)
                    assert client.recv(1) == b""
        child.terminate()
        _, err = child.communicate(timeout=120)
    assert "andshake" not in err
    assert child.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_newest_version_is_served_until_a_signal(registry: Path, number: int) -> None:
    """One line gives the address, the API key is required, and a signal ends the process with status 0.

    SIGHUP ends nothing: the registry is looked at, and a new version is served.
    """
    (registry / "cloud.key").touch(mode=0o600)
    (registry / "cloud.key").write_text(KEY + "\n")
    with running(registry, "big", "--port", "0", "--api-key-file", "cloud.key") as (child, url):
        client = CloudClient(url, model="big", api_key=KEY)
        found = (await client.infer("small", {"x": SURE}, timeout_seconds=10)).outputs
        np.testing.assert_allclose(found["scores"], softmax(SURE, 5.0), atol=1e-6)
        onnx_bundle(registry / "1.2.0", name="big", version="1.2.0", target="server", batch=None, gain=2.0)
        store = open_store(f"file://{registry}/registry")
        publish(store, Repository(store, registry / "keys"), registry / "1.2.0")
        child.send_signal(signal.SIGHUP)
        for _ in range(100):
            again = await client.infer("small", {"x": SURE}, timeout_seconds=10)
            if again.version == "1.2.0":
                break
            await asyncio.sleep(0.1)
        np.testing.assert_allclose(again.outputs["scores"], softmax(SURE, 2.0), atol=1e-6)
        client.close()
        child.send_signal(number)
        out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (0, ""), err
    assert "Traceback" not in err
    assert "big 1.2.0 is served now (before: 1.1.0)" in err


def test_sigterm_before_models_are_served_ends_with_status_0(registry: Path) -> None:
    """A supervisor that stops a tier early saw exit status 130, as if someone had pressed Ctrl-C."""
    root = registry / "slow.json"
    os.mkfifo(root)
    with command(registry, "big", "--port", "0", "--root", root.name) as child, root.open("wb"):
        child.terminate()  # the tier has opened the file, and waits for its content
        out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (0, ""), err
    assert err == "stopped before a model was served\n"


async def test_keys_certificate_log_and_probes_of_an_owner(registry: Path) -> None:
    """A device with its own key over TLS, a key that is withdrawn while the tier runs, and a log that is rotated."""
    pki, keys = Pki(registry, names=("server",)), registry / "cloud.key"
    keys.touch(mode=0o600)
    keys.write_text(f'[keys.north]\nkeys = ["{KEY}"]\n[keys.south]\nkeys = ["{KEY}-2"]\n')
    options = ("--tls-certificate", "server.pem", "--tls-key", "server.key", "--api-key-file", "cloud.key")
    log = ("--health-port", "0", "--access-log", "access.log")
    with command(registry, "--all", "--port", "0", *options, *log) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            line = child.stdout.readline()
            found = re.fullmatch(r"cloud tier ready at (https://\S+), health (http://\S+) \(big 1\.1\.0\)\n", line)
            assert found, line + child.stderr.read()
            client = CloudClient(found.group(1), api_key=KEY, tls=ssl.create_default_context(cafile=pki.ca))
            await client.infer("big", {"x": SURE}, timeout_seconds=10)
            (registry / "access.log").rename(registry / "access.log.1")
            keys.write_text(f'[keys.south]\nkeys = ["{KEY}-2"]\n')
            child.send_signal(signal.SIGHUP)
            refusal = ""
            for _ in range(100):
                try:
                    await client.infer("big", {"x": SURE}, timeout_seconds=10)
                except CloudRefusedError as error:
                    refusal = str(error)
                    break
                await asyncio.sleep(0.1)
            assert "401: the API key is missing or wrong" in refusal
            client.close()
            probe = HttpClient(found.group(2))
            assert (await probe.request("GET", "/v2/health/ready", headers={}, timeout_seconds=10)).status == 200
            probe.close()
        finally:
            child.terminate()
    assert json.loads((registry / "access.log.1").read_text().splitlines()[0])["key"] == "north"
    assert json.loads((registry / "access.log").read_text().splitlines()[-1])["status"] == 401


def test_settings_of_models_that_are_not_served_are_told(registry: Path) -> None:
    """A name with a typing error was taken without a word."""
    (registry / "edgekit.toml").write_text("[cloud_models.big]\nbatch = 4\n[cloud_models.bgi]\nbatch = 4\n")
    with running(registry, "big", "--port", "0") as (child, _):
        child.terminate()
        _, err = child.communicate(timeout=120)
    assert "[cloud_models]: bgi: this cloud tier serves no such model" in err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("big", "--host", "0.0.0.0"), 1, "without an API key the cloud tier listens on loopback only"),
        (("big", "--api-key-file", "none.key"), 1, "there is no API key file none.key"),
        (("big", "--client-ca", "ca.pem"), 1, "cloud_client_ca needs both"),
        (("big", "--all"), 2, "Name models, or give --all"),
        (("big", "--canary-share", "0.5"), 1, "cloud_canary_share is 0.5, and no canary channel is set"),
        (("big", "--canary-channel", "canary"), 2, "the share is 0. Give --canary-share"),
        (("nothing",), 1, "has no model 'nothing'"),
        (("big", "--target", "jetson-orin"), 1, "no current version for 'jetson-orin'"),
        (("big", "--root", "none.json"), 1, "the trusted root cannot be read"),
        ((), 2, "Missing argument"),
    ],
)
def test_what_cannot_be_served_is_told(registry: Path, arguments: tuple[str, ...], status: int, says: str) -> None:
    """The exit status shows the kind of error, stderr the reason; stdout stays empty."""
    with command(registry, *arguments) as child:
        out, err = child.communicate(timeout=240)
    assert child.returncode == status, err
    assert says in err
    assert out == ""
    assert "Traceback" not in err


def test_a_tampered_blob_is_refused(registry: Path) -> None:
    """The error names the file and both digests, and the status is that of a refusal."""
    data = (registry / "1.1.0" / "model.onnx").read_bytes()
    for blob in (registry / "registry" / "blobs").rglob("*"):
        if blob.is_file() and blob.read_bytes() == data:
            blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with command(registry, "big", "--port", "0") as child:
        _, err = child.communicate(timeout=240)
    assert child.returncode == 3, err
    assert "model.onnx: digest does not match: expected sha256" in err


def test_a_new_key_is_printed_with_its_table(tmp_path: Path) -> None:
    """The key on stdout, its digest in a table on stderr; the table makes a key file."""
    result = CliRunner().invoke(cloud, ["key", "site-north"])
    owners = parse_keys(result.stderr)
    assert [(one.name, one.digests) for one in owners] == [("site-north", (digest_of(result.stdout.strip()),))]
    assert CliRunner().invoke(cloud, ["key", "two words"]).exit_code == 2


def test_an_api_key_file_must_be_private_and_hold_a_key(tmp_path: Path) -> None:
    """Each fault comes with advice."""
    path = tmp_path / "cloud.key"
    path.write_text(KEY)
    path.chmod(0o640)
    with pytest.raises(SettingsError, match="can be read by others") as caught:
        read_api_key(path)
    assert "chmod 600" in caught.value.advice
    path.chmod(0o600)
    assert read_api_key(path) == KEY
    for text in ("", "short", "two words of a key\n", "é" * 20):
        path.write_text(text)
        with pytest.raises(SettingsError, match="API key file"):
            read_api_key(path)


def test_a_log_on_a_full_disk_costs_lines_and_no_answer(tmp_path: Path) -> None:
    """It is told once when lines begin to be left out, and once when they are written again."""
    told: list[str] = []
    log = LogFile("/dev/full", told.append)
    for _ in range(3):
        log.write(b"{}\n")
    log._path = str(tmp_path / "access.log")  # the file that a rotation puts there
    log.reopen()
    log.write(b'{"status": 200}\n')
    log.write(b"{}\n")
    assert (tmp_path / "access.log").read_bytes() == b'{"status": 200}\n{}\n'
    assert len(told) == 2
    assert "No space left on device" in told[0]
    assert "3 lines were left out" in told[1]


def test_loopback_is_told_from_the_rest() -> None:
    """Host names are not looked up; only localhost counts as loopback."""
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "cloud.example", "127.0.0.1.example")))

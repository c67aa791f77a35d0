"""`edgekit calibrate` against servers of other makes, over HTTP: what they answer instead of what was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgekit.cli.main import edgekit
from edgekit.errors import CloudError, DataError, RefusedError, SettingsError
from edgekit.serving.api.tls import ServerTls
from edgekit.serving.cloud import CloudModels
from edgekit.serving.endpoints import Endpoints, open_endpoints
from tests.simulators.cascade_models import CLASSES, cloud_bundle, edge_bundle, samples
from tests.simulators.pki import Pki

DIGEST = "ab" * 32
Answer = tuple[int, dict[str, str], dict[str, object]]


def scores(rows: int, *, digest: str = DIGEST, name: str = "scores") -> Answer:
    """A random answer with the class 0 for all rows."""
    data = (np.eye(CLASSES)[[0] * rows]).ravel().tolist()
    output = {"name": name, "datatype": "FP32", "shape": [rows, CLASSES], "data": data}
    return 200, {}, {"model_name": "m", "outputs": [output], "parameters": {"edgekit_model": digest}}


@contextlib.contextmanager
def server(answer: Callable[[int, int], Answer]) -> Iterator[str]:
    """The URL of a server; `answer` gets the number of the call and the rows."""
    calls = iter(range(1, 10_000))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = json.loads(body[: int(self.headers.get("Inference-Header-Content-Length", len(body)))])
            status, headers, document = answer(next(calls), header["inputs"][0]["shape"][0])
            data = json.dumps(document).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("edge")
    edge_bundle(root / "edge")
    np.savez(root / "data.npz", **samples(600, seed=3))
    return root


def calibrate(folder: Path, url: str, output: Path, *more: str) -> Result:
    arguments = ["--edge", str(folder / "edge"), "--cloud", url, "--data", str(folder / "data.npz")]
    arguments += ["--regret", "0.9", "-o", str(output), "--json", *more]
    return CliRunner().invoke(edgekit, ["calibrate", *arguments])


def test_a_tier_that_is_overloaded_or_restarts_in_the_middle_is_waited_for(folder: Path, tmp_path: Path) -> None:
    """A limit of requests a second ended the command, and with it what was asked before."""

    def answer(call: int, rows: int) -> Answer:
        if call == 5:
            return 429, {"Retry-After": "0"}, {"error": "too many requests a second"}
        return (500, {}, {"error": "restarting"}) if call == 9 else scores(rows)

    with server(answer) as url:
        done = calibrate(folder, url, tmp_path)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["certificate"]["bound"]["cloud_digest"] == DIGEST


def test_a_key_that_is_refused_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    """And so is a server that never answered."""
    calls = []

    def answer(call: int, rows: int) -> Answer:
        calls.append(call)
        return 401, {}, {"error": "no such key"}

    with server(answer) as url:
        assert "no such key" in str(calibrate(folder, url, tmp_path).exception)
    assert calls == [1]
    assert isinstance(calibrate(folder, url, tmp_path).exception, CloudError)


def test_an_output_with_another_name_is_told_with_the_names_that_are_there(folder: Path, tmp_path: Path) -> None:
    """It was an unexpected KeyError."""
    with server(lambda call, rows: scores(rows, name="probs")) as url:
        done = calibrate(folder, url, tmp_path)
    assert isinstance(done.exception, DataError)
    assert "gives no output 'scores'; it gives 'probs'" in str(done.exception)


@pytest.mark.parametrize("digest", ["v1", "5", DIGEST.upper(), "z" * 5000])
def test_a_word_that_is_no_digest_is_refused(folder: Path, tmp_path: Path, digest: str) -> None:
    """A certificate bound to a version would hold for every model of that name."""
    with server(lambda call, rows: scores(rows, digest=digest)) as url:
        done = calibrate(folder, url, tmp_path)
    assert isinstance(done.exception, RefusedError)
    assert "expected the sha256" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_model_that_changes_meanwhile_is_refused(folder: Path, tmp_path: Path) -> None:
    """A canary, or a roll-out in the tier."""
    with server(lambda call, rows: scores(rows, digest=DIGEST if call < 7 else "cd" * 32)) as url:
        done = calibrate(folder, url, tmp_path)
    assert "changed while it was asked" in str(done.exception)


async def test_a_tier_with_a_private_authority_wants_a_certificate_and_a_key(folder: Path, tmp_path: Path) -> None:
    """Each of the three alone is refused by the tier or by its client."""
    pki, key, output = Pki(tmp_path, names=("server", "workstation")), tmp_path / "tier.key", tmp_path / "bundles"
    key.touch(mode=0o600)
    key.write_text("a-key-of-the-test\n")
    bundle = cloud_bundle(tmp_path / "cloud")
    models = await CloudModels.open(["pair-cloud"], lambda _: (bundle, tmp_path / "cloud"), threads=1)
    tls = ServerTls(tmp_path / "server.pem", tmp_path / "server.key", pki.ca)
    addresses = Endpoints(url="127.0.0.1:0")
    limits = {"max_request_bytes": 2**20, "api_key": "a-key-of-the-test"}
    name = ("--cloud-model", "pair-cloud")
    own = ("--cloud-certificate", str(tmp_path / "workstation.pem"), "--cloud-key", str(tmp_path / "workstation.key"))
    access = (*name, "--cloud-ca", str(pki.ca), *own, "--api-key-file", str(key))
    async with open_endpoints(models, addresses, tls=tls, **limits) as opened:
        for lacking, says in (
            ((*name, *own, "--api-key-file", str(key)), "CERTIFICATE_VERIFY_FAILED"),
            ((*name, "--cloud-ca", str(pki.ca), "--api-key-file", str(key)), "cannot be reached"),
            ((*name, "--cloud-ca", str(pki.ca), *own), "401"),
        ):
            done = await asyncio.to_thread(calibrate, folder, opened.url, output, *lacking)
            assert isinstance(done.exception, CloudError), done.output
            assert says in str(done.exception)
        done = await asyncio.to_thread(calibrate, folder, opened.url, output, *access)
    await models.close()
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["certificate"]["bound"]["cloud_model"] == "pair-cloud"


def test_files_and_keys_that_do_not_fit_the_url_are_refused(folder: Path, tmp_path: Path) -> None:
    """A key in plain text over a network, half of a certificate, and options that nothing would read."""
    (tmp_path / "ca.pem").write_text("no certificate")
    key, ca = ("--api-key-file", str(tmp_path / "key")), ("--cloud-ca", str(tmp_path / "ca.pem"))
    tier = "https://192.0.2.1:8700"
    done = calibrate(folder, "http://192.0.2.1:8700", tmp_path, *key)
    assert isinstance(done.exception, SettingsError)
    assert "would travel unencrypted to http://192.0.2.1:8700" in str(done.exception)
    done = calibrate(folder, tier, tmp_path, *ca)
    assert isinstance(done.exception, SettingsError)
    assert "ca.pem cannot be used for TLS" in str(done.exception)
    for url, more, says in (
        (tier, ("--cloud-key", "k.pem"), "belong together"),
        ("http://127.0.0.1:1", ca, "expected https://..."),
        (str(folder / "edge"), key, "--api-key-file: given, but --cloud is"),
    ):
        done = calibrate(folder, url, tmp_path, *more)
        assert done.exit_code == 2, done.output
        assert says in done.output

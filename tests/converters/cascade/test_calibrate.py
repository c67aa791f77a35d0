"""`edgekit calibrate` on real bundles, run by ONNX Runtime here and by a cloud tier over HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

from edgekit.bundle.manifest import ROLE_MODEL, ROLE_REPORT, file_entry, parse_manifest
from edgekit.certificate.document import CERTIFICATE_NAME, parse_certificate
from edgekit.certificate.scoring import score
from edgekit.cli.main import edgekit
from edgekit.errors import DataError, ManifestError, RefusedError
from edgekit.registry.publishing import publish
from edgekit.runtimes import open_runtime
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from tests.simulators.cascade_models import cloud_bundle, edge_bundle, samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    edge_bundle(root / "edge")
    cloud_bundle(root / "cloud")
    np.savez(root / "data.npz", **samples(2500, seed=3))
    np.savez(root / "few.npz", **samples(200, seed=3))
    np.savez(root / "more.npz", **samples(8000, seed=4, labels=False))
    return root


@contextlib.contextmanager
def cloud_tier(folder: Path, work: Path) -> Iterator[str]:
    """The URL of `edgekit cloud serve`, a process of its own, with the cloud bundle in a registry."""
    store = open_store(f"file://{work}/registry")
    repository = Repository(store, work / "keys")
    repository.create()
    publish(store, repository, folder / "cloud")
    command = [sys.executable, "-c", "from edgekit.cli.main import main; main()", "cloud", "serve", "pair-cloud"]
    with subprocess.Popen([*command, "--port", "0"], cwd=work, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            found = re.search(r"http://[0-9.:]+", child.stdout.readline())
            assert found
            yield found.group()
        finally:
            child.terminate()


def calibrate(folder: Path, *arguments: str, output: Path, edge: str = "edge", data: str = "data.npz"):
    """Run the command with --json; returns click's result."""
    fixed = ["--edge", str(folder / edge), "--cloud", str(folder / "cloud"), "--data", str(folder / data)]
    return CliRunner().invoke(edgekit, ["calibrate", *fixed, "-o", str(output), "--json", *arguments])


def truth(folder: Path, bundle: Path) -> dict[str, float]:
    """The true values of a certified bundle, from 50,000 fresh samples."""
    certificate = parse_certificate((bundle / CERTIFICATE_NAME).read_bytes())
    fresh, decided = samples(50_000, seed=77), {}
    for name, path in (("edge", bundle), ("cloud", folder / "cloud")):
        runtime = open_runtime(parse_manifest((path / "manifest.json").read_bytes()), path)
        decided[name] = runtime.run({"x": fresh["x"]})["scores"]
        runtime.close()
    kept = score(certificate.score, decided["edge"]) >= certificate.threshold
    edge, cloud = (decided[name].argmax(1) for name in ("edge", "cloud"))
    return {
        "accuracy": float(np.mean(np.where(kept, edge, cloud) == fresh["y"])),
        "regret": float(np.mean(kept & (edge != cloud))),
        "kept-accuracy": float(np.mean(edge[kept] == fresh["y"][kept])),
        "sent": float(1 - kept.mean()),
        "disagreement": float(np.mean((edge != cloud)[kept])),
    }


@pytest.mark.parametrize(
    ("arguments", "target", "value"),
    [
        (["--accuracy", "0.84"], "accuracy", 0.84),
        (["--regret", "0.03"], "regret", 0.03),
        (["--kept-accuracy", "0.9"], "kept-accuracy", 0.9),
        ([], "regret", 0.02),
    ],
)
def test_what_is_certified_is_true_on_fresh_samples(folder, tmp_path, arguments, target, value) -> None:
    """The new bundle has the same artifact and a certificate whose target and rates hold."""
    done = calibrate(folder, *arguments, "--unlabeled", str(folder / "more.npz"), output=tmp_path)
    assert done.exit_code == 0, done.output
    bundle = tmp_path / "pair-1.0.1-x86-64"
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    old = parse_manifest((folder / "edge" / "manifest.json").read_bytes())
    certificate = parse_certificate((bundle / CERTIFICATE_NAME).read_bytes())
    assert manifest.file(ROLE_MODEL) == old.file(ROLE_MODEL)
    assert manifest.version == "1.0.1"
    assert (certificate.target, certificate.value) == (target, value)
    found = truth(folder, bundle)
    assert found[target] <= value if target == "regret" else found[target] >= value
    assert found["sent"] <= certificate.sent.upper < 0.9
    assert found["disagreement"] <= certificate.disagreement.upper < 0.3


def test_samples_that_were_kept_because_they_are_hard_are_refused(folder, tmp_path) -> None:
    """Devices keep unsure answers for retraining; a certificate on them is wrong, one on those by chance is fine."""
    rows = samples(8000, seed=4, labels=False)
    for name, kept in (("hard", ["random", "unsure"]), ("chance", ["random"] * 2)):
        np.savez(tmp_path / f"{name}.npz", **rows, edgekit_reason=np.array(kept * 4000))
    done = calibrate(folder, "--unlabeled", str(tmp_path / "hard.npz"), output=tmp_path / "out")
    assert isinstance(done.exception, DataError)
    assert "kept as unsure" in str(done.exception)
    assert "collect_share" in done.exception.advice
    assert not (tmp_path / "out").exists()
    assert calibrate(folder, "--unlabeled", str(tmp_path / "chance.npz"), output=tmp_path / "out").exit_code == 0


def test_a_target_beyond_the_cloud_is_refused_with_the_best_to_be_had(folder, tmp_path) -> None:
    """Exit status 3, no bundle, and the accuracy that can be proven."""
    done = calibrate(folder, "--accuracy", "0.95", output=tmp_path)
    assert isinstance(done.exception, RefusedError)
    assert done.exception.exit_code == 3
    assert "is not proven at 95%" in str(done.exception)
    assert "Proven by these samples is at least 0.8" in done.exception.advice
    assert "No number of samples" in done.exception.advice
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged", ["edge", "cloud"])
def test_a_damaged_bundle_is_refused_and_not_hashed_anew(folder, tmp_path, damaged) -> None:
    """The new manifest would state the digest of the damaged file, and every device would trust it."""
    for name in ("edge", "cloud"):
        shutil.copytree(folder / name, tmp_path / name)
    with (tmp_path / damaged / "golden.npz").open("ab") as file:
        file.write(b"x")
    arguments = ["--edge", str(tmp_path / "edge"), "--cloud", str(tmp_path / "cloud")]
    fixed = ["--data", str(folder / "data.npz"), "--regret", "0.05", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(edgekit, ["calibrate", *arguments, *fixed])
    assert isinstance(done.exception, ManifestError)
    assert "golden.npz has" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_too_few_samples_say_how_many_would_do(folder, tmp_path) -> None:
    """The number is for the proof, and for the data as a whole."""
    done = calibrate(folder, "--accuracy", "0.85", output=tmp_path, data="few.npz")
    assert isinstance(done.exception, RefusedError)
    assert "samples in the proof would do" in done.exception.advice


def test_the_pages_section_is_replaced_and_not_added_twice(folder, tmp_path) -> None:
    """A second calibration of a certified bundle shows its own figures only, beside what the report had."""
    report = b"<title>pair 1.0.0 for x86-64</title><h1>pair 1.0.0 <span>for x86-64</span></h1>"
    report += b"<main><section><h2>Chosen</h2></section>\n<section>Candidates</section></main>"
    edge = tmp_path / "edge"
    manifest = edge_bundle(edge)
    (edge / "report.html").write_bytes(report)
    entry = file_entry("report.html", ROLE_REPORT, report)
    (edge / "manifest.json").write_bytes(
        msgspec.structs.replace(manifest, files=(*manifest.files, entry)).canonical_bytes()
    )
    first = calibrate(folder, "--regret", "0.03", output=tmp_path, edge=str(edge))
    second = calibrate(folder, "--regret", "0.05", output=tmp_path, edge=str(tmp_path / "pair-1.0.1-x86-64"))
    assert (first.exit_code, second.exit_code) == (0, 0)
    page = (tmp_path / "pair-1.0.2-x86-64" / "report.html").read_text()
    assert page.count("Certificate for cloud fallback") == 1
    assert "at most 0.05 of all" in page
    assert page.startswith("<title>pair 1.0.2 for x86-64</title><h1>pair 1.0.2 <span>")  # it named the first version
    assert page.index("Chosen") < page.index("Certificate for") < page.index("Candidates")


def test_a_model_file_is_certified_like_its_bundle_and_bound_to_its_own_digest(folder, tmp_path) -> None:
    """The same threshold; the digest is that of the file, and the command says which server can claim it."""
    model, found = folder / "cloud" / "model.onnx", {}
    for name, cloud in (("bundle", folder / "cloud"), ("file", model)):
        arguments = ["--edge", str(folder / "edge"), "--cloud", str(cloud), "--data", str(folder / "data.npz")]
        done = CliRunner().invoke(
            edgekit, ["calibrate", *arguments, "--regret", "0.05", "-o", str(tmp_path / name), "--json"]
        )
        assert done.exit_code == 0, done.output
        found[name] = json.loads(done.stdout)["certificate"]
    bound = found["file"]["bound"]
    assert found["file"]["threshold"] == pytest.approx(found["bundle"]["threshold"], rel=1e-3)
    assert (bound["cloud_digest"], bound["cloud_format"]) == (hashlib.sha256(model.read_bytes()).hexdigest(), "onnx")
    assert "cloud_format" not in found["bundle"]["bound"]
    certificate = parse_certificate((tmp_path / "file" / "pair-1.0.1-x86-64" / CERTIFICATE_NAME).read_bytes())
    assert "report the file's sha256 as edgekit_model" in certificate.bound.served_by


@pytest.mark.parametrize(("cloud", "says"), [("none.onnx", "does not exist"), ("other.onnx", "input 'a' is missing")])
def test_a_model_file_that_does_not_fit_is_refused(folder, tmp_path, cloud, says) -> None:
    """The message names the inputs."""
    node, values = helper.make_node("Softmax", ["a"], ["scores"]), [("a", "scores")]
    infos = [[helper.make_tensor_value_info(one, 1, ["n", 8])] for pair in values for one in pair]
    other = helper.make_model(helper.make_graph([node], "g", *infos), opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    arguments = ["--edge", str(folder / "edge"), "--cloud", str(tmp_path / cloud), "--data", str(folder / "data.npz")]
    done = CliRunner().invoke(edgekit, ["calibrate", *arguments, "--regret", "0.05", "-o", str(tmp_path)])
    assert says in str(done.exception)


def test_the_report_has_the_cascade(folder, tmp_path) -> None:
    """The certificate and the measured curve, beside what the report had; a second calibration replaces them."""
    edge = tmp_path / "edge"
    manifest = edge_bundle(edge)
    (edge / "report.json").write_bytes(b'{"name": "pair"}')
    entry = file_entry("report.json", ROLE_REPORT, b'{"name": "pair"}')
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, entry))
    (edge / "manifest.json").write_bytes(manifest.canonical_bytes())
    for version, value, before in (("1.0.1", "0.03", edge), ("1.0.2", "0.05", tmp_path / "pair-1.0.1-x86-64")):
        assert calibrate(folder, "--regret", value, output=tmp_path, edge=str(before)).exit_code == 0
        bundle = tmp_path / f"pair-{version}-x86-64"
        report = json.loads((bundle / "report.json").read_text())
        found, certificate = report["cascade"], parse_certificate((bundle / CERTIFICATE_NAME).read_bytes())
        assert (report["name"], report["version"], found["id"]) == ("pair", version, certificate.id)
        assert found["certificate"]["value"] == float(value)
        assert found["loss"]["measured"] <= found["loss"]["limit"] == float(value)
        assert found["curve"][-1] == {"threshold": None, "sent": 1.0, "loss": 0.0}
        assert [one["sent"] for one in found["curve"]] == sorted(one["sent"] for one in found["curve"])


def test_wrong_use_is_explained(folder, tmp_path) -> None:
    """Two targets, a model that is no bundle, and an existing bundle; nothing is overwritten."""
    assert calibrate(folder, "--accuracy", "0.8", "--regret", "0.1", output=tmp_path).exit_code == 2
    done = calibrate(folder, "--regret", "0.1", output=tmp_path, edge="data.npz")
    assert "is not a bundle" in str(done.exception)
    assert calibrate(folder, "--regret", "0.05", output=tmp_path).exit_code == 0
    again = calibrate(folder, "--regret", "0.05", output=tmp_path)
    assert "exists" in str(again.exception)
    assert json.loads(calibrate(folder, "--regret", "0.05", "--version", "2.0.0", output=tmp_path).stdout)["id"]


def test_a_cloud_tier_is_asked_by_url_and_gives_the_same_certificate_as_its_bundle(folder, tmp_path) -> None:
    """The digest that the tier reports is that of the bundle, so a device recognizes the model."""
    local = calibrate(folder, "--regret", "0.05", "--version", "2.0.0", output=tmp_path)
    with cloud_tier(folder, tmp_path) as url:
        arguments = ["--edge", str(folder / "edge"), "--cloud", url, "--cloud-model", "pair-cloud"]
        fixed = ["--data", str(folder / "data.npz"), "--regret", "0.05", "-o", str(tmp_path), "--json"]
        remote = CliRunner().invoke(edgekit, ["calibrate", *arguments, *fixed])
    assert remote.exit_code == 0, remote.output
    first, second = (json.loads(one.stdout)["certificate"] for one in (local, remote))
    assert first["bound"] == second["bound"]
    assert first["threshold"] == pytest.approx(second["threshold"], rel=1e-3)

"""`edgekit registry bom` and `edgekit registry where`: the parts of bundles, and the devices that have them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgekit.bundle.manifest import MANIFEST_NAME, file_entry
from edgekit.mqtt.messages import Event, Reported, Running
from tests.simulators.shell import Shell, enroll
from tests.simulators.small_models import onnx_bundle

SOURCE = "5" * 64
REPORT = {"source": {"format": "keras"}, "split": {"digest": "d" * 64, "calibration": 40, "choice": 30, "proof": 30}}


def bundle(folder: Path, version: str, tensorflow: str) -> str:
    manifest = onnx_bundle(folder, name="digits", version=version)
    data = json.dumps(REPORT).encode()
    (folder / "report.json").write_bytes(data)
    files = (*manifest.files, file_entry("report.json", "report", data))
    tools = {"tensorflow": tensorflow, "onnx": "1.18.0"}
    manifest = msgspec.structs.replace(manifest, files=files, source_sha256=SOURCE, tools=tools)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return manifest.digest


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    shell.digests = {}
    for version, tensorflow in (("1.0.0", "2.20.0"), ("2.0.0", "2.21.0")):
        shell.digests[version] = bundle(tmp_path / version, version, tensorflow)
        shell(f"edgekit registry publish {version}")
    enroll(shell, "pi-1", "pi-2", target="x86-64")
    state = shell.state()
    for name, version in (("pi-1", "2.0.0"), ("pi-2", "1.0.0")):
        running = Running(shell.digests[version], version, since=1_000_000.0)
        facts = {"runtimes": {"onnxruntime": "1.31.1" if name == "pi-1" else "1.23.2"}}
        state.devices.save_report(Reported(name, "f1", 1, 0.0, 1, {"digits": running}, {}, facts), time.time())
    for at, version in ((10.0, "1.0.0"), (20.0, "2.0.0")):
        detail = {"digest": shell.digests[version], "version": version}
        state.devices.add_event(Event("pi-1", "deployment-succeeded", 0.0, "digits", detail=detail), at)
    state.close()
    return shell


def uses(shell: Shell, component: str) -> list[tuple[str, str, bool]]:
    found = shell.json(f"edgekit registry where {component} --json")["devices"]
    return [(use["device"], use["version"], use["runs"]) for use in found]


def test_the_bill_is_valid_complete_and_always_the_same(shell: Shell, tmp_path: Path) -> None:
    """It passes the CycloneDX schema, and has every file, source, data, tool, recipe, runtime and licence."""
    text, _ = shell("edgekit registry bom digits 1.0.0 --licence Apache-2.0")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    parts = {part["name"]: part for part in found["components"]}
    assert parts.keys() == {"model.onnx", "golden.npz", "report.json", "digits-source", "samples", "onnxruntime"}
    assert parts["digits-source"]["hashes"] == [{"alg": "SHA-256", "content": SOURCE}]
    assert parts["samples"]["version"] == "d" * 64
    model = found["metadata"]["component"]
    assert (model["type"], model["version"]) == ("machine-learning-model", "1.0.0")
    assert model["hashes"][0]["content"] == shell.digests["1.0.0"]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert "edgekit:recipe" in {one["name"] for one in model["properties"]}
    tools = {(one["name"], one["version"]) for one in found["metadata"]["tools"]["components"]}
    assert tools == {("tensorflow", "2.20.0"), ("onnx", "1.18.0")}
    shell("edgekit registry bom digits 1.0.0 --licence Apache-2.0 -o bill.json")
    assert (tmp_path / "bill.json").read_text().strip() == text.strip()
    for one in ("'MIT OR Apache-2.0' --licence MIT", "' '"):
        assert "licence" in shell(f"edgekit registry bom digits 1.0.0 --licence {one}", expect=1)[1]
    text, _ = shell("edgekit registry bom digits 1.0.0 --licence 'MIT OR Apache-2.0'")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    for one, odd in (("mit", False), ("'MIT OR Apache-2.0'", False), ("'MIT OR'", True), ("Apache2", True)):
        _, err = shell(f"edgekit registry bom digits 1.0.0 --licence {one}")
        assert ("no SPDX ids or expressions" in err) is odd, one
    assert "has no digits 9.0.0" in shell("edgekit registry bom digits 9.0.0", expect=1)[1]
    shell("edgekit registry bom digits 1.0.0 --target raspberry-pi-4", expect=1)


def test_where_finds_devices_by_every_kind_of_component(shell: Shell) -> None:
    """Digests of bundles, files and sources; models, tools and runtimes, with and without a version."""
    new, old = shell.digests["2.0.0"], shell.digests["1.0.0"]
    assert uses(shell, new) == uses(shell, new[:8]) == [("pi-1", "2.0.0", True)]
    assert uses(shell, old) == [("pi-1", "1.0.0", False), ("pi-2", "1.0.0", True)]
    assert [one[0] for one in uses(shell, SOURCE[:12]) if one[2]] == ["pi-1", "pi-2"]
    assert uses(shell, "tensorflow==2.21.0") == [("pi-1", "2.0.0", True)]
    assert len([one for one in uses(shell, "tensorflow") if one[2]]) == 2
    assert uses(shell, "digits==2.0.0") == [("pi-1", "2.0.0", True)]
    assert uses(shell, "onnxruntime==1.23.2") == [("pi-2", "", True)]
    assert uses(shell, "tensorflow==1.0") == uses(shell, "nothing") == []
    assert "Name a digest" in shell("edgekit registry where ' '", expect=2)[1]


def test_where_has_dates(shell: Shell) -> None:
    """Since when a device runs a bundle, and from when to when it ran one before."""
    past, present = shell.json(f"edgekit registry where {shell.digests['1.0.0']} --json")["devices"]
    assert (past["since"], past["until"]) == (10.0, 20.0)
    assert present["since"] == 1_000_000.0
    out, err = shell(f"edgekit registry where {shell.digests['1.0.0'][:12]}")
    assert "1 published bundle(s) contain" in err
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["pi-1", "pi-2"]

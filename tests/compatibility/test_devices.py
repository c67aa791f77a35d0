"""State folders of earlier releases are read and used by processes of the current agent and controller."""

import json
import re
import shutil
import time

import msgspec
import numpy as np
import pytest
import urllib3

from device_agents.deployment import UpdateState
from device_agents.download.block_file import BlockFile
from device_agents.storage.journal import Journal
from device_agents.storage.slots import Slots, verify_file
from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_GOLDEN, parse_manifest
from edgekit.demo.processes import Processes
from edgekit.storage.disk import FolderDisk
from tests.simulators.releases import NAMES, RELEASES

MOMENTS = {"downloading": UpdateState.DOWNLOADING, "probation": UpdateState.PROBATION, "committed": UpdateState.IDLE}
PATIENCE_SECONDS = 120.0


@pytest.fixture
def processes(tmp_path):
    made = Processes(tmp_path)
    yield made
    made.stop_all()


def ask(url, model, folder):
    """Send the first golden row of a model and check the answer. Returns the version that answered."""
    manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
    inputs, outputs = read_golden((folder / manifest.file(ROLE_GOLDEN).path).read_bytes())
    ((name, rows),), ((output, expected),) = inputs.items(), outputs.items()
    first = {"name": name, "shape": [1, *rows.shape[1:]], "datatype": "FP32", "data": rows[0].ravel().tolist()}
    answer = urllib3.request("POST", f"{url}/v2/models/{model}/infer", json={"inputs": [first]}, timeout=30)
    assert answer.status == 200, answer.data
    body = answer.json()
    (data,) = [one["data"] for one in body["outputs"] if one["name"] == output]
    np.testing.assert_allclose(data, expected[0].ravel(), atol=0.02)
    return body["parameters"]["edgekit_version"]


def start_agent(processes, broker="mqtt://127.0.0.1:9"):
    line = processes.start(
        "agent", f"edgekit-agent run --config pi-1/agent.toml --broker {broker}", ready=" ready at http://"
    )
    return re.findall(r"http://\S+", line)[0]


def until(holds, event):
    """Wait until `holds()` is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, f"{event} did not happen within {PATIENCE_SECONDS} s"
        time.sleep(0.1)


@pytest.mark.parametrize("moment", MOMENTS)
def test_journal_is_read(release, tmp_path, moment):
    """The journal has no damage, both copies of each record are equal, and every stored field is read."""
    state = release.device(tmp_path, moment) / "state"
    journal = Journal(FolderDisk(state))
    models = journal.models()
    assert journal.damage == []
    assert not journal.record.running
    assert set(models) == {"digits", "shapes"}
    assert models["digits"].name is MOMENTS[moment]
    assert models["shapes"].outcome.result == "refused"
    for name, record in (("device", journal.record), *((f"models/{name}", one) for name, one in models.items())):
        data = (state / "journal" / f"{name}.json").read_bytes()
        assert data == (state / "journal" / "copies" / f"{name}.json").read_bytes()
        written = json.loads(data.partition(b"\n")[0])
        written = written.get("state", written)
        again = json.loads(msgspec.json.encode(record))
        assert _stored(again, written) == written


def _stored(value, written):
    """`value` without what was not `written`: fields that are newer than the release."""
    if isinstance(value, dict) and isinstance(written, dict):
        return {key: _stored(value[key], below) for key, below in written.items()}
    return value


@pytest.mark.parametrize("moment", MOMENTS)
def test_slots_are_whole(release, tmp_path, moment):
    """Pointer and journal agree, and every file of the active slot has its digest."""
    disk = FolderDisk(release.device(tmp_path, moment) / "state")
    for model, state in Journal(disk).models().items():
        slots = Slots(disk, model)
        pointer = slots.pointer()
        assert (pointer.active, pointer.known_good) == (state.active.slot, state.known_good.slot)
        manifest = slots.manifest(state.active.slot, state.active.digest)
        for entry in manifest.files:
            verify_file(disk, f"{slots.folder(state.active.slot)}/{entry.path}", entry)


def test_half_a_download_is_taken_up(release, tmp_path):
    """The block in the map is reused, because its digest is right; only the other block is fetched."""
    disk = FolderDisk(release.device(tmp_path, "downloading") / "state")
    deployment = Journal(disk).models()["digits"].deployment
    folder = f"incoming/digits/{deployment.digest}"
    entry = parse_manifest(disk.read(f"{folder}/{MANIFEST_NAME}")).file("model")
    file = BlockFile(disk, f"{folder}/{entry.path}", entry)
    file.open()
    assert (file.blocks.count, file.blocks.present, file.wanted()) == (2, 1, [1])


@pytest.mark.parametrize(
    ("moment", "version"), [("downloading", "1.0.0"), ("probation", "1.0.0"), ("committed", "1.1.0")]
)
def test_agent_serves_what_is_installed(release, tmp_path, processes, moment, version):
    """The agent serves the installed models, also the sealed one, without a broker and with expired metadata.

    An update in probation is not committed yet, so the previous bundle answers.
    """
    folder = release.device(tmp_path, moment)
    url = start_agent(processes)
    assert ask(url, "digits", folder / "state/models/digits" / {"1.0.0": "a", "1.1.0": "b"}[version]) == version
    sealed_of = release.folder / "bundles" / "shapes-1.0.0-raspberry-pi-4"
    assert ask(url, "shapes", sealed_of) == "1.0.0"
    processes.stop("agent")
    status = json.loads(processes.run("edgekit-agent status --config pi-1/agent.toml --json"))
    assert status["models"]["shapes"]["active"]["version"] == "1.0.0"
    assert not status["running"]


@pytest.mark.parametrize("moment", ["downloading", "probation"])
@pytest.mark.parametrize("stored", RELEASES, ids=NAMES)
def test_update_goes_on_to_its_commit(stored, tmp_path, moment):
    """The current controller and agent finish the running rollout of the release.

    All signatures have expired, so the test first runs `edgekit registry renew`.
    """
    if time.time() < stored.made_at:
        pytest.skip("this machine's clock is behind the release's, and an agent refuses a clock that goes back")
    control = stored.control(tmp_path)
    stored.device(control, moment)
    processes = Processes(control)
    try:
        broker = processes.start("broker", "edgekit broker run --port 0 --folder broker", ready=" ready at mqtt://")
        broker = broker.split()[-1]
        settings = control / "edgekit.toml"
        settings.write_text(re.sub(r'broker = ".*"', f'broker = "{broker}"', settings.read_text()))
        processes.run("edgekit registry renew")
        processes.start("controller", "edgekit controller run", ready=" ready")
        url = start_agent(processes, broker)
        until(lambda: rollout(processes)["state"] == "FINISHED", "the commit")
        assert rollout(processes)["devices"]["pi-1"]["state"] == "SUCCEEDED"
        assert ask(url, "digits", control / "pi-1/state/models/digits/b") == "1.1.0"
        row = next(row for row in json.loads(processes.run("edgekit device list --json")) if row["device"] == "pi-1")
        assert (row["online"], row["models"]["digits"]["version"]) == (True, "1.1.0")
        passed = processes.run("edgekit device command pi-1 self-test --wait")
        assert "2 model(s) passed" in passed
    finally:
        processes.stop_all()
        shutil.rmtree(control / "broker", ignore_errors=True)


def rollout(processes):
    return json.loads(processes.run("edgekit rollout status 5 --json"))

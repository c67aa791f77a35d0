"""The command line `edgekit-agent`: run, status and check."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import grpc
import pytest

from device_agents.deployment import Installed, UpdateRecord
from device_agents.storage.journal import Journal
from device_agents.storage.slots import Slots
from edgekit.storage.disk import FolderDisk
from edgekit.trust.keys import generate_key
from edgekit.trust.repository import Repository
from tests.simulators.small_models import onnx_bundle
from tests.simulators.store import MemoryStore

LONG_SECONDS = 30  # of the whole file: it starts early, see tests/conftest.py

AGENT = [sys.executable, "-m", "device_agents"]
ENV = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_")}
WORKSTATION = ("tensorflow", "keras", "torch", "onnx", "sqlalchemy", "alembic", "obstore", "sklearn", "scipy", "amqtt")


@pytest.fixture
def folder(tmp_path):
    """A device's folder as `edgekit device enroll` writes it, and a broker that is not there."""
    generate_key(tmp_path / "device.key")
    (tmp_path / "root.json").write_bytes(Repository(MemoryStore(), tmp_path / "keys").create())
    (tmp_path / "agent.toml").write_text(
        'device = "d1"\nfleet = "test"\ntarget = "x86-64"\nbroker = "mqtt://127.0.0.1:9"\nhttp = "127.0.0.1:0"\n'
    )
    return tmp_path


def agent(*args, check=None):
    done = subprocess.run([*AGENT, *args], capture_output=True, text=True, env=ENV, timeout=240)
    assert check is None or done.returncode == check, done.stderr
    return done


def install(folder, version="1.0.0"):
    """Put a bundle into slot a, as a committed update leaves it."""
    manifest = onnx_bundle(folder / "bundle", version=version)
    disk = FolderDisk(folder / "state")
    for path in (folder / "bundle").iterdir():
        disk.write(f"in/{path.name}", path.read_bytes())
    slots = Slots(disk, "small")
    slots.stage("a", manifest.canonical_bytes(), "in")
    slots.point("a", "a")
    installed = Installed("a", manifest.digest, version, 1, 1.7e9)
    Journal(disk).save("small", UpdateRecord(active=installed, known_good=installed, release=1))
    return manifest


def ready_url(line):
    return re.fullmatch(r"agent d1 ready at (http://127\.0\.0\.1:\d+)\n", line).group(1)


def ask(url):
    """The parameters of an answer."""
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [9, 0, 0]}]})
    request = urllib.request.Request(f"{url}/v2/models/small/infer", body.encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["parameters"]


def test_without_a_broker_the_installed_model_answers_and_signals_end_it(folder):
    """Local first: ready at once, says that it is alone, exits 0 on SIGTERM; a second agent is refused meanwhile."""
    manifest = install(folder)
    with subprocess.Popen(
        [*AGENT, "run", "--config", str(folder / "agent.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    ) as child:
        try:
            assert ask(ready_url(child.stdout.readline()))["edgekit_model"] == manifest.digest
            second = agent("run", "--config", str(folder / "agent.toml"), check=1)
            assert "another agent runs" in second.stderr
            for note in child.stderr:
                if "the agent answers locally" in note:
                    break
            child.send_signal(signal.SIGTERM)
            _, err = child.communicate(timeout=120)
        finally:
            child.kill()
    assert child.returncode == 0, err


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -m device_agents run --config "$3"
"""


def test_on_a_read_only_disk_the_installed_model_answers(folder):
    """Nothing of the state folder can be written, as on a worn card. Only the agent's process sees it so."""
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine has no mount namespaces, so the disk cannot be made read-only")
    manifest = install(folder)
    (folder / "state" / "lock").touch()  # as a run before leaves it
    arguments = [str(folder / "state"), sys.executable, str(folder / "agent.toml")]
    with subprocess.Popen(
        [*namespace, "sh", "-c", READ_ONLY, "sh", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    ) as child:
        try:
            assert ask(ready_url(child.stdout.readline()))["edgekit_model"] == manifest.digest
        finally:
            child.send_signal(signal.SIGTERM)
            _, log = child.communicate(timeout=120)
    assert "the session number cannot be written, installed models answer" in log
    assert child.returncode == 0, log


def test_grpc_of_the_agent_is_on_its_own_socket_and_never_on_a_network(folder):
    """Named in the ready line where it is configured; an address that others reach is refused before anything runs."""
    with (folder / "agent.toml").open("a") as file:
        file.write('grpc_socket = "g.sock"\n')
    with subprocess.Popen(
        [*AGENT, "run", "--config", str(folder / "agent.toml")], stdout=subprocess.PIPE, text=True, env=ENV
    ) as child:
        try:
            assert child.stdout.readline().endswith(f", grpc unix:{folder / 'g.sock'}\n")
            with grpc.insecure_channel(f"unix:{folder / 'g.sock'}") as channel:
                said = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")(b"", timeout=60)
            assert said == b"\x08\x01"
        finally:
            child.kill()
    with (folder / "agent.toml").open("a") as file:
        file.write('grpc = "0.0.0.0:0"\n')
    assert "loopback only" in agent("run", "--config", str(folder / "agent.toml"), check=1).stderr


def test_status_tells_what_is_installed_without_the_agent_running(folder):
    """From journal and slots alone, as a table or as JSON, and it changes nothing."""
    manifest = install(folder)
    before = sorted(path for path in (folder / "state").rglob("*"))
    table = agent("status", "--config", str(folder / "agent.toml"), check=0).stdout
    assert all(word in table for word in ("small", "1.0.0", manifest.digest[:12], "IDLE"))
    found = json.loads(agent("status", "--config", str(folder / "agent.toml"), "--json", check=0).stdout)
    assert found["models"]["small"]["active"]["digest"] == manifest.digest
    assert found["models"]["small"]["pointer"] == {"active": "a", "known_good": "a"}
    assert sorted(path for path in (folder / "state").rglob("*")) == before


def test_status_of_an_agent_that_never_ran_says_so(folder):
    """An error with advice, and no folder is made."""
    done = agent("status", "--config", str(folder / "agent.toml"), check=1)
    assert "no state folder" in done.stderr
    assert not (folder / "state").exists()


def test_check_hashes_slots_and_names_what_the_disk_damaged(folder):
    """The agent would start even so, but the operator should know."""
    install(folder)
    model = next((folder / "state/models/small").glob("*/model.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    (folder / "state/journal/models/small.json").write_bytes(b"{")
    done = agent("check", "--config", str(folder / "agent.toml"), "--json", check=1)
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert "small.json cannot be read" in rows["journal"]["found"]
    assert "digest does not match" in rows["slots"]["found"]


def test_check_names_everything_that_is_wrong(folder):
    """All faults together, each with what to do; exit 1."""
    (folder / "device.key").chmod(0o644)
    root = json.loads((folder / "root.json").read_text())
    root["signed"]["version"] = 2  # so its signatures are of something else
    (folder / "root.json").write_text(json.dumps(root))
    os.utime(folder / "agent.toml", (4e9, 4e9))  # so the clock is behind it
    done = agent("check", "--config", str(folder / "agent.toml"), "--json", check=1)
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert [name for name, row in rows.items() if not row["ok"]] == ["clock", "key", "root", "broker"]
    assert rows["slots"]["found"] == "no bundle is installed"
    assert "agent.toml is dated 2096-10-02" in rows["clock"]["found"]
    assert "CPUExecutionProvider" in rows["providers"]["found"]
    assert "chmod 600" in rows["key"]["found"]
    assert "not a signed TUF root" in rows["root"]["found"]
    assert "connection refused" in rows["broker"]["found"]


def test_a_wrong_setting_names_the_nearest_key(folder):
    """Before anything starts."""
    with (folder / "agent.toml").open("a") as file:
        file.write("heartbeat = 5\n")
    done = agent("run", "--config", str(folder / "agent.toml"), check=1)
    assert "heartbeat_seconds" in done.stderr


def test_a_name_that_no_topic_can_carry_is_a_wrong_setting(folder):
    """Said as such, and not met later as a bug."""
    text = (folder / "agent.toml").read_text()
    (folder / "agent.toml").write_text(text.replace('"d1"', '"Pi 1"'))
    done = agent("run", "--config", str(folder / "agent.toml"), check=1)
    assert "'Pi 1' is not a device or fleet name" in done.stderr
    assert "unexpected" not in done.stderr


def test_the_agent_loads_no_workstation_library():
    """A fresh interpreter that has everything a running agent imports has none of them."""
    code = (
        "import sys, device_agents.__main__, device_agents.assembly.control, device_agents.facts\n"
        "import device_agents.simulator, edgekit.serving.http.app, edgekit.serving.http.server\n"
        "from device_agents import Agent, InferenceService\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=True)
    assert not set(done.stdout.split()) & set(WORKSTATION)

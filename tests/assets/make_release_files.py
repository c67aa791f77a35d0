"""Makes the files of one release that every later edgekit must still read: ``tests/assets/release-X.Y.Z/``.

Run it once for each release, from the project's root, in the environment of that release, before anything changes:

    python -m tests.assets.make_release_files

It takes about five minutes, needs the `convert` extra, and refuses to overwrite a folder that is there. Everything is
made by the commands of edgekit, by a real broker, a real controller and a real agent on loopback. The keys that it
makes are for tests only. `tests/compatibility/` reads the files of every release; the README.md that is written into
the folder says what is in it.
"""

from __future__ import annotations

import asyncio
import json
import platform
import secrets
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from device_agents.storage.journal import Journal
from edgekit.demo.processes import Processes
from edgekit.mqtt import topics
from edgekit.mqtt.messages import (
    Answer,
    BlocksRequest,
    BroadcastBlocks,
    BroadcastClaim,
    Envelope,
    Event,
    FleetHints,
    MetadataRequest,
    Range,
    decode,
    encode,
)
from edgekit.mqtt.transport import MqttTransport
from edgekit.serving.models.options import ModelSettings
from edgekit.settings import AgentSettings, ControlSettings, load_settings
from edgekit.storage.disk import FolderDisk
from edgekit.transfer.blocks import BlockMap
from tests.simulators.models import classifier, labelled_data, saved
from tests.simulators.pki import Pki

FLEET = "assets"
TARGET = "raspberry-pi-4"
WAIT_SECONDS = 120.0
FOREVER_SECONDS = 100 * 365 * 86_400  # the time that a rollout and a deployment have: tests go on with them years later
QUICK = f"""\
probation_seconds = 0.5
telemetry_seconds = 1
heartbeat_seconds = 2
deployment_hours = {FOREVER_SECONDS // 3600}
"""
SLOW_DOWNLOAD = "download_bytes_per_second = 1500\n"
LONG_PROBATION = "probation_seconds = 60\n"

# What `device enroll` does not write; together with what it writes, every key of agent.toml.
MORE_AGENT_SETTINGS = """\
state = "state"
key = "device.key"
root = "root.json"
socket = "agent.sock"
grpc = "127.0.0.1:8601"
grpc_socket = "grpc.sock"
threads = 2
heartbeat_seconds = 20
telemetry_seconds = 120.5
max_bundle_bytes = 104857600
download_bytes_per_second = 125000
download_urls = false
download_budget = 2.5
deployment_attempts = 50
deployment_hours = 48
crash_watch_seconds = 300
quiet_hours = "08:00-18:30"
metered = true
metered_file = "metered"
metered_deployment_bytes = 1000000
max_request_bytes = 1048576
queue_limit = 16
deadline_ms = 250
instances = 2
swap = "unload-first"
isolation = "process"
batch = 4
run_timeout_seconds = 10
providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
require_providers = true
gpu_memory_mib = 512
arena_mib = 256
memory_budget_mib = 300
probation_seconds = 30
probation_requests = 100
probation_max_error_share = 0.01
probation_max_latency_ms = 80
step_timeout_seconds = 900
cloud_timeout_seconds = 1.5

[models.digits]
queue_limit = 8
instances = 1
pinned = true
swap = "load-first"
isolation = "thread"
batch = "auto"
run_timeout_seconds = 5
"""

CONTROL_SETTINGS = """\
fleet = "assets"
registry = "file://registry"
keys = "keys"
broker = "mqtts://broker.example:8883"
broker_ca = "broker-ca.pem"
broker_certificate = "controller.pem"
broker_key = "controller.key"
database = "sqlite:///edgekit.db"
assignment_days = 14
offline_after_seconds = 120
broker_budget_bytes = 8388608
blob_urls = "https://cdn.example/edgekit,signed"
tick_seconds = 1.5
cloud_host = "127.0.0.1"
cloud_port = 8701
cloud_grpc_port = 8702
cloud_api_key_file = "cloud.key"
cloud_class_keys = ["keys/classes/gates.key"]
"""

PREPROCESSING = """\
[[before]]
input = "image"
raw = "photo"
steps = [
  {do = "decode-image", colour = "grey"},
  {do = "resize", height = 8, width = 8, method = "bilinear"},
  {do = "scale", by = 0.00392156862745098},
  {do = "layout", to = "CHW"},
]

[[after]]
do = "top-k"
of = "scores"
k = 2
labels = ["down", "across", "both"]
"""

README = """\
# Files that edgekit {release} wrote

**The keys in this folder are for tests only. They are public: never use one for anything else.**

Made by `python -m tests.assets.make_release_files`, with the commands and processes of edgekit {release}, and not
changed since. `tests/compatibility/` reads them. Signatures expire: tests read the registry at the time in `made.json`,
or run `edgekit registry renew` on a copy first.

* `bundles/`: an int8 LiteRT bundle, the same one encrypted for class `gates`, an ONNX bundle, and one with steps before
  and after the model.
* `control/`: the folder of a workstation with a controller. `edgekit.toml`, keys, the fleet's database, an API key, and
  a registry with two roots, a delta and the channel `stable`. It was copied while `pi-1` was in DOWNLOADING: rollouts 1
  and 2 are finished, 3 is aborted, 4 is paused, 5 is running.
* `devices/pi-1/`: what `edgekit device enroll` wrote, and the state folder of the agent at three moments: in
  DOWNLOADING, in PROBATION and after the commit. The state folders are packed, because git keeps neither modes nor
  empty folders. The first two lack the journal's reserve (64 KiB of random bytes), which the agent writes again.
* `locked/`: a class key, and the passphrase that opens it.
* `messages/`: payloads as they went over MQTT, named by what they are.
* `settings/`: `edgekit.toml` and `agent.toml` with every key, and the values that {release} read from them.
"""


class Recorder:
    """Keeps every message of the fleet, by topic, as the broker delivers it.

    Args:
        url: Of the broker.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.payloads: list[tuple[str, bytes]] = []

    def __enter__(self) -> Recorder:
        self._thread.start()
        assert self._ready.wait(WAIT_SECONDS), "the broker did not answer"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        transport = MqttTransport(self._url, client_id="recorder", username=topics.CONTROLLER)
        await transport.subscribe(
            f"{topics.ROOT}/{FLEET}/#", lambda message: self.payloads.append((message.topic, message.payload))
        )
        await transport.start()
        await transport.wait_connected(WAIT_SECONDS)
        self._ready.set()
        await asyncio.to_thread(self._stop.wait)
        await transport.stop()

    def all(self, topic: str) -> list[bytes]:
        """The payloads of a topic, oldest first."""
        return [payload for found, payload in self.payloads if found == topic and payload]

    def last(self, topic: str) -> bytes:
        """The newest payload of a topic."""
        return self.all(topic)[-1]


class Maker:
    """Makes one release's files.

    Args:
        work: An empty folder for everything that is not kept.
        out: The folder of the release; made here.
    """

    def __init__(self, work: Path, out: Path) -> None:
        self._out = out
        self._control = work / "control"
        self._control.mkdir()
        self._processes = Processes(self._control)
        self._device = self._control / "devices" / "pi-1"
        self._enrolled = ""
        self._broker = ""

    def make(self) -> None:
        """Everything, in order."""
        try:
            self._convert()
            self._publish()
            self._start_broker()
            self._settings()
            self._enroll()
            with Recorder(self._broker) as recorder:
                self._fill_the_fleet()
                self._interrupt_the_download()
                self._interrupt_the_probation()
                self._commit()
                self._messages(recorder)
        finally:
            self._processes.stop_all()
        self._lock_a_key()
        facts = {"release": version("edgekit"), "python": platform.python_version(), "made_at": int(self._made_at)}
        (self._out / "made.json").write_text(json.dumps(facts, indent=2) + "\n")
        (self._out / "README.md").write_text(README.format(release=version("edgekit")))

    def _run(self, command: str, *, expect: int = 0) -> str:
        return self._processes.run(command, expect=expect)

    # --- workstation

    def _convert(self) -> None:
        models = self._control / "models"
        models.mkdir()
        saved(_dense(1), models / "digits.onnx")
        saved(_dense(2), models / "digits-next.onnx")
        saved(classifier(), models / "shapes.onnx")
        labelled_data(models / "shapes.npz")
        (models / "steps.toml").write_text(PREPROCESSING)
        digits = f"--name digits --target {TARGET} --recipe float32 --no-cache"
        self._run(f"edgekit convert models/digits.onnx --version 1.0.0 {digits}")
        self._run(f"edgekit convert models/digits-next.onnx --version 1.1.0 {digits}")
        shapes = "models/shapes.onnx --data models/shapes.npz --no-cache --max-drop 0.05"
        for number in ("1.0.0", "1.1.0"):
            self._run(f"edgekit convert {shapes} --recipe int8 --target {TARGET} --version {number}")
        self._run(f"edgekit convert {shapes} --target server")
        self._run(f"edgekit convert {shapes} --target server --name photos --preprocess models/steps.toml")
        for name in (f"shapes-1.0.0-{TARGET}", "shapes-1.0.0-server", "photos-1.0.0-server"):
            shutil.copytree(self._control / "bundles" / name, self._out / "bundles" / name)

    def _publish(self) -> None:
        (self._control / "edgekit.toml").write_text(f'fleet = "{FLEET}"\n')
        self._run("edgekit registry init")
        for name in ("gates", "doors"):
            self._run(f"edgekit registry class add {name}")
        publish = "edgekit registry publish bundles"
        self._run(f"{publish}/digits-1.0.0-{TARGET}")
        self._run(f"{publish}/digits-1.1.0-{TARGET} --delta-from none")
        self._run(f"{publish}/shapes-1.0.0-{TARGET} --encrypt-for gates")
        self._run(f"{publish}/shapes-1.1.0-{TARGET} --encrypt-for doors")
        self._run("edgekit registry promote digits 1.0.0 stable")
        self._run("edgekit registry allow-downgrade digits 1.0.0")

    def _settings(self) -> None:
        """Both settings files with every key, and what is read from them now."""
        folder = self._out / "settings"
        folder.mkdir()
        pki = self._control / "pki"
        pki.mkdir()
        Pki(pki, ["pi-9"])
        (pki / "cloud.key").write_text("a-key-of-the-cloud-tier-for-tests\n")
        self._run(
            f"edgekit device enroll pi-9 --target {TARGET} -o pi-9 --http 127.0.0.1:8602 "
            "--broker mqtts://broker.example:8883 --broker-ca pki/ca.pem --certificate pki/pi-9.pem --key pki/pi-9.key "
            "--class gates --cloud-url https://cloud.example --cloud-model digits-cloud "
            "--cloud-api-key-file pki/cloud.key --threshold 0.75"
        )
        enrolled = (self._control / "pi-9" / "agent.toml").read_text()
        (folder / "agent.toml").write_text(enrolled + MORE_AGENT_SETTINGS)
        (folder / "edgekit.toml").write_text(CONTROL_SETTINGS)
        expected = {"agent.toml": _read(AgentSettings, folder), "edgekit.toml": _read(ControlSettings, folder)}
        (folder / "expected.json").write_text(json.dumps(expected, indent=2, sort_keys=True) + "\n")

    def _lock_a_key(self) -> None:
        (self._out / "locked").mkdir()
        (self._control / "passphrase.txt").write_text("a passphrase for tests\n")
        self._run("edgekit registry class add vault --keys locked --passphrase-file passphrase.txt")
        shutil.copy(self._control / "passphrase.txt", self._out / "locked" / "passphrase.txt")
        shutil.copytree(self._control / "locked" / "classes", self._out / "locked" / "classes")

    # --- fleet

    def _start_broker(self) -> None:
        line = self._processes.start("broker", "edgekit broker run --port 0 --folder broker", ready=" ready at mqtt://")
        self._broker = line.split()[-1]
        (self._control / "cloud.key").write_text(secrets.token_urlsafe(24) + "\n")
        (self._control / "cloud.key").chmod(0o600)
        (self._control / "edgekit.toml").write_text(
            f'fleet = "{FLEET}"\nbroker = "{self._broker}"\ncloud_api_key_file = "cloud.key"\n'
        )

    def _enroll(self) -> None:
        self._run(
            f"edgekit device enroll pi-1 --target {TARGET} --label site=north --http 127.0.0.1:0 --class gates "
            "--cloud-url http://127.0.0.1:9 --cloud-api-key-file cloud.key --threshold 0"
        )
        self._run(f"edgekit device enroll pi-2 --target {TARGET} --label site=south")
        self._run("edgekit device enroll jetson-1 --target jetson-orin --label site=north")
        self._enrolled = (self._device / "agent.toml").read_text()
        self._run("edgekit registry key rotate timestamp")

    def _fill_the_fleet(self) -> None:
        self._start_controller()
        self._start_agent(QUICK)
        self._run("edgekit rollout start digits 1.0.0 --label site=north --wait")
        self._run("edgekit rollout start shapes 1.0.0 --label site=north --wait")
        self._run("edgekit device command pi-1 self-test --wait")
        self._run("edgekit device command pi-2 self-test --wait --expires 1", expect=1)
        self._run(f"edgekit device command pi-2 self-test --expires {86_400}")
        self._run("edgekit rollout start digits 1.0.0 --label site=south")
        self._until(lambda: self._rollout(3)["counts"]["TOLD"] == 1, "pi-2 is told")
        self._run("edgekit rollout pause 3 --reason maintenance")
        self._run("edgekit rollout abort 3 --reason moved")
        self._run("edgekit rollout start shapes 1.1.0 --label site=north --wait", expect=3)
        self._run("edgekit registry retire shapes 1.1.0")
        self._processes.stop("pi-1")
        self._keep_bundle()

    def _interrupt_the_download(self) -> None:
        """Stop the agent when it has the first of the model's two blocks, and the controller with it."""
        self._start_agent(QUICK.replace("probation_seconds = 0.5", "probation_seconds = 1") + SLOW_DOWNLOAD)
        self._run(f"edgekit rollout start digits 1.1.0 --label site=north --device-deadline {FOREVER_SECONDS}")
        incoming = self._device / "state" / "incoming" / "digits"
        self._until(
            lambda: any(path.read_bytes()[:1].strip(b"\0") for path in incoming.glob("*/model.tflite")), "a block"
        )
        self._processes.stop("pi-1")
        self._processes.stop("controller")
        (partial,) = incoming.glob("*/model.tflite.map")
        blocks = BlockMap.from_bytes(partial.with_suffix("").stat().st_size, partial.read_bytes())
        assert (blocks.present, blocks.count) == (1, 2), "the download was interrupted too early or too late"
        assert self._state() == "DOWNLOADING"
        self._keep_control()
        self._keep_device("downloading", reserve=False)
        self._start_controller()

    def _interrupt_the_probation(self) -> None:
        self._start_agent(QUICK.replace("probation_seconds = 0.5\n", LONG_PROBATION))
        self._until(lambda: self._state() == "PROBATION", "PROBATION")
        self._processes.stop("pi-1")
        assert self._state() == "PROBATION"
        self._keep_device("probation", reserve=False)

    def _commit(self) -> None:
        self._start_agent(QUICK)
        self._until(lambda: self._rollout(5)["state"] == "FINISHED", "the commit")
        self._processes.stop("pi-1")
        assert self._state() == "IDLE"
        self._keep_device("committed", reserve=True)

    def _start_controller(self) -> None:
        self._processes.start("controller", "edgekit controller run", ready=" ready")

    def _start_agent(self, more: str) -> None:
        (self._device / "agent.toml").write_text(self._enrolled + more)
        self._processes.start("pi-1", "edgekit-agent run --config devices/pi-1/agent.toml", ready=" ready at ")

    def _rollout(self, number: int) -> dict:
        return json.loads(self._run(f"edgekit rollout status {number} --json"))

    def _state(self) -> str:
        return Journal(FolderDisk(self._device / "state")).models()["digits"].name.value

    def _until(self, holds: Callable[[], object], what: str) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not holds():
            assert time.monotonic() < end, f"{what} did not come"
            time.sleep(0.05)

    # --- what is kept

    def _keep_bundle(self) -> None:
        """What the device holds of the encrypted bundle is the bundle as it was published."""
        slot = self._device / "state" / "models" / "shapes" / "a"
        shutil.copytree(slot, self._out / "bundles" / f"shapes-1.0.0-{TARGET}-sealed")

    def _keep_control(self) -> None:
        """With a delta, which is published late: the device was to fetch blocks."""
        self._run(f"edgekit registry publish bundles/digits-1.1.0-{TARGET} --delta-from 1.0.0")
        self._made_at = time.time() + 1  # a whole second that is not before any signature
        for name in ("edgekit.toml", "edgekit.db", "cloud.key", "keys", "registry"):
            _copy(self._control / name, self._out / "control" / name)

    def _keep_device(self, moment: str, *, reserve: bool) -> None:
        out = self._out / "devices" / "pi-1"
        for path in self._device.iterdir():
            if path.is_file() and path.name != "agent.toml":
                _copy(path, out / path.name)
        (out / "agent.toml").write_text(self._enrolled + QUICK)
        left_out = () if reserve else ("state/journal/reserve",)
        with tarfile.open(out / f"state-{moment}.tar.gz", "w:gz") as archive:
            archive.add(self._device / "state", "state", filter=lambda entry: None if entry.name in left_out else entry)

    def _messages(self, recorder: Recorder) -> None:
        out = self._out / "messages"
        out.mkdir()
        for kind in topics.DEVICE_KINDS:
            (out / f"{kind}.bin").write_bytes(recorder.last(topics.device(FLEET, "pi-1", kind)))
        (out / "event.bin").unlink()
        for payload in recorder.all(topics.device(FLEET, "pi-1", "event")):
            event = decode(decode(payload, Envelope).body, Event)
            (out / f"event-{event.kind}.bin").write_bytes(payload)
        blocks = recorder.last(topics.request(FLEET, "blocks", "pi-1"))
        (out / "request-blocks.bin").write_bytes(blocks)
        (out / "request-metadata.bin").write_bytes(recorder.last(topics.request(FLEET, "metadata", "pi-1")))
        answers = [(decode(payload, Answer), payload) for payload in recorder.all(topics.answer(FLEET, "pi-1"))]
        asked = {kind: self._ids(recorder, kind) for kind in topics.REQUEST_KINDS}
        chosen = {
            "answer-block": [p for a, p in answers if a.id in asked["blocks"] and a.data],
            "answer-metadata": [p for a, p in answers if a.id in asked["metadata"] and a.data],
            "answer-not-found": [p for a, p in answers if a.error == "not-found"],
        }
        for name, payloads in chosen.items():
            (out / f"{name}.bin").write_bytes(min(payloads, key=len))
        # What a fleet of one device never says, encoded as it would be.
        ranges = (Range(0, 2), Range(5, 5))
        for name, message in {
            "broadcast-blocks": BroadcastBlocks(first=3, data=b"three blocks"),
            "broadcast-claim": BroadcastClaim("controller-a", sending=True, seconds=2.5, missing=ranges),
            "fleet": FleetHints(spread_seconds=30.0, paused=True),
            "answer-busy": Answer("r1", error="busy", message="wait", retry_seconds=1.5, wave=True),
            "answer-urls": Answer("r2", total=9, urls=("https://cdn.example/blob",)),
            "request-blocks-broadcast": BlocksRequest("r3", "0" * 64, ranges, 4, left=7, missing=ranges, urls=True),
        }.items():
            (out / f"{name}.bin").write_bytes(encode(message))

    def _ids(self, recorder: Recorder, kind: str) -> set[str]:
        request = BlocksRequest if kind == "blocks" else MetadataRequest
        return {decode(payload, request).id for payload in recorder.all(topics.request(FLEET, kind, "pi-1"))}


def _first_byte(path: Path) -> int:
    return (path.read_bytes() or b"\0")[0]


def _dense(seed: int) -> onnx.ModelProto:
    """A model of two blocks. `seed` changes the last layer only, for a small delta; few values make it compressible."""
    few = np.linspace(-0.35, 0.35, 8, dtype=np.float32)
    weights = {
        "w1": np.random.default_rng(0).choice(few, (64, 225)),
        "b1": np.zeros(225, np.float32),
        "w2": np.random.default_rng(seed).choice(few, (225, 10)),
    }
    nodes = [
        helper.make_node("Gemm", ["pixels", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _read(kind: type[AgentSettings] | type[ControlSettings], folder: Path) -> dict:
    """What this release reads from a settings file in which every key is set; paths begin with ``{folder}``."""
    name = "agent.toml" if kind is AgentSettings else "edgekit.toml"
    settings = load_settings(kind, file=folder / name, environ={})
    for part, default in ((settings, None), (getattr(settings, "models", {}).get("digits"), ModelSettings())):
        unset = [] if part is None else [n for n in part.__struct_fields__ if _is_unset(part, n, default)]
        assert unset == [], f"{name} leaves keys as they are by default: {unset}"
    text = msgspec.json.encode(settings, enc_hook=str).decode()
    return json.loads(text.replace(str(folder.resolve()), "{folder}").replace(str(folder), "{folder}"))


def _is_unset(part: msgspec.Struct, name: str, default: msgspec.Struct | None) -> bool:
    if default is not None:
        return getattr(part, name) == getattr(default, name)
    return getattr(part, name) in (None, "", (), {})


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def main() -> None:
    """Make the folder of the installed release."""
    out = Path(__file__).parent / f"release-{version('edgekit')}"
    if out.exists():
        sys.exit(f"{out} is there already: what a release wrote never changes")
    with TemporaryDirectory(prefix="edgekit-release-") as work:
        made = Path(work, "out")
        made.mkdir()
        Maker(Path(work), made).make()
        shutil.copytree(made, out)


if __name__ == "__main__":
    main()

"""The start of the agent's process: installed models answer first, and the control plane comes after them."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from device_agents.deployment import Deployment, UpdateRecord
from device_agents.running import Stop
from device_agents.storage.journal import Journal
from device_agents.update.held_events import HeldEvents
from edgekit.storage.disk import FolderDisk
from tests.device_agents.test_main import AGENT, ENV, ask, folder, install, ready_url  # noqa: F401

# What the first answer must not wait for: the broker, trust, updates, telemetry, the cloud tier's client.
LATER = (
    "cryptography",
    "grpc",
    "paho",
    "securesystemslib",
    "tuf",
    "urllib3",
    "zstandard",
    "device_agents.agent",
    "device_agents.control",
    "device_agents.diagnostics",
    "device_agents.facts",
    "device_agents.inference.cloud_client",
    "device_agents.offline",
    "device_agents.profiling",
    "device_agents.spool",
    "device_agents.update.effects",
    "device_agents.update.runner",
    "edgekit.deltas",
    "edgekit.mqtt.transport",
    "edgekit.serving.grpc",
    "edgekit.trust",
)


@contextlib.contextmanager
def running(folder, *options):  # noqa: F811
    command = [sys.executable, *options, *AGENT[1:], "run", "--config", str(folder / "agent.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as child:
        try:
            yield child
        finally:
            child.kill()


def test_models_answer_before_the_control_plane_is_imported(folder, tmp_path):  # noqa: F811
    """The list of imports, which Python writes as they happen, has none of the control plane before the ready line."""
    install(folder)
    log = tmp_path / "imports"
    command = f"exec {sys.executable} -X importtime -m device_agents run --config {folder / 'agent.toml'}"
    with log.open("w") as out, subprocess.Popen(["sh", "-c", command], stdout=out, stderr=out, env=ENV) as child:
        try:
            while "the agent answers locally" not in log.read_text() and child.poll() is None:
                time.sleep(0.05)
        finally:
            child.kill()
    before, ready, after = log.read_text().partition("agent d1 ready at ")
    assert ready, before[-2000:]
    early, late = ({line.rpartition("|")[2].strip() for line in part.splitlines()} for part in (before, after))
    assert {"onnxruntime", "edgekit.serving.http.app"} <= early
    assert not {name for name in early if any(name == one or name.startswith(f"{one}.") for one in LATER)}
    assert {"device_agents.agent", "tuf.api.metadata", "paho.mqtt.client"} <= late


COUNTING = """
import sys, typing
from device_agents.__main__ import main
counts, make = [0], typing.ForwardRef.__init__
def count(self, *args, **more):
    counts[0] += 1
    make(self, *args, **more)
typing.ForwardRef.__init__ = count
import click
say = click.echo
click.echo = lambda *args, **more: say(f"{counts[0]} compiled; {args[0]}", **more)
main()
"""


def test_few_annotations_are_compiled_before_the_first_answer(folder):  # noqa: F811
    """msgspec compiles annotations that are strings, so the modules of settings, manifests and messages have none."""
    install(folder)
    command = [sys.executable, "-c", COUNTING, "run", "--config", str(folder / "agent.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV) as child:
        try:
            line = child.stdout.readline()
        finally:
            child.kill()
    compiled, _, ready = line.partition(" compiled; ")
    assert ready.startswith("agent d1 ready at ")
    assert 0 < int(compiled) < 300  # numpy has about 150 of its own; with strings there were 780


@pytest.mark.parametrize("lost", ["device.key", "root.json"])
def test_without_its_key_or_root_the_agent_answers_for_a_while_and_ends_in_order(folder, lost):  # noqa: F811
    """It ended right after its first answers, again and again; no crash is counted against a model."""
    manifest = install(folder)
    (folder / lost).unlink()
    with running(folder) as child:
        url = ready_url(child.stdout.readline())
        lines = iter(child.stderr.readline, "")
        said = next(line for line in lines if "The agent cannot start" in line)
        assert ask(url)["edgekit_model"] == manifest.digest
        child.send_signal(signal.SIGTERM)
        assert child.wait(120) == 0
    assert lost in said
    assert Journal(FolderDisk(folder / "state")).record.running is False


SHORT = """
import device_agents.running
from device_agents.__main__ import main
device_agents.running.ANSWERING_SECONDS = 0.2
main()
"""


def test_an_unusable_key_ends_the_agent_in_order(folder):  # noqa: F811
    """After the while for answers, with exit status 1 and the error; at once where no model is installed."""
    (folder / "device.key").write_text("no key")
    for installed in (False, True):
        if installed:
            install(folder)
        command = [sys.executable, "-c", SHORT, "run", "--config", str(folder / "agent.toml")]
        done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120, check=False)
        assert done.returncode == 1
        assert "edgekit-agent: key" in done.stderr
        assert ("The agent cannot start" in done.stderr) is installed
        assert "Traceback" not in done.stderr
        assert Journal(FolderDisk(folder / "state")).record.running is False


def test_a_stop_while_the_control_plane_is_imported_ends_in_order(folder):  # noqa: F811
    """SIGTERM right after the ready line: exit status 0, and the session has ended."""
    install(folder)
    with running(folder) as child:
        ready_url(child.stdout.readline())
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert Journal(FolderDisk(folder / "state")).record.running is False


def test_answers_go_on_while_the_control_plane_starts(folder):  # noqa: F811
    """Requests from the ready line on, until the agent has tried the broker: each is answered by the model."""
    manifest = install(folder)
    with running(folder) as child:
        url, log = ready_url(child.stdout.readline()), []
        reading = threading.Thread(target=lambda: log.extend(iter(child.stderr.readline, "")))
        reading.start()
        answers = 0
        while not any("the agent answers locally" in line for line in log):
            assert ask(url)["edgekit_model"] == manifest.digest
            answers += 1
        child.kill()
        reading.join()
    assert answers > 1


def test_an_agreement_that_comes_early_waits_for_the_agent(folder):  # noqa: F811
    """The user's answer to an update, sent right after the ready line, is not refused."""
    install(folder)
    journal = Journal(FolderDisk(folder / "state"))
    state = journal.models()["small"]
    path = "models/small/x86-64/2.0.0/manifest.json"
    waits = Deployment("0" * 64, 10, path, "small", "2.0.0", "x86-64", 2, 1, consent=True)
    journal.save("small", UpdateRecord(active=state.active, known_good=state.known_good, release=1, deployment=waits))
    with running(folder) as child:
        url = ready_url(child.stdout.readline())
        request = urllib.request.Request(f"{url}/v2/models/small/consent", json.dumps({"agree": True}).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.loads(answer.read())["version"] == "2.0.0"


def test_an_early_stop_is_kept():
    """An order to stop reaches what is there later; and at once what is there already."""
    stop, reached = Stop(), []
    stop()
    stop.reaches(lambda: reached.append(1))
    assert stop.given
    assert reached == [1]


def test_events_of_the_start_are_sent_later_in_their_order():
    """None is lost and none comes twice; after that, each is passed on at once."""

    class Sender:
        def __init__(self):
            self.sent = []

        def __getattr__(self, name):
            return lambda *given: self.sent.append((name, *given))

    events, sender = HeldEvents(), Sender()
    events.send("slot-damaged", "m", "E", "text", {})
    events.send_load("model-loading", "m", 60.0)
    events.send_unproven("m", "text", {})
    events.pass_on(sender)
    events.send_budget("budget-spent", "m", "text", {})
    names = ["send", "send_load", "send_unproven", "send_budget"]
    assert [one[0] for one in sender.sent] == names
    assert sender.sent[1] == ("send_load", "model-loading", "m", 60.0)

"""The commands of the control side: output, files, exit codes, and dry runs that change nothing."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from edgekit import __version__
from edgekit.bundle.bindings import Binding
from edgekit.mqtt.messages import Event, Outcome, Reported, Running
from edgekit.registry.evidence import sign_evidence
from edgekit.rollout.values import RolloutState
from edgekit.settings import AgentSettings, load_settings, tls_files
from edgekit.storage.stores import open_store
from edgekit.tensors import DType, TensorSpec
from edgekit.trust.repository import Repository
from tests.simulators.control import write_bundle
from tests.simulators.pki import Pki
from tests.simulators.shell import TARGET, Shell, enroll, report, survey


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    for version in ("1.0.0", "1.1.0"):
        write_bundle(tmp_path / version, "digits", version)
        shell(f"edgekit registry publish {version}")
    return shell


# --- device


def test_enroll_writes_what_the_agent_starts_from(shell, tmp_path):
    """The folder holds a private key, the trusted root and settings that the agent reads, with the copied API key."""
    (tmp_path / "api.key").write_text("secret")
    options = "--http 127.0.0.1:0 --cloud-url http://c:1 --cloud-model big --cloud-api-key-file api.key --threshold 0.6"
    shell(f"edgekit device enroll pi-1 --target {TARGET} -o d/pi-1 --label site=north {options}")
    folder = tmp_path / "d" / "pi-1"
    settings = load_settings(AgentSettings, file=folder / "agent.toml", environ={})
    assert (settings.device, settings.fleet, settings.target) == ("pi-1", "f1", TARGET)
    assert (settings.http, settings.cloud_url, settings.cloud_model) == ("127.0.0.1:0", "http://c:1", "big")
    assert settings.fallback_threshold == 0.6
    assert settings.cloud_api_key_file.read_text() == "secret"
    assert settings.root.read_bytes() == (tmp_path / "keys" / "root.json").read_bytes()
    for private in (settings.key, settings.cloud_api_key_file):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    state = shell.state()
    device = state.devices.get("pi-1")
    assert device.labels == {"site": "north"}
    assert device.public_key == (folder / "device.pub").read_text()
    state.close()


def test_enroll_keeps_the_controllers_password_to_itself(shell, tmp_path):
    """The folder has the broker without the controller's user; --broker and device_broker are taken as they are."""
    enroll = f"edgekit device enroll --target {TARGET}"
    settings = tmp_path / "edgekit.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("broker ")]
    settings.write_text("\n".join(['broker = "mqtt://boss:secret@127.0.0.1:1"', *lines]))
    shell(f"{enroll} pi-1 -o d/pi-1")
    shell(f"{enroll} pi-2 -o d/pi-2 --broker mqtt://pi-2:own@127.0.0.1:1")
    settings.write_text("\n".join(['device_broker = "mqtt://outside:1"', settings.read_text()]))
    shell(f"{enroll} pi-3 -o d/pi-3")
    brokers = [
        load_settings(AgentSettings, file=tmp_path / "d" / name / "agent.toml", environ={}).broker
        for name in ("pi-1", "pi-2", "pi-3")
    ]
    assert brokers == ["mqtt://127.0.0.1:1", "mqtt://pi-2:own@127.0.0.1:1", "mqtt://outside:1"]


def test_enroll_copies_what_tls_needs(shell, tmp_path):
    """The agent accepts the settings of the folder as they are, and only the device can read the private key."""
    Pki(tmp_path, ["pi-1", "pi-2"])
    broker = "--broker mqtts://broker.example"
    options = f"{broker} --broker-ca ca.pem --certificate pi-1.pem --key pi-1.key"
    shell(f"edgekit device enroll pi-1 --target {TARGET} -o d {options}")
    settings = load_settings(AgentSettings, file=tmp_path / "d" / "agent.toml", environ={})
    tls = tls_files(settings)
    for copy, name in zip(tls, ("ca.pem", "pi-1.pem", "pi-1.key"), strict=True):
        assert copy.parent == tmp_path / "d"
        assert copy.read_bytes() == (tmp_path / name).read_bytes()
    assert stat.S_IMODE(tls.key.stat().st_mode) == 0o600
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\nbroker = "mqtts://b"\nbroker_ca = "ca.pem"\n')
    shell(f"edgekit device enroll pi-2 --target {TARGET}")
    settings = load_settings(AgentSettings, file=tmp_path / "devices" / "pi-2" / "agent.toml", environ={})
    assert tls_files(settings).ca.read_bytes() == (tmp_path / "ca.pem").read_bytes(), "the controller's, by itself"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--broker-ca ca.pem", "does not begin with mqtts://"),
        ("--broker mqtts://b --broker-ca edgekit.toml", "cannot be used"),
        ("--broker mqtts://b --certificate pi-1.pem --key pi-2.key", "cannot be used"),
        ("--broker mqtts://b --certificate pi-1.pem --key locked.key", "cannot be used"),
        ("--broker mqtts://b --key pi-1.key", "broker_certificate is not"),
    ],
    ids=["without-tls", "no-authority", "key-of-another", "key-with-a-password", "key-alone"],
)
def test_enroll_refuses_tls_files_that_would_not_do(shell, tmp_path, options, says):
    """Wrong TLS files are refused, and nothing is written."""
    pki = Pki(tmp_path, ["pi-1", "pi-2"])
    pki.lock("pi-1", tmp_path / "locked.key")
    _, err = shell(f"edgekit device enroll pi-1 --target {TARGET} -o d {options}", expect=1)
    assert says in err
    assert not (tmp_path / "d").exists()


def test_enroll_overwrites_nothing(shell, tmp_path):
    """A file that is there already stays as it was."""
    Pki(tmp_path, [])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "broker-ca.pem").write_text("mine")
    _, err = shell(f"edgekit device enroll pi-1 --target {TARGET} -o d --broker mqtts://b --broker-ca ca.pem", expect=1)
    assert "already has broker-ca.pem" in err
    assert [path.read_text() for path in (tmp_path / "d").iterdir()] == ["mine"]


def test_enroll_with_the_devices_own_key_makes_none(shell, tmp_path):
    """With --public-key the private key stays where it was made."""
    enroll(shell, "maker")
    shell(f"edgekit device enroll pi-1 --target {TARGET} -o pi-1 --public-key devices/maker/device.pub")
    assert sorted(path.name for path in (tmp_path / "pi-1").iterdir()) == ["agent.toml", "root.json"]


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("pi-1 --target raspberry-pi-44", 1, "did you mean 'raspberry-pi-4'"),
        ("Pi_1 --target raspberry-pi-4", 2, "is not a device or fleet name"),
        ("controller --target raspberry-pi-4", 2, "read and write everything"),
        ("pi-1 --target ethos-u55", 1, "cannot run on"),
        ("pi-1 --target raspberry-pi-4 --label north", 2, "not of the form key=value"),
        ("pi-1 --target raspberry-pi-4 --public-key edgekit.toml", 1, "not a PEM public key"),
    ],
)
def test_bad_enrollment_leaves_nothing(shell, tmp_path, line, status, says):
    """A bad enrollment is an error with a reason, and leaves neither folder nor row."""
    _, err = shell(f"edgekit device enroll {line} -o new", expect=status)
    assert says in err
    assert not (tmp_path / "new").exists()
    assert shell.json("edgekit device list --json") == []


def test_second_device_of_a_name_is_refused_and_its_folder_goes(shell, tmp_path):
    """A name is enrolled once; the key that was made for the second one is not left behind."""
    enroll(shell, "pi-1")
    _, err = shell(f"edgekit device enroll pi-1 --target {TARGET} -o other", expect=1)
    assert "already enrolled" in err
    assert not (tmp_path / "other").exists()
    _, err = shell(f"edgekit device enroll pi-2 --target {TARGET} -o devices/pi-1", expect=1)
    assert "already has the files of a device" in err


def test_enroll_dry_run_changes_nothing(shell, tmp_path):
    """--dry-run writes neither folder nor row."""
    shell(f"edgekit device enroll pi-1 --target {TARGET} --dry-run")
    assert not (tmp_path / "devices").exists()
    assert shell.json("edgekit device list --json") == []


def test_device_list_and_show_say_what_is_reported(shell):
    """Models, their versions and the last outcome are in the table, in JSON and in `show`."""
    enroll(shell, "pi-1", "pi-2")
    report(shell, "pi-1", 1, digest="a" * 64, refuses="b" * 64)
    rows = {row["device"]: row for row in shell.json("edgekit device list --json")}
    assert rows["pi-1"]["models"]["digits"]["version"] == "1.0.0"
    assert rows["pi-1"]["outcomes"]["digits"]["error"] == "SelfTestError"
    assert rows["pi-2"]["models"] == {}
    out, _ = shell("edgekit device list")
    assert "digits 1.0.0 refused: SelfTestError" in out
    assert "never seen" in out
    out, _ = shell("edgekit device show pi-1")
    assert "digits 1.0.0" in out
    assert shell.json("edgekit device show pi-1 --json")["reported"]["device"] == "pi-1"
    _, err = shell("edgekit device show pi-9", expect=1)
    assert "no device 'pi-9'" in err


def test_command_that_nobody_answers_fails_in_time(shell):
    """--wait ends when the command expires, with a reason and exit 1."""
    enroll(shell, "pi-1")
    _, err = shell("edgekit device command pi-1 self-test --wait --expires 1", expect=1)
    assert "did not answer" in err
    shell("edgekit device command pi-1 reboot", expect=2)


# --- rollout


def test_start_plans_and_refuses(shell):
    """A dry run prints the plan and starts nothing; unknown versions and empty fleets are errors with advice."""
    _, err = shell("edgekit rollout start digits 1.0.0", expect=1)
    assert "edgekit device enroll" in err
    enroll(shell, "pi-1", "pi-2")
    out, _ = shell("edgekit rollout start digits 1.0.0 --dry-run")
    assert "50%" in out
    assert shell.json("edgekit rollout list --json") == []
    _, err = shell("edgekit rollout start digits 9.9.9", expect=1)
    assert "1.0.0 for raspberry-pi-4" in err
    for flags, says in (
        ("--waves 10%,50%", "last wave must be 100%"),
        ("--waves few", "'few' is neither a share"),
        ("--error-threshold 7", "not in the range 0<=x<=1"),
        ("--success-threshold -1", "not in the range 0<=x<=1"),
        ("--min-failures 0", "not in the range x>=1"),
        ("--label north", "not of the form key=value"),
    ):
        _, err = shell(f"edgekit rollout start digits 1.0.0 {flags}", expect=2)
        assert says in err
    assert shell.json("edgekit rollout list --json") == []


def test_what_a_device_says_cannot_steer_the_terminal(shell):
    """Escape sequences and line breaks in reports and events are printed escaped."""
    enroll(shell, "pi-1")
    bad = "\x1b[2Jgone\r\nroot#"
    state = shell.state()
    state.devices.add_event(Event("pi-1", "odd", 1.0, "digits", "Error", bad), 1.0)
    outcome = Outcome("d", "1.0.0", "failed", bad, bad)
    models = {"digits": Running("d", bad)}
    report = Reported("pi-1", "f1", 1, 1.0, 0, models, {"digits": outcome}, {"arch": bad})
    state.devices.save_report(report, 1.0, live=True)
    state.close()
    for line in ("device show pi-1", "device list"):
        out, _ = shell(f"edgekit {line}")
        assert "\x1b" not in out
        assert "\r" not in out
        assert r"\x1b[2Jgone\r\n" in out


def test_start_says_which_targets_have_no_bundle(shell):
    """Devices whose target has no bundle are counted, and the others go on."""
    enroll(shell, "pi-1")
    enroll(shell, "jetson-1", "jetson-2", target="jetson-orin")
    _, err = shell("edgekit rollout start digits 1.0.0")
    assert "no bundle for jetson-orin: 2 devices skipped" in err
    rollout = survey(shell)
    assert rollout.counts()["SKIPPED"] == 2
    assert rollout.counts()["TOLD"] == 1


def test_devices_that_are_too_old_for_a_bundle_are_named(shell):
    """`publish` and `rollout start` name them before anything is sent; devices of other targets are not meant."""
    enroll(shell, "pi-1", "pi-2")
    enroll(shell, "jetson-1", target="jetson-orin")
    state = shell.state()
    for name, version in (("pi-1", "0.1.0"), ("pi-2", __version__), ("jetson-1", "0.1.0")):
        state.devices.save_report(Reported(name, "f1", 1, 0.0, 1, {}, {}, facts={"edgekit": version}), time.time())
    state.close()
    manifest = write_bundle(shell.folder / "2.0.0", "digits", "2.0.0")
    unread = Binding(
        TensorSpec("rate", DType.INT64, (None, 1)), TensorSpec("rate", DType.INT64, (None, 1)), unread=True
    )
    manifest = msgspec.structs.replace(manifest, inputs=(*manifest.inputs, unread))
    (shell.folder / "2.0.0" / "manifest.json").write_bytes(manifest.canonical_bytes())
    said = "1 device cannot read this bundle, because it has inputs that are fixed or unread"
    _, err = shell("edgekit registry publish 2.0.0")
    assert said in err
    assert "pi-1 (0.1.0); update edgekit there first" in err
    plan = shell.json("edgekit rollout start digits 2.0.0 --dry-run --json")
    assert plan["too_old"][TARGET]["devices"] == {"pi-1": "0.1.0"}
    for line in ("edgekit rollout start digits 2.0.0 --dry-run", "edgekit rollout start digits 2.0.0"):
        _, err = shell(line)
        assert f"{TARGET}: {said}" in err
    _, err = shell("edgekit registry publish 1.1.0")
    assert "cannot read" not in err


def test_devices_on_a_runtime_without_evidence_are_counted(shell):
    """Before anything is sent: by target and version, with what to type; evidence of the registry counts."""
    runtimes = {
        "pi-1": {"litert": "2.3.0", "tflite-runtime": "2.14.0"},
        "pi-2": {"litert": "2.4.0"},
        "pi-3": {"tflite-runtime": "2.14.0"},
        "pi-4": {},
    }
    enroll(shell, *runtimes)
    state = shell.state()
    for name, versions in runtimes.items():
        facts = {"arch": "aarch64", "runtimes": versions}
        state.devices.save_report(Reported(name, "f1", 1, 0.0, 1, {}, {}, facts=facts), time.time())
    state.close()
    manifest = write_bundle(shell.folder / "2.0.0", "digits", "2.0.0")
    manifest = msgspec.structs.replace(manifest, tools={"ai-edge-litert": "2.3.0"})
    (shell.folder / "2.0.0" / "manifest.json").write_bytes(manifest.canonical_bytes())
    shell("edgekit registry publish 2.0.0")
    start = "edgekit rollout start digits 2.0.0"
    plan = shell.json(f"{start} --dry-run --json")
    assert {one["runtime"]: one["devices"] for one in plan["unproven"]} == {
        "ai-edge-litert 2.4.0": ["pi-2"],
        "tflite-runtime 2.14.0": ["pi-3"],
    }
    said = shell(f"{start} --dry-run")[1]
    assert f"{TARGET}: 1 device runs ai-edge-litert 2.4.0, which the bundle has no evidence for" in said
    assert "edgekit recheck BUNDLE --runtime tflite-runtime==2.14.0" in said
    store = open_store((shell.folder / "registry").as_uri())
    repository = Repository(store, shell.folder / "keys")
    for package, version, outcome in (("ai-edge-litert", "2.4.0", "equal"), ("tflite-runtime", "2.14.0", "worse")):
        found = {"package": package, "version": version, "arch": "aarch64", "outcome": outcome}
        sign_evidence(store, repository, manifest, b"report", against="ai-edge-litert 2.3.0", **found)
    said = shell(start)[1]
    assert "2.4.0" not in said
    assert "runs tflite-runtime 2.14.0, with which the bundle gave wrong answers, and will refuse it (pi-3)" in said


def test_devices_that_do_not_fit_the_bundle_are_listed_with_every_reason(shell):
    """Before anything is sent: from the facts that they report. Devices that have reported none are not judged."""
    facts = {
        "pi-1": {"target": TARGET, "arch": "aarch64", "memory_mib": 8000, "runtimes": {"litert": "2.3.0"}},
        "pi-2": {"target": TARGET, "arch": "aarch64", "memory_mib": 900, "runtimes": {"onnxruntime": "1.23.2"}},
        "pi-3": {"target": TARGET, "arch": "aarch64", "memory_mib": "much", "runtimes": {"litert": "2.3.0"}},
        "pi-4": {},
    }
    enroll(shell, *facts)
    state = shell.state()
    for name, said in facts.items():
        state.devices.save_report(Reported(name, "f1", 1, 0.0, 1, {}, {}, facts=said), time.time())
    state.close()
    manifest = write_bundle(shell.folder / "2.0.0", "digits", "2.0.0")
    manifest = msgspec.structs.replace(manifest, requires={"memory_mib": 4000})
    (shell.folder / "2.0.0" / "manifest.json").write_bytes(manifest.canonical_bytes())
    shell("edgekit registry publish 2.0.0")
    plan = shell.json("edgekit rollout start digits 2.0.0 --dry-run --json")
    reasons = [
        "it needs runtime litert, this device has onnxruntime 1.23.2",
        "it needs 4000 MiB of memory, this device has 900",
    ]
    assert plan["unfitting"] == {"pi-2": reasons}
    for line in ("edgekit rollout start digits 2.0.0 --dry-run", "edgekit rollout start digits 2.0.0"):
        assert f"pi-2 does not fit and will refuse it: {'; '.join(reasons)}" in shell(line)[1]


def test_agents_that_ignore_conditions_are_named(shell):
    """Consent, windows and gates need an agent that obeys them; the dry run and the start say so."""
    enroll(shell, "pi-1", "pi-2")
    state = shell.state()
    for name, version in (("pi-1", "0.1.0"), ("pi-2", __version__)):
        state.devices.save_report(Reported(name, "f1", 1, 0.0, 1, {}, {}, facts={"edgekit": version}), time.time())
    state.close()
    start = "edgekit rollout start digits 1.0.0"
    said = "1 device ignores consent, gates, which needs edgekit 0.2.0: pi-1 (0.1.0); update edgekit there first"
    plan = shell.json(f"{start} --consent --gate outcome --dry-run --json")
    assert plan["ignoring"]["devices"] == {"pi-1": "0.1.0"}
    assert "maintenance windows" in shell(f"{start} --window 22:00-05:00 --dry-run")[1]
    assert "ignores" not in shell(f"{start} --dry-run")[1]
    assert said in shell(f"{start} --consent --gate outcome")[1]


def test_cohort_options_choose_devices(shell):
    """Only devices with the label take part."""
    enroll(shell, "pi-1")
    shell(f"edgekit device enroll pi-2 --target {TARGET} --label ring=1")
    shell("edgekit rollout start digits 1.0.0 --label ring=1")
    assert list(survey(shell).devices) == ["pi-2"]


def test_pause_resume_abort(shell):
    """Operators' commands step the rollout; what its state does not allow is refused with exit 3."""
    enroll(shell, "pi-1")
    assert shell.json("edgekit rollout start digits 1.0.0 --json")["state"] == "RUNNING"
    _, err = shell("edgekit rollout start digits 1.1.0", expect=3)
    assert "one rollout at a time" in err
    survey(shell)
    assert shell.json("edgekit rollout pause 1 --json")["state"] == "PAUSED"
    shell("edgekit rollout pause 1", expect=3)
    assert shell.json("edgekit rollout resume 1 --json")["state"] == "RUNNING"
    planned = shell.json("edgekit rollout abort 1 --dry-run --json")
    assert planned["withdraw"] == ["pi-1"]
    assert shell.json("edgekit rollout list --json")[0]["state"] == "RUNNING"
    assert shell.json("edgekit rollout abort 1 --json")["state"] == "ABORTED"
    shell("edgekit rollout resume 1", expect=3)
    shell("edgekit rollout abort 7", expect=1)


def test_watch_ends_with_exit_0_when_finished(shell):
    """Watching a finished rollout shows its devices and succeeds."""
    enroll(shell, "pi-1")
    shell("edgekit rollout start digits 1.0.0")
    wanted = survey(shell).devices["pi-1"].digest
    report(shell, "pi-1", 1, digest=wanted)
    assert survey(shell).state is RolloutState.FINISHED
    out, _ = shell("edgekit rollout watch")
    assert "FINISHED" in out
    out, _ = shell("edgekit rollout status 1")
    assert "pi-1  SUCCEEDED" in out


def test_wait_exits_3_with_the_reason_when_the_rollout_pauses_itself(shell):
    """`start --wait` follows the rollout, and the error contains the failure that stopped it."""
    enroll(shell, "pi-1", "pi-2")

    def refuse():
        state = shell.state()
        while not state.rollouts.all():
            time.sleep(0.02)
        state.close()
        rollout = survey(shell)
        assigned = next(name for name, progress in rollout.devices.items() if progress.assigned_at)
        report(shell, assigned, 1, refuses=rollout.devices[assigned].digest)
        survey(shell)

    device = threading.Thread(target=refuse)
    device.start()
    _, err = shell("edgekit rollout start digits 1.0.0 --wait", expect=3)
    device.join(60)
    assert "1 of 1 assigned devices failed" in err
    assert "edgekit rollout resume 1" in err
    found = shell.json("edgekit rollout list --json")[0]
    assert (found["state"], found["stopped_itself"]) == ("PAUSED", True)
    assert shell.json("edgekit rollout watch --json", expect=3)["devices"]


# --- controller


def test_controller_without_a_registry_says_what_to_run(tmp_path, monkeypatch, capfd):
    """Without a registry the controller fails with the command that creates one."""
    monkeypatch.chdir(tmp_path)
    _, err = Shell(tmp_path, monkeypatch, capfd)("edgekit controller run", expect=1)
    assert "director" in err or "root.json" in err


def test_controller_waits_for_its_broker_and_ends_on_a_signal(shell, tmp_path):
    """The process reports that the broker cannot be reached and retries; SIGTERM ends it with exit 0."""
    code = "import sys; from edgekit.cli.main import main; sys.argv[0] = 'edgekit'; main()"
    command = [sys.executable, "-c", code, "controller", "run", "--broker", "mqtt://127.0.0.1:9"]
    environment = {**os.environ, "EDGEKIT_API": ""}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        line = process.stderr.readline()
        assert "cannot reach broker mqtt://127.0.0.1:9" in line
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "ready" not in out
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_failure(shell, tmp_path):
    """`edgekit device list | head -0` prints nothing and succeeds."""
    read, write = os.pipe()
    os.close(read)
    enroll(shell, "pi-1")
    command = [sys.executable, "-c", "from edgekit.cli.main import main; main()", "device", "list"]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False, timeout=240)
    os.close(write)
    assert (found.returncode, found.stderr) == (0, b"")

"""The commands of a device's later life, and backups, as a user types them."""

import json
import tarfile

import pytest

from edgekit.mqtt.messages import Reported, Running
from edgekit.state import open_fleet_state
from edgekit.trust.envelopes import seal
from edgekit.trust.keys import load_signer
from tests.simulators.shell import Shell, enroll


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    made = Shell(tmp_path, monkeypatch, capfd)
    made("edgekit registry init")
    enroll(made, "pi-1", "pi-2")
    return made


def say(shell, name, number=50):
    """Store a signed report, as the controller does."""
    report = Reported(name, "f1", number, 0.0, 3, {}, {}, facts={"edgekit": "0.1.0"}, session=4, command=9)
    payload = seal(report, load_signer(shell.folder / "devices" / name / "device.key"))
    state = shell.state()
    state.devices.save_report(report, 1000.0, payload=payload)
    state.close()


def test_labels_quarantine_new_key_and_removal(shell):
    """Each says what it did, changes nothing with --dry-run, and is in the audit log."""
    assert "site=south" in shell("edgekit device label pi-1 site=south ring=1")[1]
    assert shell.json("edgekit device label pi-1 --remove ring --json")["labels"] == {"site": "south"}
    assert "both set and removed" in shell("edgekit device label pi-1 a=1 --remove a", 2)[1]
    shell("edgekit device quarantine pi-1 --reason odd --dry-run")
    assert shell.json("edgekit device list --json")[0]["quarantine"] == ""
    shell("edgekit device quarantine pi-1 --reason odd")
    assert "in quarantine" in shell("edgekit device list")[0]
    assert "odd" in shell("edgekit device show pi-1")[0]
    assert "is in quarantine, so it gets no commands" in shell("edgekit device command pi-1 self-test", 3)[1]
    _, err = shell("edgekit device command self-test --filter 'name in (pi-1, pi-2)'")
    assert "1 in quarantine get no commands: pi-1" in err
    assert "is sent to 1 that" in err
    assert "every selected device" in shell("edgekit device command self-test --filter 'name == pi-1'", 3)[1]
    assert "served again" in shell("edgekit device quarantine pi-1 --end")[1]
    before = shell.state().devices.get("pi-1").public_key
    assert "device.key exists" in shell("edgekit device rekey pi-1", 1)[1]
    shell("edgekit device rekey pi-1 -o new")
    pem = (shell.folder / "new" / "device.pub").read_text()
    assert shell.state().devices.get("pi-1").public_key == pem != before
    assert "has this key already" in shell("edgekit device rekey pi-1 --public-key new/device.pub", 1)[1]
    shell("edgekit device remove pi-1")
    assert "no device 'pi-1'" in shell("edgekit device remove pi-1", 1)[1]
    found = [entry["what"] for entry in shell.json("edgekit audit list --subject pi-1 --json")]
    assert found[:5] == ["device.remove", "device.rekey", "device.release", "device.quarantine", "device.label"]


def test_a_model_is_taken_off_devices(shell):
    """The plan changes nothing; agents that ignore it are named; the selection is one device or options."""
    state = shell.state()
    for name, version in (("pi-1", "0.1.0"), ("pi-2", "0.2.0")):
        running = {"digits": Running(digest="a" * 64, version="1.0.0")}
        state.devices.save_report(Reported(name, "f1", 1, 0.0, 1, running, {}, facts={"edgekit": version}), 1000.0)
    state.close()
    _, err = shell("edgekit device uninstall digits --filter 'name in (pi-1, pi-2)' --dry-run")
    assert "digits would be taken off 2 devices: pi-1, pi-2" in err
    assert "1 device ignores uninstalling, which needs edgekit 0.2.0: pi-1 (0.1.0)" in err
    assert shell.state().assignments.all() == []
    assert "is taken off 1 device: pi-2" in shell("edgekit device uninstall digits pi-2")[1]
    assert "asked before: pi-2" in shell("edgekit device uninstall digits pi-2")[1]
    assert shell.json("edgekit device show pi-2 --json")["assigned"]["uninstall"] == ["digits"]
    (entry,) = shell.json("edgekit audit list --what device.uninstall --json")
    assert (entry["subject"], entry["before"]["running"]) == ("pi-2", "1.0.0")
    assert "none of the selected devices has model 'other'" in shell("edgekit device uninstall other pi-2", 1)[1]
    assert "Name one device, or select" in shell("edgekit device uninstall digits", 2)[1]
    assert "Name one device, or select" in shell("edgekit device uninstall digits pi-1 --label a=b", 2)[1]


def test_exported_devices_are_imported_elsewhere_or_not_at_all(shell):
    """Key, labels, numbers and events travel; a changed report, another fleet or a taken name import nothing."""
    say(shell, "pi-1")
    shell("edgekit device label pi-1 site=north")
    shell("edgekit device quarantine pi-2 --reason stolen")
    shell("edgekit device export --all -o fleet.json")
    for option in ("", " --dry-run"):
        assert "already enrolled" in shell(f"edgekit device import fleet.json{option}", 1)[1]
    (shell.folder / "edgekit.toml").write_text('fleet = "f1"\ndatabase = "sqlite:///other.db"\n')
    text = (shell.folder / "fleet.json").read_text()
    shell("edgekit device import fleet.json --dry-run")
    for old, new, said in [
        ('"fleet":"f1"', '"fleet":"f2"', "is of fleet"),
        ('"format":1', '"format":9', "format 9"),
        ('"name":"pi-2"', '"name":"pi-1"', "pi-1 twice"),
        ('"enrolled":1', '"enrolled":1e99, "x":1', "enrolled is"),
        ('"target":"raspberry-pi-4"', '"target":"toaster"', "toaster"),
        ('"report":"g', '"report":"h', "cannot be imported"),
        ("{", "[", "not a file of devices"),
    ]:
        assert old in text
        (shell.folder / "bad.json").write_text(text.replace(old, new, 1))
        assert said in shell("edgekit device import bad.json", 1)[1].replace("\n", " ")
    assert shell.json("edgekit device list --json") == []
    shell("edgekit device import fleet.json")
    state = open_fleet_state(f"sqlite:///{shell.folder / 'other.db'}", "f1")
    assert state.devices.numbers("pi-1").report == 50
    assert state.commands.add("pi-1", "self-test", now=0.0, expires=1.0).number == 10
    assert state.devices.get("pi-1").labels == {"site": "north"}
    assert "stolen" in state.lifecycle.refused()["pi-2"].reason
    assert not state.devices.save_report(Reported("pi-1", "f1", 49, 0.0, 3, {}, {}), 1001.0)
    state.close()
    assert "Name devices" in shell("edgekit device export -o x.json", 2)[1]


def test_backup_is_restored_into_nothing(shell):
    """Every row and key comes back, the audit log is whole, and nothing that exists is overwritten."""
    say(shell, "pi-1")
    shell("edgekit registry class add cameras")
    shell("edgekit controller backup -o backup.tar")
    assert (shell.folder / "backup.tar").stat().st_mode & 0o077 == 0
    assert "exists" in shell("edgekit controller backup -o backup.tar", 1)[1]
    before = shell.json("edgekit device list --json")
    assert "is not empty" in shell("edgekit controller restore backup.tar", 1)[1]
    for file in shell.folder.glob("edgekit.db*"):
        file.unlink()
    (shell.folder / "keys").rename(shell.folder / "lost")
    shell("edgekit controller restore backup.tar")
    assert shell.json("edgekit device list --json") == before
    assert "are whole" in "".join(shell("edgekit audit verify"))
    (entry, *_) = shell.json("edgekit audit list --json")
    made = entry["after"]["made"]
    assert (entry["what"], entry["subject"], made > 1.7e9) == ("database.restore", "f1", True), "who looks knows of it"
    lost_files = [path for path in (shell.folder / "lost").rglob("*") if path.is_file()]
    assert any(path.parent.name == "classes" for path in lost_files)
    for lost in lost_files:
        kept = shell.folder / "keys" / lost.relative_to(shell.folder / "lost")
        assert kept.read_bytes() == lost.read_bytes()
        assert kept.stat().st_mode & 0o077 == 0
    shell("edgekit device enroll pi-3 --target raspberry-pi-4")


def test_links_among_the_keys_are_backed_up_as_the_files_that_they_name(shell):
    """A volume of Kubernetes has links, and copies may be hard links; nothing but the backup is left behind."""
    keys = shell.folder / "keys"
    (keys / "hard.key").hardlink_to(keys / "director.key")
    (shell.folder / "outside.pem").write_text("pem")
    (keys / "soft.pem").symlink_to(shell.folder / "outside.pem")
    (keys / "nowhere.pem").symlink_to(shell.folder / "missing.pem")
    before = set(shell.folder.iterdir())
    shell("edgekit controller backup -o backup.tar")
    assert {path.name for path in set(shell.folder.iterdir()) - before} == {"backup.tar"}
    (shell.folder / "edgekit.db").rename(shell.folder / "old.db")
    keys.rename(shell.folder / "lost")
    shell("edgekit controller restore backup.tar")
    assert (keys / "hard.key").read_bytes() == (shell.folder / "lost" / "director.key").read_bytes()
    assert ((keys / "soft.pem").read_text(), (keys / "nowhere.pem").exists()) == ("pem", False)


def test_a_restore_that_fails_can_be_repeated(shell):
    """Keys that cannot be written leave neither keys nor rows, so the next attempt finds nothing in its way."""
    shell("edgekit registry class add cameras")
    shell("edgekit controller backup -o backup.tar")
    (shell.folder / "edgekit.db").rename(shell.folder / "old.db")
    (shell.folder / "keys").rename(shell.folder / "lost")
    (shell.folder / "keys").mkdir()
    (shell.folder / "keys" / "classes").write_text("in the way of the folder")
    assert "cannot be written" in shell("edgekit controller restore backup.tar", 1)[1]
    assert [path.name for path in (shell.folder / "keys").iterdir()] == ["classes"]
    (shell.folder / "keys" / "classes").unlink()
    shell("edgekit controller restore backup.tar")
    assert (shell.folder / "keys" / "classes" / "cameras.key").exists()
    assert len(shell.json("edgekit device list --json")) == 2


def test_damaged_backup_restores_nothing(shell):
    """A changed byte, a missing member and a member that the index does not name are errors."""
    shell("edgekit controller backup -o backup.tar")
    (shell.folder / "edgekit.db").rename(shell.folder / "old.db")
    data = (shell.folder / "backup.tar").read_bytes()
    at = data.index(b'"target":"raspberry')
    (shell.folder / "changed.tar").write_bytes(data[:at] + b"X" + data[at + 1 :])
    assert "is damaged" in shell("edgekit controller restore changed.tar", 1)[1]
    with tarfile.open("backup.tar") as old, tarfile.open("short.tar", "w") as new:
        for member in old.getmembers()[:-1]:
            new.addfile(member, old.extractfile(member))
    assert "is missing" in shell("edgekit controller restore short.tar", 1)[1]
    with tarfile.open("backup.tar") as old, tarfile.open("more.tar", "w") as new:
        for member in old.getmembers():
            new.addfile(member, old.extractfile(member))
        new.add("edgekit.toml", arcname="keys/../evil")
    assert "does not name" in shell("edgekit controller restore more.tar", 1)[1]
    (shell.folder / "outside.tar").write_bytes(data.replace(b'"keys/root.json"', b'"keys/../a.json"'))
    assert "expected database/FILE or keys/FILE" in shell("edgekit controller restore outside.tar", 1)[1]
    (shell.folder / "text.tar").write_text("no tar")
    assert "no whole backup" in shell("edgekit controller restore text.tar", 1)[1]
    assert not (shell.folder / "edgekit.db").exists() or shell.json("edgekit device list --json") == []
    assert json.dumps(sorted(path.name for path in shell.folder.glob("keys/evil"))) == "[]"

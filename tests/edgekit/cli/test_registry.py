"""The commands of `edgekit registry` with their output and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.main import edgekit
from edgekit.errors import EdgekitError, ManifestError, NotFoundError, SettingsError, VerificationError
from tests.simulators.bundles import write_bundle


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EDGEKIT_PASSPHRASE", "EDGEKIT_REGISTRY", "EDGEKIT_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_in(*words: str, **options: str) -> Result:
    return CliRunner().invoke(edgekit, ["registry", *words], **options)


def ran(*words: str, **options: str) -> str:
    result = type_in(*words, **options)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def failed(kind: type[EdgekitError], *words: str) -> EdgekitError:
    result = type_in(*words)
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return result.exception


def test_the_whole_life_of_a_version(folder: Path) -> None:
    """Init, publish two, list, show, promote, retire, verify: stable keys with --json, text without."""
    first, second = write_bundle(folder), write_bundle(folder, version="1.1.0")
    assert "root.key, targets.key" in ran("init")
    assert "digits" in ran("publish", str(first))
    (published,) = json.loads(ran("publish", str(second), "--json"))
    assert (published["name"], published["version"], published["release"]) == ("digits", "1.1.0", 2)
    assert "channel stable" in ran("promote", "digits", "1.0.0", "stable")
    assert "retired true" in ran("retire", "digits", "1.1.0")
    rows = json.loads(ran("list", "--json"))
    assert [(row["version"], row["retired"], row["channel"]) for row in rows] == [
        ("1.0.0", False, "stable"),
        ("1.1.0", True, ""),
    ]
    assert ran("list").splitlines()[2].split()[-1] == "retired"
    assert "model.onnx, 150000 bytes" in ran("show", "digits", "1.0.0")
    (shown,) = json.loads(ran("show", "digits", "1.0.0", "--json"))
    assert shown["manifest"]["version"] == "1.0.0"
    assert len(ran("show", "digits").splitlines()) == 3
    assert json.loads(ran("verify", "--json")) == {"faults": [], "sound": True}


def test_init_says_which_keys_belong_where(folder: Path) -> None:
    """Offline keys, online keys and the file for devices are listed separately, in text and in JSON."""
    told = json.loads(ran("init", "--json", "--keys", "secret", "--registry", "file://store", "--root-keys", "2"))
    assert told["offline"] == ["root-1.key", "root-2.key", "targets.key"]
    assert told["online"] == ["director.key", "snapshot.key", "timestamp.key"]
    assert Path(told["root"]) == Path("secret/root.json")
    assert (folder / "secret" / "root.json").exists()
    assert (folder / "store" / "metadata" / "timestamp.json").exists()


def test_init_twice_is_refused(folder: Path) -> None:
    """A second init replaces neither the registry nor its keys."""
    ran("init")
    before = (folder / "keys" / "root.key").read_bytes()
    assert "already a registry" in str(failed(SettingsError, "init"))
    assert "keys" in str(failed(SettingsError, "init", "--registry", "file://other"))
    assert (folder / "keys" / "root.key").read_bytes() == before
    assert not (folder / "other" / "metadata").exists()


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    """The plan lists what would be uploaded, and a version conflict is an error."""
    bundle = write_bundle(folder)
    ran("init")
    before = sorted(folder.rglob("*"))
    (plan,) = json.loads(ran("publish", str(bundle), "--dry-run", "--json"))
    assert plan == {
        "path": "models/digits/pi/1.0.0/manifest.json",
        "published": False,
        "new_model": True,
        "upload_files": 2,
        "upload_bytes": 150_006,
        "deltas_from": [],
    }
    assert sorted(folder.rglob("*")) == before
    ran("publish", str(bundle))
    (plan,) = json.loads(ran("publish", str(bundle), "--dry-run", "--json"))
    assert (plan["published"], plan["new_model"], plan["upload_bytes"]) == (True, False, 0)
    changed = write_bundle(folder / "changed", model=b"changed")
    assert "other content" in str(type_in("publish", str(changed), "--dry-run").exception)
    (folder / "keys" / "targets.key").rename(folder / "targets.key")
    assert "targets.key" in str(failed(NotFoundError, "publish", str(write_bundle(folder, "new")), "--dry-run"))


def test_one_bad_bundle_stops_them_all(folder: Path) -> None:
    """All bundles are checked before the first one is published."""
    good, bad = write_bundle(folder), write_bundle(folder, version="1.1.0")
    (bad / "model.onnx").write_bytes(b"")
    ran("init")
    result = type_in("publish", str(good), str(bad))
    assert "not complete" in str(result.exception)
    assert json.loads(ran("list", "--json")) == []


def test_verify_with_foreign_keys_does_not_advise_to_publish(folder: Path) -> None:
    """For metadata that the root does not trust, the advice is not to publish again."""
    ran("init")
    ran("init", "--registry", "file://other", "--keys", "others")
    assert "--keys belong together" in failed(VerificationError, "verify", "--keys", "others").advice


def test_a_channel_has_a_plain_name(folder: Path) -> None:
    """An invalid channel name is refused, and nothing is changed."""
    ran("init")
    ran("publish", str(write_bundle(folder)))
    for channel in ("", "st able", "-x", "x" * 64):
        failed(ManifestError, "promote", "--", "digits", "1.0.0", channel)
    assert json.loads(ran("list", "--json"))[0]["channel"] == ""


def test_verify_refuses_a_tampered_blob(folder: Path) -> None:
    """Exit 3, the digest on stdout, and advice how to repair it."""
    ran("init")
    ran("publish", str(write_bundle(folder)))
    blob = max((folder / "registry" / "blobs").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    blob.write_bytes(b"X" + blob.read_bytes()[1:])
    result = type_in("verify")
    assert blob.name in result.stdout
    assert isinstance(result.exception, VerificationError)
    assert result.exception.exit_code == 3
    assert "publishing its bundle again" in result.exception.advice


@pytest.mark.parametrize("way", ["file", "environment", "prompt"])
def test_keys_are_encrypted_by_a_passphrase_from_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """With each source of the passphrase, publishing needs it again, and a wrong one is an error."""
    (folder / "pass").write_text("secret\n")
    bundle = str(write_bundle(folder))
    if way == "file":
        ran("init", "--passphrase-file", "pass")
    elif way == "environment":
        monkeypatch.setenv("EDGEKIT_PASSPHRASE", "secret")
        ran("init")
        monkeypatch.delenv("EDGEKIT_PASSPHRASE")
    else:
        ran("init", "--encrypt", input="secret\nsecret\n")
    assert all(
        b"ENCRYPTED" in (folder / "keys" / f"{role}.key").read_bytes() for role in ("root", "director", "timestamp")
    )
    assert "no passphrase" in str(failed(SettingsError, "publish", bundle))
    (folder / "wrong").write_text("guess")
    assert "wrong" in str(failed(SettingsError, "publish", bundle, "--passphrase-file", "wrong"))
    ran("publish", bundle, "--passphrase-file", "pass")


@pytest.mark.parametrize(
    "words", [["list"], ["verify"], ["publish", "b"], ["show", "digits"], ["retire", "d", "1.0.0"]]
)
def test_without_a_registry_the_advice_is_init(folder: Path, words: list[str]) -> None:
    """Every command that needs a registry says how to create one."""
    if words[0] == "publish":
        words = ["publish", str(write_bundle(folder))]
    assert "registry init" in failed(NotFoundError, *words).advice


def test_keys_are_listed_added_rotated_and_revoked(folder: Path) -> None:
    """Keys are named by role and the first digits of the id; their files are listed; the registry stays valid."""
    ran("init")
    ran("publish", str(write_bundle(folder)))
    ran("init", "--registry", "file://team", "--keys", "team")
    team = str(folder / "team" / "snapshot.pub")
    added = json.loads(ran("key", "add", "publisher-digits", "--public-key", team, "--json"))["added"]
    assert "signs for timestamp" in ran("key", "rotate", "timestamp")
    rows = {(row["role"], row["keyid"]): row["file"] for row in json.loads(ran("key", "list", "--json"))}
    assert rows["publisher-digits", added] == ""
    assert sorted(file for (role, _), file in rows.items() if role == "timestamp") == ["timestamp+2.key"]
    assert "no longer signs" in ran("key", "revoke", "publisher-digits", added[:8])
    assert "no role" in str(failed(SettingsError, "key", "add", "publisher-other"))
    assert ran("renew").startswith("Renewed: root, publisher-digits, targets")
    (folder / "keys" / "root.key").unlink()
    result = type_in("renew")
    assert "Not renewed, because the keys are not here: root" in result.stderr
    assert "offline" in failed(NotFoundError, "key", "rotate", "snapshot").advice
    lines = ran("key", "list").splitlines()
    assert lines[1].split()[0] == "root"
    assert lines[1].split()[3] == "-"
    assert json.loads(ran("verify", "--json"))["sound"]


def test_dry_run_of_every_change_changes_nothing(folder: Path) -> None:
    """Promote, retire, allow-downgrade, key changes and renewal print their plan and check what they can."""
    bundle = write_bundle(folder)
    ran("init")
    ran("publish", str(bundle))

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}

    before = content()
    for words in (
        ("promote", "digits", "1.0.0", "stable"),
        ("retire", "digits", "1.0.0"),
        ("allow-downgrade", "digits", "1.0.0"),
    ):
        assert "digits/pi/1.0.0" in ran(*words, "--dry-run")
        assert json.loads(ran(*words, "--dry-run", "--json"))["dry_run"] is True
    assert "a new key would sign for timestamp" in ran("key", "add", "timestamp", "--dry-run")
    assert "would sign for director" in ran("key", "rotate", "director", "--dry-run")
    assert "Would renew" in ran("renew", "--dry-run")
    failed(SettingsError, "key", "revoke", "timestamp", "0000", "--dry-run")
    failed(NotFoundError, "retire", "digits", "9.9.9", "--dry-run")
    assert content() == before


def test_a_permission_to_go_back_is_given_and_taken_back() -> None:
    """The permission is a signed field of the version, and can be withdrawn."""
    ran("init")
    ran("publish", str(write_bundle(Path.cwd())))
    assert "downgrade true" in ran("allow-downgrade", "digits", "1.0.0")
    assert "downgrade false" in ran("allow-downgrade", "digits", "1.0.0", "--no-more")

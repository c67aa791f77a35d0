"""Revoked certificates outlive the database; enrollment codes are listed and ended."""

import time
from pathlib import Path

import pytest
from cryptography import x509

from edgekit.identity.authority import Authority
from tests.simulators.shell import Shell


def serials(path):
    return {one.serial_number for one in x509.load_pem_x509_crl(path.read_bytes())}


def test_a_lost_database_makes_no_revoked_certificate_valid_again(tmp_path, monkeypatch, capfd):
    """A new list has what the last one had; one of another authority, or a damaged one, stops the command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\nbroker = "mqtts://broker.example"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    shell("edgekit ca init")
    for name in ("pi-1", "pi-2"):
        shell(f"edgekit device enroll {name} --target raspberry-pi-4")
    certificates = {
        name: x509.load_pem_x509_certificate((tmp_path / "devices" / name / "broker.pem").read_bytes()).serial_number
        for name in ("pi-1", "pi-2")
    }
    shell("edgekit ca revoke pi-1")
    listed = tmp_path / "keys" / "fleet-ca.crl"
    assert serials(listed) == {certificates["pi-1"]}
    for file in tmp_path.glob("edgekit.db*"):
        file.unlink()
    shell("edgekit device enroll pi-3 --target raspberry-pi-4 -o three")
    third = x509.load_pem_x509_certificate((tmp_path / "three" / "broker.pem").read_bytes()).serial_number
    shell("edgekit ca revoke pi-3 -o new.crl")
    assert serials(tmp_path / "new.crl") == serials(listed) == {certificates["pi-1"], third}
    assert "has no valid certificate" in shell("edgekit ca revoke nobody", 1)[1]
    shell("edgekit ca broker broker.example -o broker")
    assert serials(tmp_path / "broker" / "revoked.crl") == {certificates["pi-1"], third}
    shell("edgekit device enroll pi-4 --target raspberry-pi-4")
    good = listed.read_bytes()
    other = Authority.create(tmp_path / "other", "f1", time.time()).revocation_list([], time.time())
    for bad in (b"nothing", good[:-200], other.encode()):
        listed.write_bytes(bad)
        assert "fleet-ca.crl cannot be used" in shell("edgekit ca revoke pi-4", 1)[1]
    listed.write_bytes(good)
    assert "revoked" not in shell("edgekit ca list pi-4")[0]
    assert "its TLS certificate stays valid" in shell("edgekit device rekey pi-4 -o four")[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_list_that_could_not_be_written_is_written_by_the_next_attempt(tmp_path, monkeypatch, capfd):
    """The certificate is revoked in the database then; the command says so and signs the list again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\nbroker = "mqtts://broker.example"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    shell("edgekit ca init")
    shell("edgekit device enroll pi-1 --target raspberry-pi-4")
    assert "No space left" in shell("edgekit ca revoke pi-1 -o /dev/full", 1)[1]
    assert "were revoked before" in shell("edgekit ca revoke pi-1 -o revoked.crl")[1]
    assert len(serials(tmp_path / "revoked.crl")) == 1


def test_a_code_that_leaked_is_ended(tmp_path, monkeypatch, capfd):
    """Codes are listed by their id, without their secret, until they are used up, expire or are revoked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    assert "No enrollment code" in shell("edgekit device code --list")[1]
    assert "make one with: edgekit ca init" in shell("edgekit device code --quota 1 --hours 0.01 --id pi-9")[1]
    shell("edgekit device code --revoke " + shell.json("edgekit device code --list --json")[0]["token"])
    made = shell.json("edgekit device code --quota 50 --label site=north --json")
    other = shell.json("edgekit device code --id pi-1 --json")
    (first, second) = sorted(shell.json("edgekit device code --list --json"), key=lambda one: one["quota"])
    assert (first["token"], first["device"], second["token"]) == (other["token"], "pi-1", made["token"])
    assert (second["quota"], second["labels"]) == (50, {"site": "north"})
    out, _ = shell("edgekit device code --list")
    assert made["token"] in out
    assert made["code"].rpartition(".")[2] not in out
    assert "has ended" in shell(f"edgekit device code --revoke {made['token']}")[1]
    assert [one["token"] for one in shell.json("edgekit device code --list --json")] == [other["token"]]
    assert shell.state().certificates.code(made["token"]).expires <= time.time()
    assert "no enrollment code 'nothing'" in shell("edgekit device code --revoke nothing", 1)[1]
    (entry, *_) = shell.json("edgekit audit list --what code.revoke --json")
    assert (entry["subject"], entry["before"]["quota"]) == (made["token"], 50)

"""The list of revoked certificates outlives the database."""

import time

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

"""Enrollment codes and certificate signing requests: what is accepted, and what is refused."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from edgekit.errors import DataError, EdgekitError, NotFoundError, RefusedError, SettingsError, VerificationError
from edgekit.identity.authority import Authority, generate_tls_key, make_request, parse_request
from edgekit.identity.join import (
    StoredCode,
    check_limits,
    check_use,
    make_code,
    open_answer,
    open_request,
    parse_code,
    sign_answer,
    sign_request,
)
from edgekit.rollout.cohort import Device
from edgekit.state import open_fleet_state

RANDOM = bytes(range(25))


def test_a_code_is_read_as_it_was_made():
    """Fleet, id and key; another secret gives another key."""
    text, made = make_code("north", RANDOM)
    assert parse_code(f" {text}\n") == made
    assert made.fleet == "north"
    assert make_code("north", bytes(5) + bytes(20))[1].key != made.key


@pytest.mark.parametrize(
    "text",
    ["", "a.b", "north.aaaaaaaa", "north.aaaaaaaa.short", "NORTH.aaaaaaaa." + "A" * 27, "n.AAAAAAAA." + "A" * 27],
)
def test_a_text_that_is_no_code_is_named(text):
    """The error says where codes come from."""
    with pytest.raises(SettingsError, match=r"FLEET\.ID\.SECRET"):
        parse_code(text)


def test_only_the_code_proves_a_message_and_no_side_can_be_reflected():
    """A changed body, another key, and a request that comes back as an answer are refused."""
    key, other = make_code("n", RANDOM)[1].key, make_code("n", bytes(25))[1].key
    assert open_request(sign_request(b"body", key), key) == b"body"
    assert open_answer(sign_answer(b"body", key), key) == b"body"
    for message in (sign_request(b"body", other), sign_answer(b"body", key)):
        with pytest.raises(VerificationError):
            open_request(message, key)


@pytest.mark.parametrize(
    ("changes", "name", "target", "error"),
    [
        ({}, "pi-1", "t", None),
        ({"expires": 99.0}, "pi-1", "t", RefusedError),
        ({"left": 0}, "pi-1", "t", RefusedError),
        ({"name": "pi-2"}, "pi-1", "t", RefusedError),
        ({"target": "u"}, "pi-1", "t", RefusedError),
        ({}, "Pi 1", "t", DataError),
        ({}, "controller", "t", DataError),
    ],
)
def test_a_code_is_for_what_it_says(changes, name, target, error):
    """Expiry, quota, name and target profile."""
    code = StoredCode(**{"token": "aaaaaaaa", "key": b"k", "expires": 200.0, "left": 1, **changes})
    if error is None:
        check_use(code, name, target, 100.0)
        return
    with pytest.raises(error):
        check_use(code, name, target, 100.0)


@pytest.mark.parametrize(("expires", "quota"), [(float("nan"), 1), (50.0, 1), (1e300, 1), (200.0, 0)])
def test_limits_of_a_code_are_in_range(expires, quota):
    """A code that nobody could use, or for ever, is refused."""
    with pytest.raises(SettingsError):
        check_limits(expires, quota, 100.0)


def test_a_request_for_another_name_or_key_is_refused():
    """The sender must have the key, and ask for its own name."""
    request = make_request(generate_tls_key(), "pi-1")
    assert parse_request(request, "pi-1")
    with pytest.raises(VerificationError, match="pi-2"):
        parse_request(request, "pi-2")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pi-1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    foreign = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.DER)
    for data in (foreign, b"", b"\x30\x03abc", request[:-1], request[:-8] + bytes(8)):
        with pytest.raises(EdgekitError):
            parse_request(data, "pi-1")


def test_the_authority_signs_and_revokes(tmp_path):
    """Certificates name device and fleet; the list has the revoked serials; files that do not fit are errors."""
    authority = Authority.create(tmp_path, "north", 1_800_000_000.0)
    issued = authority.issue_client(parse_request(make_request(generate_tls_key(), "pi-1"), "pi-1"), "pi-1", 90, 1.8e9)
    made = x509.load_pem_x509_certificate(issued.pem.encode())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem.encode()))
    assert issued.expires == 1.8e9 + 90 * 86_400
    text = authority.revocation_list([(issued.serial, 1.8e9)], 1.8e9).encode()
    assert x509.load_pem_x509_crl(text).get_revoked_certificate_by_serial_number(made.serial_number) is not None
    with pytest.raises(SettingsError):
        Authority.create(tmp_path, "north", 1.8e9)
    with pytest.raises(NotFoundError, match="authority"):
        Authority.load(tmp_path / "none")
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "fleet-ca-private.pem").write_bytes(pem)
    with pytest.raises(SettingsError, match="is not the key"):
        Authority.load(tmp_path)


def test_a_claim_takes_from_the_quota_once(tmp_path):
    """A repeated claim of the same key is answered again; another key, or a used code, enrolls nothing."""
    authority = Authority.create(tmp_path, "f", 1000.0)
    state = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f")
    state.certificates.add_code(StoredCode("aaaaaaaa", b"k", 5000.0, 1, labels={"site": "north"}), 1000.0)

    def claim(name, key):
        request = parse_request(make_request(generate_tls_key(), name), name)
        issued = authority.issue_client(request, name, 90, 2000.0)
        return state.certificates.claim("aaaaaaaa", Device(name, "t", key, enrolled=2000.0), issued, 2000.0)

    assert claim("pi-1", "pem")
    assert not claim("pi-1", "pem")
    with pytest.raises(SettingsError, match="another key"):
        claim("pi-1", "other")
    with pytest.raises(RefusedError, match="used up"):
        claim("pi-2", "pem")
    assert [device.name for device in state.devices.all()] == ["pi-1"]
    assert state.devices.get("pi-1").labels == {"site": "north"}
    assert len(state.certificates.revoke("pi-1", 2500.0)) == 2
    with pytest.raises(NotFoundError):
        state.certificates.revoke("pi-1", 2600.0)
    state.close()

"""The fleet's certificate authority: certificates for devices, controllers and brokers, and the list of revoked ones.

Keys are NIST P-256, which every TLS broker and AWS IoT Core accept. The common name is the device's name, which the
broker takes as the user name; an organization names the fleet.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.errors import ClockError, DataError, NotFoundError, SettingsError, VerificationError
from edgekit.trust.keys import load_private, write_secret

# No ".key": such files in the key folder are Ed25519 keys of the registry.
KEY_FILE, CERTIFICATE_FILE, REVOKED_FILE = "fleet-ca-private.pem", "fleet-ca.pem", "fleet-ca.crl"
CA_DAYS = 3650
BACKDATED = datetime.timedelta(hours=1)  # clocks of brokers and devices differ


class Issued(msgspec.Struct, frozen=True):
    """A certificate that the authority has signed.

    Attributes:
        name: Common name.
        serial: Serial number in lower case hex.
        pem: The certificate.
        issued, expires: Wall clock seconds.
    """

    name: str
    serial: str
    pem: str
    issued: float
    expires: float


class Authority:
    """A certificate authority whose files are in the key folder.

    Args:
        key: Its private key.
        certificate: Its certificate.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate

    @property
    def pem(self) -> str:
        """The authority's certificate in PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    @classmethod
    def create(cls, folder: Path, fleet: str, now: float, passphrase: str | None = None) -> Authority:
        """Make the authority of a fleet.

        Args:
            folder: The key folder.
            fleet: Name of the fleet.
            now: Wall clock seconds.
            passphrase: Encrypts the private key; None or empty stores it unencrypted.

        Raises:
            SettingsError: there is one already, or a file cannot be written.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"edgekit fleet {fleet}", fleet)
        usage = _usage(signs_certificates=True)
        builder = _builder(name, name, key.public_key(), key.public_key(), now, CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
        write_secret(folder / KEY_FILE, private_pem(key, passphrase))
        authority = cls(key, certificate)
        try:
            (folder / REVOKED_FILE).write_text(authority.revocation_list([], now))
            (folder / CERTIFICATE_FILE).write_text(authority.pem)
        except OSError as error:
            (folder / KEY_FILE).unlink()  # without its certificate it is of no use, and would stop another attempt
            raise SettingsError(f"the authority's files cannot be written to {folder}: {error}") from error
        return authority

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> Authority:
        """The authority in a key folder.

        Raises:
            NotFoundError: there is none.
            SettingsError: its files cannot be used, or do not belong together.
        """
        path = folder / CERTIFICATE_FILE
        if not path.exists():
            raise NotFoundError(f"there is no certificate authority in {folder}", advice="Run: edgekit ca init")
        key = load_private(folder / KEY_FILE, passphrase)
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingsError(f"{folder / KEY_FILE} is not the key of {path}", advice="Restore both from a backup.")
        return cls(key, certificate)

    def issue_client(self, request: x509.CertificateSigningRequest, name: str, days: int, now: float) -> Issued:
        """Sign a client's certificate.

        Args:
            request: A verified request; of its content only the public key is used.
            name: Common name: the device's name, or ``controller``.
            days: Lifetime.
            now: Wall clock seconds.

        Raises:
            ClockError: `now` is outside the life of the authority.
        """
        public = request.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)  # `parse_request` has checked it
        return self._issue(public, name, days, now, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def issue_server(self, public: ec.EllipticCurvePublicKey, hosts: Sequence[str], days: int, now: float) -> Issued:
        """Sign a broker's certificate for host names and IP addresses. Raises as `issue_client`."""
        return self._issue(public, hosts[0], days, now, ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def revocation_list(self, revoked: Iterable[tuple[str, float]], now: float) -> str:
        """The signed list of revoked certificates in PEM.

        It is valid from the beginning of the authority on: with a list that a clock ahead has dated and that is not yet
        valid, a broker refuses every client.

        Args:
            revoked: Serial numbers in hex, and wall clock seconds of their revocation.
            now: Wall clock seconds.

        Raises:
            ClockError: `now` is outside the life of the authority's own certificate.
        """
        self._check_time(now)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(self._certificate.not_valid_before_utc)
        builder = builder.next_update(_date(now) + datetime.timedelta(days=CA_DAYS))
        builder = builder.add_extension(_issuer_id(self._key.public_key()), critical=False)
        builder = builder.add_extension(x509.CRLNumber(int(now)), critical=False)
        for serial, at in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(_date(at))
            builder = builder.add_revoked_certificate(one.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def revoked_in(self, data: bytes) -> list[tuple[str, float]]:
        """The entries of a list that this authority has signed: serial numbers in hex, and wall clock seconds.

        Raises:
            DataError: it is no such list.
            VerificationError: another authority has signed it.
        """
        try:
            found = x509.load_pem_x509_crl(data)
            valid = found.is_signature_valid(self._key.public_key())
            entries = [(f"{one.serial_number:x}", one.revocation_date_utc.timestamp()) for one in found]
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise DataError(f"not a list of revoked certificates: {error}") from error
        if not valid:
            raise VerificationError("another authority has signed the list of revoked certificates")
        return entries

    def _check_time(self, now: float) -> None:
        begin, end = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        if not begin <= _date(now) <= end:
            raise ClockError(
                f"the clock of this machine shows {_date(now):%Y-%m-%d %H:%M}, and the fleet's authority is valid from "
                f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}",
                advice="Set the clock of the machine that signs.",
            )

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        name: str,
        days: int,
        now: float,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[str],
    ) -> Issued:
        self._check_time(now)
        organization = self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        subject = _name(name, str(organization))
        builder = _builder(subject, self._certificate.subject, public, self._key.public_key(), now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        made = builder.sign(self._key, hashes.SHA256())
        pem = made.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(name, f"{made.serial_number:x}", pem, now, made.not_valid_after_utc.timestamp())


def generate_tls_key() -> ec.EllipticCurvePrivateKey:
    """A new private key for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey, passphrase: str | None = None) -> bytes:
    """A private key in PEM, encrypted where a passphrase is given."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A certificate signing request of `name` in DER."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def parse_request(data: bytes, name: str) -> x509.CertificateSigningRequest:
    """Parse a signing request in DER and check that its sender has the key and asks for `name`.

    Raises:
        DataError: it is no request, or has another kind of key.
        VerificationError: its signature is wrong, or it asks for another name.
    """
    try:
        request = x509.load_der_x509_csr(data)
        public = request.public_key()
        names = [str(one.value) for one in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise DataError(f"not a certificate signing request: {error}") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise DataError("the certificate signing request has another kind of key, expected NIST P-256")
    if not valid:
        raise VerificationError("the certificate signing request is not signed with its own key")
    if names != [name]:
        raise VerificationError(f"the certificate signing request is for {names}, expected {name!r}")
    return request


def expiry_of(pem: bytes) -> tuple[float, float]:
    """Begin and end of a certificate, wall clock seconds. Raises SettingsError."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SettingsError(f"not a certificate: {error}") from error
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    now: float,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now) - BACKDATED)
        .not_valid_after(_date(now) + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_issuer_id(signer), critical=False)
    )


def _issuer_id(public: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


def _name(common: str, fleet: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _date(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )

"""`edgekit ca`: the fleet's certificate authority."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    needs_extra,
    note,
    print_json,
    print_table,
)
from edgekit.cli.common.fleet import fleet_state
from edgekit.cli.common.numbers import Whole
from edgekit.cli.common.passphrase import given_passphrase, needed_passphrase, passphrase_option
from edgekit.cli.rollout.text import time_text
from edgekit.errors import DataError, DiskError, NotFoundError, SettingsError, VerificationError
from edgekit.mqtt.topics import CONTROLLER
from edgekit.settings import ControlSettings
from edgekit.storage.files import replace_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from edgekit.identity.authority import Authority, Issued
    from edgekit.state import FleetState

SERVER_DAYS = 825
_DAYS = click.option(
    "--days", type=Whole(1, 3650), default=SERVER_DAYS, show_default=True, help="Lifetime of the certificate."
)
_FOLDER = click.option(
    "-o",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the certificate and its private key.",
)


@click.group()
def ca() -> None:
    """The fleet's certificate authority: certificates of the broker, the controller and devices.

    \b
    Examples:
      edgekit ca init
      edgekit ca broker broker.example -o broker
      edgekit ca controller -o controller
      edgekit ca revoke pi-1
    """


@ca.command()
@passphrase_option
def init(passphrase_file: Path | None) -> None:
    """Make the authority in the key folder; its certificate is fleet-ca.pem there.

    \b
    Example:
      edgekit ca init
    """
    settings = control_settings()
    with needs_extra("controller"):
        from edgekit.identity.authority import CERTIFICATE_FILE, Authority
    Authority.create(settings.keys, settings.fleet, time.time(), given_passphrase(passphrase_file))
    note(f"{settings.keys / CERTIFICATE_FILE} signs the certificates of fleet {settings.fleet}")
    note("next: edgekit ca broker HOST -o broker, and edgekit ca controller -o controller")


@ca.command()
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@_FOLDER
@_DAYS
@passphrase_option
def broker(hosts: tuple[str, ...], folder: Path, days: int, passphrase_file: Path | None) -> None:
    """Make the broker's certificate: names and addresses by which clients reach it.

    The folder gets server.pem, server.key, ca.pem and revoked.crl.

    \b
    Example:
      edgekit ca broker broker.example 192.0.2.7 -o broker
    """
    settings = control_settings()
    authority = load_authority(settings, passphrase_file)
    with needs_extra("controller"):
        from edgekit.identity.authority import generate_tls_key, private_pem
    key = generate_tls_key()
    with fleet_state(settings) as state:
        issued = authority.issue_server(key.public_key(), hosts, days, time.time())
        revoked = _revoked(settings, authority, state)
        write_pair(folder, "server", issued.pem, private_pem(key))
        state.certificates.add(issued)
        _write_text(folder / "ca.pem", authority.pem)
        _write_text(folder / "revoked.crl", authority.revocation_list(revoked, time.time()))
    note(f"{folder} has the files of the broker {', '.join(hosts)}; its configuration: edgekit broker config")


@ca.command(name="controller")
@_FOLDER
@_DAYS
@passphrase_option
def controller_certificate(folder: Path, days: int, passphrase_file: Path | None) -> None:
    """Make the controller's certificate: controller.pem, controller.key and ca.pem.

    \b
    Example:
      edgekit ca controller -o controller
    """
    settings = control_settings()
    authority = load_authority(settings, passphrase_file)
    with fleet_state(settings) as state:
        issue_client(authority, state, folder, CONTROLLER, CONTROLLER, days)
    _write_text(folder / "ca.pem", authority.pem)
    note(
        f"set in edgekit.toml: broker_ca = {str(folder / 'ca.pem')!r}, broker_certificate = "
        f"{str(folder / 'controller.pem')!r}, broker_key = {str(folder / 'controller.key')!r}"
    )


@ca.command()
@click.argument("name", metavar="ID")
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the list of revoked certificates here, for the broker.",
)
@dry_run_option
@passphrase_option
def revoke(name: str, output: Path | None, dry_run: bool, passphrase_file: Path | None) -> None:
    """Revoke all certificates of ID, and sign the list of revoked ones: fleet-ca.crl in the key folder.

    Copy the list to the broker (crlfile) and let mosquitto read it: systemctl reload mosquitto, or SIGHUP. The
    controller also refuses what the device signs when it is removed or gets a new key.

    \b
    Example:
      edgekit ca revoke pi-1 -o broker/revoked.crl
    """
    settings = control_settings()
    authority = load_authority(settings, passphrase_file)
    with needs_extra("controller"):
        from edgekit.identity.authority import REVOKED_FILE
    now = time.time()
    with fleet_state(settings) as state:
        if dry_run:
            valid = [one for one in state.certificates.all(name) if not one.revoked and one.expires > now]
            note(f"would revoke {len(valid)} certificate(s) of {name}")
            return
        _revoked(settings, authority, state)  # a list that cannot be read stops the command before anything changes
        gone = _revoke(state, name, now)
        text = authority.revocation_list(_revoked(settings, authority, state), now)
    for path in filter(None, (settings.keys / REVOKED_FILE, output)):
        _write_text(path, text)
    what = f"{gone} certificate(s) of {name} are revoked" if gone else f"those of {name} were revoked before"
    note(f"{what}; copy {output or settings.keys / REVOKED_FILE} to the broker and let it read the list (SIGHUP)")


@ca.command(name="list")
@click.argument("name", metavar="[ID]", required=False)
@json_option
def list_certificates(name: str | None, as_json: bool) -> None:
    """List the issued certificates.

    \b
    Example:
      edgekit ca list pi-1
    """
    with fleet_state(control_settings()) as state:
        found = state.certificates.all(name)
    if as_json:
        print_json(found)
    elif found:
        rows = [
            (
                one.name,
                one.serial[:16],
                time_text(one.expires),
                f"revoked {time_text(one.revoked)}" if one.revoked else "",
            )
            for one in found
        ]
        print_table(("name", "serial", "expires", ""), rows)
    else:
        note("No certificate was issued.")


def _revoke(state: FleetState, name: str, now: float) -> int:
    """Revoke the certificates of a name; returns how many, 0 where an earlier attempt did that and wrote no list.

    Raises:
        NotFoundError: it has none.
    """
    try:
        return len(state.certificates.revoke(name, now))
    except NotFoundError:
        if not any(one.revoked for one in state.certificates.all(name)):
            raise
        return 0


def _revoked(settings: ControlSettings, authority: Authority, state: FleetState) -> list[tuple[str, float]]:
    """Every revoked certificate: those of the database, and of the last list, which may be older than the database.

    Raises:
        SettingsError: the last list cannot be used; without it, certificates that it revokes would be valid again.
    """
    from edgekit.identity.authority import REVOKED_FILE

    path = settings.keys / REVOKED_FILE
    try:
        before = authority.revoked_in(path.read_bytes()) if path.exists() else []
    except (OSError, DataError, VerificationError) as error:
        raise SettingsError(
            f"{path} cannot be used: {error}", advice="Restore it from a backup, or move it away to begin a new list."
        ) from error
    return sorted({**dict(before), **dict(state.certificates.revoked())}.items())


def _write_text(path: Path, text: str) -> None:
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror or error}") from error


def load_authority(settings: ControlSettings, passphrase_file: Path | None) -> Authority:
    """The authority in the key folder.

    Raises:
        NotFoundError: there is none.
        SettingsError: its files cannot be used, or the passphrase is missing or wrong.
    """
    with needs_extra("controller"):
        from edgekit.identity.authority import KEY_FILE, Authority
    path = settings.keys / KEY_FILE
    passphrase = needed_passphrase(passphrase_file, [path]) if path.exists() else None
    return Authority.load(settings.keys, passphrase)


class ClientFiles(NamedTuple):
    """A new certificate of a client: what was issued, its private key and the authority's certificate in PEM."""

    issued: Issued
    key: bytes
    ca: bytes


def device_certificate(settings: ControlSettings, name: str, passphrase_file: Path | None) -> ClientFiles | None:
    """A certificate for a device; None where the key folder has no authority. Errors as `load_authority`."""
    with needs_extra("controller"):
        from edgekit.identity.authority import CERTIFICATE_FILE, generate_tls_key, private_pem
    if not (settings.keys / CERTIFICATE_FILE).exists():
        return None
    authority = load_authority(settings, passphrase_file)
    key = generate_tls_key()
    issued = _signed(authority, key, name, settings.certificate_days)
    return ClientFiles(issued, private_pem(key), authority.pem.encode())


def _signed(authority: Authority, key: EllipticCurvePrivateKey, name: str, days: int) -> Issued:
    from edgekit.identity.authority import make_request, parse_request

    return authority.issue_client(parse_request(make_request(key, name), name), name, days, time.time())


def issue_client(
    authority: Authority, state: FleetState, folder: Path, name: str, stem: str, days: int
) -> tuple[Path, Path]:
    """Make a client's key and certificate in a folder, and store what was issued.

    Returns:
        Paths of the certificate and of its key.

    Raises:
        SettingsError: the folder has files of these names.
        DiskError: a file cannot be written.
    """
    with needs_extra("controller"):
        from edgekit.identity.authority import generate_tls_key, private_pem
    key = generate_tls_key()
    issued = _signed(authority, key, name, days)
    write_pair(folder, stem, issued.pem, private_pem(key))
    state.certificates.add(issued)
    return folder / f"{stem}.pem", folder / f"{stem}.key"


def write_pair(folder: Path, stem: str, certificate: str, key: bytes) -> None:
    """Write a certificate and its private key, which only the owner may read. Raises SettingsError, DiskError."""
    with needs_extra("controller"):
        from edgekit.trust.keys import write_secret
    pem, path = folder / f"{stem}.pem", folder / f"{stem}.key"
    if pem.exists() or path.exists():
        raise SettingsError(f"{folder} already has {pem.name} or {path.name}", advice="Name another folder with -o.")
    write_secret(path, key)
    try:
        _write_text(pem, certificate)
    except DiskError:
        path.unlink()  # a key without its certificate would stop another attempt
        raise

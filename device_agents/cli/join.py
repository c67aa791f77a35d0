"""`edgekit-agent join`: this device makes its keys, enrolls itself with a code, and writes its folder."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.common.console import needs_extra, note
from edgekit.cli.common.numbers import Number
from edgekit.errors import DataError, DiskError, SettingsError
from edgekit.identity.join import Code, parse_code
from edgekit.mqtt.topics import check_device_name
from edgekit.settings import AgentSettings, load_settings
from edgekit.settings.device_files import KEY_FILE, ROOT_FILE, SAMPLE_KEY_FILE, SETTINGS_FILE, TLS_FILES, settings_toml

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from edgekit.mqtt.joining_messages import ClaimAnswer


@click.command()
@click.argument("url")
@click.option("--code", required=True, help="Enrollment code, from `edgekit device code`.")
@click.option("--id", "name", metavar="ID", help="Name of this device in the fleet.")
@click.option("--target", help="Target profile of this device, for example raspberry-pi-4.")
@click.option(
    "--again",
    is_flag=True,
    help="Only get a new TLS certificate for the device in the folder, whose key and settings stay.",
)
@click.option(
    "-o",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("."),
    show_default=True,
    help="Folder for the keys, the certificate, the trusted root and agent.toml.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM of the authority of a mqtts:// URL [default: the system's authorities].",
)
@click.option("--broker", metavar="URL", help="Broker for this device [default: as the controller says].")
@click.option("--no-samples", is_flag=True, help="Do not take the operator's key for samples: keep none, ever.")
@click.option("--seconds", type=Number(1, 3600), default=60.0, show_default=True, help="How long to wait.")
def join(
    url: str,
    code: str,
    name: str | None,
    target: str | None,
    again: bool,
    folder: Path,
    ca: Path | None,
    broker: str | None,
    no_samples: bool,
    seconds: float,
) -> None:
    """Enroll this device at the claim listener URL of the fleet's broker.

    The private keys are made here and never leave this device. The code proves both sides to each other, so the
    listener needs no trust.

    Where the operator has a key for samples, the answer brings it: this device can then be asked for inputs for
    retraining, encrypted for that key, within the limits of its settings (send_inputs, collect_per_day).

    \b
    Examples:
      edgekit-agent join mqtt://broker.example:8884 --code north.k7f3q2ab.Yb... --id pi-1 --target raspberry-pi-4
      edgekit-agent join mqtt://broker.example:8884 --code north.k7f3q2ab.Yb... --again     # its certificate has ended
    """
    parsed = parse_code(code)
    if again:
        if name or target or broker or no_samples:
            raise click.UsageError("--again takes name, target and broker from the folder's agent.toml.")
        _join_again(url, parsed, folder, ca, seconds)
        return
    if not name or not target:
        raise click.UsageError("Give --id and --target; or --again for a device that is enrolled.")
    try:
        check_device_name(name)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    files = {role: folder / file for role, file in TLS_FILES.items()}
    signer = _signer_of(folder, [folder / SETTINGS_FILE, folder / SAMPLE_KEY_FILE, *files.values()])
    answer, tls_key = _claim(url, parsed, name, target, signer=signer, ca=ca, seconds=seconds)
    sample_key = b"" if no_samples else _sample_key(answer)
    settings = {
        "device": name,
        "fleet": answer.fleet,
        "target": target,
        "broker": broker or answer.broker,
        **{role: path.name for role, path in files.items()},
        "sample_key": SAMPLE_KEY_FILE if sample_key else None,
    }
    public = {
        files["broker_certificate"]: answer.certificate,
        files["broker_ca"]: answer.ca,
        folder / ROOT_FILE: answer.root,
        **({folder / SAMPLE_KEY_FILE: sample_key} if sample_key else {}),
        folder / SETTINGS_FILE: settings_toml(settings).encode(),
    }
    _write(folder, (files["broker_key"], tls_key), public)
    note(f"{name} is enrolled in fleet {answer.fleet}; its private keys are in {folder} and stay on this device")
    if sample_key:
        note(f"the operator can ask it for samples: {SAMPLE_KEY_FILE}, named by sample_key in {SETTINGS_FILE}")
    note(f"run: edgekit-agent run --config {folder / SETTINGS_FILE}")


def _signer_of(folder: Path, files: Iterable[Path]) -> CryptoSigner:
    """The key of a new device, as an earlier attempt left it or made now. Raises SettingsError if a file exists."""
    with needs_extra("agent"):
        from edgekit.trust.keys import generate_key, load_signer
    if taken := [path.name for path in files if path.exists()]:
        advice = "Name another folder with -o; or --again for a new certificate only."
        raise SettingsError(f"{folder} already has {', '.join(taken)}", advice=advice)
    key = folder / KEY_FILE
    return load_signer(key) if key.exists() else generate_key(key)


def _join_again(url: str, code: Code, folder: Path, ca: Path | None, seconds: float) -> None:
    """Get a new certificate for the device in a folder: its own has ended, or was revoked.

    Raises:
        SettingsError: the folder has no device with its own certificate and key, or the code is of another fleet.
        RefusedError, UnavailableError, DiskError: as `join_fleet` and `write_new`; nothing was changed.
    """
    with needs_extra("agent"):
        from device_agents.control.renewal import settle_pair, write_new
        from edgekit.trust.keys import load_signer
    settings = load_settings(AgentSettings, file=folder / SETTINGS_FILE)
    certificate, key = settings.broker_certificate, settings.broker_key
    if certificate is None or key is None:
        raise SettingsError(
            f"{folder / SETTINGS_FILE} names no broker_certificate with a broker_key of its own",
            advice="Join without --again, in another folder.",
        )
    if settings.fleet != code.fleet:
        raise SettingsError(
            f"the code is of fleet {code.fleet!r}, the device of {settings.fleet!r}",
            advice="Ask for a code of the device's fleet.",
        )
    signer, ca = load_signer(settings.key), ca or settings.broker_ca
    answer, private = _claim(url, code, settings.device, settings.target, signer=signer, ca=ca, seconds=seconds)
    settle_pair(certificate, key, write_new(certificate, key, answer.certificate, private))
    note(f"{settings.device} has a new certificate, {certificate}; restart its agent if it runs")


def _claim(
    url: str, code: Code, name: str, target: str, *, signer: CryptoSigner, ca: Path | None, seconds: float
) -> tuple[ClaimAnswer, bytes]:
    """The controller's answer to a claim with a new TLS key, and that key in PEM. Errors as `join_fleet`."""
    with needs_extra("agent"):
        from device_agents.control.joining import join_fleet
        from edgekit.identity.authority import generate_tls_key, make_request, private_pem
        from edgekit.mqtt.transport import MqttTransport
    tls_key = generate_tls_key()
    transport = MqttTransport(url, client_id=f"join-{secrets.token_hex(8)}", ca=ca)
    csr = make_request(tls_key, name)
    answer = asyncio.run(join_fleet(transport, code, name, target, signer=signer, csr=csr, seconds=seconds))
    return answer, private_pem(tls_key)


def _sample_key(answer: ClaimAnswer) -> bytes:
    """The operator's key for samples, PEM; empty where there is none. Raises DataError for another kind of key."""
    from edgekit.sealing.class_keys import parse_x25519_public

    if answer.sample_key:
        try:
            parse_x25519_public(answer.sample_key)
        except DataError as error:
            raise DataError(
                f"the key for samples that the controller sent cannot be used: {error}",
                advice="Join with --no-samples, or correct sample_key in the controller's edgekit.toml.",
            ) from error
    return answer.sample_key


def _write(folder: Path, private: tuple[Path, bytes], public: Mapping[Path, bytes]) -> None:
    """Write a secret and other files; where one fails, none stays. Raises DiskError."""
    from edgekit.trust.keys import write_secret

    written: list[Path] = []
    with contextlib.ExitStack() as unfinished:
        unfinished.callback(_remove, written)
        try:
            write_secret(*private)
            written.append(private[0])
            for path, data in public.items():
                written.append(path)
                path.write_bytes(data)
        except OSError as error:
            raise DiskError(f"{folder} cannot be written: {error.strerror or error}") from error
        unfinished.pop_all()


def _remove(written: list[Path]) -> None:
    for path in written:
        path.unlink(missing_ok=True)

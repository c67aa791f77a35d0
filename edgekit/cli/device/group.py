"""`edgekit device`: enroll devices, show them, change them, send them commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.bundle.targets import builtin_targets, find_target
from edgekit.cli.ca import device_certificate
from edgekit.cli.common.class_keys import plain_class_keys
from edgekit.cli.common.console import (
    control_settings,
    dry_run_option,
    json_option,
    note,
    print_json,
    usage,
)
from edgekit.cli.common.fleet import fleet_state, for_devices, parse_labels, read_root
from edgekit.cli.common.numbers import SHARE
from edgekit.cli.common.passphrase import passphrase_option
from edgekit.cli.device.changes import label, quarantine, rekey, remove
from edgekit.cli.device.code import code
from edgekit.cli.device.command import command
from edgekit.cli.device.folder import check_sample_key, check_tls, write_folder
from edgekit.cli.device.results import results
from edgekit.cli.device.saved_groups import group
from edgekit.cli.device.show import list_command, show
from edgekit.cli.device.transfer import export, import_devices
from edgekit.cli.device.uninstall import uninstall
from edgekit.errors import SettingsError
from edgekit.mqtt import topics
from edgekit.settings.device_files import CLOUD_KEY_FILE, KEY_FILE, SAMPLE_KEY_FILE, SETTINGS_FILE, TLS_FILES

if TYPE_CHECKING:
    from edgekit.identity.authority import Issued
    from edgekit.settings import ControlSettings

POLL_SECONDS = 0.2
FACT_WIDTH = 80
_PEM = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def device() -> None:
    """Enroll devices, show them, send them commands.

    \b
    Examples:
      edgekit device enroll pi-1 --target raspberry-pi-4
      edgekit device list
    """


@device.command()
@click.argument("name", metavar="ID")
@click.option("--target", required=True, help="Target profile of the device; `edgekit targets` lists them.")
@click.option(
    "-o",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write for the device [default: devices/ID].",
)
@click.option("--fleet", help="Fleet of the device.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label to select the device by; may be repeated."
)
@click.option(
    "--public-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="PEM of the public key, if the private key stays on the device. Without it, a key pair is made.",
)
@click.option("--http", help="host:port of the device's local endpoint; port 0 takes any free port.")
@click.option("--broker", metavar="URL", help="URL of the broker, as the device reaches it.")
@click.option(
    "--broker-ca",
    type=_PEM,
    help="PEM of the authority that signed the certificate of a mqtts:// broker; copied into the folder "
    "[default: broker_ca of edgekit.toml].",
)
@click.option(
    "--certificate",
    type=_PEM,
    help="PEM of the device's own certificate; its common name must be ID. Copied into the folder.",
)
@click.option("--key", type=_PEM, help="PEM of the private key of --certificate; copied into the folder.")
@click.option(
    "--class",
    "classes",
    metavar="CLASS",
    multiple=True,
    help="Let the device open bundles that are published for CLASS; may be repeated. See: edgekit registry class",
)
@passphrase_option
@click.option(
    "--cloud-url", "cloud_urls", multiple=True, help="Base URL of the cloud tier; again for the next one to ask."
)
@click.option("--cloud-model", help="Name of the model in the cloud tier [default: the same name].")
@click.option(
    "--cloud-api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the API key of the cloud tier; copied into the folder.",
)
@click.option(
    "--sample-key",
    type=_PEM,
    help="Public key for which the device seals samples for retraining; copied into the folder. It keeps none without. "
    "See: edgekit collect --new-key [default: sample_key of edgekit.toml].",
)
@click.option("--threshold", type=SHARE, help="Answers with a lower score go to the cloud tier.")
@dry_run_option
@json_option
def enroll(
    name: str,
    target: str,
    folder: Path | None,
    fleet: str | None,
    labels: tuple[str, ...],
    public_key: Path | None,
    http: str | None,
    broker: str | None,
    broker_ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    classes: tuple[str, ...],
    passphrase_file: Path | None,
    cloud_urls: tuple[str, ...],
    cloud_model: str | None,
    cloud_api_key_file: Path | None,
    sample_key: Path | None,
    threshold: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Register the device ID, and write its folder: private key, trusted root and agent.toml.

    \b
    Example:
      edgekit device enroll pi-1 --target raspberry-pi-4 -o pi-1
      edgekit-agent run --config pi-1/agent.toml
      edgekit device enroll pi-2 --target raspberry-pi-4 --broker mqtts://broker.example     # see: edgekit ca
      edgekit device enroll pi-2 --target raspberry-pi-4 --broker mqtts://broker.example \
          --broker-ca ca.pem --certificate pi-2.pem --key pi-2.key
      edgekit device enroll pi-3 --target raspberry-pi-4 --class cameras
    """
    settings = for_devices(control_settings(fleet=fleet), broker)
    folder = folder or Path("devices") / name
    with usage():
        name, parsed = _checked_name(name), parse_labels(labels)
    copies, issued = _tls_files(settings, name, broker_ca, certificate, key, passphrase_file)
    class_keys = plain_class_keys(settings.keys, classes, passphrase_file)
    copies.update(class_keys)
    if cloud_api_key_file is not None:
        copies[CLOUD_KEY_FILE] = cloud_api_key_file
    sample_key = sample_key or settings.sample_key
    if sample_key is not None:
        check_sample_key(sample_key)
        copies[SAMPLE_KEY_FILE] = sample_key
    agent = {
        "device": name,
        "fleet": settings.fleet,
        "target": _checked_target(target),
        "broker": settings.broker,
        **{role: file for role, file in TLS_FILES.items() if file in copies},
        "class_keys": list(class_keys) or None,
        "http": http,
        "cloud_url": list(cloud_urls) if len(cloud_urls) > 1 else next(iter(cloud_urls), None),
        "cloud_model": cloud_model,
        "cloud_api_key_file": CLOUD_KEY_FILE if cloud_api_key_file else None,
        "sample_key": SAMPLE_KEY_FILE if sample_key else None,
        "fallback_threshold": threshold,
    }
    root = read_root(settings)
    if (folder / SETTINGS_FILE).exists() or (folder / KEY_FILE).exists():
        raise SettingsError(f"{folder} already has the files of a device", advice="Name another folder with -o.")
    if dry_run:
        note(f"would enroll {name} in fleet {settings.fleet} and write {folder}/{SETTINGS_FILE}")
        return
    with fleet_state(settings) as state:
        write_folder(state, folder, agent, root=root, labels=parsed, public_key=public_key, copies=copies)
        if issued is not None:
            state.certificates.add(issued)
    _print_enrolled(name, settings.fleet, folder, has_key=public_key is None, as_json=as_json)


def _tls_files(
    settings: ControlSettings,
    name: str,
    broker_ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    passphrase_file: Path | None,
) -> tuple[dict[str, Path | bytes], Issued | None]:
    """The TLS files of the device's folder, and the certificate that the fleet's authority has signed for it."""
    tls = settings.broker.startswith("mqtts://")
    if broker_ca is None and tls:
        broker_ca = settings.broker_ca
    named = {"broker_ca": broker_ca, "broker_certificate": certificate, "broker_key": key}
    given = {role: path for role, path in named.items() if path is not None}
    check_tls(settings.broker, given)
    copies: dict[str, Path | bytes] = {TLS_FILES[role]: path for role, path in given.items()}
    made = device_certificate(settings, name, passphrase_file) if tls and certificate is None else None
    if made is None:
        return copies, None
    own = {"broker_ca": made.ca, "broker_certificate": made.issued.pem.encode(), "broker_key": made.key}
    return {**{TLS_FILES[role]: data for role, data in own.items()}, **copies}, made.issued


def _print_enrolled(name: str, fleet: str, folder: Path, *, has_key: bool, as_json: bool) -> None:
    if as_json:
        print_json({"device": name, "fleet": fleet, "folder": folder, "settings": folder / SETTINGS_FILE})
        return
    note(f"{name} is enrolled in fleet {fleet}; its folder is {folder}/")
    if has_key:
        note(f"{folder / KEY_FILE} is its private key: move it to the device, and keep no copy")
    note(f"on the device, run: edgekit-agent run --config {folder / SETTINGS_FILE}")


def _checked_name(name: str) -> str:
    try:
        return topics.check_device_name(name)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _checked_target(name: str) -> str:
    profile = find_target(name, builtin_targets())
    if not profile.agent:
        raise SettingsError(f"edgekit-agent cannot run on {profile.title}, so it cannot be enrolled")
    return profile.name


for _command in (
    list_command,
    show,
    command,
    results,
    group,
    remove,
    uninstall,
    rekey,
    label,
    quarantine,
    export,
    import_devices,
    code,
):
    device.add_command(_command)

"""The text of a broker's access rules and configuration; `deploy/` has it with the usual paths. Pure."""

from __future__ import annotations

import msgspec

from edgekit.mqtt.limits import ADVISED_BYTES
from edgekit.mqtt.topics import CONTROLLER, DEVICE_KINDS, REQUEST_KINDS, ROOT

DEVICE_READS = ("desired", "command")
DEVICE_READS_AND_WRITES = ("reported",)  # a device that lost its disk learns its last number from its own report
ACL_FILE, CLAIM_ACL_FILE, CONFIG_FILE = "edgekit.acl", "edgekit-claim.acl", "mosquitto.conf"


class BrokerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Paths and ports of a fleet's broker, as its machine has them.

    Attributes:
        folder: Folder of the ACL files.
        certificates: Folder of ca.pem, server.pem, server.key and revoked.crl.
        data: Folder of retained messages.
        address: Address on which it listens; empty for all.
        port: Port for clients with a certificate.
        claim_port: Port for devices that enroll themselves; 0 for none.
        revocations: Whether there is a list of revoked certificates.
    """

    folder: str = "/etc/mosquitto"
    certificates: str = "/etc/mosquitto/certs"
    data: str = "/var/lib/mosquitto/"
    address: str = ""
    port: int = 8883
    claim_port: int = 0
    revocations: bool = False


def mosquitto_acl() -> str:
    """Access rules: the controller may use all topics, a device its own (by user name), and no other user any."""
    lines = [f"topic deny {ROOT}/#", "", f"user {CONTROLLER}", f"topic readwrite {ROOT}/#", ""]
    for kind in DEVICE_KINDS:
        access = "readwrite" if kind in DEVICE_READS_AND_WRITES else "read" if kind in DEVICE_READS else "write"
        lines.append(f"pattern {access} {ROOT}/+/device/%u/{kind}")
    lines += [f"pattern write {ROOT}/+/request/{kind}/%u" for kind in REQUEST_KINDS]
    lines += [f"pattern read {ROOT}/+/{rest}" for rest in ("answer/%u", "wave/+", "fleet")]
    return "\n".join(lines) + "\n"


def claim_acl() -> str:
    """Access rules of the listener for devices that enroll themselves: they write claims and read the answers."""
    return f"topic write {ROOT}/+/claim/+\ntopic read {ROOT}/+/claim/+/answer\n"


def mosquitto_fleet_config(files: BrokerFiles) -> str:
    """The configuration of a fleet's broker: TLS, one client certificate for each device, and access rules."""
    where = f" {files.address}" if files.address else ""
    tls = [f"certfile {files.certificates}/server.pem", f"keyfile {files.certificates}/server.key"]
    lines = [
        "# The broker of a fleet: TLS with a client certificate for each device. Its common name is the device's name.",
        "per_listener_settings true",
        "",
        f"listener {files.port}{where}",
        f"cafile {files.certificates}/ca.pem",
        *tls,
        *([f"crlfile {files.certificates}/revoked.crl"] if files.revocations else []),
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        f"acl_file {files.folder}/{ACL_FILE}",
        "set_tcp_nodelay true",
        f"max_packet_size {ADVISED_BYTES}",
    ]
    if files.claim_port:
        lines += [
            "",
            "# Devices that enroll themselves with a code: no client certificate, and nothing but their claim.",
            f"listener {files.claim_port}{where}",
            *tls,
            "allow_anonymous true",
            f"acl_file {files.folder}/{CLAIM_ACL_FILE}",
            "set_tcp_nodelay true",
            "max_connections 100",
        ]
    lines += [
        "",
        "max_queued_messages 1000",
        "max_queued_bytes 8388608",
        "persistence true",
        f"persistence_location {files.data}",
        "autosave_interval 300",
    ]
    return "\n".join(lines) + "\n"

"""The TLS files of the broker connection, checked against the broker's URL."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgekit.errors import SettingsError
from edgekit.settings.agent import AgentSettings
from edgekit.settings.control import ControlSettings


class TlsFiles(NamedTuple):
    """PEM files of a broker connection over TLS; see `edgekit.mqtt.transport.MqttTransport`.

    Attributes:
        ca: Authority that signed the broker's certificate; None for the system's authorities.
        certificate: The client's own certificate; None for none.
        key: Private key of `certificate`; None for none.
    """

    ca: Path | None
    certificate: Path | None
    key: Path | None


def tls_files(settings: ControlSettings | AgentSettings) -> TlsFiles:
    """The TLS files that the settings name.

    Raises:
        SettingsError: files are named for a broker without TLS, or a key is named without a certificate.
    """
    files = TlsFiles(settings.broker_ca, settings.broker_certificate, settings.broker_key)
    named = [f"broker_{name}" for name, path in files._asdict().items() if path is not None]
    if named and not settings.broker.startswith("mqtts://"):
        raise SettingsError(
            f"{', '.join(named)}: set, but the broker's URL does not begin with mqtts://",
            advice="These files are used with TLS only: set broker to mqtts://HOST:8883, or remove them.",
        )
    if settings.broker_key is not None and settings.broker_certificate is None:
        raise SettingsError(
            "broker_key is set, but broker_certificate is not",
            advice="Set broker_certificate to the certificate of this key.",
        )
    return files

"""Access to the cloud tier and its record: API keys, TLS and the access log, from the settings."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.cli.common.cloud_files import MAKE_KEY, LogFile, Watched, read_keys
from edgekit.errors import SettingsError
from edgekit.serving.api.keys import Keys
from edgekit.serving.api.tls import ServerTls
from edgekit.serving.http.addresses import is_loopback
from edgekit.settings import ControlSettings


class Entrance:
    """The open files of the cloud tier's entrance; see `open_entrance`.

    Attributes:
        keys: The API keys; None for none.
        tls: The certificate; None for none.
        log: The access log; None for none.
        is_local: True where the tier listens on loopback only.
    """

    def __init__(self, settings: ControlSettings, tell: Callable[[str], None]) -> None:
        self._watched: list[Watched] = []
        self.keys: Keys | None = None
        self.is_local = is_loopback(settings.cloud_host)
        if (path := settings.cloud_api_key_file) is not None:
            self.keys = keys = Keys(read_keys(path))
            self._watched.append(Watched([path], lambda: keys.replace(read_keys(path))))
        self.tls = _tls(settings)
        if self.tls is not None:
            self._watched.append(Watched(self.tls.files, self.tls.reload))
        self.log = LogFile(settings.cloud_access_log, tell) if settings.cloud_access_log else None

    def look(self, tell: Callable[[str], None]) -> None:
        """Read the files again that have changed, and tell it."""
        for one in self._watched:
            if said := one.look():
                tell(said)

    def hang_up(self, tell: Callable[[str], None]) -> None:
        """Look at the files, and open the log again, as after SIGHUP."""
        self.look(tell)
        if self.log is not None:
            try:
                self.log.reopen()
            except SettingsError as error:
                tell(f"{error}; the one before stays in use")


def open_entrance(settings: ControlSettings, tell: Callable[[str], None]) -> Entrance:
    """Read keys and certificate, and open the log; `tell` is called where the log begins or ceases to lose lines.

    Raises:
        SettingsError: a file cannot be used, or the tier would be open to everyone on an address that is not loopback.
    """
    entrance = Entrance(settings, tell)
    is_open = entrance.keys is None and settings.cloud_client_ca is None
    if is_open and not entrance.is_local:
        raise SettingsError(
            f"without an API key the cloud tier listens on loopback only, not on {settings.cloud_host}",
            advice=MAKE_KEY.format(file="cloud.key") + " Then give --api-key-file cloud.key.",
        )
    return entrance


def _tls(settings: ControlSettings) -> ServerTls | None:
    certificate, key, authority = settings.cloud_tls_certificate, settings.cloud_tls_key, settings.cloud_client_ca
    if certificate is not None and key is not None:
        return ServerTls(certificate, key, authority)
    if certificate is not None or key is not None or authority is not None:
        raise SettingsError(
            "cloud_tls_certificate and cloud_tls_key belong together, and cloud_client_ca needs both",
            advice="Set the certificate and its key.",
        )
    return None

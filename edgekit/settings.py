"""Settings as frozen values: TOML, then environment, then flags, read once.

A field is set in the environment by ``EDGEKIT_`` and its name in capitals. Paths in a file are relative to that file.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from edgekit.errors import SettingsError
from edgekit.serving.models.options import Batch, Isolation, ModelSettings, Swap

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "EDGEKIT_"
MAX_BYTES = 64 * 1024
MAX_LINE_BYTES = 1000

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the workstation, registry, controller and cloud commands share: ``edgekit.toml`` in the working folder."""

    fleet: str = "default"
    registry: str = "file://registry"
    keys: Path = Path("keys")
    broker: str = "mqtt://127.0.0.1:1883"
    broker_ca: Path | None = None
    broker_certificate: Path | None = None
    broker_key: Path | None = None
    database: str = "sqlite:///edgekit.db"
    assignment_days: Count = 30
    offline_after_seconds: Seconds = 90.0
    broker_budget_bytes: Count = 16 * 1024**2
    blob_urls: str = ""
    tick_seconds: Seconds = 0.5
    cloud_host: str = "127.0.0.1"
    cloud_port: int = 8700
    cloud_grpc_port: int | None = None
    cloud_api_key_file: Path | None = None
    cloud_class_keys: tuple[Path, ...] = ()


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``agent.toml``, as `edgekit device enroll` writes it.

    Attributes:
        broker_ca: PEM of the authority that signed the broker's certificate; the system's where None (mqtts:// only).
        broker_certificate, broker_key: PEM of this device's own certificate and its private key (mqtts:// only).
        device, fleet, target: Who this is, and its target profile's name.
        state: Folder for journal, slots, blocks and metadata.
        key: The device's private key file.
        root: The TUF root that this device was born with.
        class_keys: Private keys of the device classes whose sealed bundles this device opens.
        http: host:port of the local endpoint; port 0 takes any free one. Empty for none.
        socket: Path of the UNIX socket; None for none.
        grpc: host:port of the local gRPC endpoint, loopback only; empty for none. Needs edgekit[grpc].
        grpc_socket: Path of gRPC's UNIX socket; None for none.
        threads: Of each runtime.
        queue_limit: Most requests of one model that may wait or run.
        deadline_ms: Of requests that name none with ``edgekit_deadline_ms``; 0 for no limit.
        instances: Copies of each model, which run side by side; each costs its memory.
        swap: ``load-first``, ``unload-first`` or ``auto``; as `edgekit.serving.models.options.ModelOptions`.
        isolation: ``thread``, ``process`` (a crashing model does not reach the agent) or ``auto``.
        batch: Rows of waiting requests that are joined in one run at most, or ``auto``: measured at load.
        run_timeout_seconds: A process of its own is ended when one run takes longer.
        providers: ONNX Runtime execution providers, the preferred first; empty takes the best that is installed.
        require_providers: A provider that is not got is an error; else a warning, and metadata tells it.
        gpu_memory_mib: Most that ONNX Runtime's arena of one model may hold on the GPU; 0 for no limit.
        arena_mib: Most that ONNX Runtime's arena of one model may hold of the CPU's memory, for each of its instances;
            0 for no limit. A run that needs more fails.
        memory_budget_mib: For all models together; 0 for no limit. Those over it are loaded when they are asked for.
        models: What is different for one model, ``[models.NAME]``: as ModelSettings.
        probation_seconds: How long a new bundle runs live before it is judged and committed.
        probation_requests: So many live requests end probation before its time; 0 for its time in any case.
        probation_max_error_share: Of its live requests in that time; more, and the device rolls back.
        probation_max_latency_ms: Mean of its live answers, queue included; 0 for no limit.
        download_bytes_per_second: Of blocks that are asked for; 0 for no limit.
        download_urls: Whether blocks are fetched from URLs that the controller names, too.
        download_budget: A deployment may fetch so many times the bytes of its bundle, over all its attempts.
        deployment_attempts: So many failed attempts that cost something end a deployment.
        deployment_hours: So does a failure so long after it was first asked for, and a step that hangs until then.
        crash_watch_seconds: A process that dies three times after a commit, before it has run for so long, is taken
            for the new bundle's fault.
        metered: The link costs by the byte: deployments wait, but for `metered_deployment_bytes`.
        metered_file: It does while this file exists.
        metered_deployment_bytes: Most that one deployment may fetch over a metered link; 0 for nothing.
        quiet_hours: Local times between which nothing is downloaded, for example 08:00-18:30; empty for none.
        cloud_url: Base URL of the cloud tier; empty for none.
        cloud_model: Model name there; empty for the same name.
        fallback_threshold: Answers with a score below it go to the cloud.
    """

    device: str
    fleet: str
    target: str
    broker: str = "mqtt://127.0.0.1:1883"
    broker_ca: Path | None = None
    broker_certificate: Path | None = None
    broker_key: Path | None = None
    state: Path = Path("state")
    key: Path = Path("device.key")
    root: Path = Path("root.json")
    class_keys: tuple[Path, ...] = ()
    http: str = "127.0.0.1:8600"
    socket: Path | None = Path("edgekit.sock")
    grpc: str = ""
    grpc_socket: Path | None = None
    threads: Count = 1
    heartbeat_seconds: Seconds = 30.0
    telemetry_seconds: Seconds = 60.0
    max_bundle_bytes: Count = 2 * 1024**3
    download_bytes_per_second: Annotated[int, msgspec.Meta(ge=0)] = 0
    download_urls: bool = True
    download_budget: Annotated[float, msgspec.Meta(ge=1)] = 3.0
    deployment_attempts: Count = 1000
    deployment_hours: Seconds = 720.0
    crash_watch_seconds: Seconds = 600.0
    quiet_hours: str = ""
    metered: bool = False
    metered_file: Path | None = None
    metered_deployment_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_request_bytes: Count = 64 * 1024**2
    queue_limit: Count = 64
    deadline_ms: Annotated[float, msgspec.Meta(ge=0, le=24 * 3600 * 1000)] = 0.0
    instances: Count = 1
    swap: Swap = "auto"
    isolation: Isolation = "auto"
    batch: Batch = "auto"
    run_timeout_seconds: Seconds = 30.0
    providers: tuple[str, ...] = ()
    require_providers: bool = False
    gpu_memory_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    arena_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    memory_budget_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    models: dict[str, ModelSettings] = {}
    probation_seconds: Annotated[float, msgspec.Meta(ge=0)] = 3.0
    probation_requests: Annotated[int, msgspec.Meta(ge=0)] = 0
    probation_max_error_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    probation_max_latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    step_timeout_seconds: Seconds = 600.0
    cloud_url: str = ""
    cloud_model: str = ""
    cloud_api_key_file: Path | None = None
    cloud_timeout_seconds: Seconds = 2.0
    fallback_threshold: float = 0.8


S = TypeVar("S", ControlSettings, AgentSettings)


class TlsFiles(NamedTuple):
    """PEM files of a connection to the broker; see `edgekit.mqtt.transport.MqttTransport`."""

    ca: Path | None
    certificate: Path | None
    key: Path | None


def tls_files(settings: ControlSettings | AgentSettings) -> TlsFiles:
    """The TLS files that the settings name.

    Raises:
        SettingsError: they would not be used, or not do.
    """
    files = TlsFiles(settings.broker_ca, settings.broker_certificate, settings.broker_key)
    named = [f"broker_{name}" for name, path in files._asdict().items() if path is not None]
    if named and not settings.broker.startswith("mqtts://"):
        raise SettingsError(
            f"{', '.join(named)}: set, but the broker's URL does not begin with mqtts://",
            advice="Without TLS nothing would be checked by them: name the broker as mqtts://HOST:8883.",
        )
    if settings.broker_key is not None and settings.broker_certificate is None:
        raise SettingsError("broker_key is set, but broker_certificate is not", advice="A key goes with a certificate.")
    return files


def load_settings(
    kind: type[S],
    *,
    file: Path | None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """Read settings once; later sources win: defaults, `file`, `environ`, `flags` (None values are passed over).

    Raises:
        SettingsError: the file is missing or not TOML, a key is unknown (names the nearest), or a value is ill-typed.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_read_file(kind, file))
    environ = os.environ if environ is None else environ
    for name in kind.__struct_fields__:
        if PREFIX + name.upper() in environ:
            values[name] = environ[PREFIX + name.upper()]
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings{f' in {file}' if file else ''}: {error}") from error


def _read_file(kind: type[Any], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            values = tomllib.loads(_bounded(opened.read(MAX_BYTES + 1), file))
    except FileNotFoundError as error:
        raise SettingsError(f"there is no settings file {file}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {file} cannot be read: {error}") from error
    for key in values:
        if key not in kind.__struct_fields__:
            near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(kind.__struct_fields__)}."
            raise SettingsError(f"settings file {file} has an unknown key {key!r}", advice=hint)
    return _relative_to(file.parent, kind, values)


def _bounded(data: bytes, file: Path) -> str:
    """The text, unless it is none that a person wrote: long dotted keys cost the parser gigabytes."""
    longest = max(map(len, data.splitlines()), default=0)
    if len(data) > MAX_BYTES or longest > MAX_LINE_BYTES:
        raise SettingsError(
            f"settings file {file} is over {MAX_BYTES} bytes, or has a line over {MAX_LINE_BYTES} (longest: {longest})"
        )
    return data.decode("utf-8")


def _relative_to(folder: Path, kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Read every path, given or default, from the settings file's folder, wherever the command is run."""
    fields = msgspec.structs.fields(kind)
    values = {**{f.name: f.default for f in fields if f.default is not msgspec.NODEFAULT}, **values}
    for field in fields:
        value = values.get(field.name)
        if field.type in (Path, Path | None) and isinstance(value, str | Path):
            values[field.name] = folder / value
        elif field.type == tuple[Path, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[field.name] = [folder / one for one in value]
        elif field.name in _URL_SCHEMES and isinstance(value, str):
            values[field.name] = _relative_url(value, _URL_SCHEMES[field.name], folder)
    return values


_URL_SCHEMES = {"registry": "file://", "database": "sqlite:///"}


def _relative_url(url: str, scheme: str, folder: Path) -> str:
    path = url.removeprefix(scheme)
    if not url.startswith(scheme) or Path(path).is_absolute():
        return url
    return scheme + str((folder / path).resolve())


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")

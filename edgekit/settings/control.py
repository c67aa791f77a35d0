"""Settings of the workstation, registry, controller and cloud commands: ``edgekit.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from edgekit.serving.models.cloud_options import CanaryChannel, CanaryShare, Channel, CloudModelSettings, Versions
from edgekit.serving.models.options import (
    BatchRows,
    Instances,
    Isolation,
    MaxStreams,
    QueueLimit,
    RunTimeoutSeconds,
    StreamIdleSeconds,
)
from edgekit.settings.types import (
    BrokerCa,
    BrokerKeepalive,
    BrokerKey,
    BrokerUrl,
    Count,
    CountOrZero,
    FleetName,
    Port,
    Positive,
    check_providers,
)


class ControlSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``edgekit.toml`` in the working folder; the workstation, registry, controller and cloud commands read it."""

    fleet: FleetName = "default"
    registry: Annotated[
        str,
        Meta(
            description="URL of the registry's store: file://, s3://, gs:// or az://. A relative file:// path starts "
            "at the folder of the settings file."
        ),
    ] = "file://registry"
    keys: Annotated[
        Path, Meta(description="Folder with root.json and the key files of the registry, the director and the classes.")
    ] = Path("keys")
    broker: BrokerUrl = "mqtt://127.0.0.1:1883"
    broker_ca: BrokerCa = None
    broker_certificate: Annotated[
        Path | None, Meta(description="PEM file of the controller's own client certificate (mqtts:// only).")
    ] = None
    broker_key: BrokerKey = None
    broker_keepalive_seconds: BrokerKeepalive = 30
    database: Annotated[
        str,
        Meta(
            description="SQLAlchemy URL of the fleet database (SQLite or PostgreSQL). Controllers and commands share "
            "it. A relative sqlite:/// path starts at the folder of the settings file."
        ),
    ] = "sqlite:///edgekit.db"
    assignment_days: Annotated[
        Count,
        Meta(
            le=3650,
            description="Validity of a signed assignment. The controller renews assignments before they expire.",
        ),
    ] = 30
    offline_after_seconds: Annotated[
        Positive, Meta(description="A device is shown as offline when nothing was received from it for this long.")
    ] = 90.0
    telemetry_days: Annotated[
        Count, Meta(le=3650, description="How long the hourly roll-ups of devices' telemetry are kept.")
    ] = 14
    sample_quota_mib: Annotated[
        CountOrZero,
        Meta(
            description="Most space in the registry's store for the samples of one device; 0 keeps none. Devices keep "
            "what finds no room, within their own limits.",
        ),
    ] = 256
    sample_days: Annotated[
        Count, Meta(le=3650, description="How long samples of devices are kept after their arrival.")
    ] = 90
    broker_budget_bytes: Annotated[
        Count,
        Meta(
            description="Most block bytes in flight to devices at one time. A device takes what it misses, at most "
            "1 MiB; when all is taken, the controller tells further devices when to ask again."
        ),
    ] = 16 * 1024**2
    blob_urls: Annotated[
        str,
        Meta(
            description="Base URLs from which devices can also fetch blobs by HTTP range, separated by commas. "
            "'signed' stands for URLs that the store signs (s3://, gs://, az://). Empty: blocks come over MQTT only."
        ),
    ] = ""
    device_broker: Annotated[
        str,
        Meta(
            description="URL of the broker as devices reach it, for new devices. Empty: that of the setting broker, "
            "without its user and password."
        ),
    ] = ""
    certificate_days: Annotated[
        Count,
        Meta(
            le=3650,
            description="Lifetime of the certificates that the fleet's authority signs for devices.",
        ),
    ] = 90
    sample_key: Annotated[
        Path | None,
        Meta(
            description="PEM file of the public key for samples (edgekit collect --new-key). Devices that are enrolled "
            "or join from then on get it, so that they can be asked for samples. Unset: they keep none."
        ),
    ] = None
    quarantine_clones: Annotated[
        bool,
        Meta(
            description="Whether the controller puts a device into quarantine when two agents report under its name. "
            "Else it only stores the event name-used-twice."
        ),
    ] = False
    tick_seconds: Annotated[Positive, Meta(description="Interval at which the controller advances rollouts.")] = 0.5
    api: Annotated[
        str,
        Meta(
            description="host:port of the controller's API and pages; port 0 takes any free one. Empty: neither. "
            "It has no TLS: on a network, put a proxy in front of it."
        ),
    ] = "127.0.0.1:8800"
    api_hosts: Annotated[
        tuple[str, ...],
        Meta(description="Names under which browsers reach the API, besides localhost; for example that of a proxy."),
    ] = ()
    api_login: Annotated[
        bool,
        Meta(
            description="Reading also needs a login on the controller's own machine. Through a proxy or from another "
            "machine it always does."
        ),
    ] = False
    cloud_host: Annotated[
        str,
        Meta(description="Address on which the cloud tier listens. An address other than loopback needs an API key."),
    ] = "127.0.0.1"
    cloud_port: Annotated[Port, Meta(description="HTTP port of the cloud tier; 0 takes any free port.")] = 8700
    cloud_grpc_port: Annotated[
        Port | None,
        Meta(description="gRPC port of the cloud tier; 0 takes any free port. Unset: no gRPC. Needs edgekit[grpc]."),
    ] = None
    cloud_api_key_file: Annotated[
        Path | None,
        Meta(
            description="File with the API keys that clients of the cloud tier must send: one bare key, or TOML with a "
            "table [keys.NAME] for each owner. It is read again when it changes."
        ),
    ] = None
    cloud_tls_certificate: Annotated[
        Path | None,
        Meta(description="PEM file of the cloud tier's certificate chain. With it, the tier speaks TLS only."),
    ] = None
    cloud_tls_key: Annotated[
        Path | None, Meta(description="PEM file of the private key of cloud_tls_certificate, without a password.")
    ] = None
    cloud_client_ca: Annotated[
        Path | None,
        Meta(description="PEM file of the authority whose certificates clients of the cloud tier must have."),
    ] = None
    cloud_health_port: Annotated[
        Port | None,
        Meta(
            description="Port for /v2/health and /metrics without TLS and key, for Kubernetes and Prometheus; 0 takes "
            "any free port. Unset: none."
        ),
    ] = None
    cloud_access_log: Annotated[
        str,
        Meta(
            description="File to which the cloud tier appends a JSON line for each request; - is stdout. It is opened "
            "again at SIGHUP. Empty: no log."
        ),
    ] = ""
    cloud_max_connections: Annotated[
        Count,
        Meta(
            description="Most open HTTP connections of the cloud tier. Above it, idle ones are closed.",
            extra={"unit": "connections"},
        ),
    ] = 1024
    cloud_max_connections_per_address: Annotated[
        CountOrZero,
        Meta(
            description="Most of them from one address; 0 for no such limit. Devices behind one NAT or proxy have one "
            "address.",
            extra={"unit": "connections"},
        ),
    ] = 0
    cloud_trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses or networks of proxies and load balancers in front of the cloud tier. "
            "cloud_max_connections_per_address does not hold for them, and the access log believes their "
            "X-Forwarded-For."
        ),
    ] = ()
    cloud_drain_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How long accepted requests may take when the cloud tier stops. It says at once that it is not "
            "ready; what is not answered then gets 503.",
        ),
    ] = 10.0
    cloud_class_keys: Annotated[
        tuple[Path, ...],
        Meta(description="Private keys of device classes; the cloud tier opens sealed bundles with them."),
    ] = ()
    cloud_refresh_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Interval at which the cloud tier looks for new versions in the registry; 0: at SIGHUP only.",
        ),
    ] = 30.0
    cloud_channel: Channel = ""
    cloud_canary_channel: CanaryChannel = ""
    cloud_canary_share: CanaryShare = 0.0
    cloud_versions: Versions = 1
    cloud_queue_limit: QueueLimit = 256
    cloud_instances: Instances = 1
    cloud_isolation: Isolation = "auto"
    cloud_batch: BatchRows = "auto"
    cloud_run_timeout_seconds: RunTimeoutSeconds = 30.0
    cloud_max_streams: MaxStreams = 64
    cloud_stream_idle_seconds: StreamIdleSeconds = 60.0
    cloud_threads: Annotated[
        CountOrZero,
        Meta(
            le=1024,
            description="Threads of each model's runtime in the cloud tier; 0: one per CPU that it may use.",
            extra={"unit": "threads"},
        ),
    ] = 0
    cloud_providers: Annotated[
        tuple[str, ...],
        Meta(
            description="ONNX Runtime execution providers of the cloud tier, the preferred one first. Empty: the best "
            "provider that is installed."
        ),
    ] = ()
    cloud_require_providers: Annotated[
        bool,
        Meta(
            description="True: a model fails to load when ONNX Runtime does not start a provider of `cloud_providers`."
        ),
    ] = False
    cloud_gpu_memory_mib: Annotated[
        CountOrZero, Meta(description="Limit of ONNX Runtime's GPU arena of one model in the cloud tier; 0 for none.")
    ] = 0
    cloud_arena_mib: Annotated[
        CountOrZero,
        Meta(description="Limit of ONNX Runtime's CPU arena of each instance in the cloud tier; 0 for none."),
    ] = 0
    cloud_max_request_mib: Annotated[
        int,
        Meta(ge=1, le=2047, description="Longest request that the cloud tier accepts."),
    ] = 64
    cloud_models: Annotated[
        dict[str, CloudModelSettings],
        Meta(
            description="Settings of single models of the cloud tier, one table [cloud_models.NAME] each. They win "
            "over the settings above."
        ),
    ] = {}

    def __post_init__(self) -> None:
        check_providers("cloud_providers", self.cloud_providers)

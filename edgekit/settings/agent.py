"""Settings of one device: ``agent.toml``, as `edgekit device enroll` writes it."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from edgekit.serving.models.options import (
    BatchRows,
    CloudBytesPerDay,
    CloudCallsPerDay,
    CloudInputs,
    CloudModel,
    CloudUrl,
    ExplorationShare,
    ExplorationsPerDay,
    FallbackThreshold,
    Instances,
    Isolation,
    MaxStreams,
    ModelSettings,
    OutOfDistribution,
    QueueLimit,
    RefutedCertificate,
    RunTimeoutSeconds,
    SendInputs,
    StreamIdleSeconds,
    StreamPauseSeconds,
    Swap,
    TelemetryInputs,
    cloud_urls,
)
from edgekit.settings.types import (
    BrokerCa,
    BrokerKeepalive,
    BrokerKey,
    BrokerUrl,
    Count,
    CountOrZero,
    FleetName,
    Positive,
    TagValue,
    check_providers,
    check_tags,
    check_url,
)


class AgentSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``agent.toml`` of one device; `edgekit-agent` reads it. Relative paths start at the folder of the file."""

    # The device and its keys.
    device: Annotated[str, Meta(description="Name of this device, as it is enrolled in the fleet.")]
    fleet: FleetName
    target: Annotated[str, Meta(description="Target profile of this device, for example raspberry-pi-4.")]
    state: Annotated[
        Path, Meta(description="Folder for the journal, the slots, downloaded blocks and trusted metadata.")
    ] = Path("state")
    key: Annotated[Path, Meta(description="File with the device's private key; it signs reports and events.")] = Path(
        "device.key"
    )
    root: Annotated[Path, Meta(description="File with the first trusted TUF root, as enrollment wrote it.")] = Path(
        "root.json"
    )
    class_keys: Annotated[
        tuple[Path, ...],
        Meta(description="Private keys of device classes; the device opens bundles sealed for these classes."),
    ] = ()

    tags: Annotated[
        dict[str, TagValue],
        Meta(
            description="Tags that the device reports, as facts: fact.tags.KEY in filters. Labels of the control side "
            "are set there; tags are set on the device."
        ),
    ] = {}

    # The connection to the broker.
    broker: BrokerUrl = "mqtt://127.0.0.1:1883"
    broker_ca: BrokerCa = None
    broker_certificate: Annotated[
        Path | None, Meta(description="PEM file of the device's own client certificate (mqtts:// only).")
    ] = None
    broker_key: BrokerKey = None
    broker_keepalive_seconds: BrokerKeepalive = 30
    heartbeat_seconds: Annotated[Positive, Meta(description="Interval at which the device repeats its report.")] = 30.0
    telemetry_seconds: Annotated[Positive, Meta(description="Interval at which the device sends its counters.")] = 60.0
    telemetry_inputs: TelemetryInputs = "auto"
    drift_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Shortest time between two requests of a model that the test of drift counts; 0: no test. "
            "Choose it so long that two of them have little in common.",
        ),
    ] = 10.0
    drift_error: Annotated[
        float,
        Meta(
            ge=1e-9,
            le=0.5,
            description="Probability that the test of a bundle on this device ever reports a drift where there is "
            "none, for all inputs and answers together.",
            extra={"unit": "probability"},
        ),
    ] = 0.001

    # The local endpoints.
    http: Annotated[
        str, Meta(description="host:port of the local HTTP endpoint; port 0 takes any free port. Empty: no HTTP.")
    ] = "127.0.0.1:8600"
    socket: Annotated[
        Path | None, Meta(description="Path of the UNIX socket on which the HTTP endpoint also listens. Unset: none.")
    ] = Path("edgekit.sock")
    grpc: Annotated[
        str,
        Meta(description="host:port of the local gRPC endpoint, loopback only. Empty: no gRPC. Needs edgekit[grpc]."),
    ] = ""
    grpc_socket: Annotated[
        Path | None, Meta(description="Path of the UNIX socket of the gRPC endpoint. Unset: none. Needs edgekit[grpc].")
    ] = None
    max_request_bytes: Annotated[
        Count, Meta(description="Longest request body that the endpoints accept; a longer one is refused.")
    ] = 64 * 1024**2
    max_connections: Annotated[
        Count,
        Meta(
            description="Most open HTTP connections over TCP, and as many on the UNIX socket. Above it, idle ones are "
            "closed.",
            extra={"unit": "connections"},
        ),
    ] = 256
    drain_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How long accepted requests may take when the agent stops. It says at once that it is not "
            "ready; what is not answered then gets 503.",
        ),
    ] = 10.0

    # How models are served. [models.NAME] sets some of these for one model.
    threads: Annotated[
        Count, Meta(le=1024, description="Threads of each model's runtime.", extra={"unit": "threads"})
    ] = 1
    queue_limit: QueueLimit = 64
    deadline_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=24 * 3600 * 1000,
            description="Deadline of requests that do not set edgekit_deadline_ms; 0 for no deadline.",
        ),
    ] = 0.0
    instances: Instances = 1
    swap: Swap = "auto"
    isolation: Isolation = "auto"
    batch: BatchRows = "auto"
    run_timeout_seconds: RunTimeoutSeconds = 30.0
    max_streams: MaxStreams = 64
    stream_idle_seconds: StreamIdleSeconds = 60.0
    providers: Annotated[
        tuple[str, ...],
        Meta(
            description="ONNX Runtime execution providers, the preferred one first. Empty: the best provider that is "
            "installed."
        ),
    ] = ()
    require_providers: Annotated[
        bool,
        Meta(
            description="True: a model fails to load when ONNX Runtime does not start a provider of `providers`. "
            "False: it loads, the agent logs a warning, and the model's metadata names the provider in use."
        ),
    ] = False
    gpu_memory_mib: Annotated[
        CountOrZero, Meta(description="Limit of ONNX Runtime's GPU arena of one model; 0 for no limit.")
    ] = 0
    arena_mib: Annotated[
        CountOrZero,
        Meta(
            description="Limit of ONNX Runtime's CPU arena of one model, for each of its instances; 0 for no limit. A "
            "run that needs more fails."
        ),
    ] = 0
    memory_budget_mib: Annotated[
        CountOrZero,
        Meta(
            description="Memory budget of all models together; 0 for no limit. A model that does not fit beside the "
            "others is loaded at its next request, and the model that was unused for longest is unloaded."
        ),
    ] = 0
    models: Annotated[
        dict[str, ModelSettings],
        Meta(description="Settings of single models, one table [models.NAME] each. They win over the settings above."),
    ] = {}

    # Downloads.
    max_bundle_bytes: Annotated[Count, Meta(description="Size limit of a bundle; a larger one is refused.")] = (
        2 * 1024**3
    )
    download_bytes_per_second: Annotated[
        CountOrZero,
        Meta(
            description="Rate at which blocks are requested, with a burst of one second or one block; 0 for no limit."
        ),
    ] = 0
    download_urls: Annotated[
        bool, Meta(description="Whether blocks are also fetched by HTTP from the URLs that the controller names.")
    ] = True
    download_budget: Annotated[
        float,
        Meta(
            ge=1,
            description="Bytes that one deployment may fetch over all its attempts, as a multiple of its bundle's "
            "size. Wrong and repeated blocks count.",
            extra={"unit": "bundle sizes"},
        ),
    ] = 3.0
    quiet_hours: Annotated[
        str,
        Meta(
            description="Local times between which nothing is downloaded, for example 08:00-18:30. The range may pass "
            "midnight. Empty: none."
        ),
    ] = ""
    metered: Annotated[
        bool,
        Meta(
            description="Whether the link is always metered (its traffic costs money). On a metered link a deployment "
            "waits when it has fetched metered_deployment_bytes, and the cloud tier is not called (metered_fallback)."
        ),
    ] = False
    metered_file: Annotated[
        Path | None,
        Meta(description="The link is metered while this file exists; a network hook creates and removes it."),
    ] = None
    metered_deployment_bytes: Annotated[
        CountOrZero, Meta(description="Bytes that one deployment may fetch over a metered link; 0 for none.")
    ] = 0

    # Deployments.
    deployment_attempts: Annotated[
        Count,
        Meta(
            description="A deployment ends after this many failed attempts. An attempt counts if it fetched bytes or "
            "got beyond the download.",
            extra={"unit": "attempts"},
        ),
    ] = 1000
    deployment_hours: Annotated[
        Positive,
        Meta(
            description="Age of a deployment from which its next failure ends it. A step before activation that is "
            "still running at this age ends it too."
        ),
    ] = 720.0
    step_timeout_seconds: Annotated[
        Positive,
        Meta(description="Longest duration of one deployment step; then the attempt fails. Verified blocks are kept."),
    ] = 600.0
    watchdog_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="When the agent's event loop stands still for so long, for example because a model hangs on "
            "it, the process ends with exit code 1, and systemd or a container engine starts it again; 0: never.",
        ),
    ] = 60.0
    probation_seconds: Annotated[
        float, Meta(ge=0, description="How long a new bundle answers live requests before it is judged and committed.")
    ] = 3.0
    probation_requests: Annotated[
        int,
        Meta(
            ge=0,
            description="Live requests after which probation ends early; 0: probation always takes probation_seconds.",
            extra={"unit": "requests"},
        ),
    ] = 0
    probation_max_error_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Largest share of failed live requests in probation. With a larger share the device rolls "
            "back.",
            extra={"unit": "share (0 to 1)"},
        ),
    ] = 0.05
    probation_max_latency_ms: Annotated[
        float,
        Meta(
            ge=0,
            description="Largest mean latency of live requests in probation, waiting in the queue included; 0 for no "
            "limit. With a larger latency the device rolls back.",
        ),
    ] = 0.0
    crash_watch_seconds: Annotated[
        Positive,
        Meta(
            description="How long the agent must run without a crash after a commit. If its process crashes three "
            "times before that, the device rolls back."
        ),
    ] = 600.0

    unproven_runtime: Annotated[
        Literal["warn", "test", "refuse"],
        Meta(
            description="What to do with a bundle on a version of its runtime that it was not made with and that no "
            "signed evidence covers: `warn` uses it and reports it; `test` runs its golden samples first, also at a "
            "start; `refuse` does not use it."
        ),
    ] = "warn"

    # The cloud tier. [models.NAME] sets cloud_url, cloud_model, fallback_threshold, send_inputs and budgets of a model.
    cloud_url: CloudUrl = ""
    cloud_model: CloudModel = ""
    cloud_api_key_file: Annotated[
        Path | None, Meta(description="File with the API key that the device sends to the cloud tier.")
    ] = None
    cloud_unencrypted: Annotated[
        bool, Meta(description="Whether the API key and inputs may travel over http:// to another host.")
    ] = False
    cloud_ca: Annotated[
        Path | None,
        Meta(
            description="PEM file of the authority that signed the cloud tier's certificate. Unset: the system's "
            "authorities."
        ),
    ] = None
    cloud_certificate: Annotated[
        Path | None, Meta(description="PEM file of the device's own certificate for the cloud tier.")
    ] = None
    cloud_key: Annotated[Path | None, Meta(description="PEM file of the private key of cloud_certificate.")] = None
    cloud_timeout_seconds: Annotated[Positive, Meta(description="Longest wait for an answer of the cloud tier.")] = 2.0
    fallback_threshold: FallbackThreshold = 0.8
    send_inputs: SendInputs = "allowed"
    cloud_inputs: CloudInputs = "decoded"
    stream_pause_seconds: StreamPauseSeconds = 0.0
    out_of_distribution: OutOfDistribution = "ignore"
    cloud_calls_per_day: CloudCallsPerDay = 0
    cloud_bytes_per_day: CloudBytesPerDay = 0
    metered_fallback: Annotated[
        bool, Meta(description="Whether the cloud tier is also called while the link is metered.")
    ] = False
    offline: Annotated[
        bool, Meta(description="True: the cloud tier is never called, and models answer locally. Updates go on.")
    ] = False
    offline_file: Annotated[
        Path | None,
        Meta(description="The cloud tier is not called while this file exists; a network hook creates and removes it."),
    ] = None
    exploration_share: ExplorationShare = 0.0075
    explorations_per_day: ExplorationsPerDay = 1000
    refuted_certificate: RefutedCertificate = "careful"

    # Samples for retraining; docs/collecting.md.
    sample_key: Annotated[
        Path | None,
        Meta(
            description="PEM file of the operator's public key, for which samples are sealed. Unset: no sample is ever "
            "kept, whatever is asked for, and stored ones are removed."
        ),
    ] = None
    collect: Annotated[
        tuple[Literal["unsure", "explored", "disagreement", "refuted"], ...],
        Meta(description="Which answers are kept as samples. Empty: none, unless an operator asks for some."),
    ] = ()
    collect_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of all answers that is also kept as samples, by chance.",
            extra={"unit": "share (0 to 1)"},
        ),
    ] = 0.0
    collect_per_day: Annotated[
        CountOrZero, Meta(description="Most samples that are kept in a day; 0 for no limit.", extra={"unit": "samples"})
    ] = 200
    collect_bytes_per_day: Annotated[
        CountOrZero,
        Meta(description="Most bytes of samples that are kept in a day; 0 for no limit.", extra={"unit": "bytes"}),
    ] = 32 * 1024**2
    spool_mib: Annotated[
        Count,
        Meta(
            le=1_048_576,
            description="Most space for samples that wait to be sent. When it is full, the oldest of the least "
            "valuable ones goes first.",
        ),
    ] = 32

    def __post_init__(self) -> None:
        check_tags(self.tags)
        check_providers("providers", self.providers)
        self._check_cloud_urls()
        if self.sample_key is None and (self.collect or self.collect_share):
            raise ValueError("collect, collect_share: set, but sample_key is not; name the operator's public key there")
        if (self.cloud_certificate is None) != (self.cloud_key is None):
            raise ValueError("cloud_certificate and cloud_key belong together: set both, or neither")

    def cloud_urls_of(self, model: str = "") -> tuple[str, ...]:
        """The endpoints of a model in their order; without a name, of models that have none of their own."""
        own = self.models[model].cloud_url if model in self.models else None
        return cloud_urls(self.cloud_url if own is None else own)

    def all_cloud_urls(self) -> tuple[str, ...]:
        """Every endpoint that some model has, each once."""
        return tuple(dict.fromkeys(url for name in ("", *self.models) for url in self.cloud_urls_of(name)))

    def _check_cloud_urls(self) -> None:
        own = {f"models.{name}.cloud_url": one.cloud_url for name, one in self.models.items()}
        for key, value in {"cloud_url": self.cloud_url, **own}.items():
            urls = cloud_urls(value or "")
            for url in urls:
                check_url(key, url)
            if len(set(urls)) < len(urls):
                raise ValueError(f"{key} names the same URL twice")
        named = [name for name in ("cloud_ca", "cloud_certificate", "cloud_key") if getattr(self, name) is not None]
        if named and not any(url.startswith("https://") for url in self.all_cloud_urls()):
            raise ValueError(f"{', '.join(named)}: set, but cloud_url is {self.cloud_url!r}, expected https://...")

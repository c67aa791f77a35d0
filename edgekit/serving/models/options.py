"""How one model is served: choices as data. The types carry the text of the settings reference."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from edgekit.bounds import MAX_INTEGER

MAX_ENDPOINTS = 8  # of one model

QueueLimit = Annotated[
    int,
    Meta(
        ge=1,
        description="Most requests of one model that may wait or run at one time. Further requests are refused.",
        extra={"unit": "requests"},
    ),
]
Instances = Annotated[
    int,
    Meta(
        ge=1,
        le=1024,
        description="Copies of one model that run at the same time. Each copy takes the model's memory.",
        extra={"unit": "copies"},
    ),
]
Pinned = Annotated[bool, Meta(description="True: the model stays in memory, whatever the memory budget is.")]
Swap = Annotated[
    Literal["auto", "load-first", "unload-first"],
    Meta(
        description="How the agent switches to a new bundle. load-first: it loads the new bundle beside the old one; "
        "no request waits. unload-first: it unloads the old bundle first; requests wait during the load. auto: "
        "load-first if the memory budget has room for both without unloading another model, else unload-first."
    ),
]
Isolation = Annotated[
    Literal["auto", "thread", "process"],
    Meta(
        description="Where a model runs. process: in a process of its own, so that a crash, a hang or a leak does not "
        "reach the agent; it costs the memory of an interpreter and the runtime's library, and about 0.1 ms a request. "
        "thread: in the agent's process. auto: process on GPUs (CUDA, TensorRT), else thread."
    ),
]
BatchRows = Annotated[
    Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"],
    Meta(
        description="Most rows of waiting requests that are joined in one run; 1 joins none. auto: measured when the "
        "model loads, for artifacts that accept any number of rows.",
        extra={"unit": "rows"},
    ),
]
RunTimeoutSeconds = Annotated[
    float, Meta(gt=0, description="Longest duration of one run in a process of its own; then that process is ended.")
]
MaxStreams = Annotated[
    int,
    Meta(
        ge=1,
        description="Most open streams of one model with state. A request that would begin one more is refused.",
        extra={"unit": "streams"},
    ),
]
StreamIdleSeconds = Annotated[
    float, Meta(gt=0, description="A stream of a model with state ends after this time without a request.")
]


CloudUrl = Annotated[
    str | Annotated[tuple[str, ...], Meta(max_length=MAX_ENDPOINTS)],
    Meta(
        description="Base URL of the cloud tier, http:// or https://, or a list of them: the next one is asked where "
        "the one before fails, or its breaker is open. Empty: no cloud tier."
    ),
]
CloudModel = Annotated[str, Meta(description="Name of the model in the cloud tier. Empty: the same name.")]
FallbackThreshold = (
    Annotated[
        float,
        Meta(
            ge=0,
            description='Local answers with a lower score go to the cloud tier. 0 keeps all answers local, "all" '
            "sends all. A number above 1 also sends all, with a warning; the next release refuses it.",
            extra={"unit": "score (0 to 1)"},
        ),
    ]
    | Literal["all"]
)
SendInputs = Annotated[
    Literal["allowed", "decoded", "never"],
    Meta(
        description="Whether inputs of requests may be sent to the cloud tier. decoded: tensors of numbers, and never "
        "bytes as a client sent them (an encoded image, a text). never: nothing of a request leaves the device, "
        "whatever the score is and whatever the client asks for."
    ),
]
CloudInputs = Annotated[
    Literal["decoded", "original"],
    Meta(
        description="The form in which inputs go to the cloud tier. decoded: tensors as the device's model takes them. "
        "original: bytes as the client sent them, which the tier decodes with its model's own preprocessing; needs "
        "send_inputs = allowed. A request that came as tensors is sent as tensors."
    ),
]
OutOfDistribution = Annotated[
    Literal["ignore", "cloud"],
    Meta(
        description="What to do with inputs that are unlike the data of the conversion, by the bounds in the bundle. "
        "cloud: they go to the cloud tier, whatever the score is. ignore: the score decides. cloud costs up to a "
        "millisecond for each row of an image."
    ),
]
TelemetryInputs = Annotated[
    Literal["auto", "always", "never"],
    Meta(
        description="Whether telemetry has histograms of values of the inputs. auto: unless send_inputs is never. "
        "always: also then, unless the bundle itself says never. They hold no whole input, but their extremes are "
        "values of inputs."
    ),
]
StreamPauseSeconds = Annotated[
    float,
    Meta(
        ge=0,
        description="Shortest time between two unsure answers of one stream (`sequence_id`) for which the cloud tier "
        "is called; those in between stay local. 0 for none.",
    ),
]
CloudCallsPerDay = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_INTEGER,
        description="Most calls of the cloud tier in a day, failed ones included; 0 for no limit. Outside of "
        "[models.NAME] for all models together, beside the models' own limits.",
        extra={"unit": "calls a day"},
    ),
]
CloudBytesPerDay = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_INTEGER,
        description="Most bytes of input tensors that are sent to the cloud tier in a day; 0 for no limit. Outside of "
        "[models.NAME] for all models together, beside the models' own limits.",
        extra={"unit": "bytes a day"},
    ),
]

ExplorationShare = Annotated[
    float,
    Meta(
        ge=0,
        le=0.1,
        description="Share of the confident answers under a certificate that is also sent to the cloud tier, after "
        "they were returned, to test the certificate. 0 never tests it.",
        extra={"unit": "share (0 to 0.1)"},
    ),
]
ExplorationsPerDay = Annotated[
    int,
    Meta(ge=0, le=MAX_INTEGER, description="Most such answers of a model in a day.", extra={"unit": "answers a day"}),
]
RefutedCertificate = Annotated[
    Literal["careful", "local-only"],
    Meta(
        description="After a certificate is refuted: careful: answers must also reach fallback_threshold to be kept. "
        "local-only: no answer is sent for its score."
    ),
]


def cloud_urls(value: CloudUrl) -> tuple[str, ...]:
    """The URLs that a setting `cloud_url` names, in their order."""
    return tuple(value) if not isinstance(value, str) else (value,) if value else ()


class ModelOptions(Struct, frozen=True, kw_only=True):
    """How one model is served; each type above describes its field."""

    queue_limit: QueueLimit = 64
    instances: Instances = 1
    pinned: Pinned = False
    swap: Swap = "auto"
    isolation: Isolation = "auto"
    batch: BatchRows = "auto"
    run_timeout_seconds: RunTimeoutSeconds = 30.0
    max_streams: MaxStreams = 64
    stream_idle_seconds: StreamIdleSeconds = 60.0


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[models.NAME]`` of ``agent.toml``: settings of one model. An unset field takes the agent's value."""

    queue_limit: QueueLimit | None = None
    instances: Instances | None = None
    pinned: Pinned | None = None
    swap: Swap | None = None
    isolation: Isolation | None = None
    batch: BatchRows | None = None
    run_timeout_seconds: RunTimeoutSeconds | None = None
    max_streams: MaxStreams | None = None
    stream_idle_seconds: StreamIdleSeconds | None = None
    cloud_url: CloudUrl | None = None
    cloud_model: CloudModel | None = None
    fallback_threshold: FallbackThreshold | None = None
    send_inputs: SendInputs | None = None
    cloud_inputs: CloudInputs | None = None
    stream_pause_seconds: StreamPauseSeconds | None = None
    out_of_distribution: OutOfDistribution | None = None
    cloud_calls_per_day: CloudCallsPerDay | None = None
    cloud_bytes_per_day: CloudBytesPerDay | None = None

    def over(self, options: ModelOptions) -> ModelOptions:
        """`options` with the fields that are set here replaced."""
        known = ModelOptions.__struct_fields__
        changed = {name: value for name in known if (value := getattr(self, name)) is not None}
        return structs.replace(options, **changed)

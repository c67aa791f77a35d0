"""How the cloud tier serves one model: choices as data. The types carry the text of the settings reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct, structs

from edgekit.errors import SettingsError
from edgekit.serving.models.options import (
    BatchRows,
    Instances,
    Isolation,
    MaxStreams,
    ModelOptions,
    QueueLimit,
    RunTimeoutSeconds,
    StreamIdleSeconds,
)

Channel = Annotated[
    str,
    Meta(
        max_length=128,
        description="Channel of the registry whose newest version the cloud tier serves. Empty: the newest version of "
        "all.",
    ),
]
CanaryChannel = Annotated[
    str, Meta(max_length=128, description="Channel of the registry whose newest version is the canary. Empty: none.")
]
CanaryShare = Annotated[
    float,
    Meta(
        ge=0,
        le=1,
        description="Share of the requests without a version that the canary answers. The canary must be newer than "
        "the served version.",
        extra={"unit": "share (0 to 1)"},
    ),
]
Versions = Annotated[
    int,
    Meta(
        ge=1,
        le=32,
        description="Newest versions of the channel that are served side by side. Requests can name each; requests "
        "that name none get the newest.",
        extra={"unit": "versions"},
    ),
]


class CloudModelOptions(ModelOptions, frozen=True, kw_only=True):
    """How the cloud tier serves one model; each type describes its field."""

    channel: Channel = ""
    canary_channel: CanaryChannel = ""
    canary_share: CanaryShare = 0.0
    versions: Versions = 1
    queue_limit: QueueLimit = 256


class CloudModelSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[cloud_models.NAME]`` of ``edgekit.toml``: settings of one model. An unset field takes the tier's value."""

    channel: Channel | None = None
    canary_channel: CanaryChannel | None = None
    canary_share: CanaryShare | None = None
    versions: Versions | None = None
    queue_limit: QueueLimit | None = None
    instances: Instances | None = None
    isolation: Isolation | None = None
    batch: BatchRows | None = None
    run_timeout_seconds: RunTimeoutSeconds | None = None
    max_streams: MaxStreams | None = None
    stream_idle_seconds: StreamIdleSeconds | None = None

    def over(self, options: CloudModelOptions) -> CloudModelOptions:
        """`options` with the fields that are set here replaced."""
        changed = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return structs.replace(options, **changed)


def check_canaries(defaults: CloudModelOptions, own: Mapping[str, CloudModelSettings]) -> None:
    """Check that every share of a canary has a channel that names the canary.

    Args:
        defaults: Of all models.
        own: Settings of single models, by name.

    Raises:
        SettingsError: a share is set that no canary would ever get.
    """
    merged = {name: one.over(defaults) for name, one in own.items()}
    shares = {f"cloud_models.{name}.canary_share": merged[name] for name, one in own.items() if one.canary_share}
    if defaults.canary_share and not any(one.canary_channel for one in merged.values()):
        shares["cloud_canary_share"] = defaults
    for name, options in shares.items():
        if not options.canary_channel:
            raise SettingsError(
                f"{name} is {options.canary_share:g}, and no canary channel is set",
                advice="Set cloud_canary_channel (--canary-channel) to the channel to which canaries are promoted.",
            )

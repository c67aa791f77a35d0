"""Metadata, statistics and index of a server's models as plain values, which HTTP and gRPC send alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.errors import UnavailableError
from edgekit.preprocess import Raw
from edgekit.serving.oip.raw_body import MEDIA_TYPES
from edgekit.serving.oip.tensor_data import NAMES
from edgekit.serving.session.statistics import statistics_document
from edgekit.tensors import DType, TensorSpec

if TYPE_CHECKING:
    from edgekit.serving.api.model_server import ModelServer

EXTENSIONS = ["binary_tensor_data", "statistics", "sequence", "sequence(string_id)"]
OUT_OF_MEMORY = "not in memory now; the next request loads it"


def server() -> dict[str, Any]:
    """Server metadata: name, version and extensions."""
    return {"name": "edgekit", "version": __version__, "extensions": EXTENSIONS}


def model(models: ModelServer, name: str, version: str | None) -> dict[str, Any]:
    """Metadata of a model. A free axis is -1.

    ``edgekit_provider`` is the delegate or execution provider in use; ``edgekit_providers_missing`` lists the requested
    ones that are not in use. Where clients may send bytes, ``edgekit_bytes`` has the names and media types of such
    inputs, and ``edgekit_answers`` the outputs for them with their class labels. ``parameters`` of a model with state
    say so, with the limits of its streams.

    Raises:
        NotFoundError, UnavailableError: as `ModelServer.describe`.
    """
    description = models.describe(name, version)

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        shape = [-1 if size is None else size for size in spec.shape]
        return {"name": spec.name, "datatype": NAMES[spec.dtype], "shape": shape}

    document: dict[str, Any] = {
        "name": name,
        "versions": list(description.versions or (description.version,)),
        "platform": description.platform,
        "edgekit_provider": description.provider,
        "edgekit_providers_missing": list(description.providers_missing),
        "inputs": [*map(tensor, description.inputs)],
        "outputs": [*map(tensor, description.outputs)],
    }
    if description.streams is not None:
        limits = {"max_streams": description.streams.streams, "idle_seconds": description.streams.idle_seconds}
        document["parameters"] = {"sequence_batching": True, "edgekit_streams": limits}
    if description.raw:
        document["edgekit_bytes"] = [_raw(one) for one in description.raw]
    if description.answers:
        labels = {name: {"labels": names} for name, names in description.labels.items()}
        document["edgekit_answers"] = [{**tensor(spec), **labels.get(spec.name, {})} for spec in description.answers]
    return document


def _raw(raw: Raw) -> dict[str, Any]:
    tensor = {"name": raw.name, "datatype": NAMES[DType.BYTES], "shape": [-1]}
    return {**tensor, "input": raw.input, "kind": raw.kind, "media_types": MEDIA_TYPES[raw.kind]}


def every(models: ModelServer) -> list[tuple[str, str | None]]:
    """All models, each in its active version."""
    return [(name, None) for name in models.models()]


def statistics(models: ModelServer, wanted: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """Statistics of the models and versions `wanted`. Raises as `ModelServer.describe`."""
    entries = [
        statistics_document(name, models.describe(name, version).version, models.statistics(name, version))
        for name, version in wanted
    ]
    return {"model_stats": entries}


def index(models: ModelServer, ready_only: bool) -> list[dict[str, str]]:
    """Every version with its state, and the reason where it cannot answer at once; `ready_only` leaves out others."""
    entries = []
    for name in models.models():
        try:
            description = models.describe(name, None)
            versions = description.versions or (description.version,)
            state, reason = "READY", "" if description.loaded else OUT_OF_MEMORY
        except UnavailableError as error:
            versions, state, reason = ("",), "UNAVAILABLE", str(error)
        if state == "READY" or not ready_only:
            entries += [{"name": name, "version": one, "state": state, "reason": reason} for one in versions]
    return entries

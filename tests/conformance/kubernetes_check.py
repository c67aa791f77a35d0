"""Validates the manifests of deploy/kubernetes, in its own environment: kubernetes_check.py schemas|kserve FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml


def documents(file: Path) -> list[dict]:
    """The documents of a file."""
    return [one for one in yaml.safe_load_all(file.read_text()) if one]


def check_schemas(folder: Path) -> None:
    """Each document against the schemas of Kubernetes, strictly; the patch as applied to its Deployment."""
    import kubernetes_validate

    found = documents(folder / "cloud.yaml")
    patch = documents(folder / "mesh.yaml")[0]["spec"]["template"]["metadata"]
    for one in found:
        kubernetes_validate.validate(one, "1.37", strict=True)
        if one["kind"] == "Deployment":
            for kind, values in patch.items():
                one["spec"]["template"]["metadata"][kind].update(values)
            kubernetes_validate.validate(one, "1.37", strict=True)
        print("ok", one["kind"])


def check_kserve(folder: Path) -> None:
    """The InferenceService by KServe's own types: nothing in it is unknown to them."""
    (document,) = documents(folder / "inferenceservice.yaml")
    typed = construct(document, "V1beta1InferenceService", "")
    assert typed.spec.predictor.containers[0].image == document["spec"]["predictor"]["containers"][0]["image"]
    print("ok", document["kind"])


def construct(value: object, kind: str, where: str) -> object:
    """A value of a type of KServe or of Kubernetes' client; their classes check what is required.

    Args:
        value: From the document.
        kind: Name of the type, as the classes state it: ``V1Container``, ``list[V1Container]``, ``dict(str, str)``.
        where: Path in the document, for errors.

    Raises:
        AssertionError: a key is unknown.
    """
    import kserve.models
    from kubernetes import client

    if kind.startswith("list["):
        return [construct(one, kind[5:-1], f"{where}[{number}]") for number, one in enumerate(value)]
    if kind.startswith("dict("):
        inner = kind[5:-1].partition(", ")[2]
        return {key: construct(one, inner, f"{where}.{key}") for key, one in value.items()}
    found = getattr(kserve.models, kind, None) or getattr(client, kind, None)
    if found is None:
        return value
    if not hasattr(found, "attribute_map"):  # newer clients of Kubernetes
        typed = found.from_dict(value)
        assert typed.to_dict() == value, f"{where}: {typed.to_dict()} is left of {value}"
        return typed
    names = {there: here for here, there in found.attribute_map.items()}
    unknown = set(value) - set(names)
    assert not unknown, f"{where} has {', '.join(sorted(unknown))}, which {kind} has not"
    parts = {
        names[key]: construct(one, found.openapi_types[names[key]], f"{where}.{key}") for key, one in value.items()
    }
    return found(**parts)


if __name__ == "__main__":
    {"schemas": check_schemas, "kserve": check_kserve}[sys.argv[1]](Path(sys.argv[2]))

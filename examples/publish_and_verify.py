"""Publish a bundle to a signed registry, download and verify it, and see the refusal of a damaged blob.

Prints the release in the catalogue, the verified files of the copy, and the error after one stored byte was changed.
"""

import tempfile
from pathlib import Path

from edgekit.bundle.bindings import Binding
from edgekit.bundle.manifest import Golden, Manifest, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.errors import DigestMismatchError
from edgekit.registry import RegistryReader, blob_name, check_bundle, publish
from edgekit.storage.stores import open_store
from edgekit.tensors import DType, TensorSpec
from edgekit.trust.repository import Repository


def tiny_bundle(folder: Path) -> Path:
    """Write a bundle like `edgekit convert` does, with plain bytes instead of a model."""
    folder.mkdir()
    files = {"model.onnx": ("model", b"weights" * 20_000), "golden.npz": ("golden", b"samples")}
    tensor = Binding(TensorSpec("x", DType.FLOAT32, (None, 3)), TensorSpec("x", DType.FLOAT32, (1, 3)))
    manifest = Manifest(
        name="digits",
        version="1.0.0",
        target="raspberry-pi-4",
        runtime="onnxruntime",
        files=tuple(file_entry(path, role, data) for path, (role, data) in files.items()),
        inputs=(tensor,),
        outputs=(tensor,),
        golden=Golden(samples=1, tolerances=(), decisions_match=False),
        recipe=Recipe(),
    )
    for path, (_, data) in files.items():
        (folder / path).write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest.canonical_bytes())
    return folder


with tempfile.TemporaryDirectory() as name:
    home = Path(name)
    store = open_store(f"file://{home}/registry")
    repository = Repository(store, home / "keys")
    root = repository.create()  # each device gets this root; the private keys stay in home / "keys"
    publish(store, repository, tiny_bundle(home / "bundle"))

    reader = RegistryReader(store, root, home / "cache")
    reader.refresh()
    release = reader.resolve("digits", "raspberry-pi-4")
    print(f"release {release.release}: {release.path}, digest {release.sha256[:12]}")
    reader.download(release.manifest, home / "copy")
    print(f"verified: {[entry.path for entry in check_bundle(home / 'copy').files]}")

    blob = blob_name(release.manifest.file("model").sha256)
    store.put(blob, b"X" + store.get(blob)[1:])
    try:
        reader.download(release.manifest, home / "again")
    except DigestMismatchError as error:
        print(f"refused: {error}")

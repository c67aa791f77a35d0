"""Publish a bundle into a signed registry, read it back verified, and see a damaged blob refused.

Prints the catalogue's entry, "verified" for the fetched copy, and the digest that fails once a stored byte is changed.
"""

import tempfile
from pathlib import Path

from edgekit.bundle.manifest import Binding, Golden, Manifest, file_entry
from edgekit.bundle.recipe import Recipe
from edgekit.errors import DigestMismatchError
from edgekit.registry import RegistryReader, blob_name, check_bundle, publish
from edgekit.storage.stores import open_store
from edgekit.tensors import DType, TensorSpec
from edgekit.trust.repository import Repository


def tiny_bundle(folder: Path) -> Path:
    """A bundle as `edgekit convert` would write it, with bytes in place of a model."""
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
    root = repository.create()  # what devices are born with; the keys never leave home / "keys"
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

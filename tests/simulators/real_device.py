"""A device of real parts in one process: files, runtime, inference, trusted metadata. Only the broker is in memory."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np

from device_agents.inference.service import InferenceService
from device_agents.storage.slots import Slots, verify_file
from device_agents.update.self_test import run_self_test
from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, file_entry
from edgekit.registry import publish
from edgekit.storage.disk import FolderDisk
from edgekit.trust.assignment import Entry
from tests.simulators.crash import CrashCalls, Loss
from tests.simulators.device import Desk, Device
from tests.simulators.small_models import SURE, onnx_bundle
from tests.simulators.transport import MemoryBroker

LABELS_BYTES = 150_000
FILES = ("golden.npz", "labels.bin", "manifest.json", "model.onnx")


def publish_real(desk: Desk, folder: Path, version: str, **how: object) -> Entry:
    """Publish a version of the model ``digits`` that a runtime can load, with a labels file of several blocks."""
    bundle = folder / version
    manifest = onnx_bundle(bundle, name="digits", version=version, **how)
    labels = random.Random(version).randbytes(LABELS_BYTES)
    (bundle / "labels.bin").write_bytes(labels)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, file_entry("labels.bin", "labels", labels)))
    (bundle / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return publish(desk.store, desk.repository, bundle).entry


class RealDevice(Device):
    """A Device on a real folder.

    Args:
        folder: Folder of the device, with its key and `state`. A power cut affects `state`.
    """

    def __init__(self, folder: Path, broker: MemoryBroker, root: bytes) -> None:
        super().__init__(folder, broker, root, FolderDisk(folder / "state"))
        self.folder = folder
        self.calls: CrashCalls | None = None
        self.cache = folder / "state" / "tuf"
        self.inference = InferenceService()

    async def self_test(self, manifest: Manifest, folder: Path) -> object:
        """Run the self-test with a separate runtime."""
        return await run_self_test(manifest, folder)

    @property
    def off(self) -> bool:
        """True after the power cut."""
        return self.calls is not None and self.calls.off

    def cut_power_at(self, call: int, loss: Loss, *, seed: int = 0) -> None:
        """After the next start, the power fails before this call."""
        self.calls = CrashCalls(self.folder / "state", self.folder / "after", loss, seed=seed)
        self.calls.cut_at = call
        self.disk = FolderDisk(self.folder / "state", calls=self.calls)

    async def kill(self) -> None:
        """End the agent at once. After a power cut, `state` becomes the durable data."""
        if self.task is not None:  # None if the power failed during the start
            await super().kill()
        await self.inference.close()
        self.inference = InferenceService()
        if self.off:
            (self.folder / "state").rename(self.folder / f"lost-{self.calls.count}")
            (self.folder / "after").rename(self.folder / "state")
        self.calls, self.disk = None, FolderDisk(self.folder / "state")

    async def stop(self) -> None:
        """Stop the agent cleanly."""
        await super().stop()
        await self.inference.close()
        self.inference = InferenceService()

    async def answering(self) -> str:
        """The version that answers a request now; empty if no model is active."""
        if "digits" not in self.inference.models():
            return ""
        answer = await self.inference.infer("digits", {"x": SURE})
        assert np.argmax(answer.outputs["scores"]) == 0
        return str(answer.parameters["edgekit_version"])

    def files(self) -> set[str]:
        """Every file of slots and downloads."""
        root = self.folder / "state"
        names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return {name for name in names if name.startswith(("models/", "incoming/"))}

    def check_rest(self) -> None:
        """Check that journal and pointer agree, the active bundle is complete, and no other files exist."""
        slots, state = Slots(self.disk, "digits"), self.state
        pointer = slots.pointer()
        assert state.active is not None
        assert state.active == state.known_good
        assert pointer.active == pointer.known_good == state.active.slot
        manifest = slots.manifest(pointer.active, state.active.digest)
        for entry in manifest.files:
            verify_file(self.disk, f"{slots.folder(pointer.active)}/{entry.path}", entry)
        allowed = {f"models/digits/{slot}/{name}" for slot in "ab" for name in FILES}
        assert self.files() <= {*allowed, "models/digits/active"}

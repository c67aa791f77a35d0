"""A device of real parts in one process: files, runtime, inference, trusted metadata; only the broker is in memory."""

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
    """Publish a version of model ``digits`` that really runs, with some blocks of its own."""
    made = folder / version
    manifest = onnx_bundle(made, name="digits", version=version, **how)
    labels = random.Random(version).randbytes(LABELS_BYTES)
    (made / "labels.bin").write_bytes(labels)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, file_entry("labels.bin", "labels", labels)))
    (made / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    return publish(desk.store, desk.repository, made).entry


class RealDevice(Device):
    """As Device, but on a folder.

    Args:
        folder: Of the device: its key, and `state`, which is what a power cut is about.
    """

    def __init__(self, folder: Path, broker: MemoryBroker, root: bytes) -> None:
        super().__init__(folder, broker, root, FolderDisk(folder / "state"))
        self.folder = folder
        self.calls: CrashCalls | None = None
        self.cache = folder / "state" / "tuf"
        self.inference = InferenceService()

    async def self_test(self, manifest: Manifest, folder: Path) -> object:
        """With a runtime of its own."""
        return await run_self_test(manifest, folder)

    @property
    def off(self) -> bool:
        """True once the power has gone."""
        return self.calls is not None and self.calls.off

    def cut_power_at(self, call: int, loss: Loss, *, seed: int = 0) -> None:
        """From the next start on: the power goes before that call."""
        self.calls = CrashCalls(self.folder / "state", self.folder / "after", loss, seed=seed)
        self.calls.cut_at = call
        self.disk = FolderDisk(self.folder / "state", calls=self.calls)

    async def kill(self) -> None:
        """The process goes; the folder becomes what the power cut left of it, where there was one."""
        if self.task is not None:  # else it died while it started
            await super().kill()
        await self.inference.close()
        self.inference = InferenceService()
        if self.off:
            (self.folder / "state").rename(self.folder / f"lost-{self.calls.count}")
            (self.folder / "after").rename(self.folder / "state")
        self.calls, self.disk = None, FolderDisk(self.folder / "state")

    async def stop(self) -> None:
        """End in order."""
        await super().stop()
        await self.inference.close()
        self.inference = InferenceService()

    async def answering(self) -> str:
        """The version that answers an application now; empty where none does."""
        if "digits" not in self.inference.models():
            return ""
        answer = await self.inference.infer("digits", {"x": SURE})
        assert np.argmax(answer.outputs["scores"]) == 0
        return str(answer.parameters["edgekit_version"])

    def files(self) -> set[str]:
        """Every file of slots and downloads."""
        root = self.folder / "state"
        inside = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return {name for name in inside if name.startswith(("models/", "incoming/"))}

    def check_rest(self) -> None:
        """Journal and pointer agree, what they name is whole to the last byte, and nothing else takes space."""
        slots, state = Slots(self.disk, "digits"), self.state
        pointer = slots.pointer()
        assert state.active is not None
        assert state.active == state.known_good
        assert pointer.active == pointer.known_good == state.active.slot
        manifest = slots.manifest(pointer.active, state.active.digest)
        for entry in manifest.files:
            verify_file(self.disk, f"{slots.folder(pointer.active)}/{entry.path}", entry)
        whole = {f"models/digits/{slot}/{name}" for slot in "ab" for name in FILES}
        assert self.files() <= {*whole, "models/digits/active"}

"""Writes the seed inputs of fuzzing: `python -m tests.fuzz.seeds`."""

from __future__ import annotations

import msgspec
from securesystemslib.signer import CryptoSigner

from device_agents.deployment import UpdateRecord, UpdateState
from device_agents.storage.journal import Journal
from device_agents.storage.slots import Pointer
from edgekit.bundle.manifest import Encryption, WrappedKey, file_entry
from edgekit.mqtt import messages, topics
from edgekit.storage.disk import MemoryDisk
from edgekit.transfer.blocks import BlockMap
from edgekit.trust.assignment import Assignment, Entry, sign_assignment
from edgekit.trust.envelopes import seal
from tests.fuzz.targets import CORPORA
from tests.machines.explorer import INSTALLED_OLD, NEW
from tests.simulators.bundles import manifest_of


def seeds() -> dict[str, list[bytes]]:
    """Valid inputs, by target."""
    signer = CryptoSigner.generate_ed25519()
    entry = Entry("models/digits/pi/1.0.0/manifest.json", 10, "0" * 64, "digits", "pi", "1.0.0", 1, True)
    reported = messages.Reported(
        "d1", "f", 1, 1.0, 1, {"digits": messages.Running()}, {"digits": messages.Outcome("0", "1.0.0", "failed")}
    )
    disk = MemoryDisk()
    journal = Journal(disk)
    journal.begin_session("boot")
    journal.save(
        "digits",
        UpdateRecord(name=UpdateState.DOWNLOADING, deployment=NEW, known_good=INSTALLED_OLD, active=INSTALLED_OLD),
    )
    wrapped = WrappedKey("cameras", "0" * 64, "1" * 64, "2" * 96)
    files = tuple(file_entry(path, role, bytes(70_000)) for path, role in (("m", "model"), ("g", "golden")))
    sealed = msgspec.structs.replace(manifest_of(), files=files, encryption=Encryption((wrapped,)))
    block_map = BlockMap(10 * 65536 + 1)
    block_map.mark(3)
    return {
        "manifest": [manifest_of().canonical_bytes(), sealed.canonical_bytes()],
        "assignment": [sign_assignment(Assignment("d1", "f", 3, 2e9, {"digits": entry}), signer)],
        "frame": [
            messages.encode(messages.Answer("id", 3, 5, b"block")),
            messages.encode(messages.BlocksRequest("id", "0" * 64, (messages.Range(1, 4),), 4)),
            messages.encode(messages.Telemetry("d1", 1.0, 60.0, {"digits.local": 3.0})),
        ],
        "report": [seal(reported, signer), seal(messages.Command("d1", "f", 1, 2e9, "self-test"), signer)],
        "topic": [topics.device("f", "d1", "reported").encode(), topics.request("f", "blocks", "d1").encode()],
        "journal": [
            disk.read("journal/device.json"),
            disk.read("journal/models/digits.json"),
            msgspec.json.encode(Pointer("a", "b")),
        ],
        "block_map": [block_map.to_bytes()],
        "settings": [
            b'device = "pi-1"\nfleet = "f"\ntarget = "raspberry-pi-4"\nthreads = 2\nquiet_hours = "08:00-18:30"\n'
        ],
    }


def main() -> None:
    """Write all seeds."""
    for name, inputs in seeds().items():
        folder = CORPORA / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    main()

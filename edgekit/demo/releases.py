"""The demo's releases after 1.0.0: damaged weights, an update by delta, and changed files in the registry's store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_MODEL, Manifest, parse_manifest
from edgekit.demo.claims import expect
from edgekit.demo.damage import flip_blocks
from edgekit.demo.fleet import DEVICES, MODEL, PI, Fleet
from edgekit.demo.processes import Processes

TARGETS = tuple(sorted(set(DEVICES.values())))


class Releases:
    """Publishes and rolls out the releases 1.1.0 to 1.4.0.

    Args:
        folder: Folder of the demo, with the bundles of 1.0.0 and the registry.
        processes: Runs the commands.
        fleet: The devices; all run 1.0.0.
    """

    def __init__(self, folder: Path, processes: Processes, fleet: Fleet) -> None:
        self._folder, self._processes, self._fleet = folder, processes, fleet

    def prepare(self) -> None:
        """Make the bundles of 1.1.0 (damaged) and 1.2.0 (retrained), which need no server."""
        for target in TARGETS:
            self._run(
                f"python -m edgekit.demo.damage break {_bundle('1.0.0', target)} {_bundle('1.1.0', target)} 1.1.0"
            )
        options = f"--name {MODEL} --version 1.2.0 --target {PI} --recipe float32 --data model/data.npz -o bundles"
        self._run(f"edgekit convert model/digits-next.keras {options}")

    def broken(self) -> str:
        """Roll out 1.1.0 with damaged weights. Returns the reason of the pause and the refusal of a device."""
        self._run(f"edgekit registry publish {' '.join(_bundle('1.1.0', target) for target in TARGETS)}")
        self._run(f"edgekit rollout start {MODEL} 1.1.0 --wait", expect=3)
        state = self._fleet.rollout("1.1.0")
        expect(state["state"] == "PAUSED", f"the rollout of 1.1.0 is paused, found {state['state']}")
        outcome = self._fleet.refusal("1.1.0", "SelfTestError")
        self._fleet.expect_version("1.0.0")
        self._run(f"edgekit rollout abort {state['id']}")
        return f"paused: {state['reason']}; {outcome}"

    def retrained(self) -> None:
        """Roll out 1.2.0 to the devices of one target: a retrained model with float32 weights."""
        self._publish("1.2.0")
        self._run(f"edgekit rollout start {MODEL} 1.2.0 --waves 100% --wait")
        self._fleet.expect_version("1.2.0", PI)

    def by_delta(self) -> str:
        """Roll out 1.3.0 by its delta alone: every block of its whole file is damaged in the store.

        A device refuses each block of the damaged file. So a device that runs 1.3.0 made every missing block from the
        delta. Publishing the bundle again repairs the store.
        """
        self._nudge("1.2.0", "1.3.0")
        self._publish("1.3.0")
        delta = self._delta("1.2.0", "1.3.0")
        whole = self._manifest("1.3.0").file(ROLE_MODEL)
        flip_blocks(self._blob(whole.sha256))
        self._run(f"edgekit rollout start {MODEL} 1.3.0 --waves 100% --wait")
        self._fleet.expect_version("1.3.0", PI)
        self._publish("1.3.0")
        size = delta["size"] + delta["length"]
        return f"made from a delta of {size:,} bytes, without the file of {whole.size:,} bytes"

    def tampered(self) -> str:
        """Damage every file in the store from which devices could get 1.4.0, and roll it out. Returns the refusal."""
        self._nudge("1.3.0", "1.4.0")
        before = self._blobs()
        self._publish("1.4.0")
        manifest = self._manifest("1.4.0")
        genuine = {manifest.digest, *(entry.sha256 for entry in manifest.files if entry.role != ROLE_MODEL)}
        sources = {path for path in self._blobs() - before if path.name not in genuine}
        model, delta = manifest.file(ROLE_MODEL), self._delta("1.3.0", "1.4.0")
        named = {self._blob(model.sha256), self._blob(delta["description"])}
        expect(named < sources, "the model's file, the delta's description and its payload are among the changed files")
        for path in sources:
            flip_blocks(path)
        self._run(f"edgekit rollout start {MODEL} 1.4.0 --wait", expect=3)
        outcome = self._fleet.refusal("1.4.0", "DigestMismatchError")
        expect("expected sha256" in outcome and "found" in outcome, f"the refusal names both digests, found: {outcome}")
        self._fleet.expect_version("1.3.0", PI)
        return outcome

    def _run(self, command: str, *, expect: int = 0) -> str:
        return self._processes.run(command, expect=expect)

    def _publish(self, version: str) -> None:
        self._run(f"edgekit registry publish {_bundle(version)}")

    def _nudge(self, base: str, version: str) -> None:
        self._run(f"python -m edgekit.demo.damage nudge {_bundle(base)} {_bundle(version)} {version}")

    def _manifest(self, version: str) -> Manifest:
        return parse_manifest((self._folder / _bundle(version) / MANIFEST_NAME).read_bytes())

    def _delta(self, base: str, version: str) -> dict[str, Any]:
        """The delta between two versions, from the catalogue."""
        rows = json.loads(self._run("edgekit registry list --json"))
        offers = next(row["deltas"] for row in rows if (row["version"], row["target"]) == (version, PI))
        digest = self._manifest(base).file(ROLE_MODEL).sha256
        deltas = [dict(offer) for offer in offers if offer["base"] == digest]
        expect(bool(deltas), f"the registry offers a delta from {base} to {version}")
        return deltas[0]

    def _blobs(self) -> set[Path]:
        return {path for path in (self._folder / "registry" / "blobs").rglob("*") if path.is_file()}

    def _blob(self, digest: str) -> Path:
        return self._folder / "registry" / "blobs" / "sha256" / digest[:2] / digest


def _bundle(version: str, target: str = PI) -> str:
    return f"bundles/{MODEL}-{version}-{target}"

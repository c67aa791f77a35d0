"""The seven steps of the demo. Every action is a command of edgekit; every claim is checked."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgekit
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_MODEL, parse_manifest
from edgekit.cli.console import note, print_table, step
from edgekit.demo.damage import flip_byte
from edgekit.demo.measure import Endpoint, Figures, load_rows, measure, stream
from edgekit.demo.processes import Processes
from edgekit.errors import EdgekitError, NotFoundError

FLEET = "demo"
MODEL, CLOUD_MODEL = "digits", "digits-cloud"
DEVICES = {"pi-1": "raspberry-pi-4", "pi-2": "raspberry-pi-4", "jetson-1": "jetson-orin"}
THRESHOLD = 0.9
RESUME_SECONDS = 60.0


class DemoError(EdgekitError):
    """Something that the demo claims did not hold."""


class Journey:
    """One run of the demo in `folder`, with its servers in `processes`."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._folder = folder
        self._processes = processes
        self._urls: dict[str, str] = {}
        self._cloud_port = _free_port()

    def run(self) -> None:
        """All steps in order.

        Raises:
            DemoError: a claim did not hold.
            EdgekitError: a command failed.
        """
        with step("1  train digits and the larger cloud model"):
            self._train()
        with step("2  convert for raspberry-pi-4 (LiteRT), jetson-orin (ONNX) and the cloud tier"):
            self._convert()
        self._print_candidates()
        with step("3  create the registry, publish, start broker, controller, cloud tier and three agents"):
            self._publish()
            self._start_servers()
        with step("4  roll out 1.0.0"):
            self._run(f"edgekit rollout start {MODEL} 1.0.0 --waves 34%,100% --wait")
            self._expect_versions("1.0.0")
        with step("5  ask every device for the held-out digits, local only and with fallback"):
            figures = self._measure()
        self._print_devices(figures)
        self._expect_gain(figures)
        with step("6  stop the cloud tier mid-way, start it again"):
            routes = self._lose_cloud()
        note(f"   answers: {routes} and cloud again after its return; none lost")
        with step("7a roll out 1.1.0, signed but with damaged weights"):
            refused = self._roll_out_broken()
        note(f"   {refused}")
        with step("7b every device still answers with 1.0.0"):
            figures = self._measure()
        self._print_devices(figures)
        with step("7c publish 1.2.0 and tamper with one of its blobs in the store"):
            refused = self._roll_out_tampered()
        note(f"   {refused}")

    def hints(self) -> list[str]:
        """Commands and addresses to try while the servers run."""
        url = self._urls["pi-1"]
        return [
            f"cd {self._folder}",
            "less logs/commands.log   # every command that ran, with its output",
            "edgekit device list",
            "edgekit rollout list",
            "edgekit device command pi-1 self-test --wait",
            f"curl -s {url}/v2/models/{MODEL}",
            f"curl -s {url}/metrics",
            f"curl -s http://127.0.0.1:{self._cloud_port}/v2",
            "edgekit registry verify",
            f"edgekit demo --stop {self._folder}",
        ]

    # --- the steps

    def _run(self, command: str, *, expect: int = 0) -> str:
        return self._processes.run(command, expect=expect)

    def _train(self) -> None:
        script = Path(edgekit.__file__).parent.parent / "examples" / "digits.py"
        if not script.exists():
            advice = "The demo runs from a clone of the project: `make demo`."
            raise NotFoundError(f"{script} is not there", advice=advice)
        self._run(f"python {shlex.quote(str(script))} -o model --next")
        models = json.loads((self._folder / "model" / "summary.json").read_text())["models"]
        small, large = models[MODEL]["accuracy"], models[CLOUD_MODEL]["accuracy"]
        _expect(large > small, f"the cloud model is better on held-out data: {large:.3f} against {small:.3f}")

    def _convert(self) -> None:
        data = "--data model/data.npz --test model/test.npz --version 1.0.0 -o bundles"
        targets = "--target raspberry-pi-4 --target jetson-orin"
        self._run(f"edgekit convert model/digits.keras --name {MODEL} {targets} {data}")
        self._run(f"edgekit convert model/digits-cloud.keras --name {CLOUD_MODEL} --target server {data}")

    def _publish(self) -> None:
        self._write_settings("")
        self._run("edgekit registry init")
        for bundle in sorted((self._folder / "bundles").iterdir()):
            self._run(f"edgekit registry publish bundles/{bundle.name}")

    def _start_servers(self) -> None:
        line = self._processes.start("broker", "edgekit broker run --port 0 --folder broker", ready=" ready at mqtt://")
        _write_private(self._folder / "cloud.key", secrets.token_urlsafe(24))
        self._write_settings(
            f'broker = "{line.split()[-1]}"\ncloud_port = {self._cloud_port}\ncloud_api_key_file = "cloud.key"\n'
        )
        self._processes.start("controller", "edgekit controller run", ready=" ready")
        self._start_cloud()
        cloud = f"--cloud-url http://127.0.0.1:{self._cloud_port} --cloud-model {CLOUD_MODEL}"
        limits = f"--cloud-api-key-file cloud.key --threshold {THRESHOLD}"
        for device, target in DEVICES.items():
            place = f"-o devices/{device} --http 127.0.0.1:0"
            self._run(f"edgekit device enroll {device} --target {target} {place} {cloud} {limits}")
            command = f"edgekit-agent run --config devices/{device}/agent.toml"
            line = self._processes.start(device, command, ready=" ready at http://")
            self._urls[device] = re.findall(r"http://\S+", line)[0]

    def _start_cloud(self) -> None:
        self._processes.start("cloud", f"edgekit cloud serve {CLOUD_MODEL}", ready=" ready at http://")

    def _write_settings(self, more: str) -> None:
        (self._folder / "edgekit.toml").write_text(f'fleet = "{FLEET}"\n{more}')

    def _measure(self) -> dict[str, Figures]:
        x, y = load_rows(self._folder / "model" / "test.npz")
        figures = {device: measure(Endpoint(url, MODEL), x, y) for device, url in self._urls.items()}
        for device, found in figures.items():
            _expect(found.version == "1.0.0", f"{device} answers with 1.0.0, found {found.version}")
        return figures

    def _lose_cloud(self) -> dict[str, int]:
        x, _ = load_rows(self._folder / "model" / "test.npz")
        endpoint = Endpoint(self._urls["pi-1"], MODEL)
        routes = stream(endpoint, x, at=len(x) // 2, action=lambda: self._processes.stop("cloud"))
        _expect(sum(routes.values()) == len(x), f"all {len(x)} answers came, found {sum(routes.values())}")
        _expect(routes["cloud"] > 0, "the cloud tier answered before it was stopped")
        _expect(routes["degraded"] > 0, "unsure answers were marked degraded while the cloud tier was away")
        self._start_cloud()
        unsure = next(row for row in x if endpoint.ask(row, route="auto").route != "local")
        deadline = time.monotonic() + RESUME_SECONDS
        while endpoint.ask(unsure).route != "cloud":
            _expect(
                time.monotonic() < deadline,
                f"fallback resumed within {RESUME_SECONDS:.0f} s of the cloud tier's return",
            )
            time.sleep(0.2)
        return dict(routes)

    def _roll_out_broken(self) -> str:
        for target in sorted(set(DEVICES.values())):
            bundle = self._folder / "bundles" / f"{MODEL}-1.1.0-{target}"
            self._run(f"python -m edgekit.demo.damage bundles/{MODEL}-1.0.0-{target} bundles/{bundle.name} 1.1.0")
            self._run(f"edgekit registry publish bundles/{bundle.name}")
        self._run(f"edgekit rollout start {MODEL} 1.1.0 --wait", expect=3)
        state = self._rollout("1.1.0")
        _expect(state["state"] == "PAUSED", f"the rollout of 1.1.0 is paused, found {state['state']}")
        outcome = self._refusal("1.1.0", "SelfTestError")
        self._expect_versions("1.0.0")
        self._run(f"edgekit rollout abort {state['id']}")
        return f"paused: {state['reason']}; {outcome}"

    def _roll_out_tampered(self) -> str:
        options = (
            f"--name {MODEL} --version 1.2.0 --target raspberry-pi-4 --recipe float16 --data model/data.npz -o bundles"
        )
        self._run(f"edgekit convert model/digits-next.keras {options}")
        bundle = self._folder / "bundles" / f"{MODEL}-1.2.0-raspberry-pi-4"
        self._run(f"edgekit registry publish bundles/{bundle.name}")
        digest = parse_manifest((bundle / MANIFEST_NAME).read_bytes()).file(ROLE_MODEL).sha256
        flip_byte(self._folder / "registry" / "blobs" / "sha256" / digest[:2] / digest)
        self._run(f"edgekit rollout start {MODEL} 1.2.0 --wait", expect=3)
        outcome = self._refusal("1.2.0", "DigestMismatchError")
        _expect(
            "expected sha256" in outcome and "found" in outcome, f"the refusal names both digests, found: {outcome}"
        )
        self._expect_versions("1.0.0")
        return outcome

    # --- looking at the fleet

    def _devices(self) -> list[dict[str, Any]]:
        devices: list[dict[str, Any]] = json.loads(self._run("edgekit device list --json"))
        return devices

    def _rollout(self, version: str) -> dict[str, Any]:
        rollouts = json.loads(self._run("edgekit rollout list --json"))
        return next(dict(row) for row in rollouts if row["model"] == MODEL and row["version"] == version)

    def _expect_versions(self, version: str) -> None:
        for row in self._devices():
            found = row["models"][MODEL]["version"]
            _expect(found == version, f"{row['device']} reports {version}, found {found}")

    def _refusal(self, version: str, error: str) -> str:
        refused = [
            (row["device"], row["outcomes"][MODEL])
            for row in self._devices()
            if row["outcomes"].get(MODEL, {}).get("version") == version and row["outcomes"][MODEL]["error"] == error
        ]
        _expect(bool(refused), f"a device refused {version} with {error}")
        device, outcome = refused[0]
        return f"{device} refused {version}: {outcome['message']}"

    def _expect_gain(self, figures: dict[str, Figures]) -> None:
        for device, found in figures.items():
            _expect(
                0 < found.cloud_share < 1,
                f"{device} sends some of its answers to the cloud, found {found.cloud_share:.1%}",
            )
        local = np.mean([found.local_accuracy for found in figures.values()])
        helped = np.mean([found.fallback_accuracy for found in figures.values()])
        _expect(helped > local, f"fallback ({helped:.3f}) is better than local only ({local:.3f})")

    # --- tables

    def _print_candidates(self) -> None:
        rows = []
        for bundle in sorted((self._folder / "bundles").iterdir()):
            report = json.loads((bundle / "report.json").read_text())
            parity = {entry.get("candidate"): entry for entry in report["parity"]}
            for candidate in report["candidates"]:
                seen = parity.get(candidate["id"], {})
                mark = "chosen" if candidate["id"] == report["chosen"] else ""
                quality = candidate["quality"]["value"] if candidate["quality"] else float("nan")
                rows.append(
                    [
                        bundle.name,
                        candidate["id"],
                        candidate["bytes"],
                        f"{quality:.4f}",
                        f"{seen.get('max_abs', float('nan')):.1e}",
                        mark,
                    ]
                )
        print_table(["bundle", "candidate", "bytes", "quality", "parity", ""], rows)

    def _print_devices(self, figures: dict[str, Figures]) -> None:
        providers = {row["device"]: row["models"][MODEL]["provider"] for row in self._devices()}
        print_table(
            ["device", "model", "digest", "runtime", "local only", "with fallback", "to cloud", "p50 ms", "p95 ms"],
            [
                [
                    device,
                    f"{MODEL} {f.version}",
                    f.digest[:12],
                    providers[device],
                    f"{f.local_accuracy:.1%}",
                    f"{f.fallback_accuracy:.1%}",
                    f"{f.cloud_share:.1%}",
                    f"{f.p50_ms:.1f}",
                    f"{f.p95_ms:.1f}",
                ]
                for device, f in figures.items()
            ],
        )


def _expect(holds: bool, claim: str) -> None:
    if not holds:
        raise DemoError(f"the demo's claim does not hold: {claim}")


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

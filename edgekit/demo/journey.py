"""The steps of the demo. Each action is a command of edgekit, and each claim is checked."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from edgekit.demo.answers import Answers
from edgekit.demo.claims import DemoError, expect
from edgekit.demo.fleet import CLOUD_MODEL, DEVICES, FLEET, JETSON, MODEL, PI, Fleet
from edgekit.demo.measure import Endpoint, Figures, load_rows, measure, stream
from edgekit.demo.printer import Printer
from edgekit.demo.processes import Processes
from edgekit.demo.releases import Releases
from edgekit.demo.thresholds import choose_threshold, outlook, shortcomings
from edgekit.demo.training import Training

TRAININGS = 4
RESUME_SECONDS = 120.0  # an agent retries a missing cloud tier after at most 30 s


class Journey:
    """One run of the demo.

    Args:
        folder: Folder of all files of the demo.
        processes: Runs the commands and the servers in that folder.
        printer: Prints progress and results.
        seed: Seed of the order and noise of the data, and of the training.
        cache: Folder of results for later runs; None trains and converts anew.
    """

    def __init__(
        self, folder: Path, processes: Processes, printer: Printer, *, seed: int, cache: Path | None = None
    ) -> None:
        self._folder, self._processes, self._printer, self._seed = folder, processes, printer, seed
        self._fleet = Fleet(processes)
        self._training = Training(folder, processes, cache / "models" if cache else None)
        self._uncached = "" if cache else " --no-cache"
        self._releases = Releases(folder, processes, self._fleet)
        self._thresholds: dict[str, float] = {}
        self._urls: dict[str, str] = {}
        self._cloud_port = _free_port()

    def run(self) -> None:
        """Run all steps in order.

        Raises:
            DemoError: a claim does not hold.
            EdgekitError: a command failed.
        """
        pool = ThreadPoolExecutor(thread_name_prefix="demo")
        try:
            self._steps(pool)
        except BaseException:
            self._processes.stop_all()  # what runs in the background ends too, so that the pool can
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _steps(self, pool: ThreadPoolExecutor) -> None:
        step, note = self._printer.step, self._printer.note
        control = pool.submit(self._start_control)  # needs no model
        self._make_models(pool)
        self._print_candidates()
        with step("3  create the registry, publish, start broker, controller, cloud tier and three agents"):
            control.result()
            self._publish()
            self._start_servers(pool)
        later = pool.submit(self._releases.prepare)
        with step("4  roll out 1.0.0"):
            self._run(f"edgekit rollout start {MODEL} 1.0.0 --waves 34%,100% --wait")
            self._fleet.expect_version("1.0.0")
        with step("5  send the test digits to every device, local only and with fallback"):
            figures = self._measure()
        self._print_devices(figures)
        self._expect_gain(figures)
        with step("6  stop the cloud tier during the requests, and start it again"):
            routes = self._lose_cloud(figures["pi-1"].unsure)
        note(f"   answers by route: {routes}; cloud again after the restart; no answer lost")
        with step("7  prepare the next releases, which began behind step 4"):
            later.result()
        with step("7a roll out 1.1.0, signed but with damaged weights"):
            refused = self._releases.broken()
        note(f"   {refused}")
        with step("7b every device still answers with 1.0.0"):
            figures = self._measure()
        self._print_devices(figures)
        with step("7c roll out 1.2.0, then 1.3.0 with its whole file damaged in the store and its delta intact"):
            self._releases.retrained()
            made = self._releases.by_delta()
        note(f"   1.3.0: {made}")
        with step("7d publish 1.4.0 and tamper with every file in the store from which devices could get it"):
            refused = self._releases.tampered()
        note(f"   {refused}")

    def hints(self) -> list[str]:
        """Commands and addresses to try while the servers run."""
        url = self._urls["pi-1"]
        return [
            f"cd {self._folder}",
            "less logs/commands.log   # every command of the demo, with its output",
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

    def _make_models(self, pool: ThreadPoolExecutor) -> None:
        """Train and convert; repeat with the next seed if the models cannot show the demo's claims.

        The same seed gives different models on different machines. This check needs no server, and all later steps hold
        with every pair of models that passes it. The demo prints each seed that it skips.
        """
        faults: list[str] = []
        for seed in range(self._seed, self._seed + TRAININGS):
            with self._printer.step(f"1  train digits and the larger cloud model, seed {seed}"):
                kept = self._training.make(seed)
            if kept:
                self._printer.note("   an earlier run has trained them; --no-cache trains them again")
            with self._printer.step("2  convert for raspberry-pi-4 (LiteRT), jetson-orin (ONNX) and the cloud tier"):
                self._convert(pool)
                faults = self._choose_thresholds()
            if not faults:
                return
            self._printer.note(f"   seed {seed} is skipped: {'; '.join(faults)}")
        raise DemoError(f"{TRAININGS} trainings gave no models that show the demo's claims: {'; '.join(faults)}")

    def _convert(self, pool: ThreadPoolExecutor) -> None:
        shutil.rmtree(self._folder / "bundles", ignore_errors=True)  # bundles of a skipped seed
        data = f"--data model/data.npz --test model/test.npz --version 1.0.0 -o bundles{self._uncached}"
        targets = f"--target {PI} --target {JETSON}"
        cloud = f"edgekit convert model/digits-cloud.keras --name {CLOUD_MODEL} --target server --prune none {data}"
        larger = pool.submit(self._run, cloud)
        self._run(f"edgekit convert model/digits.keras --name {MODEL} {targets} {data}")
        larger.result()

    def _choose_thresholds(self) -> list[str]:
        """Choose the threshold of each target on data.npz. Returns the shortcomings of the models on test.npz."""
        printed = self._run("python -m edgekit.demo.answers bundles model")
        answers = msgspec.json.decode(printed, type=dict[str, dict[str, Answers]])
        _, labels = load_rows(self._folder / "model" / "test.npz")
        cloud = answers[f"{CLOUD_MODEL}-1.0.0-server"]["test"]
        outlooks = {}
        for target in (PI, JETSON):
            ours = answers[f"{MODEL}-1.0.0-{target}"]
            try:
                self._thresholds[target] = choose_threshold(np.array(ours["data"].scores))
            except ValueError as error:
                return [f"{target}: {error}"]
            outlooks[target] = outlook(ours["test"], cloud, labels, self._thresholds[target])
        return shortcomings(outlooks)

    def _start_control(self) -> None:
        """Create the registry, and start broker and controller."""
        self._write_settings("")
        self._run("edgekit registry init")
        line = self._processes.start("broker", "edgekit broker run --port 0 --folder broker", ready=" ready at mqtt://")
        _write_private(self._folder / "cloud.key", secrets.token_urlsafe(24))
        self._write_settings(
            f'broker = "{line.split()[-1]}"\ncloud_port = {self._cloud_port}\ncloud_api_key_file = "cloud.key"\n'
        )
        self._processes.start("controller", "edgekit controller run", ready=" ready")

    def _publish(self) -> None:
        bundles = sorted(f"bundles/{bundle.name}" for bundle in (self._folder / "bundles").iterdir())
        self._run(f"edgekit registry publish {' '.join(bundles)}")

    def _start_servers(self, pool: ThreadPoolExecutor) -> None:
        """Start the cloud tier, and each agent as soon as it is enrolled."""
        starting: list[Future[None]] = [pool.submit(self._start_cloud)]
        cloud = f"--cloud-url http://127.0.0.1:{self._cloud_port} --cloud-model {CLOUD_MODEL}"
        for device, target in DEVICES.items():
            output = f"-o devices/{device} --http 127.0.0.1:0"
            fallback = f"--cloud-api-key-file cloud.key --threshold {self._thresholds[target]!r}"
            self._run(f"edgekit device enroll {device} --target {target} {output} {cloud} {fallback}")
            starting.append(pool.submit(self._start_agent, device))
        for one in starting:
            one.result()

    def _start_agent(self, device: str) -> None:
        command = f"edgekit-agent run --config devices/{device}/agent.toml"
        line = self._processes.start(device, command, ready=" ready at http://")
        self._urls[device] = re.findall(r"http://\S+", line)[0]

    def _start_cloud(self) -> None:
        self._processes.start("cloud", f"edgekit cloud serve {CLOUD_MODEL}", ready=" ready at http://")

    def _write_settings(self, more: str) -> None:
        (self._folder / "edgekit.toml").write_text(f'fleet = "{FLEET}"\n{more}')

    def _measure(self) -> dict[str, Figures]:
        x, y = load_rows(self._folder / "model" / "test.npz")
        figures = {device: measure(Endpoint(self._urls[device], MODEL), x, y) for device in DEVICES}
        for device, found in figures.items():
            expect(found.version == "1.0.0", f"{device} answers with 1.0.0, found {found.version}")
        return figures

    def _lose_cloud(self, unsure: tuple[int, ...]) -> dict[str, int]:
        """Stop the cloud tier between two rows with a low score on pi-1. Returns the number of answers by route.

        Args:
            unsure: Indexes of the rows that went to the cloud tier in step 5, ascending.
        """
        x, _ = load_rows(self._folder / "model" / "test.npz")
        endpoint = Endpoint(self._urls["pi-1"], MODEL)
        at = unsure[len(unsure) // 2]
        before, after = stream(endpoint, x, at=at, action=lambda: self._processes.stop("cloud"))
        routes = before + after
        expect(sum(routes.values()) == len(x), f"all {len(x)} requests got an answer, found {sum(routes.values())}")
        expect(before["cloud"] > 0, "the cloud tier answered before it was stopped")
        expect(after["cloud"] == 0, "no answer came from the cloud tier after it was stopped")
        expect(after["degraded"] > 0, "answers with a low score were marked degraded after the cloud tier was stopped")
        self._start_cloud()
        deadline = time.monotonic() + RESUME_SECONDS
        while endpoint.ask(x[at]).route != "cloud":
            claim = f"fallback resumed within {RESUME_SECONDS:.0f} s of the restart of the cloud tier"
            expect(time.monotonic() < deadline, claim)
            time.sleep(0.2)
        return dict(routes)

    def _expect_gain(self, figures: dict[str, Figures]) -> None:
        for device, found in figures.items():
            claim = f"{device} sends some of its rows to the cloud, and not all: found {found.cloud_share:.1%}"
            expect(1 < len(found.unsure) < found.n, claim)
        local = np.mean([found.local_accuracy for found in figures.values()])
        helped = np.mean([found.fallback_accuracy for found in figures.values()])
        expect(helped > local, f"fallback ({helped:.3f}) is better than local only ({local:.3f})")

    # --- tables

    def _print_candidates(self) -> None:
        rows = []
        for bundle in sorted((self._folder / "bundles").iterdir()):
            report = json.loads((bundle / "report.json").read_text())
            parity = {entry.get("candidate"): entry for entry in report["parity"]}
            for candidate in report["candidates"]:
                measured = parity.get(candidate["id"], {})
                mark = "chosen" if candidate["id"] == report["chosen"] else ""
                quality = candidate["quality"]["value"] if candidate["quality"] else float("nan")
                rows.append(
                    [
                        bundle.name,
                        candidate["id"],
                        candidate["bytes"],
                        f"{quality:.4f}",
                        f"{measured.get('max_abs', float('nan')):.1e}",
                        mark,
                    ]
                )
        self._printer.print_table(["bundle", "candidate", "bytes", "quality", "parity", ""], rows)

    def _print_devices(self, figures: dict[str, Figures]) -> None:
        providers = {row["device"]: row["models"][MODEL]["provider"] for row in self._fleet.devices()}
        self._printer.print_table(
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


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""CPU time of the controller's pages and lists for a fleet of 3,000 devices, compared with a fleet of 3.

The real web application runs over a real database in this process. The CPU time is that of a whole request with the
client's small share; the least of ROUNDS requests counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.results import Figure, publish
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import web_fleet

SMALL, LARGE = 3, 3000
ROUNDS = 20
REACH = 3.0  # times the same for the small fleet
PATHS = (
    "/",
    "/devices",
    "/devices?filter=version(digits)%20==%201.0.0",
    "/devices?sort=-seen",
    "/devices/pi-0001",
    "/rollouts",
    "/rollouts/1",
    "/rollouts/new?step=4&model=digits&version=1.1.0",
    "/alarms",
    "/audit",
    "/releases",
    "/metrics",
    "/api/v1/fleet",
    "/api/v1/devices",
    "/api/v1/rollouts",
    "/api/v1/rollouts/1",
)


def main() -> None:
    """Run the benchmark and write ``pages.json``."""
    small, large = _measure(SMALL), _measure(LARGE)
    figures = []
    for path in PATHS:
        figures.append(Figure(path, large[path] * 1e3, "ms CPU", note=f"{LARGE} devices"))
        note = f"{LARGE} devices over {SMALL}: {large[path] * 1e3:.1f} ms over {small[path] * 1e3:.1f} ms"
        figures.append(Figure(f"{path}, growth", large[path] / small[path], "times", REACH, note=note))
    publish("pages", figures)


def _measure(devices: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-pages-") as home, web_fleet(Path(home), devices) as fleet:
        client = Client(fleet.url)
        return {path: min(_request(client, path) for _ in range(ROUNDS)) for path in PATHS}


def _request(client: Client, path: str) -> float:
    begun = time.process_time()
    answer = client.get(path)
    spent = time.process_time() - begun
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}: {answer.text[:200]}")
    return spent

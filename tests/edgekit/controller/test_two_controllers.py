"""Two controllers over one PostgreSQL, as real processes: one leads, and a standby takes over when it ends.

The devices are simulated ones over a real mosquitto; a receiver on loopback gets the webhooks.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit.demo.processes import PIDS_NAME, Processes
from edgekit.rollout.values import DeviceState, RolloutState
from edgekit.state import FleetState, open_fleet_state
from tests.simulators.bundles import write_bundle
from tests.simulators.mosquitto import free_port, running_mosquitto
from tests.simulators.postgres import missing, running_postgres, stopped
from tests.simulators.receiver import receiver
from tests.simulators.shell import Shell

DEVICES = 6
PATIENCE_SECONDS = 90.0
needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing())


class Site:
    """A fleet with a broker, a database and devices; controllers are started and killed by name."""

    def __init__(self, folder: Path, shell: Shell, database: str, api: str) -> None:
        self.folder, self.shell = folder, shell
        self.processes = Processes(folder)
        self.database, self.api = database, api
        self.state: FleetState = open_fleet_state(database, "f1")

    def start(self, name: str) -> None:
        self.processes.start(name, "edgekit --verbose controller run", ready=" ready, broker ")

    def kill(self, name: str) -> None:
        os.kill(json.loads((self.folder / PIDS_NAME).read_text())[name], signal.SIGKILL)
        self.processes.stop(name)  # takes it off the list

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()

    def term(self) -> int:
        """Term of the leader that was seen lately; 0 without one."""
        return next((one.term for one in self.state.leaders.all(time.time()) if one.leads), 0)

    def succeeded(self) -> int:
        """Devices of the newest rollout that succeeded."""
        found = self.state.rollouts.all()
        return found[-1].counts()[DeviceState.SUCCEEDED.name] if found else 0

    def versions(self) -> set[str]:
        """Versions of the model that the devices run, by their last reports."""
        return {view.models["digits"].version for view in self.state.devices.views(time.time(), 90.0)}

    def serves(self) -> bool:
        """True if some controller serves the API; a standby tries every second to take the address."""
        try:
            with urllib.request.urlopen(f"http://{self.api}/metrics") as reply:
                return bool(reply.read())
        except urllib.error.URLError:
            return False

    def finished(self) -> bool:
        """True if the newest rollout has finished."""
        return self.state.rollouts.all()[-1].state is RolloutState.FINISHED

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < end, [self.log(name)[-3000:] for name in self.processes.names]
            time.sleep(0.1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with (
        running_postgres() as database,
        running_mosquitto(tmp_path, f"listener {port} 127.0.0.1\nallow_anonymous true\n", port),
    ):
        api = f"127.0.0.1:{free_port()}"
        (tmp_path / "edgekit.toml").write_text(
            f'fleet = "f1"\nbroker = "mqtt://127.0.0.1:{port}"\ndatabase = "{database}"\napi = "{api}"\n'
        )
        shell = Shell(tmp_path, monkeypatch, capfd)
        shell("edgekit registry init")
        for version in ("1.0.0", "1.1.0"):
            bundle = write_bundle(tmp_path / "bundles", "digits", version, "raspberry-pi-4", os.urandom(200_000))
            shell(f"edgekit registry publish {bundle}")
        for number in range(1, DEVICES + 1):
            shell(f"edgekit device enroll sim-{number} --target raspberry-pi-4 -o devices/sim-{number}")
            with (tmp_path / "devices" / f"sim-{number}" / "agent.toml").open("a") as file:
                file.write("probation_seconds = 1\n")
        made = Site(tmp_path, shell, database, api)
        try:
            yield made
        finally:
            made.processes.stop_all()
            made.state.close()


def begin(site: Site) -> None:
    """Start the leader, a standby and the devices."""
    site.start("one")
    site.until(lambda: site.term() == 1)
    site.start("two")
    ready = f"{DEVICES} of {DEVICES} connected"
    site.processes.start("devices", f"edgekit simulate {DEVICES}", ready=ready)


@needs_postgres
def test_a_standby_finishes_what_a_killed_leader_began(site: Site) -> None:
    """A wave goes on: every report ends true, nothing is done twice, each webhook is posted once."""
    with receiver() as hook:
        site.shell(f"edgekit controller webhook add {hook.url}")
        begin(site)
        assert {one["leads"] for one in site.shell.json("edgekit fleet status --json")["controllers"]} == {True, False}
        assert "stands by" in site.shell("edgekit fleet status")[0]
        with urllib.request.urlopen(f"http://{site.api}/metrics") as reply:
            assert b"edgekit_controller_leading 1" in reply.read()
        site.shell("edgekit rollout start digits 1.0.0 --waves 2,100%")
        site.until(lambda: 0 < site.succeeded() < DEVICES)
        site.kill("one")
        site.until(site.finished)
        assert site.term() == 2
        assert "leads fleet f1 in term 2" in site.log("two")
        assert site.versions() == {"1.0.0"}
        newest = site.state.audit.entries(limit=1, what="rollout.finished")[0].number
        site.until(lambda: f"audit-{newest}" in {headers["webhook-id"] for headers, _ in hook.got})
    site.state.audit.verify()
    changes = Counter(one.what for one in site.state.audit.entries(limit=500, what="rollout"))
    assert changes["rollout.start"] == changes["rollout.finished"] == 1
    assert set(Counter(headers["webhook-id"] for headers, _ in hook.got).values()) == {1}
    site.until(site.serves)
    with stopped(site.database), urllib.request.urlopen(f"http://{site.api}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    assert "edgekit_controller_database 0" in lines, "alerts need an answer most while the database is away"
    assert "edgekit_controller_connected 1" in lines
    assert not [line for line in lines if line.startswith("edgekit_fleet_")]


@needs_postgres
@pytest.mark.soak
def test_a_rollout_outlives_its_database_and_every_controller(site: Site) -> None:
    """The database is away for ten seconds; the standby is killed; then both controllers are started again."""
    begin(site)
    site.shell("edgekit rollout start digits 1.0.0 --waves 2,100%")
    site.until(lambda: site.succeeded() > 0)
    with stopped(site.database):
        time.sleep(10.0)
    site.until(site.finished)
    assert site.term() >= 2, "a leader that lost its lock leads in a new term"
    standby = "two" if f"term {site.term()}" in site.log("one") else "one"
    site.kill(standby)
    site.shell("edgekit rollout start digits 1.1.0 --waves 2,100%")
    site.until(lambda: site.succeeded() > 0)
    site.kill("two" if standby == "one" else "one")
    site.start("one")
    site.start("two")
    site.until(site.finished)
    assert site.versions() == {"1.1.0"}
    assert site.succeeded() == DEVICES
    site.state.audit.verify()

"""A fleet in a database with a registry, and the controller's web application over it, without devices or a broker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from edgekit.clock import SystemClock
from edgekit.controller.operations import Operations
from edgekit.controller.web import WebOptions, make_app, serve
from edgekit.mqtt.messages import Event, Outcome, Reported, Running, Telemetry, Waiting
from edgekit.registry import RegistryReader, publish
from edgekit.rollout.cohort import Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.sketches.sketch import made
from edgekit.state import FleetState, Role, open_fleet_state
from edgekit.state.tables import alarms
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from tests.simulators.control import TARGET, write_bundle

FLEET = "test"
HOSTILE = '"><script>document.title="owned"</script>{{7*7}}'
VERSIONS = ("1.0.0", "1.1.0")


class WebFleet(NamedTuple):
    """What a test needs: the address, the state, and the token of an operator of each role."""

    url: str
    state: FleetState
    operations: Operations
    tokens: dict[str, str]


@contextlib.contextmanager
def web_fleet(
    folder: Path, devices: int = 3, *, rollout: bool = True, port: int = 0, options: WebOptions | None = None
) -> Iterator[WebFleet]:
    """A fleet of `devices` devices that run 1.0.0, with a rollout of 1.1.0, served on loopback by a thread."""
    store = open_store(f"file://{folder / 'registry'}")
    repository = Repository(store, folder / "keys")
    root = repository.create()
    for version in VERSIONS:
        write_bundle(folder / version, "digits", version)
        publish(store, repository, folder / version)
    reader = RegistryReader(store, root, folder / "cache")
    reader.refresh()
    state = open_fleet_state(f"sqlite:///{folder / 'fleet.db'}", FLEET, author="ann@workstation")
    clock = SystemClock()
    fill(state, reader, devices, rollout=rollout)
    operations = Operations(state, reader, clock)
    tokens = {role.value: state.operators.add(f"the-{role.value}", role, clock.wall()) for role in Role}
    with contextlib.closing(state), served(operations, options or WebOptions(), port) as url:
        yield WebFleet(url, state, operations, tokens)


def fill(state: FleetState, reader: RegistryReader, devices: int, *, rollout: bool) -> None:
    """Enroll devices that run 1.0.0; with `rollout`, half of them have got 1.1.0."""
    now = SystemClock.wall()
    names = [f"pi-{index:04d}" for index in range(1, devices + 1)]
    old, new = (reader.resolve("digits", TARGET, version) for version in VERSIONS)
    with synchronous(state, "OFF"):
        for index, name in enumerate(names):
            site = HOSTILE if index == 0 else ("north", "south", "west")[index % 3]
            state.devices.enroll(Device(name, TARGET, f"key of {name}", {"site": site}, now - 86_400.0 * 40))
            if index != 2:
                waits = Waiting("quiet-hours", now - 900.0) if index % 11 == 4 else None
                _report(state, name, 1, Running(old.sha256, "1.0.0", now - 86_400.0, waiting=waits, provider="XNNPACK"))
        if rollout and names:
            _roll_out(state, names, old.sha256, new, now)
        if names:
            message = f"the signature of {HOSTILE} does not verify"
            event = Event(names[0], "bad-signature", now - 300.0, "digits", "SignatureError", message)
            state.devices.add_event(event, now - 300.0)
            state.devices.add_event(Event(names[0], "started", now - 600.0), now - 600.0)
            _measured(state, names[0], new.sha256[:12], now)


def _roll_out(state: FleetState, names: list[str], old: str, new, now: float) -> None:
    plan = RolloutPlan(parse_waves("10%,50%,100%"), error_threshold=1.0, device_deadline_seconds=36_000.0)
    entries = {TARGET: new.entry}
    number = state.rollouts.start("digits", "1.1.0", entries, plan=plan, now=now - 3600.0).id
    rollout = state.rollouts.survey(number, now - 3590.0)
    for moment in (now - 1800.0, now - 600.0):
        for index, name in enumerate(sorted(rollout.devices)):
            if rollout.devices[name].state.value == "TOLD":
                failed = index % 37 == 5
                outcome = Outcome(new.sha256, "1.1.0", "refused" if failed else "succeeded", "SelfTestError" if failed
                                  else "", "wrong answers" if failed else "", moment)  # fmt: skip
                running = Running(old if failed else new.sha256, "1.0.0" if failed else "1.1.0", moment)
                _report(state, name, 2, running, outcome)
        rollout = state.rollouts.survey(number, moment)


def _measured(state: FleetState, name: str, digest: str, now: float) -> None:
    """A day and a half of telemetry, with an hour without any, and a last hour that is slower than the others."""
    for hour in range(36):
        if hour == 12:
            continue
        slow = 4 if hour == 35 else 0
        routes = made(0, {0: 90 + hour % 7, 1: 10}, (0.0, 1.0), 100)
        latency = made(-3, {24 + hour % 5 + slow: 60, 30 + slow: 40}, (3.0, 4.5), 100)
        heat = made(0, {48 + hour % 9: 6}, (48.0, 49.0 + hour % 9), 6)
        sketches = {f"digits@{digest}/route": routes, f"digits@{digest}/latency": latency, "agent/temperature": heat}
        telemetry = Telemetry(name, now, 3600.0, {"digits.requests": 100.0}, sketches, 1, hour + 1)
        assert state.telemetry.add(telemetry, now - 3600.0 * (35 - hour))
    found = {"fleet": FLEET, "device": name, "model": "digits", "since": now - 7200.0, "seen": now - 3600.0}
    with state._engine.begin() as connection:
        connection.execute(alarms.insert().values(**found, kind="latency", message="answers take 9 ms, before 5 ms"))


def _report(state: FleetState, name: str, number: int, running: Running, outcome: Outcome | None = None) -> None:
    facts = {"edgekit": "0.2.0", "memory_mib": 3792, "kernel": "6.6.31", "temperature": 51.5}
    outcomes = {"digits": outcome} if outcome else {}
    report = Reported(name, FLEET, number, running.since, number, {"digits": running}, outcomes, facts)
    state.devices.save_report(report, SystemClock.wall())


@contextlib.contextmanager
def synchronous(state: FleetState, mode: str) -> Iterator[None]:
    """Write without waiting for the disk: a test needs no database that survives a power cut."""

    def set_mode(connection, record, proxy) -> None:
        connection.execute(f"PRAGMA synchronous={mode}")

    sa.event.listen(state._engine, "checkout", set_mode)
    try:
        yield
    finally:
        sa.event.remove(state._engine, "checkout", set_mode)


@contextlib.contextmanager
def served(operations: Operations, options: WebOptions, port: int = 0) -> Iterator[str]:
    """Serve the application on an event loop of a thread of its own; yields its URL."""
    ready, addresses = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        app = make_app(operations, SystemClock(), options, stop)
        async with serve(app, "127.0.0.1", port) as url:
            addresses.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(30.0)
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30.0)
        loop.close()


if __name__ == "__main__":
    import sys
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as home, web_fleet(Path(home), int(sys.argv[1]), port=int(sys.argv[2])) as fleet:
        print(fleet.url, fleet.tokens, flush=True)
        time.sleep(float(sys.argv[3]))

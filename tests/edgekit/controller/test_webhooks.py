"""Webhooks: signed by the open specification, in order, again until they are received, by one controller at a time."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
from collections.abc import Iterator

import pytest

from edgekit.clock import SystemClock
from edgekit.controller.posting import check_receiver, post
from edgekit.controller.webhooks import LEASE_SECONDS, WebhookService, retry_seconds, signed_headers
from edgekit.errors import NotFoundError, RefusedError, SettingsError, UnavailableError
from edgekit.mqtt.messages import Event
from edgekit.rollout.cohort import Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.rollout.values import Aborted, Paused
from edgekit.state import FleetState, open_fleet_state
from edgekit.trust.assignment import Entry
from tests.simulators.receiver import receiver


class SetClock(SystemClock):
    """A clock that a test sets forward."""

    ahead = 0.0

    def wall(self) -> float:
        return SystemClock.wall() + self.ahead


@pytest.fixture
def state(tmp_path) -> Iterator[FleetState]:
    opened = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f", author="ann")
    yield opened
    opened.close()


def start(state: FleetState, model: str = "m") -> int:
    entries = {"t": Entry(f"models/{model}/t/1.0.0/manifest.json", 9, "2" * 64, model, "t", "1.0.0", 1)}
    plan = RolloutPlan(parse_waves("100%"))
    return state.rollouts.start(model, "1.0.0", entries, plan=plan, now=SystemClock.wall()).id


def alarm(state: FleetState, message: str = "wrong answers", error: str = "SelfTestError") -> None:
    state.devices.add_event(Event("pi-1", "refused", 5.0, "m", error, message), SystemClock.wall())


def first_start(state: FleetState) -> int:
    """The number of the audit entry of the first start."""
    return next(one.number for one in state.audit.entries() if one.what == "rollout.start")


def kinds(server: http.server.ThreadingHTTPServer) -> list[str]:
    return [json.loads(body)["kind"] for _, body in server.got]


def service(state: FleetState, clock: SystemClock | None = None) -> WebhookService:
    return WebhookService(state=state, clock=clock or SystemClock(), post=post)


async def test_decisions_and_alarms_arrive_signed_and_once(state: FleetState) -> None:
    """Not what happened before, not every step of a rollout, and no event without an error."""
    state.devices.enroll(Device("pi-1", "t", "pem"))
    alarm(state, "before")
    with receiver() as both, receiver() as alarms:
        _, secret = state.webhooks.add(both.url, ("rollout", "alarm"), 5.0)
        state.webhooks.add(alarms.url, ("alarm",), 6.0)
        number = start(state)
        state.rollouts.survey(number, SystemClock.wall())
        state.rollouts.apply(number, Paused("visit"), SystemClock.wall())
        alarm(state)
        alarm(state, error="")
        for _ in range(2):
            await service(state).round()
        assert kinds(both) == ["rollout.start", "rollout.pause", "alarm"]
        assert kinds(alarms) == ["alarm"]
        headers, body = both.got[1]
        notice = json.loads(body)
        assert (notice["subject"], notice["who"], notice["fleet"]) == ("1", "ann", "f")
        assert notice["data"]["after"]["reason"] == "visit"
        assert json.loads(both.got[2][1])["data"]["message"] == "wrong answers"
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert headers["webhook-id"] == notice["id"]
    assert [one.pending for one in state.webhooks.all()] == [0, 0]


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("https://a.example/x", "https://a.example/x", True),
        ("https://a.example/x", "HTTPS://A.example:443/x", True),
        ("http://a.example", "http://a.example:80/", True),
        ("https://a.example/x", "https://a.example/y", False),
        ("https://a.example/x?to=1", "https://a.example/x?to=2", False),
        ("http://a.example/x", "http://a.example:8080/x", False),
    ],
)
def test_one_address_is_one_receiver(state: FleetState, url: str, other: str, same: bool) -> None:
    """A second webhook of the same address would post everything twice; removed ones do not count."""
    first, _ = state.webhooks.add(url, ("alarm",), 1.0)
    if same:
        with pytest.raises(RefusedError, match="webhook 1 posts alarm to"):
            state.webhooks.add(other, ("rollout",), 2.0)
        state.webhooks.remove(first.id, 3.0)
    assert state.webhooks.add(other, ("rollout",), 4.0)[0].url == other


async def test_a_clock_that_was_ahead_delays_no_webhook(state: FleetState) -> None:
    """The next attempt of a failed delivery is due as soon as the clock is right again, and not a month later."""
    clock = SetClock()
    with receiver(500) as server:
        state.webhooks.add(server.url, ("rollout",), 5.0)
        start(state)
        clock.ahead = 30 * 86_400.0
        await service(state, clock).round()
        clock.ahead = 0.0
        await service(state, clock).round()
        assert kinds(server) == ["rollout.start"] * 2


async def test_what_a_receiver_refuses_is_sent_again_in_order(state: FleetState) -> None:
    """After a wait that doubles; nothing later overtakes it, and the list says why it waits."""
    clock = SetClock()
    with receiver(500, 302, 204, 429) as server:
        state.webhooks.add(server.url, ("rollout",), 5.0)
        number = start(state)
        state.rollouts.apply(number, Aborted(), SystemClock.wall())
        await service(state, clock).round()
        await service(state, clock).round()
        assert kinds(server) == ["rollout.start"]
        (waiting,) = state.webhooks.all()
        refused = f"audit-{first_start(state)}: the receiver answered 500"
        assert (waiting.failures, waiting.error, waiting.pending) == (1, refused, 2)
        clock.ahead = 6.0
        await service(state, clock).round()
        assert kinds(server) == ["rollout.start"] * 2
        clock.ahead = 12.0
        await service(state, clock).round()
        assert len(server.got) == 2, "the second wait is longer"
        clock.ahead = 20.0
        await service(state, clock).round()
        assert kinds(server) == ["rollout.start"] * 3 + ["rollout.abort"]
        clock.ahead = 30.0
        await service(state, clock).round()
        assert kinds(server) == ["rollout.start"] * 3 + ["rollout.abort"] * 2
        assert len({headers["webhook-id"] for headers, _ in server.got}) == 2
    (done,) = state.webhooks.all()
    assert (done.failures, done.error, done.pending) == (0, "", 0)


async def test_an_operator_can_leave_out_what_a_receiver_always_refuses(state: FleetState) -> None:
    """The next notice is posted at once, the audit log keeps which one was left out, and no other is passed over."""
    with receiver(400) as server:
        webhook, _ = state.webhooks.add(server.url, ("rollout", "alarm"), 5.0)
        number = start(state)
        alarm(state)
        state.rollouts.apply(number, Aborted(), SystemClock.wall())
        await service(state).round()
        assert kinds(server) == ["rollout.start"]
        left_out = state.webhooks.skip(webhook.id, SystemClock.wall())
        assert left_out.kind == "rollout.start"
        await service(state).round()
        assert kinds(server) == ["rollout.start", "rollout.abort", "alarm"]
        entry = next(one for one in state.audit.entries() if one.what == "webhook.skip")
        assert entry.after == {"notice": left_out.id, "kind": "rollout.start"}
        with pytest.raises(NotFoundError, match="has got everything"):
            state.webhooks.skip(webhook.id, SystemClock.wall())
        with pytest.raises(NotFoundError, match="there is no webhook 77"):
            state.webhooks.skip(77, SystemClock.wall())


async def test_nothing_is_lost_while_no_controller_runs(state: FleetState) -> None:
    """Nor when the receiver cannot be reached; a slow or absent one delays no other."""
    clock = SetClock()
    with receiver() as here:
        state.webhooks.add("http://127.0.0.1:9/", ("rollout",), 5.0)
        state.webhooks.add(here.url, ("rollout",), 5.0)
        for index in range(60):
            state.rollouts.apply(start(state, f"m{index}"), Aborted(), SystemClock.wall())
        for _ in range(4):
            await service(state, clock).round()
        assert kinds(here) == ["rollout.start", "rollout.abort"] * 60
    away, _ = state.webhooks.all()
    assert away.failures >= 1  # a busy machine makes another attempt
    assert "cannot be reached" in away.error
    assert away.pending > 100


async def test_two_controllers_do_not_deliver_the_same(state: FleetState) -> None:
    """One takes a batch; after its death the other one takes it over."""
    clock = SetClock()
    with receiver() as server:
        state.webhooks.add(server.url, ("rollout",), 5.0)
        start(state)
        (taken,) = state.webhooks.take(clock.wall(), LEASE_SECONDS, 10)
        assert len(taken.notices) == 1
        await service(state, clock).round()
        assert server.got == []
        clock.ahead = LEASE_SECONDS + 1.0
        await service(state, clock).round()
        assert kinds(server) == ["rollout.start"]


def test_waits_double_up_to_an_hour() -> None:
    """And stay finite."""
    assert [retry_seconds(count) for count in (1, 2, 3, 9)] == [5.0, 10.0, 20.0, 1280.0]
    assert retry_seconds(10_000) == 3600.0


def test_a_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification and of its reference libraries."""
    body = b'{"test": 2432232314}'
    headers = signed_headers("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "url",
    ["ftp://a/b", "http://", "https://a b/", "http://a:x/", "http://user:pw@a/", "http://a/#f", "//a/b", "http://[/"],
)
def test_receivers_are_addresses_of_http(url: str) -> None:
    """Others are refused before anything is stored."""
    with pytest.raises(SettingsError, match="the receiver is"):
        check_receiver(url)
    assert check_receiver("https://hooks.example/a?b=c") == "https://hooks.example/a?b=c"


def test_an_address_that_does_not_answer_is_unavailable() -> None:
    """With the reason."""
    with pytest.raises(UnavailableError, match="Connection refused"):
        post("http://127.0.0.1:9/", b"{}", {})

"""The pages: every one is served, escapes what devices say, and works by forms alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urlencode

import msgspec
import pytest

from edgekit.controller.operations import RolloutRequest
from edgekit.controller.web.rendering import FOLDER
from edgekit.rollout.values import Aborted
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import HOSTILE, WebFleet, web_fleet

PAGES = (
    "/", "/part", "/devices", "/devices/pi-0001", "/rollouts", "/rollouts/1", "/rollouts/1/part", "/rollouts/new",
    "/rollouts/new?step=2&release=digits+1.1.0", "/rollouts/new?step=3&model=digits&version=1.1.0",
    "/rollouts/new?step=4&model=digits&version=1.1.0", "/releases", "/alarms", "/alarms?all=true", "/audit", "/login",
    "/docs", "/rollouts/1?state=SUCCEEDED", "/devices?filter=online&sort=-seen",
)  # fmt: skip


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_nothing_from_elsewhere(client: Client, path: str) -> None:
    """No inline script or style, no address of another server, and what a device says stays text."""
    answer = client.get(path)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for tag, attributes in Elements(answer.text).found:
        assert tag != "style"
        assert tag != "script" or attributes["src"] == "/static/edgekit.js"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("href", "src", "action", "data-live", "data-stream"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), attributes
    assert HOSTILE not in answer.text
    assert "49" not in re.findall(r"script&gt;(\S*?)<", answer.text)


def test_labels_and_messages_of_devices_are_shown_as_text(client: Client) -> None:
    """The hostile label and the hostile message are there, escaped."""
    for path in ("/devices/pi-0001", "/alarms"):
        assert "&lt;script&gt;document.title=" in client.get(path).text


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/devices?filter=label.site+=+south", 400, "^"),
        ("/devices?filter=label.site+==+sout", 200, "south"),
        ("/devices?sort=colour", 400, "sort"),
        ("/devices/pi-9999", 404, "is enrolled"),
        ("/rollouts/99", 404, "there is no rollout 99"),
        ("/rollouts/1/stream/x", 404, "no such page"),
        ("/rollouts/abc", 400, "not valid"),
        ("/nothing", 404, "no such page"),
        ("/rollouts/new?step=4&model=digits&version=9.9.9", 400, "9.9.9"),
        ("/rollouts/new?step=3&model=digits&version=1.1.0&filter=a+=", 400, "^"),
        ("/audit?before=x", 400, "not valid"),
    ],
)
def test_mistakes_are_pages_with_a_reason(client: Client, path: str, status: int, text: str) -> None:
    """With the advice and the way back."""
    answer = client.get(path)
    assert answer.status == status
    assert text in answer.text
    assert "<nav" in answer.text


def test_a_rollout_starts_in_four_steps_without_a_script(fleet: WebFleet, client: Client) -> None:
    """Each step carries the values on; a viewer sees the plan and the command; the operator's form starts it."""
    cookie = client.form("/login", {"token": fleet.tokens["operator"]}).headers["set-cookie"].partition(";")[0]
    session = Client(fleet.url, cookie=cookie)
    assert "digits 1.1.0" in session.get("/rollouts/new").text
    step2 = session.get("/rollouts/new?step=2&release=digits+1.1.0").text
    assert '<input type="hidden" name="version" value="1.1.0">' in step2
    step3 = session.get("/rollouts/new?step=3&model=digits&version=1.1.0&filter=online").text
    assert "3 devices are selected" in step3
    link = "/rollouts/new?step=4&model=digits&version=1.1.0&filter=online&waves=1,100%25"
    assert 'name="device_deadline_seconds" value="600"' in step3
    for visitor in (client, session):  # an operator sees all conditions too, before the start
        assert "edgekit rollout start digits 1.1.0 --waves 1,100% --filter online" in visitor.get(link).text
    link += "&gates=outcome+drop+<%3D+0.02,errors&soak_seconds=60&on_failure=return"
    command = "--gate &#39;outcome drop &lt;= 0.02&#39; --gate errors --soak 60 --on-failure return"
    assert command in client.get(link).text.replace("&#34;", "'")
    link += "&error_threshold=0.25&max_wait_seconds=3600&per_hour=90&ramp=2.5&window=22:00-05:00&consent=true"
    options = "--consent --error-threshold 0.25 --max-wait 3600 --per-hour 90 --ramp 2.5 --window 22:00-05:00 --soak 60"
    assert options in client.get(link).text, "the command is the same rollout"
    step4 = session.get(link).text
    assert "would reach 3 devices" in step4
    hidden = {
        attributes["name"]: attributes["value"]
        for tag, attributes in Elements(step4.partition('action="/rollouts/new"')[2]).found
        if tag == "input"
    }
    refused = session.form("/rollouts/new", hidden)
    assert refused.status == 409
    fleet.operations.steer(1, Aborted())
    started = session.form("/rollouts/new", hidden)
    assert started.status == 303
    page = session.get(started.headers["location"]).text
    assert "Rollout 2" in page
    assert "Abort rollout 2" in page
    assert "at most 90 devices an hour" in page
    plan = fleet.operations.state.rollouts.get(2).plan
    assert (plan.error_threshold, plan.per_hour, plan.ramp, plan.consent) == (0.25, 90.0, 2.5, True)
    assert "--filter &#39;online&#39;" in page
    assert "gate &#39;outcome drop &lt;= 0.02&#39;: no device has reported observations" in page


def test_an_empty_fleet_says_what_to_do(tmp_path) -> None:
    """Each page has its empty state."""
    with web_fleet(tmp_path, 0) as fleet:
        client = Client(fleet.url)
        assert "edgekit device enroll" in client.get("/").text
        assert "edgekit device enroll" in client.get("/devices").text
        assert "There is no rollout yet" in client.get("/rollouts").text
        assert "No alarm" in client.get("/alarms").text


def test_a_stream_tells_of_changes_and_of_the_end(fleet: WebFleet, client: Client) -> None:
    """A rollout that has ended says so at once; one that does not exist is 404."""
    answer = client.get("/rollouts/1/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: changed\ndata: " in answer.text
    assert answer.text.endswith("\n\n")
    assert "event: ended" in answer.text
    assert client.get("/rollouts/99/stream").status == 404


def test_the_style_has_no_address_of_another_server() -> None:
    """Nor has the script."""
    for name in ("edgekit.css", "edgekit.js"):
        text = (FOLDER / "static" / name).read_text()
        assert "http" not in text
        assert "@import" not in text


def test_an_operator_approves_retries_and_pauses_the_fleet(fleet: WebFleet, client: Client) -> None:
    """By the forms that the pages show where they are possible, and to nobody else."""
    for one in fleet.state.rollouts.active():
        fleet.operations.steer(one.id, Aborted())
    cookie = client.form("/login", {"token": fleet.tokens["operator"]}).headers["set-cookie"].partition(";")[0]
    session = Client(fleet.url, cookie=cookie)
    csrf = {"csrf": re.search(r'name="csrf" value="([^"]+)"', session.get("/").text)[1]}
    values = {
        "model": "digits",
        "version": "1.1.0",
        "waves": "100%",
        "approval": "start",
        "canaries": "name == pi-0001",
    }
    assert (
        "--canaries &#39;name == pi-0001&#39; --approval start"
        in client.get(f"/rollouts/new?step=4&{urlencode(values)}").text
    )
    address = session.form("/rollouts/new", {**values, **csrf}).headers["location"]
    number = int(address.rpartition("/")[2])
    fleet.state.rollouts.survey(number, fleet.operations.now)
    assert "Approve the next wave" in session.get(address).text
    assert "waits for an approval" in client.get(address).text
    assert "Approve the next wave" not in client.get(address).text
    assert session.form(f"{address}/approve", csrf).status == 303
    assert not fleet.state.rollouts.get(number).awaits_approval
    assert session.form("/fleet/pause", {**csrf, "reason": "store visit"}).status == 303
    assert "The fleet is paused" in client.get("/part").text
    assert "store visit" in session.get("/").text
    assert session.form("/fleet/resume", csrf).status == 303
    assert "The fleet is paused" not in client.get("/").text
    assert [one.what for one in fleet.state.audit.entries(limit=2)] == ["fleet.resume", "fleet.pause"]


def test_an_operator_takes_a_model_off_a_device_and_ends_the_asking(fleet: WebFleet, client: Client) -> None:
    """By forms that only operators see; a rollout that includes the device refuses, and says so on a page."""
    cookie = client.form("/login", {"token": fleet.tokens["operator"]}).headers["set-cookie"].partition(";")[0]
    session = Client(fleet.url, cookie=cookie)
    csrf = {"csrf": re.search(r'name="csrf" value="([^"]+)"', session.get("/").text)[1]}
    page = "/devices/pi-0002"
    assert "Take digits off pi-0002" in session.get(page).text
    assert "Take digits off" not in client.get(page).text
    for one in fleet.state.rollouts.active():
        assert session.form(f"{page}/uninstall", {**csrf, "model": "digits"}).status == 409
        fleet.operations.steer(one.id, Aborted())
    assert session.form(f"{page}/uninstall", {**csrf, "model": "digits"}).status == 303
    assert "to be removed" in session.get(page).text
    assert fleet.state.audit.entries(limit=1)[0].what == "device.uninstall"
    values = {"model": "digits", "version": "1.1.0", "waves": "100%"}
    started = fleet.operations.start(msgspec.convert({**values, "consent": True}, RolloutRequest))
    address = f"/rollouts/{started.id}"
    assert "Force rollout" in session.get(address).text
    assert "Force rollout" not in client.get(address).text
    assert session.form(f"{address}/force", csrf).status == 303
    assert not fleet.state.rollouts.get(started.id).plan.consent
    assert "Force rollout" not in session.get(address).text


def test_an_operator_ends_an_alarm_on_its_page(fleet: WebFleet, client: Client) -> None:
    """By a form that only operators see, on the page of alarms and of the device."""
    cookie = client.form("/login", {"token": fleet.tokens["operator"]}).headers["set-cookie"].partition(";")[0]
    session = Client(fleet.url, cookie=cookie)
    csrf = {"csrf": re.search(r'name="csrf" value="([^"]+)"', session.get("/").text)[1]}
    for page in ("/alarms", "/devices/pi-0001"):
        assert "End the alarm" in session.get(page).text
        assert "End the alarm" not in client.get(page).text
    address, form = "/devices/pi-0001/alarms/end", {"model": "digits", "kind": "latency", "reason": "replaced"}
    assert session.form(address, form).status == 403
    ended = session.form(address, {**csrf, **form, "here": "alarms"})
    assert (ended.status, ended.headers["location"]) == (303, "/alarms")
    assert "End the alarm" not in session.get("/alarms").text
    assert session.form(address, {**csrf, **form}).status == 404
    assert fleet.state.audit.entries(limit=1)[0].after["reason"] == "replaced"

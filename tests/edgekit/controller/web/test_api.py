"""The JSON API gives the values of the command line, checks every part of a request, and describes itself."""

from __future__ import annotations

import json
import re
import socket
import time

import msgspec
import pytest

from edgekit.controller.web.endpoint import PREFIX
from edgekit.controller.web.endpoints import ENDPOINTS
from edgekit.rollout.document import document
from edgekit.rollout.values import Aborted
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import HOSTILE, WebFleet


@pytest.fixture
def operator(fleet: WebFleet) -> Client:
    return Client(fleet.url, token=fleet.tokens["operator"])


def test_the_fleet_in_numbers(client: Client) -> None:
    """What runs where, by version."""
    found = client.get("/api/v1/fleet").json()
    assert (found["devices"], found["online"], found["never_seen"], found["alarms"]) == (3, 3, 0, 1)
    assert found["targets"] == {"raspberry-pi-4": 3}
    (model,) = found["models"]
    assert model["versions"] == [{"version": "1.1.0", "devices": 2}, {"version": "1.0.0", "devices": 1}]
    assert (model["updating"], model["waiting"], model["outcomes"]) == (0, 0, {"succeeded": 2})


def test_devices_by_filter_order_and_page(client: Client) -> None:
    """The filter's grammar, its fault with a caret, and the total beside the page."""
    found = client.get("/api/v1/devices?sort=-name&limit=2").json()
    assert [one["device"] for one in found["devices"]] == ["pi-0003", "pi-0002"]
    assert found["total"] == 3
    found = client.get("/api/v1/devices?sort=-name&limit=2&offset=2").json()
    assert [one["device"] for one in found["devices"]] == ["pi-0001"]
    found = client.get("/api/v1/devices?filter=label.site%20==%20south").json()
    assert [one["device"] for one in found["devices"]] == ["pi-0002"]
    fault = client.get("/api/v1/devices?filter=label.site%20=%20south")
    assert fault.status == 400
    assert "^" in fault.json()["error"]


def test_one_device_with_its_history(client: Client) -> None:
    """The same document as `device show --json`; names that are not enrolled are 404."""
    found = client.get("/api/v1/devices/pi-0001").json()
    assert set(found) == {"reported", "assigned", "events", "telemetry", "alarms"}
    assert found["reported"]["labels"] == {"site": HOSTILE}
    told = [one["kind"] for one in found["events"]]
    assert told == ["started", "bad-signature", "deployment-succeeded"], "the last one from its report"
    assert client.get("/api/v1/devices/pi-9999").status == 404


def test_a_rollout_is_the_document_of_the_command_line(fleet: WebFleet, client: Client) -> None:
    """With its devices, all of them or page by page, and without them in the list."""
    whole = json.loads(msgspec.json.encode(document(fleet.state.rollouts.get(1), devices=True)))
    assert client.get("/api/v1/rollouts/1").json() == {**whole, "next": ""}
    names = sorted(whole["devices"])
    first = client.get(f"/api/v1/rollouts/1?limit={len(names) - 1}").json()
    assert (list(first["devices"]), first["next"]) == (names[:-1], names[-2])
    rest = client.get(f"/api/v1/rollouts/1?after={first['next']}").json()
    assert (rest["devices"], rest["next"]) == ({names[-1]: whole["devices"][names[-1]]}, "")
    assert first["counts"] == rest["counts"] == whole["counts"]
    del whole["devices"], whole["gates"]
    assert client.get("/api/v1/rollouts").json()[-1] == whole
    assert client.get("/api/v1/rollouts/77").status == 404


def test_alarms_and_audit_page_by_page(client: Client) -> None:
    """Alarms are the events with an error; entries of the audit log go on before a number."""
    (alarm,) = client.get("/api/v1/events?alarms=true").json()
    assert (alarm["kind"], alarm["error"]) == ("bad-signature", "SignatureError")
    first = client.get("/api/v1/audit?limit=1").json()
    second = client.get(f"/api/v1/audit?limit=1&before={first[0]['number']}").json()
    assert second[0]["hash"] == first[0]["previous"]
    assert [one["what"] for one in client.get("/api/v1/audit?what=rollout.start").json()] == ["rollout.start"]


def test_the_fleet_says_which_controller_leads(fleet: WebFleet, client: Client) -> None:
    """In the API and on the page: the leader first, then those that stand by, and one that was not seen for a while."""
    leaders, now = fleet.state.leaders, time.time()
    for name, seen in (("a-1", now), ("b-2", now), ("c-3", now - 600.0)):
        leaders.seen(name, now - 900.0, seen)
    term = leaders.begin_term("b-2", now - 60.0)
    found = client.get("/api/v1/fleet").json()["controllers"]
    assert [(one["name"], one["leads"], one["running"]) for one in found] == [
        ("b-2", True, True),
        ("a-1", False, True),
        ("c-3", False, False),
    ]
    assert (found[0]["term"], found[1]["term"]) == (term, 0)
    page = client.get("/").text
    assert [page.index(word) for word in ("b-2", "leads", "a-1", "stands by", "c-3", "silent")] == sorted(
        page.index(word) for word in ("b-2", "leads", "a-1", "stands by", "c-3", "silent")
    )


def test_a_plan_starts_nothing_and_a_start_is_audited(fleet: WebFleet, operator: Client) -> None:
    """Planned, refused while another one runs, started after its end, and aborted: each by the operator's name."""
    body = {"model": "digits", "version": "1.1.0", "waves": "1,100%", "filter": "online"}
    planned = operator.post("/api/v1/rollouts/plan", body).json()
    assert (planned["devices"], list(planned["digests"])) == (3, ["raspberry-pi-4"])
    count = len(fleet.state.rollouts.documents())
    refused = operator.post("/api/v1/rollouts", body)
    assert refused.status == 409
    assert "a model has one rollout at a time" in refused.json()["error"]
    assert operator.post("/api/v1/rollouts/1/abort", {"reason": "a new one comes"}).json()["state"] == "ABORTED"
    started = operator.post("/api/v1/rollouts", body)
    assert started.status == 201
    assert (started.json()["state"], started.json()["waves"]) == ("RUNNING", ["1", "100%"])
    assert len(fleet.state.rollouts.documents()) == count + 1
    assert fleet.state.audit.entries(limit=1, what="rollout.start")[0].who == "the-operator@api"
    assert operator.post(f"/api/v1/rollouts/{started.json()['id']}/abort").status == 200


def test_standing_assignments(fleet: WebFleet, operator: Client) -> None:
    """Added, listed and removed; neither or both of version and channel are refused."""
    assert operator.post("/api/v1/standing", {"model": "digits"}).status == 400
    added = operator.post("/api/v1/standing", {"model": "digits", "version": "1.0.0", "per_hour": 10})
    assert added.status == 201
    assert operator.get("/api/v1/standing").json() == [added.json()]
    assert operator.send("DELETE", f"/api/v1/standing/{added.json()['id']}").json() == added.json()
    assert operator.send("DELETE", f"/api/v1/standing/{added.json()['id']}").status == 404


def test_labels_and_quarantine_of_a_device(fleet: WebFleet, operator: Client) -> None:
    """Set and removed by one request; a device in quarantine says why, until it is released."""
    path = "/api/v1/devices/pi-0002"
    assert operator.post(f"{path}/labels", {"labels": {"ring": "1", "site": None}}).json() == {"ring": "1"}
    assert operator.post(f"{path}/labels", {"labels": {"missing": None}}).status == 404
    assert operator.post(f"{path}/labels", {"labels": {}}).status == 400
    assert operator.post(f"{path}/labels", {"labels": {"ring": "a\0b"}}).status == 400
    held = operator.post(f"{path}/quarantine", {"reason": "smoke was seen"}).json()
    assert held["reported"]["quarantine"] == "smoke was seen"
    assert "In quarantine: smoke was seen" in operator.get("/devices/pi-0002").text
    assert operator.post(f"{path}/release").json()["reported"]["quarantine"] == ""
    found = [(one.what, one.who) for one in fleet.state.audit.entries(limit=3)]
    names = ("device.release", "device.quarantine", "device.label")
    assert found == [(name, "the-operator@api") for name in names]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "waves": "50%"}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "device_deadline_seconds": 1e300}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "min_failures": 2**63}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "typo": 1}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "9.9.9"}, 404),
        ("/rollouts/plan", {"model": "Digits", "version": "1.1.0"}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "gates": ["speed"]}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "on_failure": "explode"}, 400),
        ("/rollouts/plan", {"model": "digits", "version": "1.1.0", "filter": "label.site == nowhere"}, 404),
        ("/rollouts/1/pause", {"reason": ""}, 400),
        ("/rollouts/1/pause", {"reason": "a\0b"}, 400),
        ("/rollouts/0/pause", {}, 400),
        ("/rollouts/99999999999999999999999/pause", {}, 400),
        ("/standing", {"model": "digits", "version": "1.0.0", "per_hour": -1}, 400),
    ],
)
def test_bad_values_are_refused_with_a_reason(operator: Client, path: str, body: dict, status: int) -> None:
    """Nothing is stored."""
    answer = operator.post(f"/api/v1{path}", body)
    assert answer.status == status
    assert answer.json()["error"]


def test_bad_requests_are_refused_with_a_reason(operator: Client) -> None:
    """Other media types, bodies that are too long or no JSON, unknown and repeated parameters, other methods."""
    body = b'{"model": "digits", "version": "1.1.0"}'
    send = operator.send
    assert send("POST", "/api/v1/rollouts/plan", body, {"Content-Type": "text/plain"}).status == 400
    assert send("POST", "/api/v1/rollouts/plan", body[:-1], {"Content-Type": "application/json"}).status == 400
    assert send("POST", "/api/v1/rollouts/plan", b"[" * 60_000, {"Content-Type": "application/json"}).status == 400
    assert send("POST", "/api/v1/rollouts/plan", b" " * 70_000, {"Content-Type": "application/json"}).status == 413
    twice = send("POST", "/api/v1/rollouts/plan", b'{"model": "x", ' + body[1:], {"Content-Type": "application/json"})
    assert (twice.status, "'model' is there twice" in twice.json()["error"]) == (400, True)
    assert operator.get("/api/v1/devices?limit=1&limit=2").status == 400
    assert operator.get("/api/v1/devices?limit=0").status == 400
    assert operator.get("/api/v1/devices?colour=red").status == 400
    assert operator.get("/api/v1/devices?sort=colour").status == 400
    answer = send("DELETE", "/api/v1/devices")
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]
    nothing = {"error": "there is no GET /api/v1/nothing", "advice": "See: /docs"}
    assert operator.get("/api/v1/nothing").json() == nothing
    assert operator.get("/api/v1/rollouts/plan").status == 405
    assert operator.get("/api/v1/rollouts/one").status == 404


def test_a_body_that_does_not_arrive_is_no_error_of_the_server(
    fleet: WebFleet, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes away leaves no traceback in the log, and one that sends nothing more is answered."""
    monkeypatch.setattr("edgekit.controller.web.requests.BODY_SECONDS", 0.5)
    head = b"POST /api/v1/rollouts/plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    host, port = client.address.split(":")
    with socket.create_connection((host, int(port)), 10.0) as gone:
        gone.sendall(head + b"Content-Length: 100\r\n\r\n{")
    with socket.create_connection((host, int(port)), 10.0) as slow:
        slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert client.get("/api/v1/fleet").status == 200
    assert [one.getMessage() for one in caplog.records if one.exc_info] == []


def test_the_api_describes_itself(client: Client) -> None:
    """Every endpoint is in the OpenAPI document and on its page; every reference in it leads somewhere."""
    found = client.get("/openapi.json").json()
    assert found["openapi"] == "3.1.0"
    operations = {one["operationId"] for path in found["paths"].values() for one in path.values()}
    assert operations == {one.operation for one in ENDPOINTS}
    text = json.dumps(found)
    assert '"prefixItems"' in text
    assert '"items": false' not in text  # allowed, but generators of clients refuse the whole document
    for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in found["components"]["schemas"], name
    for name, schema in found["components"]["schemas"].items():
        for field, one in schema.get("properties", {}).items():
            if isinstance(default := one.get("default"), str):
                assert len(default) >= one.get("minLength", 0), f"{name}.{field}"
                assert re.search(one.get("pattern", ""), default), f"{name}.{field}"
    page = client.get("/docs").text
    assert all(f"{one.method} {PREFIX}{one.path}" in page for one in ENDPOINTS)
    assert "http://" not in page
    assert "https://" not in page


def test_a_model_is_taken_off_devices(fleet: WebFleet, operator: Client) -> None:
    """Off one, or off all that a filter selects; a dry run changes nothing."""
    for one in fleet.state.rollouts.active():
        fleet.operations.steer(one.id, Aborted())
    body = {"model": "digits", "filter": "name in (pi-0001, pi-0002)", "dry_run": True}
    planned = operator.post(f"{PREFIX}/uninstall", body).json()
    assert [(one["device"], one["asked"]) for one in planned] == [("pi-0001", False), ("pi-0002", False)]
    taken = operator.post(f"{PREFIX}/devices/pi-0001/uninstall", {"model": "digits"}).json()
    assert [one["device"] for one in taken] == ["pi-0001"]
    asked = operator.post(f"{PREFIX}/uninstall", {**body, "dry_run": False}).json()
    assert [one["asked"] for one in asked] == [True, False]
    assert operator.post(f"{PREFIX}/uninstall", {**body, "filter": ""}).status == 400
    assert operator.post(f"{PREFIX}/devices/pi-0009/uninstall", {"model": "digits"}).status == 404


def test_alarms_are_ended_with_a_reason(fleet: WebFleet, operator: Client) -> None:
    """By operators only; what is not open is 404, and the reason is kept with the alarm and in the audit log."""
    address, body = f"{PREFIX}/devices/pi-0001/alarms/end", {"kind": "latency", "reason": "sensor replaced"}
    viewer = Client(fleet.url, token=fleet.tokens["viewer"])
    assert viewer.post(address, body).status == 403
    assert operator.post(address, {"kind": "drift.score"}).status == 404
    assert operator.post(address, {"reason": "x" * 501}).status == 400
    assert operator.post(f"{PREFIX}/devices/pi-0009/alarms/end", {}).status == 404
    (one,) = operator.post(address, body).json()
    assert (one["kind"], one["ended_by"], one["reason"]) == ("latency", "the-operator@api", "sensor replaced")
    assert operator.get(f"{PREFIX}/alarms").json() == []
    (entry,) = fleet.state.audit.entries(what="alarm.end")
    assert (entry.who, entry.subject, entry.after["reason"]) == ("the-operator@api", "pi-0001", "sensor replaced")

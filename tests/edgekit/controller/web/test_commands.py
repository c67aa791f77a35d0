"""Commands, groups, codes, webhooks and the end of a device over the API and the pages, as on the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit.mqtt.messages import Result
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import WebFleet, web_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebFleet]:
    with web_fleet(tmp_path_factory.mktemp("fleet"), rollout=False) as made:
        yield made


@pytest.fixture
def operator(fleet: WebFleet) -> Client:
    return Client(fleet.url, token=fleet.tokens["operator"])


@pytest.fixture
def admin(fleet: WebFleet) -> Client:
    return Client(fleet.url, token=fleet.tokens["admin"])


def test_a_command_is_sent_to_one_device_and_its_answer_read(fleet: WebFleet, operator: Client) -> None:
    """With the same checks, numbers and audit entry as `edgekit device command`."""
    body = {"kind": "set", "args": {"values": {"heartbeat_seconds": "10"}}, "expires_seconds": 30}
    sent = operator.post("/api/v1/devices/pi-0001/commands", body)
    assert sent.status == 201, sent.text
    found = sent.json()
    assert (found["device"], found["kind"], found["state"]) == ("pi-0001", "set", "asked")
    assert found["expires"] - found["created"] == pytest.approx(30)
    (entry,) = operator.get("/api/v1/audit?what=command.send").json()
    assert (entry["who"], entry["subject"]) == ("the-operator@api", "pi-0001")
    assert fleet.state.commands.save_result(Result("pi-0001", found["number"], True, "done", {"x": 1}))
    (listed,) = operator.get("/api/v1/commands?device=pi-0001").json()
    assert (listed["state"], listed["ok"], listed["message"], listed["detail"]) == ("done", True, "done", {"x": 1})
    by_number = operator.get(f"/api/v1/commands?device=pi-0001&number={found['number']}").json()
    assert by_number == [listed]
    assert operator.get("/api/v1/commands?device=pi-0001&number=99999999999").status == 404
    assert operator.get("/api/v1/commands?number=1").status == 400
    assert operator.get("/api/v1/commands?device=pi-0009").status == 404


def test_a_command_for_a_selection_is_planned_and_sent(fleet: WebFleet, operator: Client) -> None:
    """The plan sends nothing; a profile gets the digest that the registry has for each target."""
    body = {"kind": "profile", "args": {"model": "digits", "version": "1.1.0"}, "filter": "name in (pi-0002, pi-0003)"}
    before = len(operator.get("/api/v1/commands").json())
    plan = Client(fleet.url).post("/api/v1/commands/plan", body).json()
    assert [one["device"] for one in plan] == ["pi-0002", "pi-0003"]
    assert len(plan[0]["args"]["digest"]) == 64
    assert len(operator.get("/api/v1/commands").json()) == before
    sent = operator.post("/api/v1/commands", body)
    assert sent.status == 201
    assert [one["args"] for one in sent.json()] == [one["args"] for one in plan]
    assert sent.json()[0]["expires"] - sent.json()[0]["created"] == pytest.approx(600)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "reboot"}, 400),
        ({"kind": "set", "args": {"values": {"heartbeat_seconds": "1e9"}}}, 400),
        ({"kind": "set", "args": {"values": {"cloud_url": "http://x"}}}, 400),
        ({"kind": "logs", "args": {"lines": 1e9}}, 400),
        ({"kind": "logs", "args": {"file": "/etc/shadow"}}, 400),
        ({"kind": "restart", "expires_seconds": 1e12}, 400),
        ({"kind": "profile", "args": {"model": "digits"}}, 400),
        ({"kind": "profile", "args": {"model": "digits", "version": "1.1.0", "digest": "0" * 64}}, 400),
        ({"kind": "profile", "args": {"model": "digits", "version": "9.9.9"}}, 404),
    ],
)
def test_wrong_commands_are_refused_before_anything_is_stored(operator: Client, body: dict, status: int) -> None:
    """With the reason, for one device as for a selection."""
    before = operator.get("/api/v1/commands").json()
    one = operator.post("/api/v1/devices/pi-0001/commands", body)
    many = operator.post("/api/v1/commands", {**body, "filter": "online"})
    assert (one.status, many.status) == (status, status), one.text
    assert one.json()["error"]
    assert operator.get("/api/v1/commands").json() == before


def test_a_selection_is_named_and_has_devices(operator: Client) -> None:
    """No command goes to a whole fleet because a field was forgotten."""
    assert operator.post("/api/v1/commands", {"kind": "restart"}).status == 400
    assert operator.post("/api/v1/commands", {"kind": "restart", "filter": "name == nobody"}).status == 404
    assert operator.post("/api/v1/devices/nobody/commands", {"kind": "restart"}).status == 404


def test_viewers_send_nothing_and_read_no_answers(fleet: WebFleet) -> None:
    """Answers hold log lines; without a token they are not shown on this machine either."""
    viewer, nobody = Client(fleet.url, token=fleet.tokens["viewer"]), Client(fleet.url)
    assert viewer.get("/api/v1/commands").status == 403
    assert nobody.get("/api/v1/commands").status == 401
    for path, body in (
        ("/api/v1/commands", {"kind": "restart", "filter": "online"}),
        ("/api/v1/devices/pi-0001/commands", {"kind": "restart"}),
        ("/api/v1/groups", {"name": "x", "filter": "online"}),
    ):
        assert (viewer.post(path, body).status, nobody.post(path, body).status) == (403, 401)
    assert viewer.send("DELETE", "/api/v1/devices/pi-0001").status == 403


def test_groups_are_saved_and_removed(operator: Client) -> None:
    """As `edgekit device group`; a group that does not parse, or that another names, stays as it is."""
    made = operator.post("/api/v1/groups", {"name": "old", "filter": "name == pi-0001"})
    assert (made.status, made.json()["devices"], made.json()["before"]) == (200, 1, None)
    again = operator.post("/api/v1/groups", {"name": "old", "filter": "name != pi-0001"}).json()
    assert (again["devices"], again["before"]["filter"]) == (2, "name == pi-0001")
    assert "^" in operator.post("/api/v1/groups", {"name": "old", "filter": "name ="}).json()["error"]
    operator.post("/api/v1/groups", {"name": "outer", "filter": "group(old)"})
    assert operator.send("DELETE", "/api/v1/groups/old").status == 400
    for name in ("outer", "old"):
        assert operator.send("DELETE", f"/api/v1/groups/{name}").json()["name"] == name
    assert operator.send("DELETE", "/api/v1/groups/old").status == 404


def test_codes_and_webhooks_are_for_administrators(fleet: WebFleet, operator: Client, admin: Client) -> None:
    """A secret is shown once, and in no list."""
    for path in ("/api/v1/codes", "/api/v1/webhooks"):
        assert operator.get(path).status == 403
    made = admin.post("/api/v1/codes", {"quota": 2, "hours": 1, "device": "pi-9", "labels": {"site": "x"}})
    assert made.status == 201, made.text
    code = made.json()
    assert code["code"].split(".")[1] == code["token"]
    (listed,) = admin.get("/api/v1/codes").json()
    assert (listed["token"], listed["quota"], listed["device"]) == (code["token"], 2, "pi-9")
    assert code["code"].split(".")[2] not in str(listed)
    assert admin.send("DELETE", f"/api/v1/codes/{code['token']}").status == 200
    assert admin.get("/api/v1/codes").json() == []
    assert admin.post("/api/v1/codes", {"hours": 1e9}).status == 400

    assert admin.post("/api/v1/webhooks", {"url": "https://hooks.example/x"}).status == 405, "where the database is"
    fleet.state.webhooks.add("https://hooks.example/x", ("alarm",), 1.0)
    (shown,) = admin.get("/api/v1/webhooks").json()
    assert "whsec" not in str(shown)
    assert admin.send("DELETE", f"/api/v1/webhooks/{shown['id']}").status == 200
    assert admin.send("DELETE", f"/api/v1/webhooks/{shown['id']}").status == 404


def test_the_page_of_a_device_has_its_commands_labels_and_quarantine(fleet: WebFleet, operator: Client) -> None:
    """Each form needs the session's value; what was entered wrongly is a page with the reason."""
    cookie = operator.form("/login", {"token": fleet.tokens["operator"]}).headers["set-cookie"].partition(";")[0]
    browser = Client(fleet.url, cookie=cookie)
    page = browser.get("/devices/pi-0002").text
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    assert browser.form("/devices/pi-0002/commands", {"kind": "logs"}).status == 403, "without the session's value"
    assert browser.form("/devices/pi-0002/commands", {"csrf": csrf, "kind": "logs", "words": "7"}).status == 303
    assert fleet.state.commands.latest("pi-0002")[0].args == {"lines": 7}
    words = "heartbeat_seconds=9 quiet_hours="
    assert browser.form("/devices/pi-0002/commands", {"csrf": csrf, "kind": "set", "words": words}).status == 303
    sent = fleet.state.commands.latest("pi-0002")[0]
    assert sent.args["values"] == {"heartbeat_seconds": "9", "quiet_hours": ""}
    fleet.state.commands.save_result(Result("pi-0002", sent.number, False, "<b>no</b>", {"lines": ["\x1b[31mred"]}))
    shown = browser.get("/devices/pi-0002").text
    assert "&lt;b&gt;no&lt;/b&gt;" in shown
    assert "\x1b" not in shown
    assert "&lt;b&gt;no" not in Client(fleet.url).get("/devices/pi-0002").text, "answers are for operators"
    for kind, given in (("set", "a b"), ("profile", "digits"), ("logs", "many"), ("restart", "now"), ("sh", "")):
        fault = browser.form("/devices/pi-0002/commands", {"csrf": csrf, "kind": kind, "words": given})
        assert fault.status == 400, (kind, given)
    assert browser.form("/devices/pi-0002/labels", {"csrf": csrf, "key": "ring", "value": "1"}).status == 303
    assert fleet.state.devices.get("pi-0002").labels["ring"] == "1"
    assert browser.form("/devices/pi-0002/labels", {"csrf": csrf, "key": "ring", "value": ""}).status == 303
    assert "ring" not in fleet.state.devices.get("pi-0002").labels
    assert browser.form("/devices/pi-0002/quarantine", {"csrf": csrf, "reason": "stolen"}).status == 303
    assert browser.form("/devices/pi-0002/commands", {"csrf": csrf, "kind": "restart"}).status == 409
    assert "End the quarantine" in browser.get("/devices/pi-0002").text
    assert browser.form("/devices/pi-0002/release", {"csrf": csrf}).status == 303
    assert browser.form("/devices/pi-0002/commands", {"csrf": csrf, "kind": "restart"}).status == 303


def test_the_page_of_devices_sends_to_what_its_filter_selects(fleet: WebFleet, operator: Client) -> None:
    """And saves the filter as a group; a viewer sees neither form."""
    cookie = operator.form("/login", {"token": fleet.tokens["operator"]}).headers["set-cookie"].partition(";")[0]
    browser = Client(fleet.url, cookie=cookie)
    chosen = "name in (pi-0001, pi-0002)"
    page = browser.get("/devices?filter=" + chosen.replace(" ", "%20")).text
    csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
    assert "Send a command to all 2" in page
    assert "Send a command" not in browser.get("/devices").text
    assert "Send a command" not in Client(fleet.url).get("/devices?filter=online").text
    sent = browser.form("/devices/commands", {"csrf": csrf, "filter": chosen, "kind": "logs", "words": "3"})
    assert (sent.status, sent.headers["location"][:9]) == (303, "/devices?")
    assert [fleet.state.commands.latest(name)[0].args for name in ("pi-0001", "pi-0002")] == [{"lines": 3}] * 2
    assert browser.form("/devices/commands", {"csrf": csrf, "filter": "", "kind": "restart"}).status == 400
    assert browser.form("/devices/commands", {"filter": chosen, "kind": "restart"}).status == 403
    assert browser.form("/devices/groups", {"csrf": csrf, "filter": chosen, "name": "two"}).status == 303
    assert [one.name for one in fleet.state.groups.all()] == ["two"]
    assert browser.form("/devices/groups", {"csrf": csrf, "filter": chosen, "name": "Two!"}).status == 400
    fleet.state.groups.remove("two", 1.0)


def test_a_removed_device_is_gone(fleet: WebFleet, operator: Client, admin: Client) -> None:
    """Only an administrator ends the life of a device."""
    assert operator.send("DELETE", "/api/v1/devices/pi-0003").status == 403
    removed = admin.send("DELETE", "/api/v1/devices/pi-0003")
    assert removed.json() == {"device": "pi-0003", "fleet": "test", "removed": True, "certified": False}
    assert admin.get("/api/v1/devices/pi-0003").status == 404
    assert admin.send("DELETE", "/api/v1/devices/pi-0003").status == 404

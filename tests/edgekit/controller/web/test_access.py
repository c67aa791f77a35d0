"""Who may read and act over HTTP: hosts, origins, proxies, tokens, roles and sessions."""

from __future__ import annotations

import re

import pytest

from edgekit.controller.web import WebOptions
from edgekit.controller.web.access import host_fault, is_local, origin_fault
from tests.simulators.web_client import Client
from tests.simulators.web_fleet import WebFleet, served


def test_only_names_of_this_server_are_served() -> None:
    """A name that another site's DNS points to the loopback is none of them."""
    served_names = {"fleet.example"}
    for host in ("localhost:8800", "127.0.0.1", "[::1]:8800", "Fleet.Example", "fleet.example:443"):
        assert not host_fault(host, served_names), host
    for host in ("", "evil.example", "127.0.0.1.evil.example", "localhost.evil", "[", "fleet.example.evil:80"):
        assert "api_hosts" in host_fault(host, served_names), host


def test_requests_through_a_proxy_are_not_local() -> None:
    """Although the proxy is on this machine."""
    assert is_local("127.0.0.1", {})
    assert is_local("::1", {})
    for header in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
        assert not is_local("127.0.0.1", {header: "127.0.0.1"})
    assert not is_local("192.0.2.7", {})
    assert not is_local("", {})


def test_actions_of_other_sites_are_refused() -> None:
    """By what a browser says of where they come from; programs say nothing."""
    assert not origin_fault({"host": "localhost:8800"})
    assert not origin_fault({"host": "localhost:8800", "origin": "http://localhost:8800"})
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9000"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert origin_fault({"host": "localhost:8800", **headers}), headers


def test_reading_is_free_on_this_machine_and_nowhere_else(client: Client) -> None:
    """Neither for another name of this server, nor through a proxy, nor with a wrong token."""
    for path in ("/", "/api/v1/fleet", "/rollouts/1/part", "/rollouts/1"):
        assert client.get(path).status == 200
        assert client.get(path, Host="evil.example").status == 403
        assert client.get(path, X_Forwarded_For="192.0.2.7").status == 401
        assert client.get(path, Authorization="Bearer ekop_wrong").status == 401
        assert client.get(path, Authorization="Basic YTpi").status == 401
    assert client.get("/api/v1/operators").status == 401
    assert client.get("/rollouts/1/stream", X_Forwarded_For="192.0.2.7").status == 401


def test_roles_include_the_ones_before(fleet: WebFleet) -> None:
    """A viewer reads, an operator acts, an admin sees the operators; through a proxy too."""
    body = {"reason": "visit"}
    expected = {"viewer": (200, 403, 403), "operator": (200, 404, 403), "admin": (200, 404, 200)}
    for role, statuses in expected.items():
        client = Client(fleet.url, token=fleet.tokens[role])
        found = (
            client.get("/api/v1/fleet", X_Forwarded_For="192.0.2.7").status,
            client.post("/api/v1/rollouts/99/pause", body).status,
            client.get("/api/v1/operators").status,
        )
        assert found == statuses, role


def test_without_a_token_nothing_can_be_changed(client: Client) -> None:
    """By API or form."""
    for path in ("/rollouts", "/rollouts/1/pause", "/rollouts/1/resume", "/rollouts/1/abort", "/standing"):
        assert client.post(f"/api/v1{path}", {}).status == 401, path
    assert client.send("DELETE", "/api/v1/standing/1").status == 401
    assert client.form("/rollouts/1/abort", {"reason": "x"}).status == 401
    assert client.form("/rollouts/new", {"model": "digits", "version": "1.1.0"}).status == 401


def test_a_login_needs_its_own_value_for_every_action(fleet: WebFleet, client: Client) -> None:
    """So a form on another site cannot act with the cookie, and neither can one without the value."""
    assert client.form("/login", {"token": "ekop_wrong"}).status == 401
    assert client.form("/login", {f"field-{number}": "x" for number in range(101)}).status == 400
    assert client.form("/login", {"token": fleet.tokens["operator"]}, Origin="http://evil.example").status == 403
    answer = client.form("/login", {"token": fleet.tokens["operator"]})
    assert answer.status == 303
    cookie = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Max-Age="):
        assert part in cookie
    assert fleet.tokens["operator"] not in cookie
    session = Client(fleet.url, cookie=cookie.partition(";")[0])
    page = session.get("/rollouts/1").text
    assert "the-operator, operator" in page
    csrf = re.search(r'name="csrf" value="([^"]+)"', page)[1]
    reason = {"reason": "visit"}
    assert session.form("/rollouts/1/pause", reason).status == 403
    assert session.form("/rollouts/1/pause", {**reason, "csrf": csrf[:-1]}).status == 403
    assert session.form("/rollouts/1/pause", {**reason, "csrf": csrf}, Origin="http://evil.example").status == 403
    assert session.form("/rollouts/1/pause", {**reason, "csrf": csrf}, Sec_Fetch_Site="cross-site").status == 403
    assert session.post("/api/v1/rollouts/1/pause", reason).status == 403
    assert fleet.state.rollouts.get(1).state.value == "RUNNING"
    assert session.form("/rollouts/1/pause", {**reason, "csrf": csrf}).status == 303
    assert session.post("/api/v1/rollouts/1/resume", {}, X_CSRF_Token=csrf).status == 200
    entry = fleet.state.audit.entries(limit=1)[0]
    assert (entry.who, entry.what, entry.subject) == ("the-operator@api", "rollout.resume", "1")
    assert session.form("/logout", {"csrf": csrf}).status == 303
    assert "the-operator" not in session.get("/").text
    assert session.post("/api/v1/rollouts/1/pause", reason, X_CSRF_Token=csrf).status == 401


def test_a_removed_token_ends_its_sessions(fleet: WebFleet, client: Client) -> None:
    """At the next request."""
    token = fleet.state.operators.add("leaver", fleet.state.operators.find(fleet.tokens["admin"]).role, 1.0)
    cookie = client.form("/login", {"token": token}).headers["set-cookie"].partition(";")[0]
    session = Client(fleet.url, cookie=cookie)
    assert session.get("/api/v1/operators").status == 200
    fleet.state.operators.remove("leaver", 2.0)
    assert session.get("/api/v1/operators").status == 401
    assert Client(fleet.url, token=token).get("/api/v1/fleet").status == 401


def test_reading_can_need_a_login_here_too(fleet: WebFleet) -> None:
    """With the setting `api_login`; the login itself and the style stay reachable."""
    with served(fleet.operations, WebOptions(free_reads=False)) as url:
        client = Client(url)
        assert [client.get(path).status for path in ("/", "/api/v1/fleet", "/devices")] == [401] * 3
        assert [client.get(path).status for path in ("/login", "/static/edgekit.css", "/docs")] == [200] * 3
        assert Client(url, token=fleet.tokens["viewer"]).get("/devices").status == 200


@pytest.mark.parametrize("path", ["/", "/api/v1/fleet", "/static/edgekit.js", "/nothing", "/api/v1/nothing"])
def test_every_answer_is_locked_down(client: Client, path: str) -> None:
    """No script of others, no frame, no guessing of types."""
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers

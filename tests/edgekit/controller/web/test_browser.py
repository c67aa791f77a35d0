"""The pages in headless Chromium: findings of axe, phone width, dark, keyboard, live waves, and scripts of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit.mqtt.messages import Outcome, Reported, Running
from tests.edgekit.controller.web.test_pages import PAGES
from tests.simulators.browser import CHROMIUM, Browser, browser
from tests.simulators.web_fleet import FLEET, WebFleet

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
LONG_SECONDS = 60


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(autouse=True)
def calm(tab: Browser) -> Iterator[None]:
    """Every test begins with a desktop window, and ends without an error on the console."""
    tab.size(1280, 900)
    tab.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    tab.errors.clear()
    yield
    assert tab.errors == []


def parts(path: str) -> bool:
    """True for an address that serves a part of a page only."""
    return path.endswith("/part")


@pytest.mark.parametrize("path", [path for path in PAGES if not parts(path)])
def test_a_page_has_no_serious_finding(fleet: WebFleet, tab: Browser, path: str) -> None:
    """Neither light nor dark, and it is no wider than a phone."""
    tab.open(fleet.url + path)
    assert tab.findings() == []
    tab.media(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    tab.size(360, 740)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert tab.findings("color-contrast") == []


@pytest.mark.parametrize("path", ["/devices/pi-0001", "/devices?filter=online", "/alarms"])
@pytest.mark.parametrize("width", [1100, 360])
def test_every_form_of_an_operator_can_be_seen_whole(fleet: WebFleet, tab: Browser, path: str, width: int) -> None:
    """None leaves the window at its left or right, and none is cut off by the table that it is in."""
    tab.open(fleet.url + "/login")
    tab.run(f"document.querySelector('input[name=token]').value = '{fleet.tokens['operator']}'")
    tab.run("window.before = true; document.querySelector('main form').submit()")
    tab.until("!window.before && document.readyState === 'complete'")
    tab.size(width, 900)
    tab.open(fleet.url + path)
    script = """[...document.querySelectorAll("details.action")].flatMap(one => {
        one.open = true;
        const form = one.querySelector("form"), box = form.getBoundingClientRect();
        const around = (form.closest(".scroll") || document.documentElement).getBoundingClientRect();
        const fits = box.left >= 0 && box.right <= innerWidth && box.bottom <= around.bottom + 1;
        one.open = false;
        return fits ? [] : [form.action];
    })"""
    assert tab.run("document.querySelectorAll('details.action').length") > 0
    assert tab.run(script) == []
    tab.run("document.querySelectorAll('main details').forEach(one => one.open = true)")
    assert tab.findings() == []
    tab.call("Network.clearBrowserCookies")


def test_the_findings_are_real(fleet: WebFleet, tab: Browser) -> None:
    """axe runs in these pages: a field without a name is found."""
    tab.open(f"{fleet.url}/devices")
    tab.run("document.querySelector('label').remove()")
    tab.run("document.querySelector('#filter').removeAttribute('aria-describedby')")
    assert any(one.startswith("label:") for one in tab.findings())


def test_a_hostile_label_runs_nothing(fleet: WebFleet, tab: Browser) -> None:
    """Its script is text, and its expression is not evaluated."""
    for path in ("/devices/pi-0001", "/alarms", "/devices?filter=%22%3E%3Cscript%3Edocument.title=1%3C/script%3E"):
        tab.open(fleet.url + path)
        assert tab.run("document.title").endswith("· test · edgekit")
        assert tab.run("document.scripts.length") == 1
        tab.errors[:] = [one for one in tab.errors if "status of 400" not in one]


def test_the_keyboard_reaches_content_and_links(fleet: WebFleet, tab: Browser) -> None:
    """The first stop skips to the content; each stop can be seen."""
    tab.open(f"{fleet.url}/devices")
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left >= 0")
    tab.press("Enter")
    tab.until("document.activeElement.id === 'main'")
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "filter"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_waves_fill_while_an_operator_looks(fleet: WebFleet, tab: Browser) -> None:
    """Without loading the page again; at the end it says that the rollout is finished."""
    tab.open(f"{fleet.url}/rollouts/1")
    assert "1 assigned, 2 succeeded" in tab.run("document.querySelector('.bar').getAttribute('aria-label')")
    tab.run("window.same = true")
    state = fleet.state
    digest = state.rollouts.get(1).devices["pi-0002"].digest
    now = fleet.operations.now
    outcome = Outcome(digest, "1.1.0", "succeeded", at=now)
    report = Reported("pi-0002", FLEET, 9, now, 2, {"digits": Running(digest, "1.1.0", now)}, {"digits": outcome})
    state.devices.save_report(report, now)
    state.rollouts.survey(1, now)
    tab.until("document.querySelector('.bar').getAttribute('aria-label') === '3 succeeded'")
    tab.until("document.querySelector('.lead').textContent.includes('finished')")
    assert tab.run("window.same")


def test_an_operator_logs_in_and_aborts_a_rollout(fleet: WebFleet, tab: Browser) -> None:
    """With the cookie and the forms of the pages, under the policy that forbids scripts of others."""
    tab.open(f"{fleet.url}/login")
    tab.run(f"document.querySelector('#token').value = {fleet.tokens['operator']!r}")
    tab.run("document.querySelector('main form button').click()")
    tab.until("location.pathname === '/' && document.body.textContent.includes('the-operator')")
    assert tab.run("document.cookie") == ""
    tab.open(f"{fleet.url}/alarms")
    tab.run("document.querySelector('details.action summary').click()")
    assert tab.findings() == []
    tab.size(360, 740)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    tab.open(f"{fleet.url}/rollouts/new?step=4&model=digits&version=1.1.0&waves=100%25")
    tab.run("[...document.querySelectorAll('button')].find(b => b.textContent.startsWith('Start')).click()")
    tab.until("location.pathname === '/rollouts/2' && document.readyState === 'complete'")
    tab.run("document.querySelector('.danger').click()")
    assert tab.findings() == []
    tab.run("document.querySelector('form[action$=abort] button').click()")
    tab.until("document.querySelector('.lead')?.textContent.includes('aborted')")
    assert fleet.state.audit.entries(limit=1)[0].who == "the-operator@api"

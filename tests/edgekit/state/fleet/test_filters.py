"""Filters as SQL on both kinds of databases: they select exactly the devices that they describe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import NotFoundError, SettingsError
from edgekit.mqtt.messages import Outcome, Presence, Reported, Running, Waiting
from edgekit.rollout.cohort import Cohort, Device
from edgekit.rollout.plan import RolloutPlan, parse_waves
from edgekit.state import FleetState, open_fleet_state
from edgekit.state.tables import reports
from edgekit.trust.assignment import Entry
from tests.simulators.postgres import emptied, missing, running_postgres

NOW = 1_000_000.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if "EDGEKIT_TEST_POSTGRES" in os.environ:
        yield os.environ["EDGEKIT_TEST_POSTGRES"]
        return
    if missing():
        pytest.skip(missing())
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FleetState]:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    opened = open_fleet_state(url if request.param == "sqlite" else emptied(request.getfixturevalue("postgres")), "f")
    fill(opened)
    yield opened
    opened.close()


def fill(state: FleetState) -> None:
    """Five devices: a and b in the north, c in the west, d without a label, e of another target and never seen."""
    rows = {
        "a": ("pi", {"site": "north", "ring": "0"}),
        "b": ("pi", {"site": "north"}),
        "c": ("pi", {"site": "west"}),
        "d": ("pi", {}),
        "e": ("jetson", {"site": "north"}),
    }
    for name, (target, labels) in rows.items():
        state.devices.enroll(Device(name, target, "pem", labels, 1.0))
    runs = {"a": "1.9.0", "b": "2.0.0", "c": "10.0.0"}
    for number, (name, version) in enumerate(runs.items()):
        waiting = Waiting("metered") if name == "c" else None
        models = {"digits": Running(f"{number}" * 64, version, waiting=waiting)}
        outcomes = {"digits": Outcome("x", "3.0.0", "refused" if name == "a" else "succeeded")}
        facts = {"edgekit": "0.2.0" if name == "a" else "0.10.0", "cores": 4 if name == "a" else 16, "list": [1]}
        facts["runtimes"] = {"litert": "2.1.0"} if name == "a" else {"litert": "2.3.0", "onnxruntime": "1.31.1"}
        facts["accelerators"] = ["coral-edgetpu"] if name == "b" else []
        facts["cpu_features"] = ["asimddp", "cpuid"] if name != "c" else ["cpuid"]
        facts["tags"] = {"rack": "7"} if name == "c" else {}
        said = Reported(name, "f", 1, 0.0, 1, models, outcomes, facts)
        state.devices.save_report(said, NOW - (10_000.0 if name == "b" else 10.0))
    state.devices.save_presence("d", Presence(online=False, session=1), NOW)


def selected(state: FleetState, text: str) -> str:
    cohort = Cohort(filter=text)
    views = state.devices.views(NOW, 90.0, cohort=state.groups.resolved(cohort))
    assert state.devices.count(NOW, 90.0, state.groups.resolved(cohort)) == len(views)
    return "".join(view.device for view in views)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("target == pi", "abcd"),
        ("target != pi", "e"),
        ("name in (a, e, zzz)", "ae"),
        ("label.site == north", "abe"),
        ("label.site != north", "cd"),
        ("label.site in (north, west)", "abce"),
        ("label.site not in (north, west)", "d"),
        ("label.site == none", "d"),
        ("label.site != none and label.ring == none", "bce"),
        ("version(digits) < 2.0", "a"),
        ("version(digits) <= 2.0", "ab"),
        ("version(digits) >= 2", "bc"),
        ("version(digits) == 2.0", "b"),
        ("version(digits) != 2.0", "acde"),
        ("version(digits) == none", "de"),
        ("version(letters) < 9.9", ""),
        ("fact.edgekit < 0.10.0", "a"),
        ("fact.runtimes.litert < 2.3", "a"),
        ("fact.runtimes.onnxruntime != none", "bc"),
        ("fact.accelerators.coral-edgetpu == true", "b"),
        ("fact.cpu_features.asimddp == true", "ab"),
        ("fact.cpu_features.cpuid == true", ""),
        ("fact.tags.rack == 7", "c"),
        ("fact.cores > 9", "bc"),
        ("fact.cores == 4", "a"),
        ("fact.cores > -5", "abc"),
        ("fact.cores < 1e1", "a"),
        ("label.site == 'none'", ""),
        ("digest(digits) == '" + "1" * 64 + "'", "b"),
        ("outcome(digits) == refused", "a"),
        ("state(digits) == IDLE", "abc"),
        ("state(digits) == UPDATING", ""),
        ("waiting", "c"),
        ("online", "ac"),
        ("offline", "bde"),
        ("seen < 1m", "ac"),
        ("seen > 1h", "bde"),
        ("seen == none", "de"),
        ("not online and label.site == north", "be"),
        ("target == pi and (label.ring == 0 or version(digits) > 9)", "ac"),
        ('label.site == "north\' OR 1=1 --"', ""),
        ("target == pi and label.site in (north, west) and version(digits) < 2.0 and online", "a"),
    ],
)
def test_a_filter_selects_the_devices_that_it_describes(state: FleetState, text: str, devices: str) -> None:
    """Versions are ordered by their numbers; a device without the value is unequal to every value."""
    assert selected(state, text) == devices


def test_a_new_report_replaces_what_filters_see(state: FleetState) -> None:
    """Old models and outcomes go; an unchanged report writes nothing."""
    said = Reported("a", "f", 2, 0.0, 1, {"digits": Running("9" * 64, "3.0.0")}, {})
    assert state.devices.save_report(said, NOW)
    assert selected(state, "version(digits) >= 3.0") == "ac"
    assert selected(state, "outcome(digits) == refused") == ""
    assert selected(state, "fact.cores != none") == "bc"
    older = Reported("a", "f", 1, 0.0, 1, {}, {})
    assert not state.devices.save_report(older, NOW)
    assert selected(state, "version(digits) == 3.0") == "a"


def test_two_controllers_that_store_reports_in_turn_keep_the_rows_right(state: FleetState) -> None:
    """Each remembers what it wrote last; what the other one wrote since is noticed, in whatever order."""
    other = FleetState(state._engine, "f")
    turns = [(state, "4.0.0", 2), (other, "5.0.0", 3), (state, "4.0.0", 4), (state, "4.0.0", 5), (other, "5.0.0", 6)]
    for number, (who, version, cores) in enumerate(turns, start=2):
        facts = {"cores": cores, f"only-{number}": "x", "edgekit": "0.2.0"}
        said = Reported("a", "f", number, 0.0, 1, {"digits": Running("9" * 64, version)}, {}, facts)
        assert who.devices.save_report(said, NOW)
        assert selected(state, f"version(digits) == {version}") == "a"
        assert selected(state, f"fact.cores == {cores} and fact.only-{number} == x") == "a"
        assert selected(state, f"fact.only-{number - 1} != none or outcome(digits) == refused") == ""
    assert not state.devices.save_report(Reported("a", "f", 4, 0.0, 1, {}, {}), NOW)
    assert selected(state, "version(digits) == 5.0") == "a"


def test_what_a_device_says_is_stored_as_text(state: FleetState) -> None:
    """NUL, very long names and absurd numbers stop nothing."""
    models = {"m" * 500: Running("d", "v\0" * 500), "x\0y": Running("d", "1.0.0")}
    said = Reported("d", "f", 9, 0.0, 1, models, {}, {"n": float("1e308"), "k" * 900: "v" * 9000, "b": True})
    assert state.devices.save_report(said, NOW)
    assert selected(state, "fact.b == true") == "d"
    assert selected(state, "fact.n > 1e300") == "d"


def test_groups_are_names_for_filters(state: FleetState) -> None:
    """They may name each other, never themselves; a used one is not removed."""
    assert state.groups.save("north", "label.site == north", NOW) is None
    assert state.groups.save("canaries", "group(north) and label.ring == 0", NOW) is None
    assert selected(state, "group(canaries) or name == d") == "ad"
    before = state.groups.save("north", "label.site != north", NOW)
    assert before is not None
    assert before.filter == "label.site == north"
    assert selected(state, "group(canaries)") == ""
    with pytest.raises(SettingsError, match="contains itself"):
        state.groups.save("north", "group(canaries)", NOW)
    with pytest.raises(SettingsError, match="is used by canaries"):
        state.groups.remove("north", NOW)
    with pytest.raises(SettingsError, match="there is no group 'canary'") as caught:
        selected(state, "group(canary)")
    assert caught.value.advice == "Did you mean 'canaries'?"
    with pytest.raises(SettingsError, match="does not match"):
        state.groups.save("No Name", "online", NOW)
    assert state.groups.remove("canaries", NOW).name == "canaries"
    with pytest.raises(NotFoundError):
        state.groups.remove("canaries", NOW)


def test_what_matches_nobody_is_named_with_the_nearest_values(state: FleetState) -> None:
    """Values, keys and targets that the fleet has."""
    near = state.groups.nearest
    assert near(Cohort(labels={"site": "nort"})) == ["no device has label site 'nort'; there are north"]
    assert near(Cohort(labels={"sit": "north"})) == ["no device has a label sit; labels are site"]
    assert near(Cohort(targets=("pie",))) == ["no device has target 'pie'; there are pi"]
    assert near(Cohort(filter="label.site == south and online")) == [
        "no device has label site 'south'; there are north"
    ]
    assert near(Cohort(labels={"site": "north"})) == []


def test_pages_follow_each_other(state: FleetState) -> None:
    """The last name of a page begins the next one."""
    pages, after = [], ""
    while found := state.devices.views(NOW, 90.0, after=after, limit=2):
        pages.append("".join(view.device for view in found))
        after = found[-1].device
    assert pages == ["ab", "cd", "e"]


def test_who_is_in_a_rollout_stays_in_it(state: FleetState) -> None:
    """The filter asks for old versions: a device that has updated no longer matches, and is followed to the end."""
    digest = "9" * 64
    entry = Entry("p", 1, digest, "digits", "pi", "3.0.0", 1)
    cohort = state.groups.resolved(Cohort(filter="version(digits) < 3.0"))
    plan = RolloutPlan(parse_waves("100%"))
    rollout = state.rollouts.start("digits", "3.0.0", {"pi": entry}, now=NOW, plan=plan, cohort=cohort)
    assert set(state.rollouts.survey(rollout.id, NOW).devices) == {"a", "b"}
    for name in ("a", "b"):
        running = {"digits": Running(digest, "3.0.0")}
        state.devices.save_report(Reported(name, "f", 2, 0.0, 1, running, {}), NOW + 1)
    assert state.rollouts.survey(rollout.id, NOW + 2).state.value == "FINISHED"
    assert state.rollouts.missing_targets(rollout.id, NOW) == []


# --- kinds: devices that the plan of a rollout does not tell apart


def kinds(state: FleetState, text: str = "") -> dict[str, tuple[str, int]]:
    """Version that runs, by names of the devices of each kind, with the number of devices."""
    chosen = state.select(Cohort(filter=text), NOW)
    found = chosen.kinds("digits")
    assert sum(kind.count for kind in found) == chosen.count()
    names = chosen.names(found)
    assert names == chosen.names()
    return {
        "".join(names[kind.target, kind.key]): (kind.running.version if kind.running else "", kind.count)
        for kind in found
    }


def test_devices_that_report_the_same_are_one_kind(state: FleetState) -> None:
    """Other temperatures make no other kind; another target, runtime or version does. Filters select as always."""
    for name, heat in (("d", 40.0), ("c", 50.0), ("b", 51.5)):
        facts = {"edgekit": "0.2.0", "temperature": heat, "runtimes": {"litert": "2.1.0"}}
        state.devices.save_report(
            Reported(name, "f", 9, NOW, 1, {"digits": Running("1" * 64, "2.0.0")}, {}, facts), NOW
        )
    assert kinds(state) == {"a": ("1.9.0", 1), "bcd": ("2.0.0", 3), "e": ("", 1)}
    assert kinds(state, "label.site == north") == {"a": ("1.9.0", 1), "b": ("2.0.0", 1), "e": ("", 1)}
    facts = {"edgekit": "0.2.0", "runtimes": {"litert": "2.2.0"}}
    state.devices.save_report(Reported("b", "f", 10, NOW, 1, {"digits": Running("1" * 64, "2.0.0")}, {}, facts), NOW)
    assert kinds(state) == {"a": ("1.9.0", 1), "b": ("2.0.0", 1), "cd": ("2.0.0", 2), "e": ("", 1)}
    (kind,) = [one for one in state.select(Cohort(), NOW).kinds("digits") if one.count == 2]
    assert (kind.edgekit, kind.facts["runtimes"]) == ("0.2.0", {"litert": "2.1.0"})


def test_reports_that_an_earlier_release_stored_are_judged_one_by_one(state: FleetState) -> None:
    """Their digest is not there; a report that cannot be read counts as none."""
    with state._engine.begin() as connection:
        connection.execute(reports.update().values(traits=""))
        connection.execute(reports.update().where(reports.c.device == "b").values(body="{"))
    assert kinds(state) == {"a": ("1.9.0", 1), "b": ("", 1), "c": ("10.0.0", 1), "d": ("", 1), "e": ("", 1)}


def test_versions_that_are_assigned_are_read_once_for_equal_devices(state: FleetState) -> None:
    """With the target; devices without an assignment add none."""
    entry = Entry("models/digits/pi/1.0.0/manifest.json", 1, "0" * 64, "digits", "pi", "1.0.0", 1)
    state.rollouts.start("digits", "1.0.0", {"pi": entry}, plan=RolloutPlan(parse_waves("100%")), now=NOW)
    state.rollouts.survey(1, NOW)
    assert state.select(Cohort(), NOW).assigned("digits") == {("1.0.0", "pi")}
    assert state.select(Cohort(), NOW).assigned("faces") == set()

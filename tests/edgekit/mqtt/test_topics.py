"""The topic schema: every built topic can be parsed, and no other topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.mqtt import topics

names = st.from_regex(topics.DEVICE_NAME, fullmatch=True)


@given(fleet=names, device=names, kind=st.sampled_from(topics.DEVICE_KINDS))
def test_a_device_topic_parses_back(fleet: str, device: str, kind: str) -> None:
    """Fleet, device and kind survive the trip through a topic."""
    assert topics.parse_device(topics.device(fleet, device, kind)) == (fleet, device, kind)


@given(fleet=names, device=names, kind=st.sampled_from(topics.REQUEST_KINDS))
def test_a_request_topic_parses_back(fleet: str, device: str, kind: str) -> None:
    """Fleet, kind and device survive the trip through a topic, and it is no device topic."""
    topic = topics.request(fleet, kind, device)
    assert topics.parse_request(topic) == (fleet, kind, device)
    assert topics.parse_device(topic) is None


@given(st.text())
def test_any_other_text_parses_to_nothing_or_to_itself(text: str) -> None:
    """Parsing any topic does not raise, and an accepted topic is rebuilt exactly."""
    for topic in (text, f"edgekit/v1/{text}", f"edgekit/v1/f/device/{text}", f"edgekit/v1/f/request/blocks/{text}"):
        found = topics.parse_device(topic)
        assert found is None or topics.device(found.fleet, found.device, found.kind) == topic
        request = topics.parse_request(topic)
        assert request is None or topics.request(request.fleet, request.kind, request.device) == topic


@given(st.text())
def test_only_names_that_fit_one_level_stand_in_a_topic(text: str) -> None:
    """A name in a topic has no slash, wildcard, space or control character, and at most 63 characters."""
    try:
        topic = topics.answer("f", text)
    except ValueError:
        return
    assert text == "+" or (1 <= len(text) <= 63 and set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"))
    assert topic.count("/") == 4


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a/b", "#", "a\n", "é", "a" * 64, "a b"])
def test_a_bad_name_is_refused_everywhere(name: str) -> None:
    """Fleets and devices alike; the error shows the name."""
    builders = (
        lambda: topics.device(name, "d", "desired"),
        lambda: topics.device("f", name, "desired"),
        lambda: topics.request("f", "blocks", name),
        lambda: topics.answer("f", name),
        lambda: topics.fleet_hints(name),
        lambda: topics.broadcast(name, "0" * 64),
    )
    for build in builders:
        with pytest.raises(ValueError, match="not a device or fleet name"):
            build()


def test_a_plus_makes_a_filter_over_devices_but_not_over_fleets() -> None:
    """The controller subscribes to all devices of its one fleet."""
    assert topics.device("f", "+", "reported") == "edgekit/v1/f/device/+/reported"
    assert topics.request("f", "blocks", "+") == "edgekit/v1/f/request/blocks/+"
    with pytest.raises(ValueError, match="name"):
        topics.device("+", "d", "reported")
    assert topics.parse_device("edgekit/v1/f/device/+/reported") is None


def test_unknown_kinds_are_refused() -> None:
    """A misspelt kind is a ValueError, because the program is wrong."""
    with pytest.raises(ValueError, match="state"):
        topics.device("f", "d", "state")
    with pytest.raises(ValueError, match="models"):
        topics.request("f", "models", "d")


def test_topics_are_those_of_the_contract() -> None:
    """The topics have exactly the names that other systems use."""
    assert topics.device("f", "d", "desired") == "edgekit/v1/f/device/d/desired"
    assert topics.request("f", "metadata", "d") == "edgekit/v1/f/request/metadata/d"
    assert topics.answer("f", "d") == "edgekit/v1/f/answer/d"
    assert topics.broadcast("f", "ab") == "edgekit/v1/f/wave/ab"
    assert topics.fleet_hints("f") == "edgekit/v1/f/fleet"


def test_no_device_is_called_as_the_controller_is() -> None:
    """No device may be called controller, because that user may do everything; a fleet may."""
    with pytest.raises(ValueError, match="read and write everything"):
        topics.check_device_name("controller")
    assert topics.check_device_name("controller-2") == "controller-2"
    assert topics.check_name("controller") == "controller"

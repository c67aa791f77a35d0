"""The settings reference: every key of every settings class has a description, a unit and a default."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from edgekit.serving.models.options import ModelOptions, ModelSettings
from edgekit.settings import AgentSettings, ControlSettings
from edgekit.settings.reference import SettingDoc, describe_settings

CLASSES = (ControlSettings, AgentSettings, ModelSettings, ModelOptions)


def docs_of(kind: type[msgspec.Struct]) -> dict[str, SettingDoc]:
    return {doc.name: doc for doc in describe_settings(kind)}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_key_is_described(kind: type[msgspec.Struct]) -> None:
    """A description is one or more whole sentences, and no key is left out."""
    docs = describe_settings(kind)
    assert [doc.name for doc in docs] == list(kind.__struct_fields__)
    for doc in docs:
        assert doc.description.endswith("."), doc
        assert len(doc.description.split()) >= 4, doc
        assert "  " not in doc.description, doc


def test_types_units_and_defaults_are_read_from_the_class() -> None:
    """Bounds, unit and default stand in one place, the field itself."""
    agent = docs_of(AgentSettings)
    assert agent["heartbeat_seconds"][1:5] == ("number above 0 up to 1e+10", "seconds", False, "30.0")
    assert agent["download_bytes_per_second"].unit == "bytes per second"
    assert agent["probation_max_error_share"][1:5] == ("number from 0 to 1", "share (0 to 1)", False, "0.05")
    assert agent["batch"][1:5] == ('integer from 1 to 1024 or "auto"', "rows", False, '"auto"')
    assert agent["device"][1:5] == ("text", "", True, "")
    assert agent["socket"][1:5] == ("path", "", False, '"edgekit.sock"')
    assert agent["grpc_socket"][1:5] == ("path", "", False, "")
    assert agent["class_keys"][1:5] == ("list of paths", "", False, "[]")
    assert agent["providers"][1] == "list of texts"
    assert agent["download_urls"][1:5] == ("true or false", "", False, "true")
    assert agent["models"][1:5] == ("tables by name", "", False, "{}")
    assert agent["queue_limit"].type == "integer, 1 or more"
    assert agent["deadline_ms"].type == "number from 0 to 86400000"
    assert agent["quiet_hours"].unit == ""
    assert docs_of(ControlSettings)["cloud_grpc_port"][1:5] == ("integer from 0 to 65535", "TCP port", False, "")


def test_one_models_settings_have_the_words_of_the_agents() -> None:
    """A key of [models.NAME] means what it means for all models; it is only unset by default."""
    agent, model = docs_of(AgentSettings), docs_of(ModelSettings)
    for name in model.keys() & agent.keys():
        assert model[name] == agent[name]._replace(default="")
    assert model.keys() - agent.keys() == {"pinned"}


class NoDescription(msgspec.Struct):
    """Its field has no text."""

    wait_seconds: float = 1.0


class NoUnit(msgspec.Struct):
    """Its number has no unit."""

    wait: Annotated[float, msgspec.Meta(description="How long it waits.")] = 1.0


class TwoUnits(msgspec.Struct):
    """Its number has a unit in its name and another in its type."""

    wait_seconds: Annotated[float, msgspec.Meta(description="How long it waits.", extra={"unit": "minutes"})] = 1.0


class UnitOfText(msgspec.Struct):
    """Its text has the unit of a number."""

    wait_seconds: Annotated[str, msgspec.Meta(description="How long it waits.")] = ""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoDescription, "NoDescription.wait_seconds has no description"),
        (NoUnit, "NoUnit.wait: a number has one unit"),
        (TwoUnits, "found 'seconds' in the name and 'minutes' in extra"),
        (UnitOfText, "UnitOfText.wait_seconds: a number has one unit"),
    ],
)
def test_a_key_without_description_or_unit_is_an_error(kind: type[msgspec.Struct], message: str) -> None:
    """A new key cannot be added without its meaning and unit."""
    with pytest.raises(TypeError, match=message):
        describe_settings(kind)

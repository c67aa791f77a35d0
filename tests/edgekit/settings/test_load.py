"""Settings: one reading of file, environment and flags, with the nearest key for a misspelt one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import SettingsError
from edgekit.settings import AgentSettings, ControlSettings, load_settings
from edgekit.settings.types import PROVIDERS


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "edgekit.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    """Each source covers the one before it; a flag of None is no flag."""
    file = write(tmp_path, 'fleet = "file"\nbroker = "mqtt://file"\ncloud_port = 1\nassignment_days = 5\n')
    found = load_settings(
        ControlSettings,
        file=file,
        environ={"EDGEKIT_BROKER": "mqtt://env", "EDGEKIT_CLOUD_PORT": "2"},
        flags={"cloud_port": 3, "fleet": None},
    )
    assert (found.fleet, found.broker, found.cloud_port, found.assignment_days) == ("file", "mqtt://env", 3, 5)
    assert found.tick_seconds == ControlSettings().tick_seconds


@pytest.mark.parametrize(
    ("key", "nearest"), [("brokr", "broker"), ("flete", "fleet"), ("cloud_prt", "cloud_port"), ("Registry", "registry")]
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    """The error shows the file and the key, the advice the key that was meant."""
    file = write(tmp_path, f'{key} = "x"\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(ControlSettings, file=file, environ={})
    assert str(file) in str(caught.value)
    assert repr(key) in str(caught.value)
    assert repr(nearest) in caught.value.advice


def test_an_execution_provider_that_onnx_runtime_does_not_know_is_an_error(tmp_path: Path) -> None:
    """A misspelt name was skipped with a warning, and the model ran on the CPU."""
    import onnxruntime

    assert set(onnxruntime.get_all_providers()) <= set(PROVIDERS)
    cases = (
        (ControlSettings, "cloud_providers", "CUDAExecutionProvder"),
        (AgentSettings, "providers", "CudaExecutionprovider"),
    )
    for kind, key, wrong in cases:
        file = write(tmp_path, f'{key} = ["{wrong}", "CPUExecutionProvider"]\n')
        flags = {"device": "d", "fleet": "f", "target": "x86-64"} if kind is AgentSettings else {}
        said = f"{key} has '{wrong}', did you mean 'CUDAExecutionProvider'. expected one of CPUExec"
        with pytest.raises(SettingsError, match=said):
            load_settings(kind, file=file, environ={}, flags=flags)
        file = write(tmp_path, f'{key} = ["QNNExecutionProvider"]\n')
        assert load_settings(kind, file=file, environ={}, flags=flags)


def test_an_unknown_key_that_is_near_to_none_lists_all(tmp_path: Path) -> None:
    """Without a near key the known ones are listed."""
    with pytest.raises(SettingsError) as caught:
        load_settings(ControlSettings, file=write(tmp_path, "zzzzzzzzzzzz = 1\n"), environ={})
    assert "assignment_days" in caught.value.advice


def test_other_environment_variables_are_nobodys_business() -> None:
    """A variable that is no setting, even with the prefix, is passed over: other tools own some."""
    found = load_settings(ControlSettings, file=None, environ={"EDGEKIT_CONFIG": "x", "HOME": "/", "FLEET": "y"})
    assert found == ControlSettings()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("cloud_port = 'many'\n", "cloud_port"),
        ("tick_seconds = []\n", "tick_seconds"),
        ("fleet = 1\n", "fleet"),
        ("fleet = \n", "cannot be read"),
        ("fleet = 'a'\nfleet = 'b'\n", "cannot be read"),
    ],
)
def test_a_bad_value_or_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    """The error names the file and the key, or says that it is no TOML."""
    file = write(tmp_path, text)
    with pytest.raises(SettingsError, match=part) as caught:
        load_settings(ControlSettings, file=file, environ={})
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_an_error(tmp_path: Path) -> None:
    """A file that was named must be readable; there is no silent default."""
    with pytest.raises(SettingsError, match="no settings file"):
        load_settings(ControlSettings, file=tmp_path / "missing.toml", environ={})
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(ControlSettings, file=tmp_path / "bad.toml", environ={})


def test_a_value_from_the_environment_is_converted_or_refused() -> None:
    """Numbers arrive as text; what is no number is an error that names the setting."""
    found = load_settings(ControlSettings, file=None, environ={"EDGEKIT_TICK_SECONDS": "0.25"})
    assert found.tick_seconds == 0.25
    with pytest.raises(SettingsError, match="tick_seconds"):
        load_settings(ControlSettings, file=None, environ={"EDGEKIT_TICK_SECONDS": "soon"})


def test_paths_in_a_file_are_relative_to_that_file(tmp_path: Path) -> None:
    """Wherever the command runs, the file's folder is the anchor, for given and for default paths."""
    file = write(tmp_path, 'device = "d"\nfleet = "f"\ntarget = "t"\nkey = "keys/d.key"\nsocket = "/run/x.sock"\n')
    found = load_settings(AgentSettings, file=file, environ={})
    assert found.key == tmp_path / "keys" / "d.key"
    assert found.state == tmp_path / "state"
    assert found.socket == Path("/run/x.sock")


def test_relative_urls_in_a_file_are_anchored_and_others_are_left(tmp_path: Path) -> None:
    """file:// and sqlite:/// URLs follow the file's folder; a bucket's URL does not."""
    found = load_settings(ControlSettings, file=write(tmp_path, 'registry = "file://models"\n'), environ={})
    assert found.registry == f"file://{tmp_path}/models"
    assert found.database == f"sqlite:///{tmp_path}/edgekit.db"
    bucket = load_settings(ControlSettings, file=write(tmp_path, 'registry = "s3://bucket/models"\n'), environ={})
    assert bucket.registry == "s3://bucket/models"


@pytest.mark.parametrize("name", ["threads", "instances"])
def test_numbers_that_no_machine_has_are_refused(name: str) -> None:
    """A remote `set` with one digit too many would leave the device without a model."""
    flags = {"device": "d", "fleet": "f", "target": "t", name: "1000000"}
    with pytest.raises(SettingsError, match=f"<= 1024.*{name}"):
        load_settings(AgentSettings, file=None, environ={}, flags=flags)


def test_required_settings_must_come_from_somewhere() -> None:
    """An agent without a name is an error that says what is missing."""
    with pytest.raises(SettingsError, match="device"):
        load_settings(AgentSettings, file=None, environ={})
    found = load_settings(
        AgentSettings, file=None, environ={"EDGEKIT_DEVICE": "d", "EDGEKIT_FLEET": "f"}, flags={"target": "t"}
    )
    assert (found.device, found.fleet, found.target) == ("d", "f", "t")


@pytest.mark.parametrize(
    ("name", "value"),
    [("heartbeat_seconds", "-1"), ("telemetry_seconds", "nan"), ("queue_limit", "0"), ("probation_seconds", "-0.1")],
)
def test_a_number_out_of_its_range_is_refused_by_name(name: str, value: str) -> None:
    """A heartbeat of minus one second would be a flood, and a queue of none answers nobody."""
    flags = {"device": "d", "fleet": "f", "target": "t", name: value}
    with pytest.raises(SettingsError, match=rf"Expected .* at `\$.{name}`"):
        load_settings(AgentSettings, file=None, environ={}, flags=flags)

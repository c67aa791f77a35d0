"""Settings of the cloud tier: they are checked when they are read."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from device_agents.assembly.cloud import make_cloud, make_cloud_clients
from device_agents.assembly.serving import threshold_warnings
from device_agents.inference.cloud.budget_rules import Budget
from device_agents.inference.cloud.retry_budget import RetryBudget
from device_agents.inference.options import CloudOptions, ServiceOptions
from edgekit.errors import SettingsError
from edgekit.serving.models.cloud_options import CloudModelOptions, CloudModelSettings, check_canaries
from edgekit.settings import AgentSettings, ControlSettings, load_settings
from edgekit.settings.groups import settings_group
from tests.simulators.pki import Pki

NEEDED = 'device = "pi-1"\nfleet = "lab"\ntarget = "x86-64"\n'


def read(folder: Path, text: str) -> AgentSettings:
    file = folder / "agent.toml"
    file.write_text(NEEDED + text)
    return load_settings(AgentSettings, file=file, environ={})


@pytest.mark.parametrize("url", ["htp://cloud", "cloud:8700", "https://", "http://a:b", "http://a b", "http://a/?x=1"])
def test_a_url_needs_scheme_and_host(tmp_path: Path, url: str) -> None:
    """The error names the setting and the two forms."""
    with pytest.raises(SettingsError, match=r"cloud_url is .*, expected http://HOST\[:PORT\] or https://HOST"):
        read(tmp_path, f'cloud_url = "{url}"')
    assert read(tmp_path, 'cloud_url = "https://[::1]:8700/base"').cloud_url


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf", '"some"', "true"])
def test_a_threshold_is_a_finite_score_or_all(tmp_path: Path, value: str) -> None:
    """For the agent and for one model."""
    for text in (f"fallback_threshold = {value}", f"[models.digits]\nfallback_threshold = {value}"):
        with pytest.raises(SettingsError, match="fallback_threshold"):
            read(tmp_path, text)


def test_thresholds_above_one_work_with_a_warning(tmp_path: Path) -> None:
    """As in release 0.1.0 they send all; "all" does so without a warning, and so do 0 and 1 what they say."""
    for value, threshold, warnings in (("80", 80.0, 1), ("1.1", 1.1, 1), ('"all"', 2.0, 0), ("1", 1.0, 0), ("0", 0, 0)):
        settings = read(tmp_path, f"fallback_threshold = {value}")
        service = settings_group(ServiceOptions, settings)
        assert CloudOptions.of(service, None).threshold == threshold
        assert len(threshold_warnings(settings)) == warnings


def test_a_model_has_its_own_settings_over_the_agents(tmp_path: Path) -> None:
    """What a table does not set comes from the agent's keys."""
    text = 'cloud_model = "big"\nfallback_threshold = 0.7\ncloud_calls_per_day = 9\n[models.a]\nsend_inputs = "never"\n'
    text += '[models.b]\ncloud_model = ""\nfallback_threshold = 0.0\ncloud_calls_per_day = 4\ncloud_bytes_per_day = 5\n'
    settings = read(tmp_path, text)
    service = settings_group(ServiceOptions, settings)
    a, b = (CloudOptions.of(service, settings.models[name]) for name in "ab")
    assert a == CloudOptions(cloud_model="big", threshold=0.7, send_inputs="never")
    budget = Budget(calls=4, bytes=5)  # beside that of all models
    assert b == CloudOptions(cloud_model="", threshold=0.0, send_inputs="allowed", own_threshold=True, budget=budget)
    assert service.cloud_calls_per_day == 9


def test_a_model_of_the_cloud_tier_has_its_own_settings(tmp_path: Path) -> None:
    """A table wins over the tier's keys; an unknown key in it is an error."""
    file = tmp_path / "edgekit.toml"
    file.write_text(
        'cloud_channel = "stable"\ncloud_instances = 2\n[cloud_models.big]\ncanary_share = 0.1\nbatch = 8\n'
    )
    settings = load_settings(ControlSettings, file=file, environ={})
    defaults = settings_group(CloudModelOptions, settings, prefix="cloud_")
    own = settings.cloud_models["big"].over(defaults)
    assert (own.channel, own.instances, own.canary_share, own.batch) == ("stable", 2, 0.1, 8)
    assert (defaults.canary_share, defaults.batch) == (0.0, "auto")
    file.write_text("[cloud_models.big]\ncanary = 0.1\n")
    with pytest.raises(SettingsError, match="canary"):
        load_settings(ControlSettings, file=file, environ={})


@pytest.mark.parametrize(
    ("defaults", "own", "says"),
    [
        ({"canary_share": 0.1}, {}, "cloud_canary_share is 0.1"),
        ({"canary_share": 0.1}, {"big": {"batch": 8}}, "cloud_canary_share is 0.1"),
        ({}, {"big": {"canary_share": 0.2}}, r"cloud_models\.big\.canary_share is 0\.2"),
        ({"canary_share": 0.1}, {"big": {"canary_channel": "canary"}}, ""),
        ({"canary_channel": "canary"}, {"big": {"canary_share": 0.2}}, ""),
        ({"canary_channel": "canary"}, {}, ""),  # a share of 0 stops a canary
    ],
)
def test_the_share_of_a_canary_needs_a_channel(
    defaults: dict[str, object], own: dict[str, dict[str, object]], says: str
) -> None:
    """Such a share was taken without a word, and no canary ever answered."""
    models = {name: CloudModelSettings(**values) for name, values in own.items()}
    with pytest.raises(SettingsError, match=says) if says else contextlib.nullcontext():
        check_canaries(CloudModelOptions(**defaults), models)


def test_files_for_tls_need_https_and_belong_together(tmp_path: Path) -> None:
    """A device with a private authority, or a certificate of its own."""
    for text, says in (
        ('cloud_url = "http://a"\ncloud_ca = "ca.pem"', r"cloud_ca: set, but cloud_url is 'http://a'"),
        ('cloud_url = "https://a"\ncloud_certificate = "d.pem"', "belong together"),
    ):
        with pytest.raises(SettingsError, match=says):
            read(tmp_path, text)
    settings = read(tmp_path, 'cloud_url = "https://127.0.0.1:1"\ncloud_ca = "ca.pem"')
    with pytest.raises(SettingsError, match=r"ca\.pem cannot be used for TLS with the cloud tier"):
        make_cloud_clients(settings, RetryBudget())
    Pki(tmp_path, names=("device",))
    own = 'cloud_ca = "ca.pem"\ncloud_certificate = "device.pem"\ncloud_key = "device.key"'
    made = make_cloud(read(tmp_path, f'cloud_url = "https://127.0.0.1:1"\n{own}'))
    assert made is not None
    made.close()

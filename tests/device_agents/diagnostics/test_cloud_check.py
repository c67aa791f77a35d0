"""The lines of `edgekit-agent check` about the cloud tier, against a real one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from device_agents.deployment import Installed, UpdateRecord
from device_agents.diagnostics.check_rules import clock_fault, interface_faults
from device_agents.diagnostics.checks import checks_of
from device_agents.storage.journal import Journal
from edgekit.errors import CloudError, SettingsError, UnavailableError
from edgekit.serving.api.keys import Keys, parse_keys
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve
from edgekit.serving.models.options import ModelSettings
from edgekit.settings import AgentSettings
from edgekit.storage.disk import FolderDisk
from edgekit.tensors import DType, TensorSpec
from tests.simulators.small_models import identity_bundle, onnx_bundle

KEY = "a-key-of-the-test"
X = TensorSpec("x", DType.FLOAT32, (None, 3))


@contextlib.asynccontextmanager
async def tier(folder: Path) -> AsyncIterator[str]:
    bundles = {
        "big": onnx_bundle(folder / "big", name="big"),
        "odd": identity_bundle(folder / "odd", name="odd", dtypes=("float32",)),
    }
    models = await CloudModels.open([*bundles], lambda name: (bundles[name], folder / name), threads=1)
    async with serve(App(models, max_request_bytes=2**20, api_key=KEY), http="127.0.0.1:0") as bound:
        yield bound.url
    await models.close()


def device(folder: Path, url: str, *, key: str = KEY, **settings: object) -> AgentSettings:
    """Settings of a device on which ``small`` is installed."""
    state = folder / "state"
    manifest = onnx_bundle(state / "models" / "small" / "a", name="small")
    record = UpdateRecord(active=Installed("a", manifest.digest, "1.0.0", 1))
    Journal(FolderDisk(state)).save("small", record)
    file = folder / "cloud.key"
    file.write_text(key)
    os.chmod(file, 0o600)
    named = {"cloud_url": url, "cloud_api_key_file": file, "state": state, **settings}
    return AgentSettings(device="d", fleet="f", target="x86-64", **named)


async def found(settings: AgentSettings, folder: Path, name: str = "cloud tier") -> str:
    return await asyncio.to_thread(checks_of(settings, folder / "agent.toml")[name])


async def test_the_tier_is_asked_for_health_key_and_each_model(tmp_path: Path) -> None:
    """A fitting model is named; a wrong key, an unknown name and another interface are faults."""
    async with tier(tmp_path / "tier") as url:
        fits = device(tmp_path, url, cloud_model="big")
        assert await found(fits, tmp_path) == "small is big 1.0.0 there"
        with pytest.raises(UnavailableError, match=r"it refuses the API key \(401: the API key is missing or wrong"):
            await found(device(tmp_path, url, cloud_model="big", key="another-key-of-it"), tmp_path)
        with pytest.raises(UnavailableError, match=r"it has no model 'small' \(404: there is no model 'small'"):
            await found(device(tmp_path, url), tmp_path)
        own = {"small": ModelSettings(cloud_model="odd"), "extra": ModelSettings(cloud_model="none")}
        with pytest.raises(UnavailableError, match=r"no model 'none'.*model 'odd': input 'x' is missing") as caught:
            await found(device(tmp_path, url, models=own), tmp_path)
        assert "output 'scores' is missing" in str(caught.value)
        kept = device(tmp_path, url, models={"small": ModelSettings(send_inputs="never")})
        assert (await found(kept, tmp_path)).startswith("reachable; no model")
        assert await found(kept, tmp_path, "fallback") == f"{url}; never sent: small"
    with pytest.raises(CloudError, match="cannot be reached"):
        await found(fits, tmp_path)


async def test_a_password_in_the_url_is_told_and_shown_nowhere(tmp_path: Path) -> None:
    """It is not sent, so whoever wrote it there waits in vain."""
    with pytest.raises(SettingsError, match=r"not sent: http://127\.0\.0\.1:1$") as caught:
        await found(device(tmp_path, "http://me:secret@127.0.0.1:1"), tmp_path, "fallback")
    assert "cloud_api_key_file" in caught.value.advice
    with pytest.raises(CloudError, match=r"http://127\.0\.0\.1:1 cannot be reached") as unreachable:
        await found(device(tmp_path, "http://me:secret@127.0.0.1:1"), tmp_path)
    assert "secret" not in f"{unreachable.value} {caught.value}"


async def test_a_url_that_is_never_called_fails_the_check(tmp_path: Path) -> None:
    """A key over http:// to another host is held back for good, and the check found nothing wrong."""
    settings = device(tmp_path, "http://cloud.example:8700")
    with pytest.raises(SettingsError, match=r"^http://cloud\.example:8700: .* unencrypted to another host") as caught:
        await found(settings, tmp_path, "fallback")
    assert "https://" in caught.value.advice
    said = device(tmp_path, "http://cloud.example:8700", cloud_unencrypted=True)
    assert await found(said, tmp_path, "fallback") == "http://cloud.example:8700"


async def test_a_key_for_other_models_fails_the_check(tmp_path: Path) -> None:
    """Metadata was open to every key, so the check passed and every answer was refused with 403."""
    bundle = onnx_bundle(tmp_path / "tier", name="small")
    models = await CloudModels.open(["small"], lambda _: (bundle, tmp_path / "tier"), threads=1)
    keys = Keys(parse_keys(f'[keys.north]\nkeys = ["{KEY}"]\nmodels = ["faces"]\n'))
    async with serve(App(models, max_request_bytes=2**20, keys=keys), http="127.0.0.1:0") as bound:
        with pytest.raises(
            UnavailableError, match=r"refuses the API key \(403: key north may not ask for model 'small'"
        ):
            await found(device(tmp_path, bound.url), tmp_path)
    await models.close()


async def test_thresholds_above_one_are_named(tmp_path: Path) -> None:
    """They still send all answers, for one release."""
    own = {"small": ModelSettings(fallback_threshold=80.0)}
    settings = device(tmp_path, "http://127.0.0.1:1", fallback_threshold=1.5, models=own)
    with pytest.raises(
        SettingsError, match=r'fallback_threshold is 1\.5.* = "all".*models\.small\.fallback_thresh.* 80'
    ):
        await found(settings, tmp_path, "fallback")
    assert "cloud tier" not in checks_of(device(tmp_path, ""), tmp_path / "agent.toml")


def test_interfaces_are_compared_and_metadata_may_be_anything() -> None:
    """Names, datatypes, shapes; a free axis fits every size, further outputs do not matter."""
    y = TensorSpec("y", DType.FLOAT32, (None, 10))
    x_there = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    y_there = {"name": "y", "datatype": "FP32", "shape": [-1, 10]}
    further = {"name": "z", "datatype": "BF16", "shape": None}
    assert interface_faults({"inputs": [x_there], "outputs": [y_there, further]}, [X], [y]) == []
    assert interface_faults({"inputs": [{**x_there, "shape": [1, -1]}], "outputs": [y_there]}, [X], [y]) == []
    assert interface_faults(
        {"inputs": [x_there, further], "outputs": [{**y_there, "shape": [-1, 1000]}]}, [X], [y]
    ) == [
        "input 'z' is needed there, and the device has none",
        "output 'y' has the shape [-1, 1000], the device's is [any, 10]",
    ]
    wrong = {"inputs": [{**x_there, "datatype": "UINT8"}], "outputs": [y_there]}
    assert interface_faults(wrong, [X], [y]) == ["input 'x' is UINT8, the device's is FP32"]
    for odd in ({}, {"inputs": None, "outputs": 3}, {"inputs": [None], "outputs": ["y"]}):
        assert len(interface_faults(odd, [X], [y])) == 2


def test_clocks_are_compared_where_the_tier_tells_the_time() -> None:
    """Five minutes are allowed, which certificates and tokens allow too."""
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert clock_fault(date, 1445412480.0 + 299) == ""
    assert clock_fault(date, 1445412480.0 + 3600) == "this clock is 3600 s ahead of the cloud tier's"
    assert clock_fault(date, 0.0) == "this clock is 1445412480 s behind the cloud tier's"
    assert clock_fault(None, 0.0) == clock_fault("yesterday", 0.0) == ""

"""Building an agent from settings, also after the loss of its state folder."""

import pytest

from device_agents.assembly.serving import make_inference
from edgekit.errors import SettingsError
from edgekit.serving.worker.runtime import WorkerRuntime
from edgekit.settings import AgentSettings, load_settings
from tests.simulators.small_models import onnx_bundle


async def test_how_models_are_served_comes_from_the_settings(tmp_path):
    """The agent's own for all, and a table for what is different for one; an unknown key there is named."""
    (tmp_path / "agent.toml").write_text(
        """
        device = "pi-1"
        fleet = "f"
        target = "x86-64"
        memory_budget_mib = 64
        queue_limit = 7
        batch = 1
        isolation = "process"
        providers = ["CPUExecutionProvider"]
        require_providers = true

        [models.small]
        pinned = true
        instances = 2
        isolation = "thread"
        """
    )
    settings = load_settings(AgentSettings, file=tmp_path / "agent.toml", environ={})
    inference, _ = make_inference(settings)
    for name in ("small", "other"):
        await inference.activate(name, onnx_bundle(tmp_path / name, name=name), tmp_path / name)
    small, other = (inference._manager.get(name) for name in ("small", "other"))
    assert (small.options.pinned, small.options.instances, small.options.queue_limit) == (True, 2, 7)
    assert (other.options.pinned, other.options.instances, other.options.isolation) == (False, 1, "process")
    assert isinstance(other.session.runtime, WorkerRuntime)
    assert not isinstance(small.session.runtime, WorkerRuntime)
    assert inference.describe("other", None).providers_missing == ()
    assert (settings.state / "footprints.json").exists()
    await inference.close()
    (tmp_path / "agent.toml").write_text('device = "d"\nfleet = "f"\ntarget = "t"\n[models.small]\npined = true\n')
    with pytest.raises(SettingsError, match="pined"):
        load_settings(AgentSettings, file=tmp_path / "agent.toml", environ={})

import pytest

from converters.cost.profile import artifact_inputs, profile_bundle
from edgekit.errors import ManifestError, SettingsError
from edgekit.registry import check_bundle
from edgekit.sealing.bundles import seal_bundle
from edgekit.sealing.class_keys import add_class, content_secret, find_class
from tests.simulators.small_models import onnx_bundle
from tests.simulators.streaming_models import streaming_bundle


def test_a_bundle_is_profiled_on_this_machine(tmp_path):
    """Times, memory and the runtime's version; there is no time without a unit."""
    onnx_bundle(tmp_path / "small", batch=None)
    result = profile_bundle(tmp_path / "small", "host", seconds=0.02)
    assert result.p50_ms is not None
    assert result.p95_ms is not None
    assert 0 < result.p50_ms <= result.p95_ms
    assert result.runtime.startswith("onnxruntime ")
    assert result.layers is None
    assert result.estimate_core == ""
    onnx_bundle(tmp_path / "pi", target="raspberry-pi-5")
    assert profile_bundle(tmp_path / "pi", "host", seconds=0.02).estimate_core == "cortex-a76"


def test_a_model_with_state_starts_from_zeros(tmp_path):
    """The artifact's inputs are complete, state included."""
    manifest = streaming_bundle(tmp_path / "ear", name="ear")
    found = artifact_inputs(tmp_path / "ear", manifest)
    assert set(found) == {binding.artifact.name for binding in manifest.inputs}


def test_a_folder_that_is_no_bundle_is_named(tmp_path):
    """The error says what to give instead."""
    with pytest.raises(ManifestError, match="is not a bundle") as error:
        profile_bundle(tmp_path, "host")
    assert "edgekit convert" in error.value.advice


def test_a_sealed_bundle_is_refused(tmp_path):
    """Its model must not be written to a disk for another process."""
    keys, plain, sealed = tmp_path / "keys", tmp_path / "plain", tmp_path / "sealed"
    add_class(keys, "cameras")
    onnx_bundle(plain)
    classes = [find_class(keys, "cameras")]
    seal_bundle(plain, check_bundle(plain), sealed, classes=classes, secret=content_secret(keys))
    with pytest.raises(SettingsError, match="is sealed"):
        profile_bundle(sealed, "host")

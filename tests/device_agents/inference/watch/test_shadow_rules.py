"""Whether two answers differ, why two bundles cannot be compared, and what is reported."""

import msgspec
import numpy as np
import pytest

from device_agents.inference.watch.shadow_rules import Judge, obstacle
from device_agents.shadow import MAX_COUNT, ShadowCounts
from edgekit.bundle.bindings import Binding
from edgekit.bundle.manifest import OutputQuality, Quality, Task
from edgekit.mqtt.messages import SHADOW_BYTES, Shadow, encode
from edgekit.tensors import DType, TensorSpec
from tests.simulators.small_models import onnx_bundle

RNG = np.random.default_rng(1)
OTHER = Task()


@pytest.fixture
def manifest(tmp_path):
    return onnx_bundle(tmp_path / "bundle")


def judge(manifest, golden=None, *, task=None, candidate=None):
    one = manifest if task is None else msgspec.structs.replace(manifest, task=task)
    return Judge(one, candidate or one, golden or {})


def scores(*rows):
    return {"scores": np.array(rows, np.float32), "tag": np.zeros((len(rows), 1), np.float32)}


def test_a_decision_that_changes_is_a_difference(manifest):
    """Row by row; scores may move as far as they like while the decision stays."""
    before = scores([0.9, 0.1, 0], [0.4, 0.3, 0.3], [0, 1, 0])
    after = scores([0.5, 0.4, 0.1], [0.3, 0.4, 0.3], [0, 1, 0])
    assert judge(manifest).differing(before, after) == (3, 1)


def test_an_answer_that_is_no_answer_is_a_difference(manifest):
    """NaN, another number of rows, a missing output."""
    one = judge(manifest)
    assert one.differing(scores([1, 0, 0]), scores([1, np.nan, 0])) == (1, 1)
    assert one.differing(scores([1, 0, 0], [0, 1, 0]), scores([1, 0, 0])) == (2, 2)
    assert one.differing(scores([1, 0, 0]), {}) == (1, 1)
    assert one.failing(scores([1, 0, 0], [0, 1, 0])) == 2


def test_classes_are_compared_by_their_names(manifest):
    """Where both bundles name them: another order of the same classes changes nothing."""
    named = msgspec.structs.replace(manifest.task, labels=("cat", "dog", "cow"))
    turned = msgspec.structs.replace(manifest, task=msgspec.structs.replace(named, labels=("dog", "cat", "cow")))
    one = judge(manifest, task=named, candidate=turned)
    assert one.differing(scores([0.9, 0.1, 0]), scores([0.1, 0.9, 0])) == (1, 0)
    assert one.differing(scores([0.9, 0.1, 0]), scores([0.9, 0.1, 0])) == (1, 1)


def test_a_label_that_appears_is_a_difference(manifest):
    """Of several labels, any one counts."""
    task = msgspec.structs.replace(manifest.task, kind="multilabel")
    assert judge(manifest, task=task).differing(scores([0.9, 0.6, 0.1]), scores([0.8, 0.4, 0.1])) == (1, 1)
    assert judge(manifest, task=task).differing(scores([0.9, 0.6, 0.1]), scores([0.7, 0.8, 0.2])) == (1, 0)


def test_without_decisions_the_distance_counts(manifest):
    """In units of the spread of the golden answers: 2 % of it is no difference, 20 % is one, and so is NaN."""
    golden = {"scores": RNG.normal(size=(50, 3)), "tag": RNG.normal(size=(50, 1))}
    one = judge(manifest, golden, task=OTHER)
    before = {"scores": RNG.normal(size=(3, 3)), "tag": RNG.normal(size=(3, 1))}
    after = {name: value.copy() for name, value in before.items()}
    after["scores"][0] += 0.02
    after["scores"][1] += 0.2
    after["tag"][2] = np.nan
    assert one.differing(before, after) == (3, 2)


def test_an_output_has_its_own_limit(manifest):
    """The budget of its conversion, where that is larger."""
    golden = {"scores": RNG.normal(size=(50, 3)), "tag": RNG.normal(size=(50, 1))}
    wide = Quality("agreement", 1.0, 1.0, 50, proven=True, outputs=(_quality("scores", 0.5),))
    other = msgspec.structs.replace(manifest, task=OTHER)
    one = Judge(other, msgspec.structs.replace(other, quality=wide), golden)
    before = {"scores": np.zeros((1, 3)), "tag": np.zeros((1, 1))}
    assert one.differing(before, {**before, "scores": np.full((1, 3), 0.2)}) == (1, 0)
    assert one.differing(before, {**before, "tag": np.full((1, 1), 0.2)}) == (1, 1)


def _quality(output, max_drop):
    return OutputQuality(output, "agreement", max_drop)


def test_few_pixels_may_change(manifest):
    """A row with many decisions differs when more than a twentieth of them change."""
    before = np.zeros((2, 10, 10, 3), np.float32)
    before[..., 0] = 1
    after = before.copy()
    after[0, 0, :3] = after[1, 0, :] = [0, 1, 0]
    assert judge(manifest).differing({"scores": before}, {"scores": after}) == (2, 1)


def test_bundles_with_other_inputs_cannot_be_compared(manifest):
    """Nor can models with state, nor the first one of a model."""
    assert obstacle(manifest, manifest) == ""
    assert obstacle(None, manifest) == "no-model"
    spec = TensorSpec("y", DType.FLOAT32, (None, 3))
    assert obstacle(manifest, msgspec.structs.replace(manifest, inputs=(Binding(spec, spec),))) == "inputs"
    state = msgspec.structs.replace(manifest.inputs[0], state="tag")
    assert obstacle(msgspec.structs.replace(manifest, inputs=(state,)), manifest) == "stateful"


def test_a_report_of_a_comparison_has_at_most_64_bytes():
    """Also with the largest counts and the longest reason."""
    counts = ShadowCounts(2**70, 2**70, 2**70, 2**70, 1e9, "no-more-than-this", 2**70)
    message = counts.message("f" * 64)
    assert len(encode(message)) <= SHADOW_BYTES
    assert message == Shadow("f" * 12, MAX_COUNT, MAX_COUNT, MAX_COUNT, MAX_COUNT, "no-more-than-this", MAX_COUNT)

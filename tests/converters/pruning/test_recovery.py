"""Recovery of pruned graphs: what is tried, what is kept, and which rows are read."""

import numpy as np
import pytest

from converters.data.samples import Samples
from converters.framework_process import TensorFlowProcess
from converters.pruning import recovery as rules
from converters.pruning.augmentation import kinds_for, taught_inputs, with_copies
from converters.pruning.pruner import ChannelPruner, parameters
from converters.pruning.recovery import Recovered, Recovery, copies_in, labels_for, training_steps
from converters.quality.divergence import divergence
from edgekit.bundle.recipe import CHANNELS, DISTILLED, OWN, RECOVERIES, Recipe
from edgekit.errors import ConversionError, RecipeError
from tests.simulators.channel_models import Net
from tests.simulators.pruning_models import STRUCTURES

LOOPS = "tests.converters.training.own_loops"


@pytest.fixture(scope="module")
def process():
    with TensorFlowProcess() as process:
        yield process


def _pruner(name, rows=80, share=0.5, seed=0):
    net, output = STRUCTURES[name]()
    pruner = ChannelPruner(net.graph(output), Samples({"x": net.x(rows, seed=2)}), seed=seed)
    return pruner, pruner.level(share, parameters, "size").kept, net


@pytest.mark.parametrize("name", ["plain", "depthwise", "flatten", "attention"])
def test_copies_are_taken_only_where_held_out_rows_are_better(name):
    """Of the kinds of copies the best one is taken, and only one that clearly helps on held-out rows."""
    pruner, kept, _ = _pruner(name, rows=200)
    plain = pruner.pruned(kept).graph
    found = Recovery(pruner, None).recover(kept, plain)
    taken = [step for step in found.steps if step.taken]
    assert {step.step for step in found.steps} <= {"mixed", "shifted", "flipped"}
    assert all(step.after <= 0.95 * step.before for step in taken)
    assert len(taken) <= 1
    assert found.recovery == tuple(step.step for step in taken)
    assert (found.graph is None) == (not taken)
    assert found.gain <= 1.0
    assert found.steps == Recovery(pruner, None).recover(kept, plain).steps
    few, kept, _ = _pruner(name, rows=100)
    assert not Recovery(few, None).recover(kept, few.pruned(kept).graph).steps


def test_copies_are_of_the_rows_that_were_given():
    """Copies are mixtures of rows, moved or mirrored images; indices have none."""
    x = np.arange(4 * 1 * 6 * 6, dtype=np.float32).reshape(4, 1, 6, 6)
    for kind in kinds_for({"x": x}):
        made = with_copies({"x": x}, kind, 3, seed=1)["x"]
        assert made.shape == (16, 1, 6, 6)
        assert made.dtype == x.dtype
        assert x.min() <= made.min() <= made.max() <= x.max()
        assert all((made == row).all(axis=(1, 2, 3)).any() for row in x)  # the rows themselves are among them
        np.testing.assert_array_equal(made, with_copies({"x": x}, kind, 3, seed=1)["x"])
    assert kinds_for({"x": x}) == ("mixed", "shifted", "flipped")
    assert kinds_for({"x": x[:, 0, 0]}) == ("mixed",)
    assert kinds_for({"x": x, "ids": np.arange(4)}) == ()


def test_training_sees_copies_of_images_only():
    """Images are also mixed and moved, at most nine times each and within a bound of rows and bytes; others are not."""
    x = np.random.default_rng(0).normal(size=(20, 1, 6, 6)).astype(np.float32)
    taught = taught_inputs({"x": x}, seed=1)["x"]
    assert taught.shape == (20 * 19, 1, 6, 6)
    np.testing.assert_array_equal(taught[:20], x)
    np.testing.assert_array_equal(taught, taught_inputs({"x": x}, seed=1)["x"])
    assert len(np.unique(taught.reshape(len(taught), -1), axis=0)) > 300
    assert len(taught_inputs({"x": np.repeat(x, 15, axis=0)}, seed=1)["x"]) == 300 * 3
    large = np.zeros((20, 3, 400, 400), np.float32)
    assert len(taught_inputs({"x": large}, seed=1)["x"]) == 20
    for inputs in ({"x": x[:, 0]}, {"x": x, "ids": np.arange(20)}):
        assert all(len(value) == 20 for value in taught_inputs(inputs, seed=1).values())


def test_large_models_are_not_trained():
    """The number of steps follows from the multiply-adds; below a least number there is no training."""
    net = Net(size=8)
    small = net.graph(net.head(net.relu(net.conv("x", 4))))
    assert training_steps(small) == rules.STEPS
    net = Net(size=96)
    x = net.relu(net.conv("x", 64))
    large = net.graph(net.head(net.relu(net.conv(x, 128))))
    assert training_steps(large) == 0


def test_labels_are_class_indices_of_a_classifier():
    """Labels train only where they are class indices and the model has class scores."""
    x = {"x": np.zeros((3, 2), np.float32)}
    assert labels_for(Samples(x, np.arange(3)), "scores") is not None
    for labels, decision in (
        (np.arange(3), ""),
        (None, "scores"),
        (np.zeros(3), "scores"),
        (np.zeros((3, 1), int), "s"),
    ):
        assert labels_for(Samples(x, labels), decision) is None


def test_recipes_say_what_was_done():
    """Steps have an order; recipes without recovery keep their bytes and ids."""
    one = Recipe("int8", prune=CHANNELS, kept=(("a", "0-3"),), share=0.5, recovery=("mixed", DISTILLED))
    assert one.id.startswith("int8-kept50-distilled-")
    assert one.base.recovery == ("mixed", DISTILLED)
    assert copies_in(one.recovery) == "mixed"
    assert Recipe("int8", prune=CHANNELS, kept=(("a", "0-3"),), recovery=()) == Recipe(
        "int8", prune=CHANNELS, kept=(("a", "0-3"),)
    )
    for wrong in (("wrong",), (OWN, DISTILLED), ("mixed", "shifted"), (DISTILLED, DISTILLED)):
        with pytest.raises(RecipeError, match="in this order"):
            Recipe(prune=CHANNELS, kept=(("a", "0-3"),), recovery=wrong)
    with pytest.raises(RecipeError, match="recovery: given without prune"):
        Recipe(recovery=RECOVERIES[:1])


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["squeezed", "flatten", "transformer"])
def test_training_never_makes_held_out_rows_worse(name, process):
    """A step is taken only where rows that it has not read are better; its recipe makes the same weights."""
    pruner, kept, net = _pruner(name, rows=100, share=0.4)
    recovery = Recovery(pruner, process)
    plain = pruner.pruned(kept).graph
    found = recovery.recover(kept, plain)
    tried = [step for step in found.steps if step.step == DISTILLED]
    assert [step.note for step in tried] == [""]
    assert tried[0].taken == (tried[0].after < tried[0].before)
    assert (found.graph is None) == (not found.recovery)
    if found.graph is None:
        assert name != "squeezed"  # the others have random weights, where nothing helps
        return
    fresh = {"x": net.x(200, seed=9)}
    expected = pruner.graph.run(fresh)
    lost, fitted = (divergence(expected, graph.run(fresh), "") for graph in (found.graph, plain))
    assert lost < fitted
    again = Recovery(pruner, process).remake(kept, found.recovery)
    assert again.to_bytes() == found.graph.to_bytes()


@pytest.mark.heavy
def test_labels_are_tried_only_after_distillation_has_helped(process, monkeypatch):
    """A training costs time; where the first one is undone, the second is not begun."""
    pruner, kept, _ = _pruner("plain", rows=80)
    labels = np.arange(80) % 3
    monkeypatch.setattr(rules, "LEAST_STEPS", rules.STEPS + 1)  # no training is affordable
    found = Recovery(pruner, process, labels).recover(kept, pruner.pruned(kept).graph)
    assert [step.step for step in found.steps if not step.taken][-1:] == [DISTILLED]
    assert "fine-tuned" not in [step.step for step in found.steps]


def test_own_loop_is_kept_only_where_it_helps(process, tmp_path, monkeypatch):
    """The loop gets the rows that are not held out; a result that is worse is dropped; an error is told as it is."""
    pruner, kept, _ = _pruner("plain", rows=60)
    before = Recovered(None, (), ())
    worse = Recovery(pruner, process, own=f"{LOOPS}:worse").own(kept, before)
    assert worse.graph is None
    assert (worse.steps[-1].step, worse.steps[-1].taken) == (OWN, False)
    assert worse.steps[-1].after > worse.steps[-1].before
    with pytest.raises(ConversionError, match=f"training loop {LOOPS}:failing failed: ValueError: no such optimizer"):
        Recovery(pruner, process, own=f"{LOOPS}:failing").own(kept, before)
    with pytest.raises(ConversionError, match=f"ended while running the training loop {LOOPS}:ending"):
        Recovery(pruner, process, own=f"{LOOPS}:ending").own(kept, before)
    with pytest.raises(ConversionError, match="training loop of the user"):
        Recovery(pruner, process).remake(kept, (OWN,))

"""Rules of the benchmark of models that others made: distances, the best stock file, refusals and memory."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from benchmarks import wild, wild_judge
from benchmarks.wild_memory import Finished, measured
from benchmarks.wild_models import MODELS


def result(**changes):
    stock = {
        "TFLiteConverter float32": {"bytes": 1000, "distances": {"y": 0.0}},
        "TFLiteConverter static int8": {"bytes": 300, "distances": {"y": 0.2}},
        "TFLiteConverter float16": {"bytes": 500, "distances": {"y": 0.001}},
        "onnxruntime quantize_dynamic": {"bytes": 100, "distances": {"y": 0.001}},
        "onnx2tf float32": {"error": "RuntimeError: no"},
    }
    base = {
        "model": "m", "target": "raspberry-pi-4", "skipped": "", "refusal": "", "foreign": "", "wrong": None,
        "warm": False, "stock": stock, "seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 1, "recipe": "int8",
        "bytes": 200, "distances": {"y": 0.004},
    }  # fmt: skip
    return {**base, **changes}


def figure(results, name):
    return next(one for one in wild._figures(results) if one.figure == name)


def test_distance_is_in_each_outputs_own_spread():
    """Large values in one output do not hide errors in another; equal answers have distance 0."""
    right = {"boxes": np.linspace(0, 4000, 20).reshape(10, 2), "scores": np.linspace(0, 1, 20).reshape(10, 2)}
    given = {"boxes": right["boxes"] + 1.0, "scores": right["scores"] + 0.4}
    found = wild_judge.distances(given, right)
    assert found["boxes"] < 0.001
    assert found["scores"] > 0.5
    assert set(wild_judge.distances(right, right).values()) == {0.0}


def test_the_best_stock_file_is_as_near_to_float_and_for_the_same_runtime():
    """A smaller file that is further from float, or for another runtime, is not the best."""
    assert wild._best_stock(result()) == 500
    assert wild._best_stock(result(distances={"y": 0.3})) == 300
    assert wild._best_stock(result(target="jetson-orin")) == 100
    assert figure([result()], "bytes of the best stock file, median").value == pytest.approx(0.4)


def test_time_is_that_of_a_cold_run_and_never_more_than_the_processors():
    """Other work on the machine makes the wall time longer; a kept cache makes a run shorter."""
    slow = result(seconds=900.0, cpu_seconds=300.0)
    threads = result(seconds=400.0, cpu_seconds=700.0)
    warm = result(target="raspberry-pi-5", warm=True, seconds=9999.0, cpu_seconds=9999.0, peak_bytes=1 << 40)
    assert figure([slow, warm], "time, longest").value == 300.0
    assert figure([slow, threads, warm], "time, longest").value == 400.0
    assert figure([slow, warm], "peak memory, largest").met
    assert not any("raspberry-pi-5: time" in one.figure for one in wild._figures([warm]))


def test_a_refusal_counts_only_where_a_stock_tool_converts():
    """A model that no tool converts may be refused; foreign messages and wrong proofs are counted by name."""
    alone = result(refusal="exit 1: no", stock={"onnx2tf": {"error": "x"}})
    name = "not converted, but a stock tool does"
    assert figure([alone], name).met
    assert figure([result(refusal="exit 1: no")], name).value == 1
    wrong = result(wrong={"proven": True, "drops": {"y": 0.1}, "beyond": {"y": 0.1}}, foreign="Traceback")
    assert not figure([wrong], "proven and wrong").met
    assert "m for raspberry-pi-4" in figure([wrong], "tracebacks or foreign messages").note


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("error: layer conv1 is int8 already.\nExport the float model.", False),
        ("Traceback (most recent call last):", True),
        ("error: [ONNXRuntimeError] : 10 : INVALID_GRAPH", True),
        ("\x1b[31merror\x1b[0m", True),
        ("W0000 00:00:1 tf_tfl_flatbuffer_helpers.cc", True),
    ],
)
def test_messages_of_other_tools_are_seen(text, foreign):
    """Tracebacks, escape codes and texts of TensorFlow or ONNX Runtime count as foreign."""
    found = wild._outcome(Finished(1, "", text, 1.0, 1.0, 1))
    assert bool(found["foreign"]) is foreign
    assert found["refusal"].startswith("exit 1: ")


def test_memory_is_that_of_all_processes():
    """A child's memory counts, and the command is ended at its limit."""
    block = "x = bytearray(80 << 20); import time; time.sleep(4)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {block!r}])"
    done = measured([sys.executable, "-c", parent], limit_seconds=60, env=os.environ)
    assert done.status == 0
    assert done.peak_bytes > 80 << 20
    assert measured([sys.executable, "-c", "input()"], limit_seconds=1, env=os.environ).status in (None, 1)


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_plausible(name):
    """Every input has samples that differ, of the shape that the conversion is given."""
    arrays = MODELS[name].samples(np.random.default_rng(0), 3)
    assert arrays
    for key, values in arrays.items():
        assert np.isfinite(values).all()
        if values.ndim:
            assert len(values) == 3
            assert not np.array_equal(values[0], values[1])
            assert key not in MODELS[name].fixed or values.shape[1:] == MODELS[name].fixed[key][1:]

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.framework_process import TensorFlowProcess
from edgekit.cli.main import edgekit, run
from tests.simulators import headed_models, models
from tests.simulators.channel_models import mobile
from tests.simulators.conv_models import separable


@pytest.fixture
def call(capsys, monkeypatch, tmp_path_factory):
    """Run the command line with an own cache; returns exit status, stdout and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
        status = run(edgekit, "edgekit")
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def model(tmp_path):
    models.saved(models.classifier(), tmp_path / "shapes.onnx")
    models.labelled_data(tmp_path / "data.npz")
    return tmp_path / "shapes.onnx"


def test_convert_goes_on_from_what_was_made_unless_told_otherwise(call, model, tmp_path):
    """The second run makes no candidate; with --no-cache it makes all of them again."""
    options = ["--target", "server", "--data", tmp_path / "data.npz"]
    runs = [call("convert", model, *options, "-o", tmp_path / name)[2] for name in ("one", "two")]
    runs.append(call("convert", model, *options, "-o", tmp_path / "three", "--no-cache")[2])
    assert ["server: float32" in errors for errors in runs] == [True, False, True]


def test_a_bundle_says_what_devices_may_send_at_most(call, model, tmp_path):
    """The limit is in the manifest, shown by inspect and in the report; without it the manifest has no such key."""
    for limit in ("allowed", "decoded", "never"):
        folder = tmp_path / limit
        options = ["--send-inputs", limit] if limit != "allowed" else []
        assert call("convert", model, "--target", "server", "-o", folder, *options)[0] == 0
        bundle = folder / "shapes-1.0.0-server"
        assert json.loads(call("inspect", bundle, "--json")[1])["send_inputs"] == limit
        assert ('"send_inputs"' in (bundle / "manifest.json").read_text()) is (limit != "allowed")
        assert json.loads((bundle / "report.json").read_text())["send_inputs"] == limit
    assert call("convert", model, "--target", "server", "--send-inputs", "some")[0] == 2


def test_same_command_again_does_nothing_and_loads_nothing(call, model, tmp_path):
    """The repeated command prints the same table and imports none of the libraries that convert."""
    options = ["convert", model, "--target", "server", "--data", tmp_path / "data.npz", "-o", tmp_path / "out"]
    _, first, _ = call(*options)
    script = """
import sys
from pathlib import Path
from converters.framework_process import TensorFlowProcess
from edgekit.cli.main import edgekit, run
assert run(edgekit, "edgekit") == 0
assert not {"tensorflow", "onnx", "onnxruntime", "ai_edge_litert", "scipy", "joblib"} & set(sys.modules)
"""
    again = subprocess.run(
        [sys.executable, "-c", script, *map(str, options)], capture_output=True, text=True, check=True
    )
    assert again.stdout == first.replace("wrote ", "up to date: ")
    assert again.stderr.startswith("Bundles are up to date; nothing to do")
    assert json.loads(call(*options, "--json")[1]) == json.loads(call(*options, "--json", "--no-cache")[1])


def test_convert_prints_candidates_and_where_the_bundle_is(call, model, tmp_path):
    """Results on stdout, steps on stderr, exit 0."""
    status, out, err = call(
        "convert", model, "--target", "jetson-orin", "--data", tmp_path / "data.npz", "-o", tmp_path / "out"
    )
    assert status == 0
    assert "int8, symmetric" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("wrote ")) <= 110
    assert f"wrote {tmp_path / 'out' / 'shapes-1.0.0-jetson-orin'}" in out
    assert "load shapes.onnx ..." in err


def test_explain_says_why_also_for_what_is_up_to_date(call, model, tmp_path):
    """--explain names smaller and cheaper candidates with the reason against each; the second run says the same."""
    options = ["--target", "jetson-orin", "--data", tmp_path / "data.npz", "-o", tmp_path / "out", "--explain"]
    status, first, _ = call("convert", model, *options)
    assert status == 0
    assert "Chosen: " in first
    assert "--aim cost takes the cheapest" in first
    assert "smaller" in first
    assert call("convert", model, *options)[1] == first.replace("wrote ", "up to date: ")
    assert call("convert", model, *options, "--json")[0] == 2


def test_convert_json_has_the_reports_keys(call, model, tmp_path):
    """--json prints a list of reports and nothing else on stdout."""
    status, out, _ = call("convert", model, "--target", "server", "-o", tmp_path / "out", "--json")
    assert status == 0
    [report] = json.loads(out)
    assert report["chosen"] == "float32"
    assert report["float"]["bytes"] > 0
    assert report["bundle"] == str(tmp_path / "out" / "shapes-1.0.0-server")


def test_dry_run_prints_the_plan_and_writes_nothing(call, model, tmp_path):
    """--dry-run prints targets and candidates and makes no folder."""
    status, out, _ = call("convert", model, "--target", "raspberry-pi-4", "-o", tmp_path / "out", "--dry-run")
    assert status == 0
    assert "float32, float16" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_dry_run_names_operators_that_a_target_lacks(call, tmp_path):
    """LiteRT has no Det, and the Edge TPU no error function; ONNX Runtime has both. The plan is printed too."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Erf", ["c"], ["e"], name="erf"),
        helper.make_node("Det", ["e"], ["y"], name="area"),
    ]
    weights = {"w": np.random.default_rng(0).normal(0, 1, (2, 1, 3, 3)).astype(np.float32)}
    path = tmp_path / "areas.onnx"
    onnx.save(models.model_of(nodes, {"x": ["n", 1, 6, 6]}, {"y": ["n", 2]}, weights), path)
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 1, 6, 6), np.float32))
    options = ["--data", tmp_path / "d.npz", "-o", tmp_path / "out", "--dry-run"]
    assert call("convert", path, "--target", "jetson-orin", *options)[0] == 0
    status, out, err = call("convert", path, "--target", "raspberry-pi-4", "--target", "jetson-orin", *options)
    assert status == 1
    assert "jetson-orin" in out
    assert "raspberry-pi-4: operator Det (layer 'area') cannot be converted for LiteRT" in err
    assert "cannot be converted for raspberry-pi-4, for the reasons above" in err
    onnx.save(models.model_of(nodes[:2], {"x": ["n", 1, 6, 6]}, {"e": ["n", 2, 4, 4]}, weights), path)
    status, _, err = call("convert", path, "--target", "coral-edgetpu", *options)
    assert status == 1
    assert "is not supported by Edge TPU" in err
    assert "expected integers" not in err


def test_dry_run_takes_a_recurrent_layer_that_only_a_loop_can_run(call, tmp_path):
    """600 steps are too many to unroll; a conversion makes a loop of them, so the dry run must not refuse them."""
    onnx.save(headed_models.gru(steps=600).model, tmp_path / "gru.onnx")
    status, out, err = call("convert", tmp_path / "gru.onnx", "--target", "raspberry-pi-4", "--dry-run")
    assert status == 0, err
    assert "raspberry-pi-4" in out


def test_dry_run_reads_the_model(call, model, tmp_path):
    """--dry-run shows the interface and the operators; what a conversion would refuse is refused."""
    status, out, _ = call("convert", model, "--target", "server", "-o", tmp_path / "out", "--dry-run")
    assert status == 0
    assert "input image: float32 [any, 1, 8, 8]" in out
    assert "1 Conv" in out
    status, out, _ = call("convert", model, "--target", "server", "--dry-run", "--json")
    assert json.loads(out)["operators"]["Conv"] == 1
    status, _, err = call("convert", model, "--target", "server", "--cut", "nothing", "--dry-run")
    assert status != 0
    assert "--cut names nothing" in err


def test_refused_budget_exits_3(call, model, tmp_path):
    """Without a candidate within the budget, the exit status is 3, the nearest is named, and nothing is written."""
    status, _, err = call("convert", model, "--target", "server", "--max-bytes", 5, "-o", tmp_path / "out")
    assert status == 3
    assert "nearest is float32" in err
    assert not (tmp_path / "out").exists()


def test_bad_model_exits_1_and_wrong_usage_2(call, tmp_path):
    """A file that is no model exits 1; a missing option exits 2."""
    (tmp_path / "m.onnx").write_bytes(b"no model")
    status, _, err = call("convert", tmp_path / "m.onnx", "--target", "server", "-o", tmp_path / "out")
    assert status == 1
    assert "not a model that edgekit can read" in err
    assert "Traceback" not in err
    assert call("convert", tmp_path / "m.onnx")[0] == 2
    assert not (tmp_path / "out").exists()


def test_recipe_file_is_read_and_a_wrong_key_is_named(call, model, tmp_path):
    """A recipe may be a TOML file; an unknown key is an error that lists the known."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('precision = "float16"\n')
    bad.write_text('precison = "float16"\n')
    options = ("--target", "jetson-orin", "-o", tmp_path / "out")
    status, out, _ = call("convert", model, "--recipe", good, *options)
    assert status == 0
    assert "float32" not in out
    status, _, err = call("convert", model, "--recipe", bad, *options)
    assert status == 1
    assert "precision" in err


def test_inspect_shows_a_model_and_a_bundle(call, model, tmp_path):
    """Both kinds, as JSON with tensors."""
    status, out, _ = call("inspect", model, "--json")
    found = json.loads(out)
    assert (status, found["kind"], found["operators"]["Conv"]) == (0, "model", 1)
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 1, 8, 8]}]
    call("convert", model, "--target", "server", "-o", tmp_path / "out")
    status, out, _ = call("inspect", tmp_path / "out" / "shapes-1.0.0-server", "--json")
    found = json.loads(out)
    assert (status, found["kind"], found["target"]) == (0, "bundle", "server")
    assert found["operators"]["Conv"] == 1
    assert "scores within" in call("inspect", tmp_path / "out" / "shapes-1.0.0-server")[1]
    status, out, _ = call("inspect", model, "--cut", "r", "--json")
    assert status == 0
    assert [one["name"] for one in json.loads(out)["outputs"]] == ["r"]
    assert "options are for models" in call("inspect", tmp_path / "out" / "shapes-1.0.0-server", "--cut", "r")[2]


def test_compare_tells_a_model_from_a_broken_one(call, model, tmp_path):
    """The same model has no drop; a model with other weights has a drop within its bounds."""
    broken = models.classifier()
    for tensor in broken.graph.initializer:
        if tensor.name == "dense":
            tensor.CopyFrom(models.numpy_helper.from_array(-models.numpy_helper.to_array(tensor), "dense"))
    models.saved(broken, tmp_path / "other.onnx")
    _, out, _ = call("compare", model, model, "--data", tmp_path / "data.npz", "--json")
    same = json.loads(out)["data.npz"]
    assert (same["drop"]["value"], same["parity"]["equal"]) == (0.0, True)
    _, out, _ = call("compare", model, tmp_path / "other.onnx", "--data", tmp_path / "data.npz", "--json")
    other = json.loads(out)["data.npz"]
    assert other["drop"]["lower"] <= other["drop"]["value"] <= other["drop"]["upper"]
    assert other["drop"]["value"] > 0.1


def test_compare_refuses_other_interfaces(call, model, tmp_path):
    """Models with other outputs cannot be compared, and both interfaces are shown."""
    models.saved(models.classifier(classes=4), tmp_path / "other.onnx")
    status, _, err = call("compare", model, tmp_path / "other.onnx", "--data", tmp_path / "data.npz")
    assert status == 1
    assert "[any, 3]" in err
    assert "[any, 4]" in err


def test_targets_lists_and_shows(call):
    """The table, one profile, and JSON with stable keys."""
    assert "raspberry-pi-4" in call("targets")[1]
    assert "litert" in call("targets", "raspberry-pi-4")[1]
    assert {row["name"] for row in json.loads(call("targets", "--json")[1])} >= {"server", "jetson-orin"}
    status, _, err = call("targets", "jetson-orion")
    assert status == 1
    assert "jetson-orin" in err


def test_data_of_the_wrong_shape_shows_both(call, model, tmp_path):
    """Both shapes are in the message."""
    np.savez(tmp_path / "wrong.npz", x=np.zeros((6, 8, 8, 1), np.float32))
    status, _, err = call("convert", model, "--target", "server", "--data", tmp_path / "wrong.npz")
    assert status == 1
    assert "[6, 8, 8, 1]" in err
    assert "[any, 1, 8, 8]" in err


def test_convert_tells_of_dead_channels_in_one_sentence(call, tmp_path):
    """One sentence counts the removed channels, the samples and the bounds; a share of channels is wrong usage."""
    models.saved(mobile(), tmp_path / "mobile.onnx")
    models.labelled_data(tmp_path / "data.npz", rows=600)
    options = ["--target", "server", "--data", tmp_path / "data.npz", "-o", tmp_path / "out"]
    status, out, _ = call("convert", tmp_path / "mobile.onnx", *options)
    assert status == 0
    out = " ".join(out.split())  # the sentence takes several lines
    assert "210 of 243 channels are 0 on all 120 calibration samples" in out
    assert "so each is active on at most 2.47% of inputs" in out
    status, out, _ = call("convert", tmp_path / "mobile.onnx", *options, "--prune", "none")
    assert status == 0
    assert "channels" not in out
    assert call("convert", tmp_path / "mobile.onnx", *options, "--prune", "half")[0] == 1


@pytest.mark.parametrize("option", ["--data", "--test"])
def test_labels_that_do_not_fit_are_told_before_anything_is_made(call, model, tmp_path, option):
    """Labels that do not fit, in either file, are reported before any candidate is made."""
    models.labelled_data(tmp_path / "data.npz", rows=60)
    with np.load(tmp_path / "data.npz") as found:
        np.savez(tmp_path / "wrong.npz", x=found["x"], y=found["y"] + 7)
    files = {"--data": tmp_path / "data.npz", option: tmp_path / "wrong.npz"}
    given = [part for pair in files.items() for part in pair]
    status, _, err = call("convert", model, "--target", "server", *given, "-o", tmp_path / "out")
    assert status == 1
    assert "labels run from 7 to 9, expected 0 to 2" in err
    assert "server: float32" not in err


@pytest.mark.heavy
def test_runtimes_print_nothing_of_their_own(tmp_path):
    """LiteRT writes a line when it loads a model; `inspect` and `compare` keep it out of their output."""
    with TensorFlowProcess() as child:
        data = child.call("lower", model=separable().with_batch(1).to_bytes()).data
    (tmp_path / "model.tflite").write_bytes(data)
    np.savez(tmp_path / "data.npz", input_0=np.random.default_rng(1).normal(0, 1, (20, 8, 8, 1)).astype(np.float32))
    for words in (["inspect", "model.tflite"], ["compare", "model.tflite", "model.tflite", "--data", "data.npz"]):
        program = [str(Path(sys.executable).parent / "edgekit"), *words]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr

import json

from click.testing import CliRunner

from converters.cost.profile import Profile
from edgekit.bundle.manifest import Cost
from edgekit.cli import profile as command
from edgekit.cli.main import edgekit, run
from tests.simulators.small_models import onnx_bundle


def test_this_machine_is_measured_as_json(tmp_path):
    """The keys are stable, and units are in their names."""
    onnx_bundle(tmp_path / "small", batch=1)
    done = CliRunner().invoke(edgekit, ["profile", str(tmp_path / "small"), "--on", "host", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["on"] == "host"
    assert found["p50_ms"] <= found["p95_ms"]
    assert found["memory_bytes"] >= 0
    assert found["instructions"] or found["not_counted"]


def test_the_table_says_what_was_not_counted(tmp_path):
    """A person reads one row a fact."""
    onnx_bundle(tmp_path / "small", batch=1)
    done = CliRunner().invoke(edgekit, ["profile", str(tmp_path / "small"), "--on", "host"])
    assert done.exit_code == 0, done.output
    assert "this machine" in done.stdout
    assert "ms (p50)" in done.stdout


def test_only_counts_of_the_same_core_are_compared():
    """The cost in the manifest is that of the target's core, which may be another than the emulated one."""
    facts = {"bundle": "b 1.0.0 raspberry-pi-5", "runtime": "r", "not_counted": "", "runs": 1, "memory_bytes": 0}
    cost = Cost("estimate", 110.0, "instructions")
    rows = {}
    for core in ("cortex-a53", "cortex-a76"):
        found = Profile(**facts, on=core, instructions=100.0, estimate=cost, estimate_core="cortex-a76")
        rows[core] = dict(command._facts(found))["cost in the manifest"]
    assert rows["cortex-a53"] == "110 instructions of a cortex-a76 (estimate)"
    assert rows["cortex-a76"] == "110 instructions of a cortex-a76 (estimate, +10.0% against the count)"


def test_a_missing_emulator_is_one_line_and_a_command_to_type(tmp_path, monkeypatch, capsys):
    """Exit status 1, and no traceback."""
    monkeypatch.setenv("EDGEKIT_ARM", str(tmp_path / "none"))
    monkeypatch.setattr("sys.argv", ["edgekit", "profile", str(tmp_path / "small"), "--on", "cortex-a72"])
    onnx_bundle(tmp_path / "small", batch=1)
    assert run(edgekit, "edgekit") == 1
    said = capsys.readouterr().err
    assert "instructions of cortex-a72 cannot be counted" in said
    assert "Run: " in said


def test_the_command_knows_the_places_of_the_library():
    """The command line lists them without importing the converters."""
    from converters.cost.profile import PLACES

    assert set(command.PLACES) == set(PLACES)

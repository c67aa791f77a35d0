"""Two versions of a runtime answer in processes of their own; the end of such a process is an outcome."""

import os
import sys
import time

import numpy as np
import pytest

from converters.data.samples import load_samples, split_samples
from converters.recheck.environment import environment_for
from converters.recheck.packages import parse_wanted
from converters.recheck.page import recheck_html
from converters.recheck.recheck import recheck
from converters.recheck.samples import Facts, Split, proof_rows, report_facts
from edgekit.bundle.manifest import ROLE_MODEL
from edgekit.errors import NotFoundError, SettingsError, UnavailableError
from edgekit.versions import version_of
from tests.simulators.other_runtimes import (
    CRASHING,
    KILLED,
    OTHER,
    OTHER_NUMPY,
    PACKAGE,
    WITHOUT_MEMORY,
    WRONG,
    bundle,
    environment,
)
from tests.simulators.releases import ASSETS
from tests.simulators.small_models import X

WANTED = parse_wanted(OTHER)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_same_answers_are_equal_and_the_report_says_what_was_looked_at(tmp_path, cache):
    """Golden samples and other rows; memory of both versions; a page that loads nothing."""
    made = bundle(tmp_path / "b", batch=None)
    environment(cache)
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    found = recheck(tmp_path / "b", WANTED, data=tmp_path / "d.npz", rows=40)
    assert (found.outcome, found.reasons) == ("equal", ())
    assert (found.runtime, found.against) == ("onnxruntime 99.0.0", f"onnxruntime {version_of(PACKAGE)}")
    assert found.digest == made.digest
    assert [(one.rows, one.n, one.of) for one in found.looked] == [("golden", 3, 3), ("proof", 40, 50)]
    assert {(one.rows, one.output) for one in found.outputs} == {
        (rows, name) for rows in ("golden", "proof") for name in ("scores", "tag")
    }
    assert found.changed.n == 40
    assert found.after.memory_bytes >= 0
    page = recheck_html(found).decode()
    assert "Every bit of 43 samples is equal" in page
    assert "http" not in page
    assert str(tmp_path) not in found.to_json().decode()


def test_the_version_is_the_one_that_the_package_states(tmp_path, cache):
    """99.0 is 99.0.0, as devices report it: evidence under another text would be of no use to them."""
    bundle(tmp_path / "b")
    environment(cache, asked="99.0")
    assert recheck(tmp_path / "b", parse_wanted("onnxruntime==99.0")).runtime == "onnxruntime 99.0.0"


def test_wrong_answers_are_worse(tmp_path, cache):
    """Decisions, differences and the bundle's own golden self-test say so."""
    bundle(tmp_path / "b")
    environment(cache, WRONG)
    found = recheck(tmp_path / "b", WANTED)
    assert found.outcome == "worse"
    assert any("decisions changed" in reason for reason in found.reasons)
    assert any("golden self-test" in reason for reason in found.reasons)
    assert "--data" in found.notes[0]
    assert "decisions changed" in recheck_html(found).decode()


def test_a_crash_of_the_other_version_is_an_outcome(tmp_path, cache):
    """The signal is named, and this process lives on."""
    bundle(tmp_path / "b")
    environment(cache, CRASHING)
    found = recheck(tmp_path / "b", WANTED)
    assert found.outcome == "failed"
    assert "SIGABRT" in found.reasons[0]
    assert found.after is None
    assert "cannot run this bundle" in recheck_html(found).decode()


@pytest.mark.parametrize(
    ("code", "said"),
    [(KILLED, "SIGKILL"), (WITHOUT_MEMORY, "none is left"), (OTHER_NUMPY, "built for another numpy")],
)
def test_a_process_that_others_ended_says_nothing_about_the_runtime(tmp_path, cache, code, said):
    """No outcome, so nothing that could be signed: the kernel kills processes when memory is short."""
    bundle(tmp_path / "b")
    environment(cache, code)
    with pytest.raises(UnavailableError, match=said) as error:
        recheck(tmp_path / "b", WANTED)
    assert "nothing about the runtime" in error.value.advice


def test_a_model_that_does_not_load_is_an_outcome_of_the_other_version_only(tmp_path, cache):
    """The version that the bundle was made with must run it; otherwise the bundle is at fault."""
    made = bundle(tmp_path / "b")
    environment(cache, "import onnxruntime\ndef no(*a, **k): raise RuntimeError('unsupported model IR version')\n"
                "onnxruntime.InferenceSession.__init__ = no\n")  # fmt: skip
    found = recheck(tmp_path / "b", WANTED)
    assert found.outcome == "failed"
    assert "unsupported model IR version" in found.reasons[0]
    (tmp_path / "b" / made.file(ROLE_MODEL).path).write_bytes(b"damaged")
    with pytest.raises(Exception, match="is not complete"):
        recheck(tmp_path / "b", WANTED)


def test_the_version_that_the_bundle_was_made_with_is_no_comparison(tmp_path):
    """Nothing would be found, and signing it would say nothing."""
    bundle(tmp_path / "b")
    with pytest.raises(SettingsError, match="nothing to compare"):
        recheck(tmp_path / "b", parse_wanted(f"{PACKAGE}=={version_of(PACKAGE)}"))


def test_the_proof_rows_of_the_conversion_are_found_again(tmp_path):
    """Only rows that neither calibration nor the choice has seen; other data is compared whole, and named so."""
    made = bundle(tmp_path / "b", batch=None)
    x = np.random.default_rng(1).normal(size=(90, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    parts = split_samples(load_samples(tmp_path / "d.npz", [X]), 0.3)
    split = Split(parts.digest, len(parts.calibration), len(parts.choice), len(parts.proof))
    rows, looked = proof_rows(made, tmp_path / "d.npz", split, 1000)
    np.testing.assert_array_equal(rows.inputs["x"], parts.proof.inputs["x"])
    assert (looked.n, looked.note) == (len(parts.proof), "")
    np.savez(tmp_path / "e.npz", x=x[::-1] + 1)
    rows, looked = proof_rows(made, tmp_path / "e.npz", split, 20)
    assert (len(rows), looked.n, looked.of) == (20, 20, 90)
    assert "not the samples of the conversion" in looked.note
    np.savez(tmp_path / "twice.npz", x=np.concatenate([x, x]))  # a conversion leaves the copies out
    rows, _ = proof_rows(made, tmp_path / "twice.npz", split, 1000)
    np.testing.assert_array_equal(rows.inputs["x"], parts.proof.inputs["x"])
    np.savez(tmp_path / "one.npz", x=np.repeat(x[:1], 90, axis=0))
    assert proof_rows(made, tmp_path / "one.npz", split, 1000)[1].n == 90


def test_a_bundle_without_a_report_has_the_default_budget(tmp_path):
    """Bundles of other tools have none."""
    assert report_facts(bundle(tmp_path / "b"), tmp_path / "b") == Facts()


def test_an_environment_that_is_damaged_is_made_again(tmp_path, cache, monkeypatch):
    """Here there is no index to make it from, so the error names the index, and nothing half is left."""
    folder = environment(cache)
    (folder / "bin" / "python").unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NotFoundError, match=r"no .* wheel of onnxruntime 99\.0\.0"):
        environment_for(WANTED, "host")
    assert list(folder.parent.iterdir()) == []


def test_parts_that_a_killed_command_left_are_removed(cache, monkeypatch):
    """After a day; another command may still work on a newer one."""
    folder = cache / "edgekit" / "recheck"
    for name, age in ((".part-old", 90_000), (".part-new", 60)):
        (folder / name / "x").mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NotFoundError):
        environment_for(WANTED, "host")
    assert [path.name for path in folder.iterdir()] == [".part-new"]


def test_without_a_fitting_python_the_error_says_what_to_install(cache, monkeypatch):
    """tflite-runtime has no wheel for Python 3.12 and newer."""
    monkeypatch.setattr("converters.recheck.environment._pythons", lambda: [(sys.executable, (3, 13))])
    with pytest.raises(NotFoundError, match=r"needs Python 3\.10 or 3\.11") as error:
        environment_for(parse_wanted("tflite-runtime==2.14.0"), "host")
    assert "uv python install 3.11" in error.value.advice


@pytest.mark.soak
def test_two_real_versions_of_the_package_index(cache):
    """The bundle of the last release on LiteRT 2.2.0; skipped where the package index has it not."""
    try:
        found = recheck(
            ASSETS / "release-0.1.0" / "bundles" / "shapes-1.0.0-raspberry-pi-4", parse_wanted("ai-edge-litert==2.2.0")
        )
    except (NotFoundError, UnavailableError) as error:
        pytest.skip(f"the package index has no wheel for this test: {error}")
    assert found.outcome in ("equal", "within-budget")
    assert found.against == "ai-edge-litert 2.3.0"
    again = environment_for(parse_wanted("ai-edge-litert==2.2.0"), "host")
    assert again.folder.startswith(str(cache))

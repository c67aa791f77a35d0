"""`edgekit recheck`: what it prints, its exit status, and the evidence that it signs."""

import hashlib
import json
import threading

import pytest
from click.testing import CliRunner

from edgekit.bundle.evidence import Evidence, parse_evidence
from edgekit.cli import recheck as command
from edgekit.cli.main import edgekit, run
from edgekit.registry import blob_name
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from edgekit.versions import version_of
from tests.simulators.other_runtimes import OTHER, PACKAGE, VERSION, WRONG, bundle, environment


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def invoke(*args):
    return CliRunner().invoke(edgekit, [str(one) for one in args])


def registry(home):
    where = ["--registry", (home / "r").as_uri(), "--keys", "k"]
    assert invoke("registry", "init", *where).exit_code == 0
    return where


def test_an_outcome_is_signed_and_the_digest_stays(home):
    """The evidence stands in the target's custom fields, its report is a blob, and the registry is whole."""
    made = bundle(home / "b")
    environment(home / "cache")
    where = registry(home)
    assert invoke("registry", "publish", "b", *where).exit_code == 0
    done = invoke("recheck", "b", "--runtime", OTHER, *where, "-o", "out")
    assert done.exit_code == 0, done.output
    assert "every bit is equal" in done.stdout
    report = (home / "out" / "recheck.json").read_bytes()
    assert (home / "out" / "recheck.html").is_file()
    shown = json.loads(invoke("registry", "list", *where, "--json").stdout)
    assert [one["sha256"] for one in shown] == [made.digest]
    (entry,) = shown[0]["evidence"]
    assert entry["report"] == hashlib.sha256(report).hexdigest()
    assert (entry["runtime"], entry["version"], entry["outcome"]) == (PACKAGE, VERSION, "equal")
    assert entry["against"] == f"{PACKAGE} {version_of(PACKAGE)}"
    assert open_store((home / "r").as_uri()).get(blob_name(entry["report"])) == report
    assert invoke("registry", "verify", *where).exit_code == 0
    assert f"evidence equal with {PACKAGE} {VERSION}" in invoke("registry", "show", "small", "1.0.0", *where).stdout


def test_worse_answers_are_refused_and_signed_too(home, monkeypatch, capsys):
    """Exit status 3; devices must learn that a version is wrong."""
    bundle(home / "b")
    environment(home / "cache", WRONG)
    where = registry(home)
    assert invoke("registry", "publish", "b", *where).exit_code == 0
    monkeypatch.setattr("sys.argv", ["edgekit", "recheck", "b", "--runtime", OTHER, *where, "--json"])
    assert run(edgekit, "edgekit") == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)["outcome"] == "worse"
    assert "must not run with onnxruntime 99.0.0" in printed.err
    assert json.loads(invoke("registry", "list", *where, "--json").stdout)[0]["evidence"][0]["outcome"] == "worse"


def test_a_bundle_that_is_not_published_is_said_before_the_comparison(home):
    """Nothing is installed or run."""
    bundle(home / "b")
    done = invoke("recheck", "b", "--runtime", OTHER, *registry(home))
    assert done.exit_code == 1
    assert "is not published" in str(done.exception)
    assert not (home / "cache").exists()


def test_a_runtime_that_does_not_run_the_bundle_is_one_sentence(home):
    """With what to type instead; a text that names no runtime is wrong usage."""
    bundle(home / "b")
    done = invoke("recheck", "b", "--runtime", "ai-edge-litert==2.2.0")
    assert done.exit_code == 1
    assert "onnxruntime==VERSION" in done.exception.advice
    done = invoke("recheck", "b", "--runtime", "numpy==1.0")
    assert done.exit_code == 2
    assert "--runtime onnxruntime==1.31.1" in done.output


def test_the_command_knows_the_places_of_the_library():
    """The command line lists them without importing the converters."""
    from converters.cost.profile import PLACES

    assert set(command.PLACES) == set(PLACES)


def test_two_signers_at_once_lose_no_evidence(home):
    """The fields are read and written under one lock."""
    made = bundle(home / "b")
    where = registry(home)
    assert invoke("registry", "publish", "b", *where).exit_code == 0
    from edgekit.registry.evidence import sign_evidence

    store = open_store((home / "r").as_uri())
    entries = [Evidence(PACKAGE, f"1.{n}.0", "x86_64", "equal", "onnxruntime 1.31.1", "") for n in range(4)]

    def sign(entry):
        found = {"package": entry.runtime, "version": entry.version, "arch": entry.arch}
        repository = Repository(store, home / "k")
        sign_evidence(store, repository, made, entry.version.encode(), outcome="equal", against=entry.against, **found)

    threads = [threading.Thread(target=sign, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = Repository(store, home / "k").check(made.canonical_bytes())
    assert {one.version for one in parse_evidence(known.custom)} == {entry.version for entry in entries}

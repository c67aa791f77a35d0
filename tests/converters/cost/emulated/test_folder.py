import pytest

from converters.cost.emulated.cores import CORES, FEATURES, cpuinfo
from converters.cost.emulated.folder import COMPLETE, arm_folder, missing, program, wrapper
from converters.cost.measuring.process import Measuring
from edgekit.errors import UnavailableError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder that EDGEKIT_ARM names, on an x86-64 Linux."""
    monkeypatch.setenv("EDGEKIT_ARM", str(tmp_path / "arm"))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path / "arm"


def test_the_setting_names_the_folder(home):
    """EDGEKIT_ARM wins over the source tree and the user's cache."""
    assert arm_folder() == home


def test_without_a_machine_the_error_says_what_to_type(home):
    """Nothing is downloaded behind the user's back: the error names the command."""
    with pytest.raises(UnavailableError, match="instructions of cortex-a72 cannot be counted") as error:
        Measuring("cortex-a72")
    assert error.value.advice in ("Run: make arm", "Run: python -m converters.cost.emulated.prepare")


def test_a_machine_of_an_older_edgekit_is_told_from_a_missing_one(home):
    """A folder without one of the cores must be made again."""
    home.mkdir()
    (home / COMPLETE).write_text("a recipe")
    path = program(home, "cortex-a72")
    path.parent.mkdir(parents=True)
    path.write_text("")
    found = missing()
    assert found is not None
    assert "older edgekit" in found[0]
    assert "cortex-a53 and cortex-a76" in found[0]


def test_without_a_compiler_the_error_names_the_package(home, monkeypatch):
    """The plugin is compiled where it is used."""
    (home / "host" / "usr" / "bin").mkdir(parents=True)
    (home / "host" / "usr" / "bin" / "qemu-aarch64").write_text("")
    (home / COMPLETE).write_text("a recipe")
    for core in CORES:
        program(home, core).parent.mkdir(parents=True)
        program(home, core).write_text("")
    monkeypatch.setenv("PATH", "")
    assert missing() == ("there is no C compiler to build the plugin for qemu", "Run: apt-get install gcc")


def test_another_processor_cannot_emulate(home, monkeypatch):
    """The packages of qemu are those of x86-64 Linux."""
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    found = missing()
    assert found is not None
    assert "x86-64 Linux only" in found[0]


def test_runtimes_read_the_core_from_cpuinfo():
    """Each core has its own part number, and only the newest has dot products."""
    assert set(FEATURES) == set(CORES)
    for core, part in CORES.items():
        text = cpuinfo(core)
        assert text.count(f"CPU part\t: {part}") == 2
        assert ("asimddp" in text) == (core == "cortex-a76")


def test_a_program_can_be_started_without_counting(home):
    """The script starts children with the same emulator."""
    assert wrapper(home, "cortex-a53", "/site").startswith("#!/bin/sh\nexec env PYTHONPATH=/site ")

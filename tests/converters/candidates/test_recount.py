import pytest

from converters.candidates.recount import recount
from converters.cost.file_estimate import core_of_target
from converters.progress import no_step
from converters.quality.measured import Budget
from converters.quality.selection import CHOSEN, Choice
from edgekit.bundle.targets import builtin_targets

CORES = {
    "raspberry-pi-3": "cortex-a53",
    "raspberry-pi-4": "cortex-a72",
    "raspberry-pi-5": "cortex-a76",
    "imx8m-plus": "cortex-a53",
    "android-arm64": "cortex-a76",
    "jetson-orin": "",
    "coral-edgetpu": "",
    "ethos-u55": "",
    "x86-64": "",
    "server": "",
}


@pytest.mark.parametrize("name", CORES)
def test_each_target_has_its_core(name):
    """Accelerators and x86-64 have none."""
    assert core_of_target(builtin_targets()[name]) == CORES[name]


def test_without_an_emulator_the_estimates_stand(tmp_path, monkeypatch):
    """Nothing is counted and nothing is said: most users have no emulator."""
    monkeypatch.setenv("EDGEKIT_ARM", str(tmp_path / "none"))
    choice = Choice("float32", True, {"float32": (CHOSEN, "the cheapest that fits; proven")})
    found = recount(
        [],
        choice,
        aim="cost",
        budget=Budget(),
        profile=builtin_targets()["raspberry-pi-4"],
        samples=None,
        folder=tmp_path,
        step=no_step,
    )
    assert (found.candidates, found.choice, found.notes) == ([], choice, ())

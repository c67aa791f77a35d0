import msgspec
import pytest

from edgekit.errors import NotFoundError
from edgekit.recipe import PRECISIONS
from edgekit.targets import builtin_targets, find_target, parse_targets

NAMES = [
    "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "imx8m-plus", "android-arm64", "jetson-nano", "jetson-xavier",
    "jetson-orin", "coral-edgetpu", "ethos-u55", "x86-64", "server",
]  # fmt: skip


def test_the_promised_targets_are_there():
    """The built-in table has exactly the promised names."""
    assert list(builtin_targets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_profile_is_sound(name):
    """Every precision has a speed, and every runtime is known."""
    profile = builtin_targets()[name]
    assert set(profile.precisions) <= set(profile.speed)
    assert set(profile.precisions) <= set(PRECISIONS)
    assert set(profile.runtimes) <= {"litert", "onnxruntime"}
    assert profile.speed["float32"] == 1.0


def test_arm_boards_default_to_litert_and_jetsons_to_onnx():
    """The first runtime is the default."""
    table = builtin_targets()
    assert table["raspberry-pi-4"].runtimes[0] == "litert"
    assert table["jetson-orin"].runtimes == ("onnxruntime",)
    assert table["server"].free_batch


def test_misspelt_target_names_the_nearest():
    """A wrong name is answered with the right one."""
    with pytest.raises(NotFoundError) as caught:
        find_target("rasberry-pi4", builtin_targets())
    assert "raspberry-pi-4" in caught.value.advice


def test_unknown_key_in_a_table_is_refused():
    """A profile with a key that no one reads is an error."""
    with pytest.raises(msgspec.ValidationError, match="colour"):
        parse_targets('[a]\ntitle="A"\narch="any"\nruntimes=[]\nmemory_mib=1\nprecisions=[]\nspeed={}\ncolour="red"\n')

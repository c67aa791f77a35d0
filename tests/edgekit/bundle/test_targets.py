"""Target profiles: the built-in table, and profiles of users."""

import pytest

from edgekit.bundle.recipe import PRECISIONS
from edgekit.bundle.targets import builtin_targets, find_target, known_targets, parse_targets
from edgekit.errors import NotFoundError, SettingsError

NAMES = [
    "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "imx8m-plus", "android-arm64", "jetson-nano", "jetson-xavier",
    "jetson-orin", "jetson-thor", "coral-edgetpu", "ethos-u55", "x86-64", "server",
]  # fmt: skip

GOOD = '[a]\ntitle="A"\narch="any"\nruntimes=["litert"]\nmemory_mib = 1\nprecisions=["float32"]\n'


def test_the_promised_targets_are_there():
    """The built-in table has exactly the documented names."""
    assert list(builtin_targets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_profile_is_sound(name):
    """Accelerators have a speed per precision, CPUs have features, and every runtime is known."""
    profile = builtin_targets()[name]
    assert not profile.speed or set(profile.precisions) <= set(profile.speed)
    assert profile.speed or profile.cpu_features or profile.arch == "x86_64"
    assert set(profile.precisions) <= set(PRECISIONS)
    assert set(profile.runtimes) <= {"litert", "onnxruntime"}
    assert profile.speed.get("float32", 1.0) == 1.0


def test_arm_boards_default_to_litert_and_jetsons_to_onnx():
    """The first runtime is the default."""
    table = builtin_targets()
    assert table["raspberry-pi-4"].runtimes[0] == "litert"
    assert table["jetson-orin"].runtimes == ("onnxruntime",)
    assert table["server"].free_batch


def test_jetsons_with_a_current_jetpack_get_files_with_types():
    """TensorRT 10 and newer take the types from the file, so one profile covers JetPack 6 and 7."""
    for name in ("jetson-orin", "jetson-thor"):
        assert int(builtin_targets()[name].tensorrt.partition(".")[0]) >= 10
        assert builtin_targets()[name].int8_symmetric


def test_misspelt_target_names_the_nearest():
    """The error names the most similar target."""
    with pytest.raises(NotFoundError) as caught:
        find_target("rasberry-pi4", builtin_targets())
    assert "raspberry-pi-4" in caught.value.advice


def test_unknown_key_in_a_table_is_refused():
    """A profile with an unknown key is an error."""
    with pytest.raises(SettingsError, match=r"a: .*colour"):
        parse_targets(GOOD + 'colour="red"\n')


def test_users_profiles_join_the_built_in_ones():
    """A file adds targets and can override built-in ones."""
    table = known_targets(GOOD + GOOD.replace("[a]", "[server]"))
    assert set(table) == {*NAMES, "a"}
    assert table["server"].title == "A"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a", "not valid TOML"),
        ("a = 3", "a: value is int, expected a table"),
        (GOOD.replace('["float32"]', '["int3"]'), "precisions are int3"),
        (GOOD.replace('["litert"]', "[]"), "runtimes is empty"),
        (GOOD.replace("= 1", '= "one"'), "memory_mib"),
    ],
)
def test_table_that_cannot_be_used_says_what_is_wrong(text, fault):
    """Not TOML, no table, unknown precision, no runtime, wrong type."""
    with pytest.raises(SettingsError, match=fault):
        parse_targets(text)

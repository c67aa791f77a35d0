"""The texts of --runtime, and what belongs to a package."""

import msgspec
import pytest

from converters.recheck.packages import check_runs, fits_python, parse_wanted, requirements
from edgekit.bundle.evidence import RuntimeVersion
from edgekit.errors import SettingsError
from tests.simulators.bundles import manifest_of


@pytest.mark.parametrize("text", ["onnxruntime==1.32.0", " ai-edge-litert==2.2.0 ", "tflite-runtime==2.14.0"])
def test_a_package_and_a_version_are_read(text):
    """The three packages that run bundles."""
    assert str(parse_wanted(text)) == text.strip().replace("==", " ")


@pytest.mark.parametrize(
    "text",
    ["", "onnxruntime", "onnxruntime==", "onnxruntime>=1.31", "numpy==2.0.0", "onnxruntime==1.31.1 --index-url=http://x",
     "onnxruntime==../evil", "onnxruntime==1.2.3.4.5.6", "onnxruntime==nan", "--help==1.0"],
)  # fmt: skip
def test_other_texts_are_refused_with_an_example(text):
    """Nothing but a package and a version ever reaches pip."""
    with pytest.raises(SettingsError, match="expected PACKAGE==VERSION") as error:
        parse_wanted(text)
    assert "--runtime onnxruntime==" in error.value.advice


def test_a_package_of_another_runtime_is_refused():
    """The advice names those that fit."""
    litert = msgspec.structs.replace(manifest_of("digits", "1.0.0"), runtime="litert")
    with pytest.raises(SettingsError, match="does not run it") as error:
        check_runs(litert, parse_wanted("onnxruntime==1.31.1"))
    assert "ai-edge-litert==VERSION or tflite-runtime==VERSION" in error.value.advice


def test_packages_that_were_built_before_numpy_2_get_an_older_one():
    """Their metadata does not say so, and they fail with numpy 2."""
    old = [("tflite-runtime", "2.14.0"), ("onnxruntime", "1.18.1"), ("ai-edge-litert", "1.0.1")]
    new = [("onnxruntime", "1.19.0"), ("ai-edge-litert", "1.1.2")]
    assert all("numpy<2" in requirements(RuntimeVersion(*one), "0.20.0") for one in old)
    assert all("numpy" in requirements(RuntimeVersion(*one), "0.20.0") for one in new)


def test_tflite_runtime_has_no_wheel_for_a_new_python():
    """It is not tried there."""
    tflite = RuntimeVersion("tflite-runtime", "2.14.0")
    assert [fits_python(tflite, (3, minor)) for minor in (9, 10, 11, 12)] == [False, True, True, False]

"""Which packages a bundle can be run on, and which versions of Python and numpy they need. Pure."""

from __future__ import annotations

import re

from edgekit.bundle.compat import numbers
from edgekit.bundle.evidence import TFLITE_RUNTIME, RuntimeVersion, packages_of
from edgekit.bundle.manifest import Manifest
from edgekit.errors import SettingsError

PACKAGES = ("ai-edge-litert", "onnxruntime", TFLITE_RUNTIME)
MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "onnxruntime": "onnxruntime",
    TFLITE_RUNTIME: "tflite_runtime.interpreter",
}
PYTHONS = ((3, 10), (3, 11), (3, 12), (3, 13))  # those that edgekit runs on
_LAST_OF_TFLITE = (3, 11)  # tflite-runtime 2.14 is the last one, and has no wheel for a newer Python
_FIRST_WITH_NUMPY_2 = {"onnxruntime": (1, 19), "ai-edge-litert": (1, 1)}
_WANTED = re.compile(r"([a-z][a-z0-9-]*)==(\d+(?:\.\d+){0,3}(?:(?:a|b|rc|\.post|\.dev)\d+)?)")


def parse_wanted(text: str) -> RuntimeVersion:
    """The package and version of a text such as ``onnxruntime==1.32.0``.

    Raises:
        SettingsError: it is no package with a version, or another package.
    """
    found = _WANTED.fullmatch(text.strip())
    if found is None or found[1] not in PACKAGES:
        raise SettingsError(
            f"the runtime is {text!r}, expected PACKAGE==VERSION with {', '.join(PACKAGES)}",
            advice="For example: --runtime onnxruntime==1.31.1",
        )
    return RuntimeVersion(found[1], found[2])


def check_runs(manifest: Manifest, wanted: RuntimeVersion) -> None:
    """Check that a package runs this kind of bundle.

    Raises:
        SettingsError: it is a package of another runtime.
    """
    fitting = packages_of(manifest.runtime)
    if wanted.package not in fitting:
        raise SettingsError(
            f"{manifest.name} {manifest.version} runs on {manifest.runtime}, and {wanted.package} does not run it",
            advice=f"Give --runtime {' or '.join(f'{name}==VERSION' for name in fitting)}.",
        )


def fits_python(wanted: RuntimeVersion, python: tuple[int, int]) -> bool:
    """False for a version of Python for which the package is known to have no wheel, or edgekit does not run."""
    return python in PYTHONS and not (wanted.package == TFLITE_RUNTIME and python > _LAST_OF_TFLITE)


def requirements(wanted: RuntimeVersion, msgspec_version: str) -> list[str]:
    """The packages to install beside it: edgekit's own code runs there too."""
    numpy = "numpy<2" if needs_old_numpy(wanted) else "numpy"
    return [f"{wanted.package}=={wanted.version}", f"msgspec=={msgspec_version}", numpy]


def needs_old_numpy(wanted: RuntimeVersion) -> bool:
    """True for packages that were built before numpy 2: their metadata does not say so, and they fail with it."""
    first = _FIRST_WITH_NUMPY_2.get(wanted.package)
    return first is None or numbers(wanted.version) < first

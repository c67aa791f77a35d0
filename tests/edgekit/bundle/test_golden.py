"""Golden samples of byte strings; golden samples of numbers are tested with conversion and the runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.bundle.golden import judge, read_golden, self_test, write_golden
from edgekit.errors import DataError
from edgekit.runtimes import open_runtime
from tests.simulators.small_models import identity_bundle


def test_byte_strings_are_golden_too(tmp_path) -> None:
    """BYTES need no pickle and are compared for equality; strings that numpy would shorten are refused."""
    manifest = identity_bundle(tmp_path, name="text", dtypes=("bytes",))
    golden = (tmp_path / "golden.npz").read_bytes()
    runtime = open_runtime(manifest, tmp_path)
    assert self_test(runtime, manifest, golden).passed
    inputs, expected = read_golden(golden)
    assert inputs["bytes"].tolist() == [[b"", b"a"]]
    (fault,) = judge(manifest, expected, {"bytes_out": np.array([[b"", b"b"]], object)}).faults
    assert "1 of 2 elements differ" in fault
    with pytest.raises(DataError, match="zero byte"):
        write_golden({"bytes": np.array([[b"a\x00"]], object)}, {})

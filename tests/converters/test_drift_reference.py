"""The reference that a conversion puts into the bundle, and when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from converters import convert
from converters.data.samples import Samples
from converters.drift_reference import MAX_ROWS, References
from edgekit.bundle.manifest import parse_manifest
from edgekit.bundle.recipe import Recipe
from edgekit.drift.outliers import bounds_of, bounds_rank
from edgekit.drift.reference import (
    MAX_REFERENCE_BYTES,
    MAX_STATISTICS,
    REFERENCE_NAME,
    parse_reference,
    reference_entry,
)
from edgekit.drift.statistics import input_statistics
from tests.simulators.small_models import onnx_model


def converted(folder: Path, rows: int | None) -> tuple[Path, dict[str, object]]:
    """A bundle of the small model, with `rows` labelled rows of data or without data; and its report's `drift`."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_model())
    data = None
    if rows is not None:
        x = np.random.default_rng(0).normal(0.0, 2.0, (rows, 3)).astype(np.float32)
        data = folder / "data.npz"
        np.savez(data, x=x, y=x.argmax(axis=1))
    (report,) = convert(
        folder / "model.onnx",
        targets=["x86-64"],
        runtime="onnxruntime",
        recipe=Recipe(),
        data=data,
        accept_unproven=True,
        output=folder / "out",
    )
    bundle = Path(report.bundle)
    return bundle, json.loads((bundle / "report.json").read_bytes())["drift"]


def test_a_bundle_has_a_reference_of_its_data(tmp_path: Path) -> None:
    """Small, listed in the manifest, the same in a second conversion, and of each input and the answers."""
    bundle, report = converted(tmp_path / "a", 600)
    data = (bundle / REFERENCE_NAME).read_bytes()
    reference = parse_reference(data)
    names = ["score", "class", "input.x.feature.0", "input.x.feature.1", "input.x.feature.2"]
    assert [one.name for one in reference.statistics] == report["statistics"] == names
    assert (report["samples"], report["bytes"], report["reason"]) == (600, len(data), "")
    assert sorted(bounds_of(reference)) == names[2:]  # 200 samples for each statistic of the inputs
    assert len(data) <= MAX_REFERENCE_BYTES
    entry = reference_entry(parse_manifest((bundle / "manifest.json").read_bytes()))
    assert (entry.path, entry.size) == (REFERENCE_NAME, len(data))
    again, _ = converted(tmp_path / "b", 600)
    assert (again / REFERENCE_NAME).read_bytes() == data
    assert "Devices compare 5 statistics with those of 600 samples" in (bundle / "report.html").read_text()


def test_the_shares_of_new_samples_are_those_of_the_reference(tmp_path: Path) -> None:
    """About as many of other samples of the same kind lie below each edge as its level says."""
    bundle, _ = converted(tmp_path / "a", 2000)
    one = parse_reference((bundle / REFERENCE_NAME).read_bytes()).statistics[2]
    rng = np.random.default_rng(9)
    rows = rng.normal(0.0, 2.0, (4000, 3)).astype(np.float32)
    values = [input_statistics("x", row, rng.random)[one.name] for row in rows]
    found = np.bincount([one.bucket(value, 0) for value in values], minlength=9) / 4000
    expected = np.array(one.weights) / sum(one.weights)
    assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() < 0.04


@pytest.mark.parametrize("rows", [MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS - 1, 2 * MAX_ROWS])
def test_more_data_never_read_fewer_samples(rows: int) -> None:
    """Every second one was read of a little more than the limit, so bounds were lost with more data."""
    x = np.arange(rows, dtype=np.float32).reshape(-1, 1)
    parts = [Samples({"x": part}) for part in np.split(x, [rows // 5, rows // 2])]
    (values,) = References.of(*parts).values.values()
    assert len(values) == MAX_ROWS
    assert np.abs(np.diff(values, append=rows) - rows / MAX_ROWS).max() <= 1
    assert bounds_rank(MAX_ROWS, MAX_STATISTICS) == 1


def test_random_and_few_data_give_no_reference(tmp_path: Path) -> None:
    """The report says why."""
    for name, rows, reason in (("random", None, "the inputs are random"), ("few", 60, "the data have 60 samples")):
        bundle, report = converted(tmp_path / name, rows)
        assert not (bundle / REFERENCE_NAME).exists()
        assert reference_entry(parse_manifest((bundle / "manifest.json").read_bytes())) is None
        assert (report["statistics"], report["bytes"], reason in report["reason"]) == ([], 0, True)

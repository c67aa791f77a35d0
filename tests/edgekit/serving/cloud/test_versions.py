"""Which versions are served, and which of them answers."""

from __future__ import annotations

import pytest

from edgekit.registry.catalogue import CatalogueEntry
from edgekit.serving.cloud.versions import choose_versions, is_for_canary
from edgekit.serving.models.cloud_options import CloudModelOptions


def row(version: str, channel: str = "", *, target: str = "server", retired: bool = False) -> CatalogueEntry:
    digest = version.replace(".", "") * 16
    return CatalogueEntry("m", target, version, 1, f"models/m/{target}/{version}", 1, digest, retired, channel)


def chosen(*rows: CatalogueEntry, **options: object) -> tuple[list[str], str]:
    found = choose_versions(rows, "server", CloudModelOptions(**options))  # type: ignore[arg-type]
    return [one.version for one in found.main], found.canary.version if found.canary else ""


def test_the_newest_versions_of_the_channel_are_served() -> None:
    """Versions are compared as numbers; retired ones and those of other targets do not count."""
    rows = [row("1.9.0", "stable"), row("1.10.0", "stable"), row("2.0.0"), row("3.0.0", retired=True)]
    rows.append(row("4.0.0", "stable", target="x86-64"))
    assert chosen(*rows) == (["2.0.0"], "")
    assert chosen(*rows, channel="stable") == (["1.10.0"], "")
    assert chosen(*rows, channel="stable", versions=5) == (["1.10.0", "1.9.0"], "")
    assert chosen(*rows, channel="none") == ([], "")


def test_a_canary_is_newer_than_the_served_version() -> None:
    """So what was left in its channel after a promotion gets no requests."""
    options = {"channel": "stable", "canary_channel": "canary", "canary_share": 0.1}
    rows = [row("0.9.0", "canary"), row("1.0.0", "stable"), row("1.1.0", "canary")]
    assert chosen(*rows, **options) == (["1.0.0"], "1.1.0")
    promoted = [*rows[:2], row("1.1.0", "stable")]
    assert chosen(*promoted, **options) == (["1.1.0"], "")
    assert chosen(*rows, **{**options, "canary_share": 0.0}) == (["1.0.0"], "")


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 1.0])
def test_the_canary_gets_its_share_evenly(share: float) -> None:
    """Of any run of requests, its share, rounded up or down."""
    taken = [is_for_canary(share, number) for number in range(1000)]
    for start in (0, 7, 500):
        for length in (10, 100, 400):
            assert abs(sum(taken[start : start + length]) - share * length) <= 1


def test_a_stream_stays_with_one_version() -> None:
    """The number of a request does not matter then; of many streams the canary gets about its share."""
    for stream in (7, "7"):
        assert len({is_for_canary(0.5, number, stream) for number in range(50)}) == 1
    assert 150 < sum(is_for_canary(0.2, 0, stream) for stream in range(1, 1001)) < 250

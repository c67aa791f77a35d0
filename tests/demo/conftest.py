"""Fixtures of the demo's tests."""

import pytest


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path_factory):
    """Each test converts with an empty cache, so results of earlier runs are not used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

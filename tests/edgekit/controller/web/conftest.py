"""One fleet of three devices with a rollout, served for all tests of a module."""

from __future__ import annotations

import pytest

from tests.simulators.web_client import Client
from tests.simulators.web_fleet import WebFleet, web_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory):
    with web_fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture
def client(fleet: WebFleet) -> Client:
    return Client(fleet.url)

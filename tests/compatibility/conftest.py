"""The fixture `release`: each test that uses it runs once for each stored release."""

import pytest

from tests.simulators.releases import NAMES, RELEASES


@pytest.fixture(params=RELEASES, ids=NAMES)
def release(request):
    return request.param

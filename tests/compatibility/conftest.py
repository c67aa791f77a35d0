"""Every test here runs once for each release whose files are kept."""

import pytest

from tests.simulators.releases import NAMES, RELEASES


@pytest.fixture(params=RELEASES, ids=NAMES)
def release(request):
    return request.param

"""The idle timeout of a proxy shows in connections that end after the same silence, and only there."""

import pytest

from edgekit.mqtt.silences import idle_timeout


@pytest.mark.parametrize(
    ("silences", "found"),
    [
        ([20.1, 20.0, 20.3], 20.1),
        ([1.0, 20.1, 20.0, 20.3], 20.1),
        ([20.1, 20.0], None),  # too few
        ([0.1, 0.1, 0.1], None),  # a broker that closes at once
        ([5.0, 20.0, 12.0], None),  # ends at any time
        ([20.1, 0.0, 20.3], None),
    ],
)
def test_idle_timeout(silences, found):
    """Three in a row are needed."""
    assert idle_timeout(silences) == found

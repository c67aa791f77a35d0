"""The policy for runtime versions without evidence, as a table."""

import pytest

from device_agents.update.evidence_rules import Policy, needs_test_at_start, refuses_start, refuses_update
from edgekit.bundle.evidence import Standing

PROVEN, UNPROVEN, REFUTED = Standing.PROVEN, Standing.UNPROVEN, Standing.REFUTED
WARN, TEST, REFUSE = Policy.WARN, Policy.TEST, Policy.REFUSE


@pytest.mark.parametrize(
    ("found", "policy", "update", "start", "first_test"),
    [
        (PROVEN, WARN, False, False, False),
        (PROVEN, TEST, False, False, False),
        (PROVEN, REFUSE, False, False, False),
        (UNPROVEN, WARN, False, False, False),
        (UNPROVEN, TEST, False, False, True),
        (UNPROVEN, REFUSE, True, True, False),
        (REFUTED, WARN, True, False, True),
        (REFUTED, TEST, True, False, True),
        (REFUTED, REFUSE, True, True, True),
    ],
)
def test_the_table(found, policy, update, start, first_test):
    """A version that gave wrong answers is refused in updates, and never answers at a start without a test."""
    assert refuses_update(found, policy) is update
    assert refuses_start(found, policy) is start
    assert needs_test_at_start(found, policy) is first_test

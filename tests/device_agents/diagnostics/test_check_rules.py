"""The rules of `edgekit-agent check` for the clock and the execution providers."""

import pytest

from device_agents.diagnostics.check_rules import CLOCK_SLACK_SECONDS, judge_certificate, judge_clock, judge_providers
from edgekit.errors import SettingsError, UnavailableError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NOW, DAY = 1_790_000_000.0, CLOCK_SLACK_SECONDS


def test_a_clock_before_what_has_been_is_told():
    """The newest trace is named; a day of zones and drift is none."""
    assert judge_clock(NOW, {"agent.toml": NOW - 5, "the journal": NOW + DAY}).startswith("2026-09-21 ")
    with pytest.raises(UnavailableError, match=r"says 1970-01-01 .*, but the journal is dated 2026-09-") as caught:
        judge_clock(60.0, {"agent.toml": NOW - 5, "the journal": NOW})
    assert "timedatectl" in caught.value.advice


@pytest.mark.parametrize(
    ("present", "wanted", "said"),
    [
        ((CPU,), (), CPU),
        ((CUDA, CPU), (CUDA,), f"{CUDA}, {CPU}"),
        ((CPU,), (CUDA, CPU), f"{CPU}; missing: {CUDA}"),
        ((), (), "none, because ONNX Runtime is not installed"),
    ],
)
def test_providers_are_named_and_those_that_are_missing(present, wanted, said):
    """The names are those of ONNX Runtime."""
    assert judge_providers(present, wanted, required=False) == said


def test_a_required_provider_that_is_missing_is_a_failure():
    """With what there is instead and how to get it."""
    with pytest.raises(SettingsError, match=f"missing providers: {CUDA}; present: {CPU}"):
        judge_providers((CPU,), (CUDA,), required=True)


@pytest.mark.parametrize(
    ("now", "renews", "said"),
    [
        (NOW, True, "the agent renews it from 2026-"),
        (NOW + 65 * DAY, True, "the agent renews it when it is connected"),
        (NOW, False, "does not renew it, because broker_key is not set"),
    ],
)
def test_a_certificate_that_is_valid_is_said_with_its_end(now, renews, said):
    """And who renews it when."""
    found = judge_certificate(NOW - DAY, NOW + 89 * DAY, now, renews=renews)
    assert found.startswith("valid until 2026-")
    assert said in found


@pytest.mark.parametrize(
    ("now", "renews", "said"),
    [
        (NOW - 2 * DAY, True, "valid from"),
        (NOW + 89 * DAY, True, "has expired"),
        (NOW + 65 * DAY, False, "the agent does not renew it"),
    ],
)
def test_a_certificate_that_does_not_work_or_will_not_fails_the_check(now, renews, said):
    """With what to do."""
    with pytest.raises(UnavailableError, match=said) as error:
        judge_certificate(NOW - DAY, NOW + 89 * DAY, now, renews=renews)
    assert error.value.advice

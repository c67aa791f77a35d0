"""How many calls of the cloud tier may be tried again. Pure.

A token bucket, as in gRPC's retry throttling (proposal A6) and Finagle's retry budgets: each call adds a tenth of a
retry, and a retry takes a whole one. In any n calls in a row there are at most n / 10 + MOST_SAVED retries, so an
outage does not multiply the load on the tier, or on a second one.
"""

from __future__ import annotations

CALLS_FOR_ONE_RETRY = 10
MOST_SAVED = 3  # as many failures in a row open a breaker


class RetryBudget:
    """The retries of one device, whatever the model and the endpoint are. A device begins with one.

    Attributes:
        made: Retries so far.
    """

    def __init__(self) -> None:
        self._saved = CALLS_FOR_ONE_RETRY  # in tenths of a retry: floats would not add up
        self.made = 0

    @property
    def has_one(self) -> bool:
        """True where one more retry is within the budget."""
        return self._saved >= CALLS_FOR_ONE_RETRY

    def called(self) -> None:
        """Count a first try."""
        self._saved = min(self._saved + 1, MOST_SAVED * CALLS_FOR_ONE_RETRY)

    def take(self) -> bool:
        """Take one retry. False where none is left; then nothing is counted."""
        if not self.has_one:
            return False
        self._saved -= CALLS_FOR_ONE_RETRY
        self.made += 1
        return True

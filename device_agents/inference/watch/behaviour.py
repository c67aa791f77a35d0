"""Counts how each bundle behaves, for the gates of rollouts, and takes the application's judgement of answers.

Pure rules: `now` is an argument.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

from edgekit.errors import ConflictError, NotFoundError
from edgekit.mqtt.messages import LATENCY_BOUNDS_MS, Behaviour

OUTCOME_SECONDS = 3600.0
MAX_ANSWERS = 20_000  # a few megabytes
MAX_BUNDLES = 3  # of one model
_BOUNDS = tuple(bound / 1000 for bound in LATENCY_BOUNDS_MS)


class _Counts:
    """The counts of one bundle."""

    __slots__ = ("errors", "good", "local", "outcomes", "requests", "within")

    def __init__(self) -> None:
        self.requests = self.errors = self.local = self.outcomes = self.good = 0
        self.within = [0] * (len(_BOUNDS) + 1)  # answers by the first bound that they kept

    def behaviour(self) -> Behaviour:
        slower, count = [], sum(self.within)
        for kept in self.within[:-1]:
            count -= kept
            slower.append(count)
        return Behaviour(self.requests, self.errors, self.local, self.outcomes, self.good, tuple(slower))


class BehaviourLog:
    """The counts of the bundles that ran last, and the answers that can still be judged."""

    def __init__(self) -> None:
        self._counts: dict[str, OrderedDict[str, _Counts]] = {}
        self._answers: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._judged: OrderedDict[tuple[str, str], float] = OrderedDict()

    def answered(self, model: str, digest: str, seconds: float, *, local: bool) -> None:
        """Count an answer.

        Args:
            model: Name of the model.
            digest: Digest of the device's bundle, also where the cloud tier answered.
            seconds: Time that the answer took.
            local: The local model answered, and the cloud tier was not needed.
        """
        counts = self._of(model, digest)
        counts.requests += 1
        counts.local += local
        counts.within[bisect_left(_BOUNDS, seconds)] += 1

    def failed(self, model: str, digest: str) -> None:
        """Count a request that failed."""
        counts = self._of(model, digest)
        counts.requests += 1
        counts.errors += 1

    def remember(self, model: str, request: str, digest: str, now: float) -> None:
        """Let the application judge the answer to a request for an hour; `now` is monotonic seconds."""
        key = (model, request)
        self._answers.pop(key, None)
        self._judged.pop(key, None)
        self._answers[key] = (digest, now)
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def outcome(self, model: str, request: str, now: float, *, good: bool) -> None:
        """Count the application's judgement of an answer, once.

        Raises:
            ConflictError: this answer was judged before.
            NotFoundError: there is no such answer, or it is older than an hour.
        """
        key = (model, request)
        if now - self._judged.get(key, float("-inf")) <= OUTCOME_SECONDS:
            raise ConflictError(f"the answer to request {request[:100]!r} was judged before")
        digest, at = self._answers.pop(key, ("", float("-inf")))
        if now - at > OUTCOME_SECONDS:
            raise NotFoundError(
                f"model {model!r} gave no answer to a request {request[:100]!r} within the last hour",
                advice='Send an "id" with each inference request, and the same one with its outcome.',
            )
        self._judged[key] = now
        if len(self._judged) > MAX_ANSWERS:
            self._judged.popitem(last=False)
        counts = self._of(model, digest)
        counts.outcomes += 1
        counts.good += good

    def behaviour(self, model: str) -> dict[str, Behaviour]:
        """How the model's bundles behaved that ran last, by digest; the newest is the last."""
        return {digest: counts.behaviour() for digest, counts in self._counts.get(model, {}).items()}

    def _of(self, model: str, digest: str) -> _Counts:
        bundles = self._counts.setdefault(model, OrderedDict())
        counts = bundles.get(digest)
        if counts is None:
            counts = bundles[digest] = _Counts()
            if len(bundles) > MAX_BUNDLES:
                bundles.popitem(last=False)
        return counts

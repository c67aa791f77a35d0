"""The state of a bundle's offload certificate on this device: whether it holds, and what refutes it. Pure.

A certificate is claimed for an answer only while all of this is true: the bundle and its runtime are those that were
certified, the cloud tier's last answer came from the certified cloud model, no field test has refuted it, and each row
took the route of its own score. For the accuracy of the pair, the cloud tier must also be answering.
"""

from __future__ import annotations

import enum
import math

from edgekit.certificate.document import ACCURACY, Certificate
from edgekit.certificate.refutation import Explored, refuted

REFUTATION_ERROR = 0.01  # probability that a certificate whose bound holds is ever refuted on one device
DAY_SECONDS = 86_400.0
MOST_TOLD = 4  # other models of the cloud tier that are told in a day


class News(str, enum.Enum):
    """Reports to the controller about a certificate; the values are kinds of events."""

    VOID = "certificate-void"
    CLOUD_CHANGED = "certificate-cloud-changed"
    REFUTED = "certificate-refuted"


class Held:
    """A certificate on this device.

    Args:
        certificate: From the bundle.
        void: Why it does not hold here; empty where it does.
        per_day: Most answers explored in a day.

    Attributes:
        explored: Confident answers that were also sent.
        refuted: True once the test in the field has refuted it.
    """

    def __init__(self, certificate: Certificate, void: tuple[str, ...], per_day: int) -> None:
        self.certificate, self.void, self._per_day = certificate, void, per_day
        self.explored, self.refuted = Explored(), False
        self._cloud: str | None = None  # digest of the cloud tier's last answer
        self._told: dict[str, float] = {}  # other digests, and when they were told
        self._cloud_fails = False
        self._day, self._today = 0, 0

    @property
    def applies(self) -> bool:
        """True where its score and threshold are used; also after a refutation, then with more care."""
        return not self.void

    @property
    def claimed(self) -> bool:
        """True where a local answer to one row may carry the certificate."""
        holds = not self.void and not self.refuted and self._cloud == self.certificate.bound.cloud_digest
        return holds and not (self._cloud_fails and self.certificate.target == ACCURACY)

    def cloud_answered(self, digest: str, now: float) -> bool:
        """Note an answer of the cloud tier. True if its model is another than the certified, and that is to be told.

        A digest is told once a day, and so many digests: a canary, or two servers behind one name, change all the time.

        Args:
            digest: Of the answer, hex; empty for none.
            now: Monotonic seconds.
        """
        self._cloud, self._cloud_fails = digest, False
        if digest == self.certificate.bound.cloud_digest:
            return False
        self._told = {one: at for one, at in self._told.items() if now - at < DAY_SECONDS}
        if digest in self._told or len(self._told) >= MOST_TOLD:
            return False
        self._told[digest] = now
        return True

    def cloud_failed(self) -> None:
        """Note that the cloud tier gave no usable answer."""
        self._cloud_fails = True

    def may_explore(self, now: float) -> bool:
        """True where one more confident answer may be sent today; it is counted.

        Args:
            now: Monotonic seconds.
        """
        day = math.floor(now / DAY_SECONDS)
        if day != self._day:
            self._day, self._today = day, 0
        if self.void or self.refuted or self._today >= self._per_day:
            return False
        self._today += 1
        return True

    def not_explored(self) -> None:
        """An answer that `may_explore` counted was not sent."""
        self._today = max(self._today - 1, 0)

    def explore(self, *, differs: bool) -> bool:
        """Count an explored answer of the certified cloud model. True if it has just refuted the certificate."""
        self.explored = self.explored.plus(1, int(differs))
        if self.refuted or not refuted(self.explored, self.certificate.disagreement.upper, REFUTATION_ERROR):
            return False
        self.refuted = True
        return True

"""The values of the UpdateMachine: its states, effects and events, and what it remembers between them."""

from __future__ import annotations

import enum

import msgspec

from edgekit.mqtt.messages import Outcome


class S(str, enum.Enum):
    """States."""

    IDLE = "IDLE"
    RESOLVING = "RESOLVING"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    STAGING = "STAGING"
    TESTING = "TESTING"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTING = "COMMITTING"
    ROLLING_BACK = "ROLLING_BACK"
    CLEANING = "CLEANING"


class Do(str, enum.Enum):
    """Effects."""

    RESOLVE = "Resolve"  # refresh metadata, agree with the catalogue, fetch the manifest, check compatibility
    DOWNLOAD = "Download"  # every missing block of every file, each checked against the manifest
    VERIFY = "Verify"  # each whole file against its digest
    STAGE = "Stage"  # verified files and the manifest into the inactive slot, durably
    TEST = "Test"  # golden samples on the staged files
    ACTIVATE = "Activate"  # the live model switches; the pointer says so, known-good stays
    WATCH = "Watch"  # live traffic, until it is outside its limits or enough of it was answered
    PROBE = "Probe"  # live traffic and golden samples on the live model
    COMMIT = "Commit"  # the pointer's known-good becomes the active slot
    ROLL_BACK = "RollBack"  # the pointer's active becomes known-good; the live model switches back
    CLEAN = "Clean"  # remove what is no longer needed


class Deployment(msgspec.Struct, frozen=True):
    """One bundle for this device, as the signed assignment names it.

    Attributes:
        digest, length: sha256 (hex) and bytes of the manifest.
        path: TUF targets path of the manifest.
        name, version, target, release: Identity and release counter.
        assignment: Version of the assignment that asked for it.
        downgrade: True where the signed assignment asks for a release that is older than what ran here.
    """

    digest: str
    length: int
    path: str
    name: str
    version: str
    target: str
    release: int
    assignment: int
    downgrade: bool = False


class Installed(msgspec.Struct, frozen=True):
    """What a slot holds: `slot` is ``a`` or ``b``, `since` wall clock seconds of its activation."""

    slot: str
    digest: str
    version: str
    release: int
    since: float = 0.0


class State(msgspec.Struct, frozen=True):
    """Everything the machine remembers; journalled whole.

    Attributes:
        name: Where it is.
        deployment: What is in progress, or waits for another attempt.
        offered: What comes next, asked for while something else was in progress.
        active, known_good: What runs, and what a failure returns to; differ only from ACTIVATING to COMMITTING.
        previous: What was known to be good before, as long as nothing was written into its slot.
        kept: What asked for the bundle that was committed last, so that it can be fetched again.
        release: Highest release counter ever committed, or that of a signed downgrade since; nothing older is accepted.
        ending: Why it is rolling back or cleaning: ``succeeded``, ``failed``, ``retry`` or ``dropped``.
        failed: The deployment that failed for good; the same offer of the same assignment is not tried again.
        outcome: How the last deployment ended.
        note: Why the last attempt failed, while another is to come.
        attempts: Failed attempts of this deployment; sets the delay before the next.
        tried: Of them, those that cost something; for its budget.
        begun: Wall clock seconds when it was first asked for; for its budget.
        fetched: Bytes that its failed attempts fetched, for its budget.
        interrupted: How often the device stopped while this deployment was being tested or proved.
        watching: True after a commit until the agent has run for `crash_watch_seconds`.
        crashes: How often the process died since the commit, or in ROLLING_BACK.
        probing: True in PROBATION once the watch is over and the live model is being asked.
        deadline: When to send DeadlinePassed, monotonic seconds.
    """

    name: S = S.IDLE
    deployment: Deployment | None = None
    offered: Deployment | None = None
    active: Installed | None = None
    known_good: Installed | None = None
    previous: Installed | None = None
    kept: Deployment | None = None
    release: int = 0
    ending: str = ""
    failed: Deployment | None = None
    outcome: Outcome | None = None
    note: str = ""
    attempts: int = 0
    tried: int = 0
    begun: float = 0.0
    fetched: int = 0
    interrupted: int = 0
    watching: bool = False
    crashes: int = 0
    probing: bool = False
    deadline: float | None = None

    @property
    def inactive_slot(self) -> str:
        """The slot that may be written: never the known-good one."""
        return "b" if self.known_good is not None and self.known_good.slot == "a" else "a"


class Limits(msgspec.Struct, frozen=True):
    """Times and counts.

    Attributes:
        step_seconds: A step that takes longer has failed.
        probation_seconds: Running live before commit, unless enough requests were answered before.
        retry_seconds, max_retry_seconds: Delay before the second attempt, doubled for each further one, and its cap.
        max_interruptions: So many stops of the device during test or probation refuse the deployment.
        max_attempts: So many failed attempts that cost something end the deployment.
        total_seconds: So does a failure so long after it was first asked for, and a step that has not ended by then.
        crash_watch_seconds: How long the agent must run without a break after a commit before the commit is final.
        max_crashes: So often may the process not die until then.
    """

    step_seconds: float = 600.0
    probation_seconds: float = 3.0
    retry_seconds: float = 2.0
    max_retry_seconds: float = 300.0
    max_interruptions: int = 3
    max_attempts: int = 1000
    total_seconds: float = 30 * 86_400.0
    crash_watch_seconds: float = 600.0
    max_crashes: int = 3


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened; `at` is wall clock seconds."""

    at: float = 0.0


class Booted(Event, frozen=True):
    """The agent started with a journalled state.

    Attributes:
        ended: How its last run ended: ``order``, ``crash`` (the process died, the machine stayed up) or ``cut``.
    """

    ended: str = "cut"


class Offered(Event, frozen=True):
    """The assignment names a bundle."""

    deployment: Deployment


class Cancelled(Event, frozen=True):
    """The assignment no longer names a bundle for this model."""


class DeadlinePassed(Event, frozen=True):
    """`wake_at` was reached."""


class Resolved(Event, frozen=True):
    """The manifest is here, trusted, and fits this device."""


class Downloaded(Event, frozen=True):
    """Every block is here and durable."""


class Verified(Event, frozen=True):
    """Every file has its digest."""


class Staged(Event, frozen=True):
    """The inactive slot holds the bundle."""


class Tested(Event, frozen=True):
    """The staged bundle answers its golden samples."""


class Activated(Event, frozen=True):
    """The new bundle runs live."""


class Watched(Event, frozen=True):
    """The live model has answered as many requests as probation asks for."""


class Proved(Event, frozen=True):
    """The live model answered its golden samples, and live traffic within the limits, after probation."""


class Committed(Event, frozen=True):
    """The pointer names the new bundle as known-good."""


class RolledBack(Event, frozen=True):
    """The known-good bundle runs live and the pointer says so."""


class Damaged(Event, frozen=True):
    """What a slot holds is not whole any more.

    Attributes:
        digest: Of the bundle that it should hold.
        error: Class name of the error.
        message: For people.
        fallback: True when the bundle that was known to be good before is whole.
        answering: True when the damaged bundle, loaded before, still answers its golden samples.
    """

    digest: str
    error: str
    message: str
    fallback: bool = False
    answering: bool = False


class Cleaned(Event, frozen=True):
    """Nothing is left over."""


class Failed(Event, frozen=True):
    """An effect failed.

    Attributes:
        error: Class name of the error.
        message: For people.
        passing: True when the same attempt may work later.
        refused: True when the bundle may never be used here.
        costly: True when the attempt counts for the budget: it fetched something, or got beyond fetching.
        fetched: Bytes that the attempt fetched.
    """

    error: str
    message: str
    passing: bool = False
    refused: bool = False
    costly: bool = False
    fetched: int = 0

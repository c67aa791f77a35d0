"""Values of the UpdateMachine: states, effects, events, and the journalled record of one model."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import enum

import msgspec

from edgekit.mqtt.messages import Outcome, Waiting


class UpdateState(str, enum.Enum):
    """States of an update."""

    IDLE = "IDLE"
    RESOLVING = "RESOLVING"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    STAGING = "STAGING"
    TESTING = "TESTING"
    SHADOWING = "SHADOWING"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTING = "COMMITTING"
    ROLLING_BACK = "ROLLING_BACK"
    CLEANING = "CLEANING"


class Effect(str, enum.Enum):
    """Effects of an update."""

    RESOLVE = "Resolve"  # refresh metadata, compare with the catalogue, fetch the manifest, check compatibility
    DOWNLOAD = "Download"  # every missing block of every file, each checked against the manifest
    VERIFY = "Verify"  # each whole file against its digest
    STAGE = "Stage"  # verified files and the manifest into the inactive slot, durably
    TEST = "Test"  # golden samples on the staged files
    SHADOW = "Shadow"  # the staged bundle beside the active one on live inputs, until enough are compared
    ACTIVATE = "Activate"  # the live model switches; the pointer says so, known-good stays
    WATCH = "Watch"  # live requests, until they are outside the limits or enough are answered
    PROBE = "Probe"  # judge the live requests, and run golden samples on the live model
    COMMIT = "Commit"  # the pointer's known-good becomes the active slot
    ROLL_BACK = "RollBack"  # the pointer's active becomes known-good; the live model switches back
    CLEAN = "Clean"  # remove files that are no longer needed


class Deployment(msgspec.Struct, frozen=True):
    """One bundle for this device, as the signed assignment names it.

    Attributes:
        digest, length: sha256 (hex) and bytes of the manifest.
        path: TUF targets path of the manifest.
        name, version, target, release: Identity and release counter.
        assignment: Version of the assignment that names it.
        downgrade: True when the signed assignment allows a release older than the last committed one.
        consent: True when it waits until the user agrees.
        window: The time of day in which it may be made, as in ``22:00-05:00``; empty for any.
        shadow: Inputs on which it is compared with the active bundle before it is activated; 0 for none. It is
            activated when an assignment names it without this.
        shadow_seconds: Longest time of the comparison.
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
    consent: bool = False
    window: str = ""
    shadow: int = 0
    shadow_seconds: int = 0


class Installed(msgspec.Struct, frozen=True):
    """The bundle in a slot: `slot` is ``a`` or ``b``, `since` the wall clock seconds of its activation."""

    slot: str
    digest: str
    version: str
    release: int
    since: float = 0.0


class UpdateRecord(msgspec.Struct, frozen=True):
    """The update state of one model; each change is journalled as a whole.

    Attributes:
        name: State of the machine.
        deployment: The deployment in progress, or waiting for another attempt.
        offered: The next deployment, offered while another one is in progress.
        active, known_good: The running bundle, and the bundle that a failure returns to. They differ only from
            ACTIVATING to COMMITTING.
        previous: The known-good bundle before the last commit, until its slot is overwritten.
        kept: The deployment of the bundle that was committed last, so that it can be fetched again.
        release, highest: Release counter and version of the highest release that was committed, or of a later signed
            downgrade. An older one is refused. `highest` is empty where the journal of an earlier agent does not say.
        ending: Reason for ROLLING_BACK or CLEANING: ``succeeded``, ``failed``, ``retry`` or ``dropped``.
        failed: The deployment that failed for good; the same offer of the same assignment is not tried again.
        outcome: Outcome of the last deployment.
        note: Why the last attempt failed, while another attempt will follow.
        waiting: Why the deployment waits on purpose since its last attempt; None if it does not.
        attempts: Failed attempts of this deployment; they set the delay before the next.
        tried: Failed attempts that count for `deployment_attempts`, because they cost something.
        begun: Wall clock seconds of the first offer, for `deployment_hours`.
        fetched: Bytes that its failed attempts fetched, for `download_budget`.
        interrupted: Count of stops of the device during test, probation or commit of this deployment.
        watching: True after a commit, until the agent has run for `crash_watch_seconds`.
        crashes: Count of crashes of the process since the commit, or in ROLLING_BACK.
        probing: True in PROBATION when the watch is over and the live model runs its golden samples.
        deadline: Monotonic seconds at which DeadlinePassed is sent.
        uninstalled: True once the operator has taken the model off the device; see `is_gone`.
    """

    name: UpdateState = UpdateState.IDLE
    deployment: Deployment | None = None
    offered: Deployment | None = None
    active: Installed | None = None
    known_good: Installed | None = None
    previous: Installed | None = None
    kept: Deployment | None = None
    release: int = 0
    highest: str = ""
    ending: str = ""
    failed: Deployment | None = None
    outcome: Outcome | None = None
    note: str = ""
    waiting: Waiting | None = None
    attempts: int = 0
    tried: int = 0
    begun: float = 0.0
    fetched: int = 0
    interrupted: int = 0
    watching: bool = False
    crashes: int = 0
    probing: bool = False
    deadline: float | None = None
    uninstalled: bool = False

    @property
    def is_gone(self) -> bool:
        """True where the model was uninstalled and nothing was offered since; only its highest release is known."""
        return self.uninstalled and self == removed(self)

    @property
    def waits(self) -> Waiting | None:
        """Why the deployment waits on purpose now; None while it works or has failed otherwise."""
        resting = self.name in (UpdateState.IDLE, UpdateState.CLEANING, UpdateState.RESOLVING)
        return self.waiting if resting and self.deployment is not None else None

    @property
    def inactive_slot(self) -> str:
        """The slot that may be written: never the known-good one."""
        return "b" if self.known_good is not None and self.known_good.slot == "a" else "a"


def removed(state: UpdateRecord) -> UpdateRecord:
    """The state after the model was uninstalled. Older releases than before are still refused."""
    return UpdateRecord(release=state.release, highest=state.highest, uninstalled=True)


def with_highest(state: UpdateRecord) -> UpdateRecord:
    """The state of a journal that has only the counter of the highest release, with its version where it is known."""
    if state.highest or not state.release:
        return state
    known = (state.active, state.known_good, state.previous, state.kept, state.failed, state.deployment)
    versions = [one.version for one in known if one is not None and one.release == state.release]
    return msgspec.structs.replace(state, highest=versions[0]) if versions else state


class Limits(msgspec.Struct, frozen=True):
    """Times and counts of a deployment; fields with the name of an agent setting mean the same.

    Attributes:
        step_timeout_seconds: Longest duration of one step; then the attempt fails.
        probation_seconds: Duration of probation, unless enough live requests are answered before.
        retry_seconds, max_retry_seconds: Delay before the second attempt, doubled for each further one, and its limit.
        max_interruptions: After this many stops of the device during test or probation, the deployment is refused.
        deployment_attempts: After this many failed attempts that cost something, the deployment ends.
        deployment_hours: Age of a deployment from which a failure, or a step before activation, ends it.
        crash_watch_seconds: How long the agent must run without a crash after a commit; then the commit is final.
        max_crashes: After this many crashes before that, the device rolls back.
    """

    step_timeout_seconds: float = 600.0
    probation_seconds: float = 3.0
    retry_seconds: float = 2.0
    max_retry_seconds: float = 300.0
    max_interruptions: int = 3
    deployment_attempts: int = 1000
    deployment_hours: float = 720.0
    crash_watch_seconds: float = 600.0
    max_crashes: int = 3


class UpdateEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the events; `at` is wall clock seconds."""

    at: float = 0.0


class Booted(UpdateEvent, frozen=True):
    """The agent started with a journalled state.

    Attributes:
        ended: How the last run ended: ``order`` (stopped), ``crash`` (the process died, the machine stayed up) or
            ``cut`` (power cut or reboot).
    """

    ended: str = "cut"


class Offered(UpdateEvent, frozen=True):
    """The assignment names a bundle."""

    deployment: Deployment


class Cancelled(UpdateEvent, frozen=True):
    """The assignment no longer names a bundle for this model."""


class Uninstalled(UpdateEvent, frozen=True):
    """The assignment says that the model is to be removed. It ends the machine; a later offer begins anew."""


class DeadlinePassed(UpdateEvent, frozen=True):
    """`wake_at` was reached."""


class Resolved(UpdateEvent, frozen=True):
    """The manifest is fetched, trusted, and fits this device."""


class Downloaded(UpdateEvent, frozen=True):
    """Every block is fetched and durable."""


class Verified(UpdateEvent, frozen=True):
    """Every file has the digest of the manifest."""


class Staged(UpdateEvent, frozen=True):
    """The inactive slot holds the bundle."""


class Tested(UpdateEvent, frozen=True):
    """The staged bundle answers its golden samples."""


class Shadowed(UpdateEvent, frozen=True):
    """The comparison beside the active bundle has ended; the deployment waits for an assignment without it."""


class Activated(UpdateEvent, frozen=True):
    """The new bundle runs live."""


class Watched(UpdateEvent, frozen=True):
    """The live model has answered as many requests as probation requires."""


class Proved(UpdateEvent, frozen=True):
    """After probation, the live model passed its golden samples, and its live requests were within the limits."""


class Committed(UpdateEvent, frozen=True):
    """The pointer names the new bundle as known-good."""


class RolledBack(UpdateEvent, frozen=True):
    """The known-good bundle runs live and the pointer says so."""


class Damaged(UpdateEvent, frozen=True):
    """The bundle in a slot is damaged.

    Attributes:
        digest: Digest of the bundle.
        error: Class name of the error.
        message: For people.
        fallback: True when the previous known-good bundle is whole.
        answering: True when the damaged bundle, loaded before, still answers its golden samples.
    """

    digest: str
    error: str
    message: str
    fallback: bool = False
    answering: bool = False


class Cleaned(UpdateEvent, frozen=True):
    """Files that are no longer needed are removed."""


class Failed(UpdateEvent, frozen=True):
    """An effect failed.

    Attributes:
        error: Class name of the error.
        message: For people.
        passing: True when a later attempt may succeed.
        refused: True when the bundle may never be used on this device.
        costly: True when the attempt counts for `deployment_attempts`: it fetched bytes, or got beyond the download.
        fetched: Bytes that the attempt fetched.
        waiting: A word for the reason, where the deployment waits on purpose; else empty.
    """

    error: str
    message: str
    passing: bool = False
    refused: bool = False
    costly: bool = False
    fetched: int = 0
    waiting: str = ""

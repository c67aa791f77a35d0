"""Fleet state in SQL: devices and their reports, rollouts, assignments, remote commands and events.

Devices are in `fleet`, rollouts and assignments in `rollout`; tables, operators, audit log and controllers are here.
The rules of rollouts are in `edgekit.rollout`. The command line and any number of controllers may use one database at
once: every write is one transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa

from edgekit.errors import NotFoundError
from edgekit.rollout.cohort import Cohort
from edgekit.state._sql import Fence, together
from edgekit.state.audit import AuditEntry, AuditTable
from edgekit.state.fleet.alarms import Alarm, AlarmTable
from edgekit.state.fleet.certificates import CertificateTable, StoredCertificate
from edgekit.state.fleet.commands import CommandTable, StoredCommand
from edgekit.state.fleet.devices import DeviceTable, DeviceView, StoredEvent
from edgekit.state.fleet.drift import DriftTable
from edgekit.state.fleet.filters import GroupTable, SavedGroup
from edgekit.state.fleet.hints import FleetPause, PauseTable
from edgekit.state.fleet.kinds import DeviceKind, SelectedDevices
from edgekit.state.fleet.lifecycle import LifecycleTable, Refused
from edgekit.state.fleet.records import RecordTable
from edgekit.state.fleet.telemetry import DeviceHour, TelemetryTable
from edgekit.state.leader_lock import LeaderLock, leader_lock
from edgekit.state.leaders import ControllerView, LeaderTable
from edgekit.state.operators import Operator, OperatorTable, Role
from edgekit.state.overview import OverviewTable
from edgekit.state.rollout.assignments import AssignmentTable, StoredAssignment
from edgekit.state.rollout.rollouts import ActiveRollout, RolloutTable
from edgekit.state.rollout.standing import StandingTable
from edgekit.state.rollout.uninstall import UninstallTable
from edgekit.state.tables import open_database
from edgekit.state.webhooks import WebhookTable
from edgekit.state.work import Work, WorkTable

__all__ = [
    "ActiveRollout",
    "Alarm",
    "AlarmTable",
    "AssignmentTable",
    "AuditEntry",
    "AuditTable",
    "CertificateTable",
    "CommandTable",
    "ControllerView",
    "DeviceHour",
    "DeviceKind",
    "DeviceTable",
    "DeviceView",
    "DriftTable",
    "FleetPause",
    "FleetState",
    "GroupTable",
    "LeaderTable",
    "LifecycleTable",
    "Operator",
    "OperatorTable",
    "RecordTable",
    "Refused",
    "Role",
    "RolloutTable",
    "SavedGroup",
    "SelectedDevices",
    "StandingTable",
    "StoredAssignment",
    "StoredCertificate",
    "StoredCommand",
    "StoredEvent",
    "TelemetryTable",
    "UninstallTable",
    "WebhookTable",
    "Work",
    "WorkTable",
    "open_fleet_state",
]


class FleetState:
    """The stored state of one fleet.

    Attributes:
        fleet: Name of the fleet.
        author: Who makes changes.
        devices, lifecycle, records, certificates, rollouts, assignments, commands, groups, standing, audit: Its tables.
        operators, webhooks: Who may use the API of the controller, and who is told of events.
        pause: The pause of the fleet.
        uninstall: Takes models off devices.
        overview: Numbers of devices by what they run.
        leaders: The controllers of the fleet, and which of them leads.
        work: What a round of the controller has to do.
        telemetry, drift: Telemetry with its alarms, and the alarms that devices raise themselves.

    Args:
        engine: The database.
        fleet: Name of the fleet.
        offline_after_seconds: A device that sent nothing for this long is offline.
        author: Who makes changes, for the audit log: user and host of a command, or a controller.
    """

    def __init__(
        self, engine: sa.Engine, fleet: str, *, offline_after_seconds: float = 90.0, author: str = "unknown"
    ) -> None:
        self._engine = engine
        self.fleet = fleet
        self.author = author
        self.offline_after_seconds = offline_after_seconds
        self.devices = DeviceTable(engine, fleet, author=author)
        self.lifecycle = LifecycleTable(engine, fleet, author=author)
        self.records = RecordTable(engine, fleet, author=author)
        self.certificates = CertificateTable(engine, fleet, author=author)
        self.rollouts = RolloutTable(engine, fleet, author=author, offline_after_seconds=offline_after_seconds)
        self.groups = GroupTable(engine, fleet, author=author)
        self.standing = StandingTable(engine, fleet, author=author, offline_after_seconds=offline_after_seconds)
        self.audit = AuditTable(engine, fleet)
        self.assignments = AssignmentTable(engine, fleet)
        self.commands = CommandTable(engine, fleet, author=author)
        self.operators = OperatorTable(engine, fleet, author=author)
        self.pause = PauseTable(engine, fleet, author=author)
        self.uninstall = UninstallTable(engine, fleet, author=author)
        self.overview = OverviewTable(engine, fleet)
        self.webhooks = WebhookTable(engine, fleet, author=author)
        self.telemetry = TelemetryTable(engine, fleet, author=author)
        self.leaders = LeaderTable(engine, fleet)
        self.work = WorkTable(engine, fleet)
        self.drift = DriftTable(engine, fleet, author=author)
        self.alarms = AlarmTable(engine, fleet, author=author)

    def by(self, author: str) -> FleetState:
        """The same state, for changes by another author."""
        return FleetState(self._engine, self.fleet, offline_after_seconds=self.offline_after_seconds, author=author)

    def fenced(self, fence: Fence) -> FleetState:
        """The same state; `fence` is called at the start of each writing transaction, and ends it by raising."""
        engine = self._engine.execution_options(fence=fence)
        return FleetState(engine, self.fleet, offline_after_seconds=self.offline_after_seconds, author=self.author)

    def select(self, cohort: Cohort, now: float) -> SelectedDevices:
        """The devices that a cohort selects, for the plan of a rollout. Raises SettingsError as `SelectedDevices`."""
        return SelectedDevices(self._engine, self.fleet, cohort, now, self.offline_after_seconds)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make one transaction of all that this thread reads and writes inside the block: all is stored, or nothing.

        Raises:
            UnavailableError: the database did not answer.
            Exception: the first error of a table, also where the block went on after it.
        """
        with together(self._engine):
            yield

    def leader_lock(self) -> LeaderLock:
        """The lock that one controller of the fleet holds, not taken yet."""
        return leader_lock(self._engine, self.fleet)

    def nobody(self, cohort: Cohort) -> NotFoundError:
        """The error for a selection without devices: it names the selection and the nearest values of the fleet."""
        if not self.devices.count(0.0, 0.0):
            return NotFoundError(
                f"no device is enrolled in fleet {self.fleet!r}",
                advice="Enroll one: edgekit device enroll ID --target T",
            )
        advice = "; ".join(self.groups.nearest(cohort))
        advice = advice[:1].upper() + advice[1:] if advice else "See: edgekit device list"
        return NotFoundError(f"no device of fleet {self.fleet!r} matches {cohort.text}", advice=advice)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def open_fleet_state(
    url: str, fleet: str, *, offline_after_seconds: float = 90.0, author: str = "unknown"
) -> FleetState:
    """Open the database at `url` and bring its tables up to date. Arguments as `FleetState`.

    Raises:
        SettingsError: the URL cannot be understood, its driver is missing, or the database is newer than this edgekit.
        UnavailableError: the database cannot be reached or migrated.
    """
    return FleetState(open_database(url), fleet, offline_after_seconds=offline_after_seconds, author=author)

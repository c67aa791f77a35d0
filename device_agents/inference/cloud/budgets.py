"""The daily budgets of this device for the cloud tier: counts calls and bytes, and stores them across restarts."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from device_agents.inference.cloud import budget_rules
from device_agents.inference.cloud.budget_rules import Budget, Spent, Verdict
from edgekit.errors import DiskError
from edgekit.protocols import Clock, Disk

_log = logging.getLogger(__name__)

FILE_NAME = "cloud-budget.json"
ALL_MODELS = ""  # the key of the budget of all models together
SPENT_EVENT = "cloud-budget-spent"

Listener = Callable[[str, str, str, dict[str, Any]], None]


class Budgets:
    """Spending of each model and of the device as a whole today; a call must be within both budgets.

    Args:
        total: Budget of all models together.
        own: Gives the budget of one model.
        clock: Its wall time begins and ends the days; its monotonic time counts from the start of the device or later.
        disk: The device's folder; None where what is spent is forgotten at a restart.
    """

    def __init__(self, total: Budget, own: Callable[[str], Budget], clock: Clock, disk: Disk | None) -> None:
        self._total, self._own, self._clock, self._disk = total, own, clock, disk
        self._spent = self._read()
        self._stored = dict(self._spent)
        self._told: dict[str, float] = {}  # the begin of the day whose end of budget was told
        self._listener: Listener | None = None
        self._writing = threading.Lock()
        self._fails = False  # a full disk is logged once, and not with every call

    def listen(self, listener: Listener) -> None:
        """Call ``listener(kind, model, message, detail)`` once a day for each budget that is spent."""
        self._listener = listener

    def judge(self, model: str, size: int, score: float | None) -> Verdict:
        """Whether a call of `size` bytes is within the budgets; nothing is counted. `score` as in the rules.

        The begin of the day is kept, and written by the next `store`: a day that began anew at each look, because the
        clock was set meanwhile, would never end.
        """
        found, now = Verdict.ALLOWED, self._clock.wall()
        for key, budget in self._budgets(model):
            spent = self._today(key, now)
            verdict = budget_rules.judge(budget, spent, size, score, now)
            if verdict is Verdict.SPENT:
                self._tell_spent(key, budget, spent)
                return verdict
            found = verdict if verdict is not Verdict.ALLOWED else found
        return found

    def spend(self, model: str, size: int) -> None:
        """Count a call of `size` bytes that `judge` has allowed."""
        now = self._clock.wall()
        for key, _ in self._budgets(model):
            self._spent[key] = budget_rules.add(self._today(key, now), size)

    async def store(self, model: str) -> None:
        """Write what is spent, and a little more, unless the last write covers it; no day without calls."""
        is_covered = True
        for key, budget in self._budgets(model):
            spent = self._spent.get(key, Spent())
            if (spent.calls or spent.bytes) and not budget_rules.covers(budget, self._stored.get(key, Spent()), spent):
                self._stored[key] = budget_rules.reserved(budget, spent)
                is_covered = False
        if not is_covered and self._disk is not None:
            await asyncio.to_thread(self._write)

    async def close(self) -> None:
        """Write what is spent, without the reserve."""
        if self._stored != self._spent and self._disk is not None:
            self._stored = dict(self._spent)
            await asyncio.to_thread(self._write)

    def _budgets(self, model: str) -> list[tuple[str, Budget]]:
        found = [(ALL_MODELS, self._total), (model, self._own(model))]
        return [(key, budget) for key, budget in found if budget.limited]

    def _today(self, key: str, now: float) -> Spent:
        found = budget_rules.today(self._spent.get(key, Spent()), now, self._clock.monotonic())
        self._spent[key] = found
        return found

    def _tell_spent(self, key: str, budget: Budget, spent: Spent) -> None:
        if self._told.get(key) == spent.begun:
            return
        self._told[key] = spent.begun
        whose = f"model {key}" if key else "all models"
        limits = [f"{budget.calls} calls"] * bool(budget.calls) + [f"{budget.bytes} bytes"] * bool(budget.bytes)
        message = (
            f"the cloud budget of {whose} ({', '.join(limits)} a day) is spent: {spent.calls} calls, {spent.bytes} "
            "bytes; answers stay local until a day after the first of these calls"
        )
        _log.warning("%s", message)
        if self._listener is not None:
            self._listener(SPENT_EVENT, key, message, {"calls": spent.calls, "bytes": spent.bytes})

    def _read(self) -> dict[str, Spent]:
        try:
            if self._disk is not None and self._disk.exists(FILE_NAME):
                return msgspec.json.decode(self._disk.read(FILE_NAME), type=dict[str, Spent])
        except (DiskError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("%s cannot be read, the day's budgets begin anew: %s", FILE_NAME, error)
        return {}

    def _write(self) -> None:
        assert self._disk is not None
        with self._writing:  # the last writer has the newest values
            try:
                self._disk.write(FILE_NAME, msgspec.json.encode(dict(self._stored)))
                self._fails = False
            except DiskError as error:
                if not self._fails:
                    _log.warning("the spent cloud budget cannot be stored; a restart forgets it: %s", error)
                self._fails = True

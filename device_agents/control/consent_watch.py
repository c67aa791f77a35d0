"""Notices answers of the user that the command line has written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from device_agents.deployment import Deployment, UpdateRecord
from device_agents.storage.consents import CONSENT, DECLINED, Consents
from device_agents.threads import in_thread

SURVEY_SECONDS = 1.0


async def watch_consents(
    consents: Consents,
    states: Callable[[], Mapping[str, UpdateRecord]],
    offer: Callable[[str, Deployment], None],
) -> None:
    """Offer a deployment again as soon as its answer has changed, until cancelled; the file is read while one waits."""
    while True:
        await asyncio.sleep(SURVEY_SECONDS)
        for model, state in states().items():
            waits, deployment = state.waits, state.deployment
            if waits is None or deployment is None or not deployment.consent:
                continue
            agreed = await in_thread(consents.get, model, deployment.digest)
            changed = {CONSENT: agreed is not None, DECLINED: agreed is not False}
            if changed.get(waits.reason, False):
                offer(model, deployment)

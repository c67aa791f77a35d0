"""Builds the agent of `edgekit-agent import`, and runs it until the file is followed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from device_agents.assembly.control import make_agent
from device_agents.assembly.serving import make_inference, single_instance
from device_agents.facts import measure_facts
from device_agents.offline.importing import Imported, follow_file
from device_agents.offline.transport import FileTransport
from device_agents.threads import in_thread
from edgekit.serving.endpoints import Endpoints, open_endpoints
from edgekit.serving.http.limits import Limits
from edgekit.settings import AgentSettings
from edgekit.update_file import UpdateFile, find_update_file

_NO_NETWORK = {
    "quiet_hours": "",
    "metered": False,
    "metered_file": None,
    "download_bytes_per_second": 0,
    "download_urls": False,
}


async def import_file(settings: AgentSettings, path: Path) -> list[Imported]:
    """Install what an update file, or the best one of a folder, has for this device. Local applications are answered.

    Args:
        settings: Settings of the agent. Limits of the network do not apply: nothing is fetched over it.
        path: The file or the folder.

    Raises:
        NotFoundError, DataError: there is no file for this device, or it is no update file.
        UnavailableError: an agent runs with the same state folder, or a deployment cannot go on.
        VerificationError: the assignment is refused.
    """
    served, settings = settings, msgspec.structs.replace(settings, **_NO_NETWORK)
    with UpdateFile(find_update_file(path, settings.device)) as file:
        payload = file.desired(settings.device)
        with single_instance(settings.state):
            facts = await in_thread(measure_facts, settings.target, state=settings.state, tags=settings.tags)
            inference, cloud = make_inference(served)  # its cloud tier is reached over the network
            try:
                async with inference:
                    transport = FileTransport(file, settings.fleet, settings.device)
                    agent = make_agent(settings, inference, facts, transport=transport)
                    await agent.start()
                    limits = Limits(connections=settings.max_connections, drain_seconds=settings.drain_seconds)
                    addresses = Endpoints(settings.http, settings.socket, settings.grpc, settings.grpc_socket)
                    most = settings.max_request_bytes
                    async with open_endpoints(inference, addresses, max_request_bytes=most, limits=limits):
                        return await follow_file(agent, transport, file, payload)
            finally:
                if cloud is not None:
                    cloud.close()

"""The checks of `edgekit-agent check`: each checks one thing and returns the finding as text."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from device_agents.assembly.cloud import endpoint_hold, make_cloud_clients
from device_agents.assembly.control import check_broker, read_root, root_version
from device_agents.assembly.serving import fallback_hold, metered_link, threshold_warnings
from device_agents.diagnostics.check_rules import judge_certificate, judge_clock, judge_evidence, judge_providers
from device_agents.diagnostics.cloud_check import Sent, check_cloud
from device_agents.diagnostics.pending import pending_deployments
from device_agents.facts import measure_facts
from device_agents.inference.cloud.http_client import without_user
from device_agents.inference.cloud.retry_budget import RetryBudget
from device_agents.inference.egress_rules import stricter
from device_agents.inference.options import ALLOWED, DECODED, NEVER, ORIGINAL, CloudOptions, ServiceOptions
from device_agents.remote.overlay import Overlay
from device_agents.spool.store import stored_entries
from device_agents.storage.evidence import EvidenceFile
from device_agents.storage.journal import Journal
from device_agents.storage.slot_check import check_slot
from device_agents.storage.slots import Slots
from device_agents.update.evidence_rules import Policy
from edgekit.bundle.compat import Facts
from edgekit.bundle.evidence import standing
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.state import state_links
from edgekit.errors import CloudError, DataError, EdgekitError, SettingsError, UnavailableError
from edgekit.identity.authority import expiry_of
from edgekit.sealing.cipher import key_id
from edgekit.sealing.class_keys import load_x25519_public
from edgekit.sealing.keyring import Keyring
from edgekit.settings import AgentSettings
from edgekit.settings.groups import settings_group
from edgekit.storage.disk import FolderDisk
from edgekit.trust.keys import load_signer
from edgekit.versions import runtime_version

BROKER_SECONDS = 5.0
PROBE_NAME = "check.tmp"


def checks_of(settings: AgentSettings, config: Path, overlay: Overlay | None = None) -> dict[str, Callable[[], str]]:
    """The checks by name, in the order of the output. Each returns its finding, or raises an EdgekitError.

    Args:
        settings: Settings of the agent.
        config: The settings file.
        overlay: Settings that were changed remotely; None for none.
    """
    checks = _Checks(settings, config)
    remote = overlay is not None and (overlay.record.values or overlay.fault)
    return {
        **({"remote settings": lambda: _remote_settings(overlay)} if overlay and remote else {}),
        "clock": checks.clock,
        "key": checks.key,
        **({"class keys": checks.class_keys} if settings.class_keys else {}),
        "root": checks.root,
        "disk": checks.disk,
        "journal": checks.journal,
        "slots": checks.slots,
        "deployments": checks.deployments,
        "link": checks.link,
        "runtimes": checks.runtimes,
        "providers": checks.providers,
        "evidence": checks.evidence,
        **({"certificate": checks.certificate} if settings.broker_certificate else {}),
        "broker": checks.broker,
        "fallback": checks.fallback,
        **({"cloud tier": checks.cloud} if settings.all_cloud_urls() else {}),
        **({"samples": checks.samples} if settings.sample_key else {}),
    }


def _remote_settings(overlay: Overlay) -> str:
    if overlay.fault:
        raise SettingsError(
            overlay.fault, advice="Take them back with `edgekit device command ID set KEY=`, or remove that file."
        )
    values = ", ".join(f"{key} = {value}" for key, value in sorted(overlay.record.values.items()))
    return values if overlay.record.previous is None else f"{values} (on trial: no start has reached the broker yet)"


class _Checks:
    """One method for each check. Each opens what it needs itself, so that one fault hides no other."""

    def __init__(self, settings: AgentSettings, config: Path) -> None:
        self._settings, self._config = settings, config

    @functools.cached_property
    def _facts(self) -> Facts:
        return measure_facts(self._settings.target)

    def _folder(self) -> FolderDisk:
        return FolderDisk(self._settings.state)

    def clock(self) -> str:
        traces = {str(path): path.stat().st_mtime for path in (self._config, self._settings.root) if path.exists()}
        with contextlib.suppress(EdgekitError):  # the check of the journal reports its faults
            for name, state in Journal(self._folder()).models().items():
                if state.active is not None:
                    traces[f"the installation of {name} {state.active.version}"] = state.active.since
        return judge_clock(time.time(), traces)

    def key(self) -> str:
        return f"{self._settings.key}, key id {load_signer(self._settings.key).public_key.keyid[:12]}"

    def samples(self) -> str:
        """The key for samples, and those that wait to be sent."""
        assert self._settings.sample_key is not None  # else there is no such check
        public = load_x25519_public(self._settings.sample_key)
        entries = stored_entries(self._folder())
        size = sum(entry.size for entry in entries)
        return f"key {key_id(public)[:12]}; {len(entries)} samples of {size} bytes wait to be sent"

    def class_keys(self) -> str:
        return ", ".join(f"key id {one[:12]}" for one in Keyring(self._settings.class_keys).ids)

    def root(self) -> str:
        return f"{self._settings.root}, version {root_version(read_root(self._settings.root))}"

    def disk(self) -> str:
        folder = self._folder()
        folder.write(PROBE_NAME, b"check")
        folder.remove(PROBE_NAME)
        return f"{self._settings.state}, {folder.free_bytes() // 2**20} MiB free"

    def journal(self) -> str:
        opened = Journal(self._folder())
        models = opened.models()
        if opened.damage:
            raise DataError(
                "; ".join(opened.damage),
                advice="The agent uses the copies. Check the disk, and replace it if this happens again.",
            )
        return ", ".join(sorted(models)) or "no model yet"

    def slots(self) -> str:
        whole, folder = [], self._folder()
        for name, state in sorted(Journal(folder).models().items()):
            if state.active is not None:
                check_slot(folder, name, state.active)
                whole.append(f"{name} {state.active.version} is whole in slot {state.active.slot}")
        return ", ".join(whole) or "no bundle is installed"

    def deployments(self) -> str:
        folder = self._folder()
        return "; ".join(pending_deployments(folder, Journal(folder).models())) or "no unfinished deployment"

    def link(self) -> str:
        link = metered_link(self._settings)
        if not link.is_metered():
            return "not metered"
        if link.deployment_bytes:
            return f"metered: each deployment may fetch {link.deployment_bytes} bytes, then it waits"
        return "metered: deployments wait for a link that is not metered"

    def runtimes(self) -> str:
        if not self._facts.runtimes:
            raise UnavailableError("no runtime is installed", advice="Run: pip install 'edgekit[litert]' or [onnx]")
        return ", ".join(f"{name} {version}" for name, version in sorted(self._facts.runtimes.items()))

    def providers(self) -> str:
        required = self._settings.require_providers
        return judge_providers(self._facts.providers, self._settings.providers, required=required)

    def evidence(self) -> str:
        folder = self._folder()
        file, policy, found = EvidenceFile(folder), Policy(self._settings.unproven_runtime), []
        for name, state in sorted(Journal(folder).models().items()):
            if state.active is not None:
                manifest = Slots(folder, name).manifest(state.active.slot, state.active.digest)
                running = runtime_version(manifest.runtime)
                stands = standing(manifest, running, self._facts.arch, file.get(name, state.active.digest))
                found.append(judge_evidence(manifest, running, stands, policy))
        return "; ".join(found) or "no bundle is installed"

    def certificate(self) -> str:
        path = self._settings.broker_certificate
        assert path is not None
        try:
            begin, end = expiry_of(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from error
        renews = self._settings.broker_key is not None
        return f"{path}, {judge_certificate(begin, end, time.time(), renews=renews)}"

    def broker(self) -> str:
        asyncio.run(check_broker(self._settings, BROKER_SECONDS))
        return self._settings.broker

    def fallback(self) -> str:
        settings = self._settings
        faults = threshold_warnings(settings)
        if faults:
            raise SettingsError("; ".join(faults))
        if not settings.all_cloud_urls():
            return "no cloud tier is configured; every answer is local"
        if named := [without_user(url) for url in settings.all_cloud_urls() if "@" in urlsplit(url).netloc]:
            raise SettingsError(
                f"cloud_url has a user's name or a password, which are not sent: {', '.join(named)}",
                advice="Take them out, and write the API key into the file of cloud_api_key_file.",
            )
        policies = {name: self._policy(name, manifest) for name, manifest in sorted(self._cloud_models().items())}
        kept = [name for name, policy in policies.items() if policy == NEVER]
        decoded = [name for name, policy in policies.items() if policy == DECODED]
        unsendable = [name for name in decoded if self._cloud_options(name).cloud_inputs == ORIGINAL]
        if unsendable:
            raise SettingsError(
                f"cloud_inputs is original and send_inputs allows decoded tensors only: {', '.join(unsendable)}. Bytes "
                "that clients send are never sent",
                advice='Set cloud_inputs = "decoded", or send_inputs = "allowed" where the bundle allows it too.',
            )
        if open_urls := [url for url in settings.all_cloud_urls() if endpoint_hold(settings, url) is not None]:
            raise SettingsError(
                f"{', '.join(map(without_user, open_urls))}: the API key would travel unencrypted to another host, "
                "so this URL is never called",
                advice="Write https:// in cloud_url, or set cloud_unencrypted = true.",
            )
        held = {url: fallback_hold(settings) or endpoint_hold(settings, url) for url in settings.all_cloud_urls()}
        shared = len(set(held.values())) == 1
        urls = [
            without_user(url) + (f" (not called now: {hold.value})" if hold and not shared else "")
            for url, hold in held.items()
        ]
        hold = next(iter(held.values()))
        said = f"; never sent: {', '.join(kept)}" if kept else ""
        said += f"; sent decoded only: {', '.join(decoded)}" if decoded else ""
        return ", ".join(urls) + said + (f"; not called now: {hold.value}" if hold and shared else "")

    def cloud(self) -> str:
        """Ask every endpoint, each for the models that it serves."""
        settings, found, faults, away = self._settings, dict[str, str](), list[str](), 0
        clients = make_cloud_clients(settings, RetryBudget())
        for url, client in clients.items():
            hold = fallback_hold(settings) or endpoint_hold(settings, url)
            if hold is not None:
                found[url] = f"not asked, because this device holds calls back now: {hold.value}"
                continue
            try:
                found[url] = asyncio.run(check_cloud(client, self._models_at(url)))
            except (CloudError, UnavailableError) as error:
                if len(clients) == 1:
                    raise
                faults.append(f"{without_user(url)}: {error}")
                away += isinstance(error, CloudError)
            finally:
                client.close()
        if faults:
            kind = CloudError if away == len(clients) else UnavailableError
            raise kind("; ".join(faults), advice="Correct the cloud tier or the agent's settings cloud_*.")
        return (
            next(iter(found.values()))
            if len(found) == 1
            else "; ".join(f"{without_user(u)}: {t}" for u, t in found.items())
        )

    def _models_at(self, url: str) -> dict[str, Sent]:
        """The models that an endpoint answers for."""
        found = {}
        for name, manifest in self._cloud_models().items():
            if url in self._settings.cloud_urls_of(name) and self._policy(name, manifest) != NEVER:
                options = self._cloud_options(name)
                found[name] = Sent(options.cloud_model or name, manifest, options.cloud_inputs == ORIGINAL)
        return found

    def _policy(self, name: str, manifest: Manifest | None) -> str:
        """The inputs of a model that may be sent: the stricter of settings and bundle."""
        return stricter(self._cloud_options(name).send_inputs, manifest.may_send if manifest else ALLOWED)

    def _cloud_options(self, name: str) -> CloudOptions:
        service = settings_group(ServiceOptions, self._settings)
        return CloudOptions.of(service, self._settings.models.get(name))

    def _cloud_models(self) -> dict[str, Manifest | None]:
        """The installed and configured models; those with state are never sent."""
        folder = self._folder()
        found: dict[str, Manifest | None] = dict.fromkeys(self._settings.models)
        with contextlib.suppress(EdgekitError):  # the checks of journal and slots report their faults
            for name, state in Journal(folder).models().items():
                if state.active is not None:
                    manifest = Slots(folder, name).manifest(state.active.slot, state.active.digest)
                    found[name] = manifest
                    if state_links(manifest.inputs):
                        del found[name]
        return found

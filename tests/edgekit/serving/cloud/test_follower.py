"""The cloud tier follows the channels of a real registry while it answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_MODEL, parse_manifest
from edgekit.errors import NotFoundError, SelfTestError
from edgekit.registry import RegistryReader, publish
from edgekit.runtimes import open_runtime
from edgekit.serving.cloud import CloudModels
from edgekit.serving.cloud.bundles import RegistryBundles
from edgekit.serving.cloud.follower import Follower
from edgekit.serving.models.cloud_options import CloudModelOptions
from edgekit.serving.oip.codec import InferRequest
from edgekit.storage.stores import open_store
from edgekit.trust.repository import Repository
from tests.simulators.small_models import SURE, onnx_bundle

OPTIONS = CloudModelOptions(channel="stable", canary_channel="canary", canary_share=0.25)


class Tier(NamedTuple):
    """A registry and a tier that follows it."""

    home: Path
    repository: Repository
    models: CloudModels
    told: list[str]

    def publish(self, version: str, channel: str = "", *, name: str = "m", golden_gain: float | None = None) -> None:
        folder, gain = self.home / "made" / f"{name}-{version}", float(version[0])
        onnx_bundle(
            folder, name=name, version=version, target="server", batch=None, gain=gain, golden_gain=golden_gain or gain
        )
        publish(open_store(f"file://{self.home}/registry"), self.repository, folder)
        if channel:
            self.promote(version, channel, name=name)

    def promote(self, version: str, channel: str, *, name: str = "m") -> None:
        self.repository.mark(name, version, channel=channel)

    def follower(self, names: list[str] | None = None, options: CloudModelOptions = OPTIONS) -> Follower:
        root = (self.home / "keys" / "root.json").read_bytes()
        reader = RegistryReader(open_store(f"file://{self.home}/registry"), root, self.home / "cache")
        bundles = RegistryBundles(reader, self.home / "bundles", ())
        load = functools.partial(open_runtime, threads=1)
        return Follower(
            self.models,
            bundles,
            load,
            names=names,
            target="server",
            options=lambda _: options,
            tell=self.told.append,
            clock=asyncio.get_running_loop().time,
        )

    async def restart(self) -> None:
        """Start another tier, as after a restart of this one."""
        models = CloudModels()
        try:
            await self._replace(models=models).follower(["m"]).start()
        finally:
            await models.close()

    async def answering(self, count: int = 1, version: str | None = None) -> list[str]:
        found = [await self.models.answer("m", version, InferRequest({"x": SURE})) for _ in range(count)]
        return [one.version for one in found]


def damage(tier: Tier, made: str) -> None:
    """Change the stored model of a bundle."""
    manifest = parse_manifest((tier.home / "made" / made / MANIFEST_NAME).read_bytes())
    digest = manifest.file(ROLE_MODEL).sha256
    (stored,) = (tier.home / "registry").rglob(digest)
    stored.write_bytes(bytes(stored.stat().st_size))


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[Tier]:
    repository = Repository(open_store(f"file://{tmp_path}/registry"), tmp_path / "keys")
    repository.create()
    models = CloudModels()
    yield Tier(tmp_path, repository, models, [])
    await models.close()


async def test_promotion_and_return_change_the_version_without_a_restart(tier: Tier) -> None:
    """A canary gets its share, then everything, then nothing; what is not served any more is deleted."""
    tier.publish("1.0.0", "stable")
    follower = tier.follower(["m"])
    await follower.start()
    assert await tier.answering() == ["1.0.0"]
    tier.publish("2.0.0", "canary")
    await follower.update()
    assert (await tier.answering(100)).count("2.0.0") == 25
    assert await tier.answering(1, "2.0.0") == ["2.0.0"]
    assert tier.models.describe("m", None).versions == ("1.0.0", "2.0.0")
    tier.promote("2.0.0", "stable")
    await follower.update()
    assert set(await tier.answering(20)) == {"2.0.0"}
    with pytest.raises(NotFoundError, match=r"no version 1\.0\.0 in this cloud tier, it serves 2\.0\.0"):
        await tier.answering(1, "1.0.0")
    tier.promote("2.0.0", "broken")
    await follower.update()
    assert set(await tier.answering(20)) == {"1.0.0"}
    await asyncio.sleep(0.2)
    assert [folder.name[:7] for folder in (tier.home / "bundles").iterdir()] == ["m-1.0.0"]
    assert tier.told == [
        "m 1.0.0 is served now, canary 2.0.0 for 0.25 of the requests",
        "m 2.0.0 is served now (before: 1.0.0)",
        "m 1.0.0 is served now (before: 2.0.0)",
    ]


async def test_no_request_is_lost_in_a_switch(tier: Tier) -> None:
    """Requests go on during ten switches, each answered by one of the two versions."""
    tier.publish("1.0.0", "stable")
    tier.publish("2.0.0", "spare")
    follower = tier.follower(["m"])
    await follower.start()
    seen: set[str] = set()
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            seen.update(await tier.answering())
            await asyncio.sleep(0)

    asking = [asyncio.ensure_future(ask()) for _ in range(4)]
    for number in range(10):
        tier.promote("2.0.0", "spare" if number % 2 else "stable")
        await follower.update()
    done.set()
    await asyncio.gather(*asking)
    assert seen == {"1.0.0", "2.0.0"}


async def test_a_version_that_fails_changes_nothing(tier: Tier) -> None:
    """It is told once and not loaded again and again; the next good version is served."""
    tier.publish("1.0.0", "stable")
    follower = tier.follower(["m"])
    await follower.start()
    tier.publish("2.0.0", "stable", golden_gain=0.1)
    for _ in range(3):
        await follower.update()
    assert await tier.answering() == ["1.0.0"]
    assert len(tier.told) == 1
    assert "m 2.0.0 failed its self-test" in tier.told[0]
    assert "what was served before is served on" in tier.told[0]
    tier.publish("3.0.0", "stable")
    await follower.update()
    assert await tier.answering() == ["3.0.0"]
    tier.publish("4.0.0", "stable", golden_gain=0.1)
    with pytest.raises(SelfTestError):
        await tier.restart()


async def test_a_full_disk_is_told_once(tier: Tier) -> None:
    """It was told at every look at the registry, because the name of the folder changed."""
    tier.publish("1.0.0", "stable")
    follower = tier.follower(["m"])
    await follower.start()
    tier.publish("2.0.0", "stable")
    (tier.home / "bundles").rename(tier.home / "away")
    (tier.home / "bundles").write_text("no folder")
    for _ in range(3):
        await follower.update()
    (tier.home / "bundles").unlink()
    (tier.home / "away").rename(tier.home / "bundles")
    (told,) = tier.told
    assert "bundle cannot be written" in told
    await follower.update()
    assert await tier.answering() == ["2.0.0"]


async def test_an_unreachable_registry_changes_nothing(tier: Tier) -> None:
    """It is told once, and the tier follows again when it is back."""
    tier.publish("1.0.0", "stable")
    follower = tier.follower(["m"])
    await follower.start()
    store = tier.home / "registry"
    store.rename(tier.home / "away")
    await follower.update()
    await follower.update()
    assert await tier.answering() == ["1.0.0"]
    assert len(tier.told) == 1
    assert tier.told[0].startswith("the registry cannot be followed: ")
    (tier.home / "away").rename(store)
    tier.publish("2.0.0", "stable")
    await follower.update()
    assert await tier.answering() == ["2.0.0"]


async def test_an_empty_channel_keeps_the_named_model(tier: Tier) -> None:
    """At the start it is an error that lists what there is."""
    tier.publish("1.0.0", "stable")
    follower = tier.follower(["m"])
    await follower.start()
    tier.promote("1.0.0", "other")
    await follower.update()
    assert await tier.answering() == ["1.0.0"]
    assert "no current version in channel 'stable' for 'server'" in tier.told[0]
    with pytest.raises(NotFoundError) as caught:
        await tier.restart()
    assert "1.0.0 for server (channel other)" in caught.value.advice


async def test_every_model_is_served_where_none_is_named(tier: Tier) -> None:
    """New ones too, and one that has no version left is removed."""
    tier.publish("1.0.0", "stable")
    follower = tier.follower()
    await follower.start()
    tier.publish("1.0.0", "stable", name="n")
    await follower.update()
    assert tier.models.models() == ["m", "n"]
    tier.promote("1.0.0", "other", name="n")
    await follower.update()
    assert tier.models.models() == ["m"]
    assert tier.told[-1] == "n is served no more: the registry has no version of it for server"


async def test_a_new_model_that_fails_leaves_the_others_alone(tier: Tier) -> None:
    """It ended the whole tier. It is served once it has a version that works."""
    tier.publish("1.0.0")
    options = CloudModelOptions()
    follower = tier.follower(options=options)
    await follower.start()
    tier.publish("1.0.0", name="new", golden_gain=9.0)
    tier.publish("2.0.0", name="torn")
    damage(tier, "torn-2.0.0")
    for _ in range(2):
        await follower.update()
    assert (tier.models.models(), await tier.answering()) == (["m"], ["1.0.0"])
    failed, torn = tier.told
    assert failed.startswith("new 1.0.0 failed its self-test")
    assert failed.endswith("it is not served")
    assert torn.startswith("torn: model.onnx: digest does not match")
    tier.publish("1.0.1", name="new")
    await follower.update()
    assert sorted(tier.models.models()) == ["m", "new"]
    assert tier.told[-1] == "new 1.0.1 is served now"


async def test_one_model_of_all_that_fails_does_not_stop_a_start(tier: Tier) -> None:
    """A bad model of one team would stop the next start of the tier of all. Where nothing works, the start fails."""
    tier.publish("1.0.0", name="bad", golden_gain=9.0)
    with pytest.raises(SelfTestError):
        await tier.follower(options=CloudModelOptions()).start()
    tier.publish("1.0.0")
    follower = tier.follower(options=CloudModelOptions())
    await follower.start()
    assert tier.models.models() == ["m"]
    assert tier.told[-1].startswith("bad 1.0.0 failed its self-test")
    tier.publish("1.0.1", name="bad")
    await follower.update()
    assert sorted(tier.models.models()) == ["bad", "m"]


async def test_a_canary_that_fails_does_not_stop_a_start(tier: Tier) -> None:
    """A tier that ran beside a faulty canary could not be started again; a faulty main version still stops a start."""
    tier.publish("1.0.0", "stable")
    tier.publish("2.0.0", "canary", golden_gain=1.0)
    follower = tier.follower(["m"])
    await follower.start()
    assert set(await tier.answering(20)) == {"1.0.0"}
    assert "m 2.0.0 failed its self-test" in tier.told[0]
    assert tier.told[0].endswith("; 1.0.0 is served")
    tier.promote("2.0.0", "stable")
    with pytest.raises(SelfTestError):
        await tier.restart()


async def test_several_versions_are_served_side_by_side(tier: Tier) -> None:
    """Requests may name each; the newest one answers the others."""
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        tier.publish(version)
    await tier.follower(["m"], CloudModelOptions(versions=2)).start()
    assert tier.models.describe("m", None).versions == ("2.0.0", "3.0.0")
    assert await tier.answering() == ["3.0.0"]
    assert await tier.answering(1, "2.0.0") == ["2.0.0"]

"""Offload certificates on a device: applied, claimed only where they hold, tested in the field, and refuted."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from device_agents.inference.cascade.certified import DAY_SECONDS, MOST_TOLD, Held
from device_agents.inference.cascade.refutation_store import FILE_NAME, MOST_CERTIFICATES, RefutationStore
from device_agents.inference.options import ServiceOptions
from device_agents.inference.routing_rules import Reason
from device_agents.inference.service import InferenceService
from edgekit.bundle.evidence import Evidence
from edgekit.bundle.manifest import ROLE_MODEL, file_entry
from edgekit.certificate.document import CERTIFICATE_NAME, ROLE_CERTIFICATE, Bound, Bounded, Certificate
from edgekit.certificate.scoring import ScoreFunction, score
from edgekit.errors import CloudError
from edgekit.runtimes import open_runtime
from edgekit.serving.models.options import ModelSettings
from edgekit.storage.disk import FolderDisk
from edgekit.versions import runtime_version
from tests.simulators.cascade_models import CLASSES, FEATURES, edge_bundle, samples
from tests.simulators.cloud import MemoryCloud
from tests.simulators.publisher import HeldClock

CLOUD = "ab" * 32
ANSWER = {"scores": np.eye(CLASSES, dtype=np.float32)[:1] * 9}


def certified_bundle(folder, *, threshold=0.5, upper=0.05, target="accuracy", runtime=None):
    """An edge bundle with a certificate on the margin; returns manifest and certificate."""
    manifest = edge_bundle(folder)
    certificate = Certificate(
        target=target,
        value=0.9,
        error=0.04,
        confidence=0.95,
        score=ScoreFunction("margin", "logits"),
        threshold=threshold,
        output="scores",
        sent=Bounded(0.4, 0.45, 0.005),
        disagreement=Bounded(0.03, upper, 0.005),
        bound=Bound(
            manifest.file(ROLE_MODEL).sha256,
            "",
            "onnxruntime",
            runtime or runtime_version("onnxruntime"),
            "pair-cloud",
            CLOUD,
        ),
        samples=1000,
    )
    data = certificate.canonical_bytes()
    (folder / CERTIFICATE_NAME).write_bytes(data)
    files = (*manifest.files, file_entry(CERTIFICATE_NAME, ROLE_CERTIFICATE, data))
    manifest = msgspec.structs.replace(manifest, files=files)
    (folder / "manifest.json").write_bytes(manifest.canonical_bytes())
    return manifest, certificate


def rows_by_margin(manifest, folder, n=400):
    """Samples in ascending order of the edge's margin, and the margins."""
    x = samples(n, seed=12)["x"]
    runtime = open_runtime(manifest, folder)
    margins = score(ScoreFunction("margin", "logits"), runtime.run({"x": x})["scores"])
    runtime.close()
    order = np.argsort(margins)
    return x[order], margins[order]


@pytest.fixture
def cloud():
    made = MemoryCloud(ANSWER)
    made.digest = CLOUD
    return made


async def test_the_certified_score_and_threshold_decide_and_only_a_true_certificate_is_claimed(tmp_path, cloud):
    """Rows below the margin are sent. Before the tier has shown its digest, nothing is claimed."""
    manifest, certificate = certified_bundle(tmp_path)
    x, margins = rows_by_margin(manifest, tmp_path)
    at = int(np.searchsorted(margins, certificate.threshold))
    unsure, sure = x[at - 1 : at], x[at : at + 1]
    async with InferenceService(cloud=cloud, service=ServiceOptions(exploration_share=0.0)) as service:
        await service.activate("pair", manifest, tmp_path)
        first = (await service.infer("pair", {"x": sure})).parameters
        assert (first["edgekit_route"], first["edgekit_reason"]) == ("local", "confident")
        assert "edgekit_certificate" not in first
        sent = (await service.infer("pair", {"x": unsure})).parameters
        assert (sent["edgekit_route"], sent["edgekit_certificate"]) == ("cloud", certificate.id)
        assert (await service.infer("pair", {"x": sure})).parameters["edgekit_certificate"] == certificate.id
        alone = (await service.infer("pair", {"x": sure}, route="local-only")).parameters
        assert "edgekit_certificate" not in alone
        assert service.counters()["pair"]["certified"] == 2


async def test_another_cloud_model_ends_the_claim_until_the_certified_one_is_back(tmp_path, cloud):
    """An answer with another digest, or with none, is used without a certificate, and told once."""
    manifest, certificate = certified_bundle(tmp_path)
    x, _ = rows_by_margin(manifest, tmp_path)
    news = []
    async with InferenceService(cloud=cloud, service=ServiceOptions(exploration_share=0.0)) as service:
        service.listen_certificates(lambda *one: news.append(one))
        await service.activate("pair", manifest, tmp_path)
        for digest, claimed in ((CLOUD, True), ("cd" * 32, False), ("cd" * 32, False), ("", False), (CLOUD, True)):
            cloud.digest = digest
            for row in (x[:1], x[-1:]):  # the cloud's answer, then a local one
                got = (await service.infer("pair", {"x": row})).parameters
                assert (got.get("edgekit_certificate") == certificate.id) is claimed
    assert [one[0] for one in news] == ["certificate-cloud-changed"] * 2


async def test_a_cloud_tier_that_alternates_between_models_is_told_once_a_day(tmp_path, cloud):
    """A canary share, and a server that sends a new word each time: an event for each answer would flood the fleet."""
    manifest, _ = certified_bundle(tmp_path)
    x, _ = rows_by_margin(manifest, tmp_path)
    clock, news = HeldClock(), []
    options = ServiceOptions(exploration_share=0.0)
    async with InferenceService(cloud=cloud, service=options, clock=clock) as service:
        service.listen_certificates(lambda *one: news.append(one))
        await service.activate("pair", manifest, tmp_path)
        for day in range(2):
            for _ in range(10):
                for cloud.digest in (CLOUD, "cd" * 32):
                    await service.infer("pair", {"x": x[:1]})
            assert len(news) == day + 1
            clock.now += DAY_SECONDS
        for number in range(50):
            cloud.digest = f"request {number} " + "x" * 10_000
            await service.infer("pair", {"x": x[:1]})
    assert len(news) == 2 + MOST_TOLD
    assert all(len(one[3]["digest"]) <= 64 for one in news)


async def test_while_the_cloud_tier_fails_the_accuracy_of_the_pair_is_not_claimed(tmp_path, cloud):
    """Local answers carry the certificate of kept accuracy still, and that of the pair not."""
    for target, claimed in (("accuracy", False), ("kept-accuracy", True)):
        folder = tmp_path / target
        manifest, _ = certified_bundle(folder, target=target)
        x, _ = rows_by_margin(manifest, folder)
        cloud.fault = None
        async with InferenceService(cloud=cloud, service=ServiceOptions(exploration_share=0.0)) as service:
            await service.activate("pair", manifest, folder)
            await service.infer("pair", {"x": x[:1]})
            cloud.fault = CloudError("no")
            degraded = (await service.infer("pair", {"x": x[:1]})).parameters
            assert degraded["edgekit_route"] == "degraded"
            assert "edgekit_certificate" not in degraded
            sure = (await service.infer("pair", {"x": x[-1:]})).parameters
            assert ("edgekit_certificate" in sure) is claimed


async def test_a_void_certificate_is_told_and_not_used(tmp_path, cloud):
    """Another runtime version: the settings' threshold decides, and the event says why."""
    manifest, _ = certified_bundle(tmp_path, threshold=2.0, runtime="onnxruntime 0.9")
    x, _ = rows_by_margin(manifest, tmp_path)
    news = []
    async with InferenceService(cloud=cloud, service=ServiceOptions(fallback_threshold=0.0)) as service:
        await service.activate("pair", manifest, tmp_path)
        service.listen_certificates(lambda *one: news.append(one))
        got = (await service.infer("pair", {"x": x[:1]})).parameters
    assert got["edgekit_route"] == "local"
    assert "edgekit_certificate" not in got
    assert [one[0] for one in news] == ["certificate-void"]
    assert "certified was onnxruntime 0.9" in news[0][2]


@pytest.mark.parametrize("before", [True, False], ids=["known", "learned"])
async def test_equal_bits_on_another_version_keep_a_certificate(tmp_path, cloud, before):
    """Signed evidence that the installed version gives the certified version's bits, known at the start or later."""
    manifest, certificate = certified_bundle(tmp_path, threshold=0.5, runtime="onnxruntime 0.9")
    x, _ = rows_by_margin(manifest, tmp_path)
    package, _, version = runtime_version("onnxruntime").partition(" ")
    evidence = [Evidence(package, version, "aarch64", "within-budget", "onnxruntime 0.9", "a" * 64)]
    equal = Evidence(package, version, "aarch64", "equal", "onnxruntime 0.9", "b" * 64, 256)
    news = []
    async with InferenceService(cloud=cloud) as service:
        service.certificates.use_evidence(lambda model, digest: tuple(evidence), "aarch64")
        service.listen_certificates(lambda *one: news.append(one[0]))
        if before:
            evidence.append(equal)
        await service.activate("pair", manifest, tmp_path)
        evidence.append(equal)
        service.certificates.renew("pair")
        await service.infer("pair", {"x": x[:1]})  # the cloud tier says which model it has
        sure = (await service.infer("pair", {"x": x[-1:]})).parameters
    assert sure["edgekit_certificate"] == certificate.id
    assert news == ([] if before else ["certificate-void"])


async def test_a_damaged_certificate_leaves_the_model_answering(tmp_path, cloud):
    """The bundle works as one without a certificate, and the damage is told."""
    manifest, _ = certified_bundle(tmp_path)
    (tmp_path / CERTIFICATE_NAME).write_bytes(b"{}")
    news = []
    async with InferenceService(cloud=cloud) as service:
        service.listen_certificates(lambda *one: news.append(one))
        await service.activate("pair", manifest, tmp_path)
        assert (await service.infer("pair", {"x": np.zeros((1, FEATURES), np.float32)})).outputs["scores"].shape
    assert [one[0] for one in news] == ["certificate-void"]
    assert "was changed" in news[0][2]


async def test_a_threshold_of_the_models_own_wins_over_the_certificate(tmp_path, cloud):
    """An operator's own number is used, and then no certificate is claimed."""
    manifest, _ = certified_bundle(tmp_path, threshold=2.0)
    x, _ = rows_by_margin(manifest, tmp_path)
    own = {"pair": ModelSettings(fallback_threshold=0.0)}
    async with InferenceService(cloud=cloud, models=own) as service:
        await service.activate("pair", manifest, tmp_path)
        got = (await service.infer("pair", {"x": x[:1]})).parameters
    assert got["edgekit_route"] == "local"


async def until(holds):
    """Wait for a write on a thread."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


async def explored(service, x, rounds):
    """Ask for rows one by one, and let the exploration of each end."""
    for at in range(rounds):
        await service.infer("pair", {"x": x[at % len(x)][None]})
        for _ in range(20):  # the cloud in memory answers within a few turns of the loop
            await asyncio.sleep(0)


@pytest.mark.parametrize("policy", ["careful", "local-only"])
async def test_a_shift_is_refuted_by_exploration_and_the_device_turns_careful(tmp_path, cloud, policy):
    """The cloud contradicts every confident answer: the certificate is refuted, told once, and no longer claimed."""
    manifest, certificate = certified_bundle(tmp_path, upper=0.2)
    x, margins = rows_by_margin(manifest, tmp_path)
    options = ServiceOptions(exploration_share=1.0, fallback_threshold="all", refuted_certificate=policy)
    news = []
    async with InferenceService(cloud=cloud, service=options) as service:
        service.listen_certificates(lambda *one: news.append(one))
        await service.activate("pair", manifest, tmp_path)
        sure = x[margins >= certificate.threshold]
        local = (await service.infer("pair", {"x": sure}, route="local-only")).outputs["scores"].argmax(1)
        against = sure[local != 0]  # the cloud always says class 0
        await explored(service, against, 3)
        assert not news
        await explored(service, against, 12)
        assert [one[0] for one in news] == ["certificate-refuted"]
        assert news[0][3]["differing"] == news[0][3]["explored"] <= 12
        assert service.counters()["pair"]["reasons.exploration"] >= news[0][3]["explored"]
        got = (await service.infer("pair", {"x": against[:1]})).parameters
        assert "edgekit_certificate" not in got
        assert got["edgekit_route"] == ("cloud" if policy == "careful" else "local")


async def test_a_refutation_outlives_the_agent_and_a_new_certificate_starts_anew(tmp_path, cloud):
    """Also without a stop, as after a loss of power; the same certificate comes back refuted, another one does not."""
    manifest, certificate = certified_bundle(tmp_path / "a", upper=0.2)
    x, margins = rows_by_margin(manifest, tmp_path / "a")
    options, state = ServiceOptions(exploration_share=1.0, fallback_threshold=0.0), FolderDisk(tmp_path / "state")

    def made():
        return InferenceService(cloud=cloud, service=options, disk=state)

    first = made()
    await first.activate("pair", manifest, tmp_path / "a")
    sure = x[margins >= certificate.threshold]
    local = (await first.infer("pair", {"x": sure}, route="local-only")).outputs["scores"].argmax(1)
    against = sure[local != 0]
    await explored(first, against, 15)
    await until(lambda: state.exists(FILE_NAME))
    copy = (tmp_path / "state" / FILE_NAME).read_bytes()  # the power fails here
    await first.close()
    (tmp_path / "state" / FILE_NAME).write_bytes(copy)
    other, fresh = certified_bundle(tmp_path / "b", upper=0.21)
    for bundle, folder, expected in ((manifest, "a", None), (other, "b", fresh.id), (manifest, "a", None)):
        asked = len(cloud.asked)
        async with made() as service:
            await service.activate("pair", bundle, tmp_path / folder)
            await service.infer("pair", {"x": x[:1]})
            got = (await service.infer("pair", {"x": sure[:1]}, route="auto")).parameters
            assert got.get("edgekit_certificate") == expected
            await explored(service, against, 1)
        assert (len(cloud.asked) > asked + 1) is (expected is not None)  # a refuted certificate is not explored


async def test_evidence_adds_up_over_restarts(tmp_path, cloud):
    """Two starts explore five answers each; together they refute, alone none does."""
    manifest, certificate = certified_bundle(tmp_path / "a", upper=0.5)
    x, margins = rows_by_margin(manifest, tmp_path / "a")
    sure, news = x[margins >= certificate.threshold], []
    for start in range(3):
        service = InferenceService(
            cloud=cloud, service=ServiceOptions(exploration_share=1.0), disk=FolderDisk(tmp_path / "state")
        )
        async with service:
            service.listen_certificates(lambda *one: news.append(one))
            await service.activate("pair", manifest, tmp_path / "a")
            local = (await service.infer("pair", {"x": sure}, route="local-only")).outputs["scores"].argmax(1)
            await explored(service, sure[local != 0], 5)
        assert bool(news) is (start >= 1)
    assert [(one[0], one[3]["explored"]) for one in news] == [("certificate-refuted", news[0][3]["explored"])]
    assert news[0][3]["explored"] > 5


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b'{"ID": {"explored": -1}}', b'{"ID": {"explored": 1, "differing": 5}}']
)
async def test_a_damaged_file_of_evidence_costs_nothing_but_the_evidence(tmp_path, cloud, data):
    """The certificate is used and tested as if it was new."""
    manifest, certificate = certified_bundle(tmp_path / "a")
    disk = FolderDisk(tmp_path / "state")
    disk.write(FILE_NAME, data.replace(b"ID", certificate.id.encode()))
    x, _ = rows_by_margin(manifest, tmp_path / "a")
    async with InferenceService(cloud=cloud, service=ServiceOptions(exploration_share=0.0), disk=disk) as service:
        await service.activate("pair", manifest, tmp_path / "a")
        await service.infer("pair", {"x": x[:1]})
        assert (await service.infer("pair", {"x": x[-1:]})).parameters["edgekit_certificate"] == certificate.id


async def test_the_store_of_evidence_is_bounded_and_survives_a_full_disk(tmp_path, caplog):
    """The newest certificates are kept; a write that fails is logged, and the refutation holds until the stop."""
    disk = FolderDisk(tmp_path / "state")
    _, certificate = certified_bundle(tmp_path / "a")

    def refuted_one(number):
        held = Held(msgspec.structs.replace(certificate, samples=number), (), 10)
        held.refuted = True
        return held

    store = RefutationStore(disk)
    for number in range(MOST_CERTIFICATES + 5):
        await store.keep(refuted_one(number))
    again = RefutationStore(disk)
    for number, expected in ((0, False), (4, False), (5, True), (MOST_CERTIFICATES + 4, True)):
        held = Held(msgspec.structs.replace(certificate, samples=number), (), 10)
        again.restore(held)
        assert held.refuted is expected
    (tmp_path / "state" / FILE_NAME).unlink()
    (tmp_path / "state" / FILE_NAME).mkdir()  # no file can be put in its place
    await store.keep(refuted_one(9999))
    assert "cannot be stored" in caplog.text


async def test_exploration_is_rare_and_limited_by_the_day(tmp_path, cloud):
    """A share of 20 % explores about that many confident answers, until the limit of the day."""
    manifest, _ = certified_bundle(tmp_path, threshold=-1.0, upper=0.999)
    x, _ = rows_by_margin(manifest, tmp_path)
    chances = iter(np.random.default_rng(1).random(100_000))
    options = ServiceOptions(exploration_share=0.2, explorations_per_day=30)
    async with InferenceService(cloud=cloud, service=options, spread=lambda: float(next(chances))) as service:
        await service.activate("pair", manifest, tmp_path)
        seen = []
        for row in x[:300]:
            assert (await service.infer("pair", {"x": row[None]})).parameters["edgekit_route"] == "local"
            for _ in range(20):
                await asyncio.sleep(0)
            seen.append(len(cloud.asked))
    assert 10 <= seen[99] <= 30
    assert seen[-1] == 30


async def test_a_gate_that_sends_more_keeps_the_promise_of_regret_only(tmp_path, cloud):
    """Fewer answers are kept and differ then. The other promises were proven for the score alone."""
    for target, claimed in (("accuracy", False), ("kept-accuracy", False), ("regret", True)):
        folder, options = tmp_path / target, ServiceOptions(exploration_share=0.0, out_of_distribution="cloud")
        manifest, _ = certified_bundle(folder, target=target)
        x, _ = rows_by_margin(manifest, folder)
        async with InferenceService(cloud=cloud, service=options) as service:
            await service.activate("pair", manifest, folder)
            service._observer.outliers._bounds["pair", manifest.digest] = {"input.x.mean": (-1e9, 1e9)}
            for row in (x[:1], x[-1:]):  # the cloud's answer, then a local one
                got = (await service.infer("pair", {"x": row})).parameters
                assert ("edgekit_certificate" in got) is claimed


async def test_only_the_unsure_rows_of_a_request_travel(tmp_path, cloud):
    """The cloud tier gets these rows alone, the others keep the device's answer, and the certificate holds for both."""
    manifest, certificate = certified_bundle(tmp_path)
    x, margins = rows_by_margin(manifest, tmp_path)
    mixed = x[[-1, 0, -2, 1]]
    cloud.outputs = {"scores": np.tile(ANSWER["scores"], (2, 1))}
    async with InferenceService(cloud=cloud, service=ServiceOptions(exploration_share=0.0)) as service:
        await service.activate("pair", manifest, tmp_path)
        local = (await service.infer("pair", {"x": mixed}, route="local-only")).outputs["scores"]
        answer = await service.infer("pair", {"x": mixed})
    np.testing.assert_array_equal(cloud.asked[-1][1]["x"], mixed[[1, 3]])
    np.testing.assert_array_equal(answer.outputs["scores"][[0, 2]], local[[0, 2]])
    np.testing.assert_array_equal(answer.outputs["scores"][[1, 3]], cloud.outputs["scores"])
    assert answer.parameters["edgekit_cloud_rows"] == 2
    assert answer.parameters["edgekit_certificate"] == certificate.id
    assert margins[1] < certificate.threshold < margins[-2]


async def test_rows_are_split_without_a_certificate_too_and_a_failure_keeps_the_local_answer(tmp_path, cloud):
    """The settings' threshold decides by row; an answer with a wrong number of rows is not used."""
    manifest = edge_bundle(tmp_path)
    x, _ = rows_by_margin(manifest, tmp_path)
    mixed = x[[-1, 0]]
    async with InferenceService(cloud=cloud, service=ServiceOptions(fallback_threshold=0.7)) as service:
        await service.activate("pair", manifest, tmp_path)
        answer = await service.infer("pair", {"x": mixed})
        assert answer.parameters["edgekit_cloud_rows"] == 1
        np.testing.assert_array_equal(cloud.asked[-1][1]["x"], mixed[1:])
        cloud.outputs = {"scores": np.tile(ANSWER["scores"], (2, 1))}
        again = await service.infer("pair", {"x": mixed})
    assert again.parameters["edgekit_route"] == "degraded"
    assert again.outputs["scores"].shape == (2, CLASSES)


@pytest.mark.parametrize("mixed", [False, True], ids=["all-sure", "mixed"])
async def test_one_confident_row_of_a_batch_is_explored_too(tmp_path, cloud, mixed):
    """Clients that always send batches: the certificate is tested with a kept row, and refuted."""
    manifest, certificate = certified_bundle(tmp_path, upper=0.2)
    x, margins = rows_by_margin(manifest, tmp_path)
    options = ServiceOptions(exploration_share=1.0, fallback_threshold=0.0)
    chances = np.random.default_rng(1)
    news = []
    service = InferenceService(cloud=cloud, service=options, spread=lambda: float(chances.random()))
    async with service:
        service.listen_certificates(lambda *one: news.append(one[0]))
        await service.activate("pair", manifest, tmp_path)
        sure = x[margins >= certificate.threshold]
        local = (await service.infer("pair", {"x": sure}, route="local-only")).outputs["scores"].argmax(1)
        batch = sure[local != 0][:7]  # the cloud always says class 0
        if mixed:
            batch = np.concatenate([batch, x[:1]])  # the last row is unsure
        for _ in range(15):
            got = await service.infer("pair", {"x": batch})
            assert got.parameters["edgekit_reason"] == ("low-score" if mixed else "exploration") or news
            for _ in range(20):
                await asyncio.sleep(0)
        assert news == ["certificate-refuted"]
    sent = [inputs["x"] for _, inputs, _ in cloud.asked]
    assert all(len(rows) == 1 for rows in sent)
    explored = {rows.tobytes() for rows in sent} & {row[None].tobytes() for row in batch[:7]}
    assert len(explored) > 1


async def test_an_outage_does_not_use_up_the_explorations_of_the_day(tmp_path, cloud):
    """Nothing is sent while the device is offline; afterwards the certificate is tested as on any day."""
    manifest, _ = certified_bundle(tmp_path, threshold=-1.0, upper=0.999)
    x, _ = rows_by_margin(manifest, tmp_path)
    options, held = ServiceOptions(exploration_share=1.0, explorations_per_day=5), Reason.OFFLINE
    async with InferenceService(cloud=cloud, service=options, hold=lambda: held) as service:
        await service.activate("pair", manifest, tmp_path)
        await explored(service, x, 20)
        assert not cloud.asked
        held = None
        await explored(service, x, 20)
        assert len(cloud.asked) == 5

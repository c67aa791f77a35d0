"""A sealed bundle from the registry through the controller to an agent: what is encrypted in which place."""

import contextlib

import msgspec
import numpy as np
import pytest

from device_agents.inference.service import InferenceService
from edgekit.bundle.compat import Facts, mismatches
from edgekit.bundle.manifest import MANIFEST_NAME, file_entry, parse_manifest
from edgekit.errors import CompatibilityError
from edgekit.registry import publish
from edgekit.rollout.cohort import Device as Enrolled
from edgekit.rollout.values import RolloutState
from edgekit.sealing.bundles import seal_bundle
from edgekit.sealing.class_keys import add_class, class_path, content_secret, find_class
from edgekit.sealing.keyring import Keyring
from edgekit.sealing.opening import use_keyring
from tests.simulators.control import TARGET, ControlSide
from tests.simulators.device import DEVICE
from tests.simulators.real_device import RealDevice
from tests.simulators.small_models import SURE, onnx_bundle

SECRET = b"what nobody may read from a disk" * 5_000


@pytest.fixture(autouse=True)
def without_keys():
    """Forget the class keys of this process around each test."""
    yield
    use_keyring(None)


class SealedDevice(RealDevice):
    """A RealDevice with the compatibility check and the self-test of the real agent.

    Args:
        paths: Of its class keys.
    """

    def __init__(self, folder, broker, root, paths):
        super().__init__(folder, broker, root)
        keyring = Keyring(paths)
        use_keyring(keyring)
        facts = Facts(TARGET, "x86_64", 1024, runtimes={"onnxruntime": "1.20"}, seal_keys=keyring.ids)
        self.find = lambda manifest: mismatches(manifest, facts)

    async def start(self):
        """Boot with the real compatibility check."""
        await super().start()
        effects = self.agent._effects
        effects._checks = effects._checks._replace(mismatches=self.find)

    async def self_test(self, manifest, folder):
        """Run the self-test of `edgekit-agent`."""
        return await self.inference.try_bundle(manifest, folder)


@contextlib.asynccontextmanager
async def fleet_of_one(folder, *paths):
    """A control side with one enrolled device, which holds these class keys."""
    async with ControlSide(folder) as side:
        device = SealedDevice(folder / "device", side.broker, side.root, paths)
        pem = (folder / "device" / "device.pub").read_text()
        side.state.devices.enroll(Enrolled(DEVICE, TARGET, pem, enrolled=side.clock.wall()))
        await device.start()
        try:
            yield side, device
        finally:
            await device.stop()


def sealed(folder, version):
    """A sealed bundle with a file of several frames, and its plain files."""
    plain = folder / "plain" / version
    manifest = onnx_bundle(plain, name="digits", version=version, target=TARGET)
    (plain / "labels.bin").write_bytes(SECRET)
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, file_entry("labels.bin", "labels", SECRET)))
    (plain / MANIFEST_NAME).write_bytes(manifest.canonical_bytes())
    keys, out = folder / "keys", folder / "sealed" / version
    seal_bundle(plain, manifest, out, classes=[find_class(keys, "cameras")], secret=content_secret(keys))
    return out, [(plain / entry.path).read_bytes() for entry in manifest.files]


def holders(folder, secrets):
    """Files below `folder` that contain 32 bytes of one of `secrets` unencrypted."""
    probes = [secret[at : at + 32] for secret in secrets for at in (0, len(secret) // 2)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(probe in path.read_bytes() for probe in probes)]


async def test_only_ciphertext_lies_in_store_and_device(tmp_path):
    """The rollout ends and the model answers; no disk ever held it unencrypted; publishing again changes nothing."""
    add_class(tmp_path / "keys", "cameras")
    async with fleet_of_one(tmp_path, class_path(tmp_path / "keys", "cameras")) as (side, device):
        for version in ("1.0.0", "1.1.0"):
            folder, secrets = sealed(tmp_path, version)
            entry = publish(side.store, side.repository, folder).entry
            assert publish(side.store, side.repository, folder).entry == entry
            side.start("digits", version)
            await side.until(lambda: side.rollout().state is RolloutState.FINISHED)
            assert await device.answering() == version
            assert (await device.inference.self_test("digits")).passed
            assert holders(tmp_path / "plain" / version, secrets)  # else the search finds nothing anywhere
            assert not holders(tmp_path / "registry", secrets)
            assert not holders(tmp_path / "device", secrets)
        await device.kill()
        await device.start()  # from what its disk holds
        await device.settled("1.1.0")
        answer = await device.inference.infer("digits", {"x": SURE})
        assert np.argmax(answer.outputs["scores"]) == 0


@pytest.mark.parametrize("other", [False, True])
async def test_a_device_without_the_key_refuses_before_it_downloads(tmp_path, other):
    """The report names the class of the bundle and the missing key; nothing is fetched."""
    for name in ("cameras", "doors"):
        add_class(tmp_path / "keys", name)
    paths = [class_path(tmp_path / "keys", "doors")] if other else []
    async with fleet_of_one(tmp_path, *paths) as (side, device):
        folder, _ = sealed(tmp_path, "1.0.0")
        publish(side.store, side.repository, folder)
        side.start("digits", "1.0.0")
        await side.until(lambda: side.rollout().state is RolloutState.PAUSED)
        reason = side.rollout().devices[DEVICE].reason
        assert "CompatibilityError" in reason
        assert "sealed for device class cameras" in reason
        assert ("this device has key" if other else "this device has no class key") in reason
        assert device.files() == set()


async def test_a_device_that_lost_its_class_key_says_so(tmp_path):
    """The installed bundle cannot be opened any more; the error names the class, and the running model continues."""
    add_class(tmp_path / "keys", "cameras")
    folder, _ = sealed(tmp_path, "1.1.0")
    plain = onnx_bundle(tmp_path / "old", name="digits")
    async with InferenceService() as service:
        await service.activate("digits", plain, tmp_path / "old")
        with pytest.raises(CompatibilityError, match="sealed for device class cameras"):
            await service.activate("digits", parse_manifest((folder / MANIFEST_NAME).read_bytes()), folder)
        answer = await service.infer("digits", {"x": SURE})
        assert answer.parameters["edgekit_version"] == "1.0.0"

"""`edgekit collect`: keys, selections, notes and JSON; enrollment with a key for samples."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.samples.names import StoredName, day_of
from edgekit.samples.sample import Sample, encode_sample, to_bytes
from edgekit.samples.stored import StoredSample, encode_stored
from edgekit.sealing.class_keys import load_x25519_public
from edgekit.sealing.messages import seal_message
from edgekit.settings import AgentSettings, load_settings
from edgekit.storage.stores import open_store
from tests.simulators.shell import Shell, enroll


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgekit.toml").write_text('fleet = "f1"\n')
    shell = Shell(tmp_path, monkeypatch, capfd)
    shell("edgekit registry init")
    return shell


def keep(shell: Shell, device: str, n: int, *, age: float = 0.0) -> None:
    """Store a sample, as a controller does."""
    public = load_x25519_public(shell.folder / "keys/samples/samples.pub")
    one = Sample(
        id=f"4{n:025d}",
        device=device,
        model="digits",
        version="1.0.0",
        digest="d" * 64,
        at=5.0,
        reason=SampleReason.UNSURE,
        score=0.5,
        inputs=to_bytes({"x": np.full(3, n, np.float32)}),
        local=to_bytes({"scores": np.ones(2, np.float32)}),
    )
    sealed = seal_message(encode_sample(one), public, X25519PrivateKey.generate(), one.id.encode())
    now = time.time() - age
    data = encode_stored(StoredSample("digits", one.digest, one.at, now, b"", sealed))
    store = open_store(f"file://{shell.folder / 'registry'}")
    store.put(StoredName(device, day_of(now), one.id, len(data)).text, data)


def test_a_device_gets_the_public_key_and_no_other(shell: Shell) -> None:
    """The file is copied and named in agent.toml; a key of another kind is refused before anything is written."""
    shell("edgekit collect --new-key")
    shell("edgekit device enroll pi-1 --target raspberry-pi-4 --sample-key keys/samples/samples.pub")
    settings = load_settings(AgentSettings, file=shell.folder / "devices/pi-1/agent.toml", environ={})
    assert load_x25519_public(settings.sample_key) == load_x25519_public(Path("keys/samples/samples.pub"))
    assert settings.collect == ()
    for wrong in ("keys/director.pub", "keys/samples/samples.key", "edgekit.toml"):
        _, err = shell(f"edgekit device enroll pi-2 --target raspberry-pi-4 --sample-key {wrong}", expect=1)
        assert wrong in err
        assert not Path("devices/pi-2").exists()
    with Path("edgekit.toml").open("a") as file:
        file.write('sample_key = "keys/samples/samples.pub"\n')
    shell("edgekit device enroll pi-3 --target raspberry-pi-4")
    assert Path("devices/pi-3/samples.pub").read_bytes() == Path("keys/samples/samples.pub").read_bytes()
    assert shell.json("edgekit collect --new-key --json") == {"public_key": "keys/samples/samples+2.pub"}
    assert shell.json("edgekit registry key list --json")  # the registry does not take them for its own


def test_samples_are_selected_written_and_removed(shell: Shell) -> None:
    """By filter and arrival; a dry run changes nothing; what is removed stays in the file."""
    _, err = shell("edgekit collect", expect=1)
    assert "edgekit collect --new-key" in err
    shell("edgekit collect --new-key")
    assert "no such samples" in shell("edgekit collect")[1]
    enroll(shell, "pi-1", "pi-2")
    shell("edgekit device label pi-1 site=north")
    keep(shell, "pi-1", 1)
    keep(shell, "pi-2", 2, age=3600)
    keep(shell, "gone", 3)
    assert shell.json("edgekit collect --dry-run --json")["samples"] == 3
    assert not Path("samples").exists()
    assert shell.json("edgekit collect -o a --filter 'label.site == north' --json")["devices"] == {"pi-1": 1}
    assert shell.json("edgekit collect -o b --since 30m --json")["samples"] == 2
    assert shell.json("edgekit collect -o c --model other --json")["samples"] == 0
    shell("edgekit collect -o c --filter 'label.site == south'", expect=1)
    shell("edgekit collect --since nan", expect=2)
    out, err = shell("edgekit collect --remove")
    assert "digits" in out
    assert "3 samples of 3 devices: 3 unsure" in err
    assert "3 samples were removed" in err
    assert shell.json("edgekit collect --json")["samples"] == 0
    (file,) = Path("samples").glob("digits-*.npz")
    with np.load(file) as table:
        assert sorted(table["x"][:, 0]) == [1, 2, 3]


def test_the_passphrase_opens_the_key(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the error says how to give it."""
    Path("word").write_text("secret\n")
    shell("edgekit collect --new-key --passphrase-file word")
    keep(shell, "pi-1", 1)
    _, err = shell("edgekit collect", expect=1)
    assert "passphrase" in err
    assert shell.json("edgekit collect --passphrase-file word --json")["samples"] == 1

"""Samples become tables: each once, with both answers, added to earlier files, and never half written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from converters.data.samples import load_samples
from edgekit.errors import DataError, DiskError, NotFoundError, UnavailableError
from edgekit.mqtt.sample_reasons import SampleReason
from edgekit.samples import collecting
from edgekit.samples.collecting import Collected, Opened, Selection, open_samples, remove_samples, write_samples
from edgekit.samples.names import StoredName, parse_name
from edgekit.samples.sample import Sample, TensorBytes, decode_sample, encode_sample, to_array, to_bytes
from edgekit.samples.stored import StoredSample, decode_stored, encode_stored
from edgekit.samples.table import ID, joined, table_of
from edgekit.sealing.cipher import key_id
from edgekit.sealing.messages import seal_message
from edgekit.storage.files import try_lock
from edgekit.tensors import Array, DType, TensorSpec
from tests.simulators.store import DyingStore, MemoryStore

OWNER = X25519PrivateKey.generate()
PUBLIC = OWNER.public_key().public_bytes_raw()
KEYS = {key_id(PUBLIC): OWNER}
X = TensorSpec("x", DType.FLOAT32, (None, 3))


def sample(n: int, *, cloud: bool = True, width: int = 3, **fields: object) -> Sample:
    scores = {"scores": np.array([n, 0.5], np.float32), "label": np.array(n, np.int64)}
    values = {
        "id": f"4{n:025d}",
        "device": "pi-1",
        "model": "m",
        "version": "1.0.0",
        "digest": "d" * 64,
        "at": 1000.0 - n,
        "reason": SampleReason.UNSURE,
        "score": 0.5,
        "inputs": to_bytes({"x": np.full(width, n, np.float32)}),
        "local": to_bytes(scores),
        "cloud": to_bytes({"scores": -scores["scores"]}) if cloud else {},
        **fields,
    }
    return Sample(**values)  # type: ignore[arg-type]


def keep(
    store: MemoryStore, one: Sample, *, received: float = 5.0, public: bytes = PUBLIC, day: str = "2026-01-01"
) -> str:
    sealed = seal_message(encode_sample(one), public, X25519PrivateKey.generate(), one.id.encode())
    data = encode_stored(StoredSample(one.model, one.digest, one.at, received, b"", sealed))
    name = StoredName(one.device, day, one.id, len(data)).text
    store.put(name, data)
    return name


def collect(store: MemoryStore, folder: Path, **selection: object) -> Collected:
    return write_samples(open_samples(store, KEYS, Selection(**selection)), folder)  # type: ignore[arg-type]


def table(folder: Path) -> dict[str, Array]:
    (path,) = folder.glob("*.npz")
    with np.load(path) as loaded:
        return {name: loaded[name] for name in loaded.files}


def test_a_table_has_a_row_a_sample_ordered_by_time(tmp_path: Path) -> None:
    """Inputs, both answers, and NaN or 0 where the cloud tier said nothing."""
    store = MemoryStore()
    for n in (1, 2, 3):
        keep(store, sample(n, cloud=n != 2, score=None if n == 3 else 0.25))
    found = collect(store, tmp_path)
    assert (found.samples, found.reasons, found.devices) == (3, {"unsure": 3}, {"pi-1": 3})
    rows = table(tmp_path)
    np.testing.assert_array_equal(rows["x"][:, 0], [3, 2, 1])
    np.testing.assert_array_equal(rows["edgekit_local.scores"], [[3, 0.5], [2, 0.5], [1, 0.5]])
    np.testing.assert_array_equal(rows["edgekit_cloud.scores"], [[-3, -0.5], [np.nan, np.nan], [-1, -0.5]])
    np.testing.assert_array_equal(rows["edgekit_cloud"], [True, False, True])
    np.testing.assert_array_equal(rows["edgekit_score"], [np.nan, 0.25, 0.25])
    assert "edgekit_cloud.label" not in rows
    loaded = load_samples(next(tmp_path.glob("*.npz")), [X])
    np.testing.assert_array_equal(loaded.inputs["x"], rows["x"])
    assert loaded.labels is None


def test_collecting_again_changes_nothing_and_adds_what_is_new(tmp_path: Path) -> None:
    """The same bytes; later samples join earlier ones that the store no longer has."""
    store = MemoryStore()
    first = keep(store, sample(1, cloud=False))
    collect(store, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")}
    assert collect(store, tmp_path).files[0]["new"] == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.npz")} == before
    store.remove(first)
    keep(store, sample(2))
    (file,) = collect(store, tmp_path).files
    assert (file["rows"], file["new"]) == (2, 1)
    rows = table(tmp_path)
    np.testing.assert_array_equal(rows["x"][:, 0], [2, 1])
    np.testing.assert_array_equal(rows["edgekit_cloud.scores"][1], [np.nan, np.nan])


def test_a_sample_that_was_stored_twice_is_one_row(tmp_path: Path) -> None:
    """Two controllers around midnight use two days."""
    store = MemoryStore()
    keep(store, sample(1))
    keep(store, sample(1), day="2026-01-02")
    assert collect(store, tmp_path).files[0]["rows"] == 1


def test_models_and_interfaces_have_files_of_their_own(tmp_path: Path) -> None:
    """Another width is another interface; another version of the same interface is not."""
    store = MemoryStore()
    for one in (sample(1), sample(2, version="2.0.0"), sample(3, width=5), sample(4, model="other")):
        keep(store, one)
    assert sorted(one["rows"] for one in collect(store, tmp_path).files) == [1, 1, 2]
    assert len(list(tmp_path.glob("m-*.npz"))) == 2


def test_samples_are_selected(tmp_path: Path) -> None:
    """By model, device and time of arrival."""
    store = MemoryStore()
    keep(store, sample(1), received=10.0)
    keep(store, sample(2, device="pi-2"), received=20.0)
    keep(store, sample(3, model="other"), received=30.0)
    for selection, expected in (
        ({"model": "m"}, 2),
        ({"devices": {"pi-2"}}, 1),
        ({"since": 20.0}, 2),
        ({"since": 20.0, "model": "other"}, 1),
        ({"devices": set()}, 0),
    ):
        assert collect(store, tmp_path / str(expected), **selection).samples == expected


def test_what_cannot_be_opened_is_counted_and_stays(tmp_path: Path) -> None:
    """Another key, damage, a moved sample and other names; if nothing can be opened, that is an error."""
    store, other = MemoryStore(), X25519PrivateKey.generate().public_key().public_bytes_raw()
    keep(store, sample(1), public=other)
    with pytest.raises(NotFoundError, match="1 samples are sealed for keys that are not here"):
        collect(store, tmp_path)
    keep(store, sample(2))
    damaged = keep(store, sample(3))
    store.blobs[damaged] = store.blobs[damaged][:-1] + b"!"
    moved = keep(store, sample(4))
    store.put(moved.replace("pi-1", "pi-2"), store.blobs[moved])
    store.put(keep(store, sample(5)), b"\xc1")
    store.put("samples/notes.txt", b"x")
    found = collect(store, tmp_path)
    assert (found.samples, found.other_keys, len(found.damaged)) == (2, 1, 3)
    assert "pi-2" in " ".join(found.damaged)


def test_removed_samples_leave_a_mark(tmp_path: Path) -> None:
    """So that a device that was not told does not send them again; a failure in between loses and doubles nothing."""
    store = MemoryStore()
    names = [keep(store, sample(n)) for n in (1, 2)]
    opened = open_samples(store, KEYS, Selection())
    write_samples(opened, tmp_path)
    with pytest.raises(Exception, match="died"):
        remove_samples(DyingStore(store.blobs, 1), opened)
    opened = open_samples(store, KEYS, Selection())
    assert collect(store, tmp_path).files[0]["new"] == 0
    assert remove_samples(store, opened) == 1
    assert [parse_name(name)._replace(size=0).text for name in names] == store.list("samples")
    assert collect(store, tmp_path).samples == 0
    assert len(table(tmp_path)["x"]) == 2


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk; nothing is left behind."""
    store = MemoryStore()
    keep(store, sample(1))
    collect(store, tmp_path)
    before = table(tmp_path)
    keep(store, sample(2))

    def fails(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(collecting, "sync_file", fails)
    with pytest.raises(DiskError, match="No space left"):
        collect(store, tmp_path)
    np.testing.assert_array_equal(table(tmp_path)[ID], before[ID])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npz"]


def test_foreign_files_and_two_at_once_are_refused(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    store = MemoryStore()
    keep(store, sample(1))
    (file,) = collect(store, tmp_path).files
    for data in (b"notes", b""):
        Path(file["file"]).write_bytes(data)
        with pytest.raises(DataError, match="no file that edgekit collect wrote"):
            collect(store, tmp_path)
        assert Path(file["file"]).read_bytes() == data
    with (tmp_path / collecting.LOCK_NAME).open("rb+") as lock:
        assert try_lock(lock.fileno())
        with pytest.raises(UnavailableError, match="another edgekit collect"):
            collect(store, tmp_path)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """Not even the folder."""
    store = MemoryStore()
    keep(store, sample(1))
    found = write_samples(open_samples(store, KEYS, Selection()), tmp_path / "new", dry_run=True)
    assert found.files[0]["rows"] == 1
    assert not (tmp_path / "new").exists()
    assert write_samples(Opened(), tmp_path).files == []


def test_samples_are_checked_when_they_are_read() -> None:
    """Sizes, bytes tensors, missing inputs and garbage."""
    good = sample(1)
    assert decode_sample(encode_sample(good)) == good
    wrong = TensorBytes(DType.FLOAT32, (3,), b"1234")
    huge = TensorBytes(DType.FLOAT32, (2**40, 2**40), b"")
    text = TensorBytes(DType.BYTES, (1,), b"x")
    for inputs in ({"x": wrong}, {"x": huge}, {"x": text}, {}):
        with pytest.raises(DataError):
            decode_sample(encode_sample(msgspec.structs.replace(good, inputs=inputs)))
    for data in (b"", b"\xc1", encode_sample(good)[:-3]):
        with pytest.raises(DataError):
            decode_sample(data)
        with pytest.raises(DataError):
            decode_stored(data)


@pytest.mark.parametrize("dtype", [one for one in DType if one is not DType.BYTES])
def test_every_type_of_number_comes_back(dtype: DType) -> None:
    """Bytes are little-endian; scalars, empty arrays and views too."""
    for value in (
        np.arange(12).astype(dtype.numpy).reshape(3, 4).T,
        np.ones((), dtype.numpy),
        np.ones((0, 2), dtype.numpy),
    ):
        found = to_array(to_bytes({"x": value})["x"])
        np.testing.assert_array_equal(found, value)
        assert found.dtype == dtype.numpy


def test_tables_of_other_inputs_are_not_joined() -> None:
    """And an input may not have a name of the table."""
    with pytest.raises(DataError, match="inputs"):
        joined(table_of([sample(1)]), table_of([sample(2, inputs=to_bytes({"y": np.ones(3)}))]))
    with pytest.raises(DataError, match="edgekit_"):
        table_of([sample(1, inputs=to_bytes({"edgekit_x": np.ones(3)}))])


@pytest.mark.parametrize(
    "name",
    [
        "samples/pi-1/2026-01-01/a-1",
        "samples/../x",
        "samples/pi-1/x",
        "other",
        "samples/PI/2026-01-01/" + "a" * 20 + "-1",
    ],
)
def test_other_names_are_no_samples(name: str) -> None:
    """They are left alone."""
    assert parse_name(name) is None

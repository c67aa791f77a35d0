import contextlib
import os

import msgspec
import numpy as np
import onnx
import pytest

from converters import convert
from converters.cache import Cache, CacheScope, default_cache, origin_of
from converters.graph.graph import Graph, digest_of
from tests.simulators.conv_models import residual


class Note(msgspec.Struct, frozen=True):
    text: str
    data: bytes = b""


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", max_bytes=4000)


def test_what_was_kept_comes_back_in_another_process_too(cache, tmp_path):
    """A value comes back by its key only, with its type."""
    cache.put("aa1", Note("one", b"\0\xff"))
    assert Cache(tmp_path / "cache").get("aa1", Note) == Note("one", b"\0\xff")
    assert cache.get("aa2", Note) is None


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"\0" + b[41:], lambda b: b * 2]
)
def test_damaged_entry_is_as_good_as_none(cache, tmp_path, damage):
    """Shortened, empty, changed and longer entries are not returned, and are removed."""
    cache.put("aa1", Note("a text that is long enough"))
    [path] = (tmp_path / "cache").glob("*/*")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("aa1", Note) is None
    assert not path.exists()


def test_entry_of_another_shape_is_none(cache):
    """An entry that an older version stored in another form is not returned."""
    cache.put("aa1", {"another": 1})
    assert cache.get("aa1", Note) is None


def test_size_is_bounded_and_the_unused_go_first(cache, tmp_path):
    """Old entries are removed, a recently read entry stays, and a too large entry is not stored."""
    for i in range(4):
        cache.put(f"a{i}", Note("x", bytes(900)))
    for path in (tmp_path / "cache").glob("*/*"):
        os.utime(path, (1, 1))
    assert cache.get("a1", Note)
    cache.put("b0", Note("y", bytes(900)))
    assert cache.get("a1", Note)
    assert cache.get("b0", Note)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*")) <= 4000
    cache.put("c0", Note("z", bytes(3000)))
    assert cache.get("c0", Note) is None


def test_folder_that_cannot_be_written_is_no_error(tmp_path):
    """A file at the path of the cache: nothing is stored and no error is raised."""
    (tmp_path / "file").write_text("here")
    cache = Cache(tmp_path / "file")
    cache.put("aa1", Note("one"))
    assert cache.get("aa1", Note) is None


def test_user_says_where_it_lies(monkeypatch, tmp_path):
    """XDG_CACHE_HOME is used where it is an absolute path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default_cache().put("aa1", Note("one"))
    assert (tmp_path / "edgekit" / "convert" / "aa" / "aa1").is_file()


def test_origin_differs_with_every_part():
    """The digest depends on values, dtype, shape, and the ends of the parts."""
    zero = np.zeros(4, np.float32)
    parts = [
        (zero,),
        (zero.reshape(2, 2),),
        (zero.astype(np.int32),),
        (zero + 1,),
        (b"ab", b"c"),
        (b"a", b"bc"),
        (None,),
    ]
    assert len({origin_of(*part) for part in parts}) == len(parts)
    assert origin_of(zero, {"b": 1, "a": 2}) == origin_of(zero.copy(), {"a": 2, "b": 1})


def test_graph_is_told_by_what_it_computes():
    """Names of constants and tensors do not count; weights, attributes and names of layers do."""

    def changed(change):
        model = onnx.ModelProto()
        model.CopyFrom(residual().model)
        change(model.graph)
        return digest_of(Graph(model))

    def renamed(graph):
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    names[place] = {"c3.w": "const__107", "sum1": "sum__9"}.get(name, name)
        next(tensor for tensor in graph.initializer if tensor.name == "c3.w").name = "const__107"

    def heavier(graph):
        values = onnx.numpy_helper.to_array(graph.initializer[0]) * 2
        graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, graph.initializer[0].name))

    def called_otherwise(graph):
        graph.node[0].name = "another"

    def strided(graph):
        graph.node[0].attribute[1].ints[0] = 2

    same = changed(lambda graph: None)
    assert changed(renamed) == same
    assert len({same, changed(heavier), changed(called_otherwise), changed(strided)}) == 4


def test_shelf_without_a_cache_keeps_nothing():
    cache_scope = CacheScope()
    cache_scope.put(("a",), Note("one"))
    assert cache_scope.get(("a",), Note) is None


def steps_of(onnx_folder, output, cache, **choices):
    """Names of the steps of one conversion."""
    steps = []

    @contextlib.contextmanager
    def step(label):
        steps.append(label)
        yield

    given = {"targets": ["raspberry-pi-5"], "runtime": "onnxruntime", "data": onnx_folder / "data.npz", **choices}
    convert(onnx_folder / "model.onnx", on_step=step, cache=cache, output=output, **given)
    return [
        label for label in steps if label.startswith(("raspberry-pi-5: ", "sensitivity")) and ": prove" not in label
    ]


def test_same_conversion_again_makes_no_candidate(onnx_folder, tmp_path):
    """The second run builds no candidate and writes the same model; other data, or no cache, build all again."""
    cache = Cache(tmp_path / "cache")
    first = steps_of(onnx_folder, tmp_path / "one", cache)
    assert len(first) > 4
    again = steps_of(onnx_folder, tmp_path / "two", cache)
    assert again == ["raspberry-pi-5: int8-dynamic-pruned"]  # a fault is tried again
    [one], [two] = (list((tmp_path / name).glob("*/model.onnx")) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert steps_of(onnx_folder, tmp_path / "three", cache, data=onnx_folder / "test.npz", max_drop=1.0)[0] == first[0]
    assert steps_of(onnx_folder, tmp_path / "four", None) == first


def test_interrupted_conversion_goes_on_where_it_was(onnx_folder, tmp_path):
    """After Ctrl-C at the third candidate nothing is written; the next run makes only the missing candidates."""
    cache, steps = Cache(tmp_path / "cache"), []

    @contextlib.contextmanager
    def step(label):
        steps.append(label)
        if len([one for one in steps if one.startswith("raspberry-pi-5: ")]) == 3:
            raise KeyboardInterrupt
        yield

    given = {"targets": ["raspberry-pi-5"], "runtime": "onnxruntime", "data": onnx_folder / "data.npz"}
    with pytest.raises(KeyboardInterrupt):
        convert(onnx_folder / "model.onnx", on_step=step, cache=cache, output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    again = steps_of(onnx_folder, tmp_path / "out", cache)
    assert "raspberry-pi-5: float32" not in again
    assert steps[-1] in again


def test_labels_that_cannot_be_kept_as_bytes_are_told_apart():
    """Arrays of objects have no plain bytes, so their values as text count."""
    assert origin_of(np.array(["a", None], object)) != origin_of(np.array(["b", None], object))

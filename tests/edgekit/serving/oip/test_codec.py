"""The Open Inference Protocol codec: values survive encoding and decoding, and every fault is a DataError."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import DataError
from edgekit.serving.oip import codec as oip
from edgekit.serving.oip import tensor_data
from edgekit.serving.oip.tensor_data import DATATYPES
from edgekit.tensors import DType, TensorSpec

VALUES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "BYTES": np.array([[b"", b"a"], [b"\xc3\xa9", b"dd"]], dtype=object),
    **{
        name: np.array([[0, 1], [np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max]], dtype.numpy)
        for name, dtype in DATATYPES.items()
        if "INT" in name
    },
    **{name: np.array([[0, 0.1], [-1.5, 60000]], DATATYPES[name].numpy) for name in ("FP16", "FP32", "FP64")},
}


def request(*inputs: dict, **more: object) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def tensor(data: object = None, shape: tuple = (2,), datatype: str = "FP32", name: str = "x", **parameters: object):
    made: dict = {"name": name, "shape": list(shape), "datatype": datatype}
    if data is not None:
        made["data"] = data
    if parameters:
        made["parameters"] = parameters
    return made


def refused(body: bytes, length: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        oip.parse_request(body, length)
    return str(caught.value)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", list(DATATYPES))
def test_every_datatype_survives_both_ways(datatype: str, binary: bool) -> None:
    """A request and its answer carry every value exactly, in binary and in JSON; FP16 has no JSON form."""
    value = VALUES[datatype]
    if datatype == "FP16" and not binary:
        with pytest.raises(DataError, match="FP16 has no JSON form"):
            oip.encode_request({"x": value}, binary=False)
        return
    sent = oip.encode_request({"x": value}, binary=binary)
    got = oip.parse_request(*sent)
    assert got.inputs["x"].dtype == value.dtype
    np.testing.assert_array_equal(got.inputs["x"], value)
    answer = oip.encode_response(oip.InferResponse("m", "1.0.0", got.inputs), got)
    assert (answer.header_length is not None) is binary
    np.testing.assert_array_equal(oip.parse_response(*answer).outputs["x"], value)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 5)])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
def test_tensors_of_size_zero_survive(datatype: str, shape: tuple[int, ...]) -> None:
    """An empty tensor keeps its shape, in binary and in JSON."""
    value = np.zeros(shape, DATATYPES[datatype].numpy)
    for binary in (True, False):
        got = oip.parse_request(*oip.encode_request({"x": value}, binary=binary))
        assert got.inputs["x"].shape == shape


def test_data_may_be_nested_as_the_shape_is() -> None:
    """Clients send lists flat or nested; both mean the same, and ragged ones are refused."""
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        got = oip.parse_request(request(tensor(data, (2, 2))))
        np.testing.assert_array_equal(got.inputs["x"], [[1, 2], [3, 4]])
    assert "neither flat nor nested" in refused(request(tensor([[1, 2, 3], [4]], (2, 2))))


def test_binary_inputs_are_aligned_whatever_the_json_length_is() -> None:
    """Tensor bytes that start at an odd address are given to the runtime at an even one."""
    for pad in range(8):
        body, length = oip.encode_request({"x": np.ones(3, np.float64)}, parameters={"pad": "." * pad})
        assert oip.parse_request(body, length).inputs["x"].flags.aligned


def test_outputs_are_sent_in_the_form_that_each_was_asked_in() -> None:
    """binary_data of an output takes precedence over binary_data_output; only wanted outputs are sent."""
    outputs = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}]
    got = oip.parse_request(request(tensor([1, 2]), outputs=outputs, parameters={"binary_data_output": True}))
    values = {name: np.array([1.5], np.float32) for name in "abc"}
    body, length = oip.encode_response(oip.InferResponse("m", "1", values), got)
    assert length is not None
    sent = {output["name"]: output for output in json.loads(body[:length])["outputs"]}
    assert set(sent) == {"a", "b"}
    assert sent["a"]["data"] == [1.5]
    assert sent["b"]["parameters"] == {"binary_data_size": 4}
    assert body[length:] == np.float32(1.5).tobytes()


def test_an_id_is_echoed_and_a_missing_one_is_not() -> None:
    """An answer has the request's id, and none where the request has none."""
    for extra in ({"id": "seven"}, {}):
        got = oip.parse_request(request(tensor([1, 2]), **extra))
        answer = json.loads(oip.encode_response(oip.InferResponse("m", "1", {}), got).body)
        assert {key: answer[key] for key in answer if key == "id"} == extra


def test_an_output_that_does_not_exist_is_refused() -> None:
    """The error lists the existing outputs."""
    got = oip.parse_request(request(tensor([1, 2]), outputs=[{"name": "z"}]))
    with pytest.raises(DataError, match="'z' is unknown, expected a, b"):
        oip.encode_response(oip.InferResponse("m", "1", {"a": np.zeros(1), "b": np.zeros(1)}), got)


def test_bytes_that_are_not_text_need_binary() -> None:
    """JSON cannot carry every byte; the error says to ask for binary data."""
    got = oip.parse_request(request(tensor([1, 2])))
    value = np.array([b"\xff"], dtype=object)
    with pytest.raises(DataError, match="ask for it with binary_data"):
        oip.encode_response(oip.InferResponse("m", "1", {"a": value}), got)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cannot be parsed"),
        (b"[1]", "cannot be parsed"),
        (b'{"inputs": [', "cannot be parsed"),
        (b'{"inputs": "\xff"}', "cannot be parsed"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["\xff"]}]}',
            "x: data cannot be parsed",
        ),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": ["\xff"]}]}',
            "x: data cannot be parsed",
        ),
        (b"[" * 100_000, "cannot be parsed"),
        (b"{}", "inputs"),
        (request(tensor([1, 2]), id=5), "id"),
        (request(tensor([1, 2]), tensor([1, 2])), "appears twice"),
        (request(tensor([1, 2]), outputs=[{"name": "a"}, {"name": "a"}]), "requested twice"),
        (request(tensor([1, 2], datatype="FP8")), "datatype is 'FP8'"),
        (request(tensor([1, 2], (-2,))), ">= 0"),
        (request(tensor([1, 2], (1,) * 17 + (2,))), "18 axes"),
        (request(tensor([1, 2, 3])), "data has 3 elements, its shape [2] has 2"),
        (request(tensor([1])), "data has 1 elements"),
        (request(tensor([], (0, 2**62, 2**62))), "cannot have shape"),
        (request(tensor()), "neither data nor binary_data_size"),
        (request(tensor([1.5, 2], datatype="INT32")), "not INT32"),
        (request(tensor([300, 2], datatype="UINT8")), "not UINT8"),
        (request(tensor([-1, 2], datatype="UINT64")), "not UINT64"),
        (request(tensor([2**70, 2], datatype="UINT64")), "UINT64"),
        (request(tensor([1, 0], datatype="BOOL")), "not BOOL"),
        (request(tensor(["a", "b"])), "not FP32"),
        (request(tensor([1e39, 0])), "outside FP32"),
        (request(tensor([1, 2], datatype="BYTES")), "not BYTES"),
        (request(tensor("text", datatype="BYTES")), "not BYTES"),
        (request(tensor([1, 2], datatype="FP16")), "FP16 has no JSON form"),
        (request(tensor([1, None])), "got `null` - at `$[1]`; null often stands for NaN"),
        (request(tensor(binary_data_size=8)), "0 bytes are left"),
        (request(tensor(binary_data_size=-8)), "expected a number of bytes"),
        (request(tensor(binary_data_size=True)), "expected a number of bytes"),
        (request(tensor(binary_data_size="8")), "expected a number of bytes"),
        (request(tensor([1, 2], binary_data_size=8)), "both data and"),
        (request(tensor([1, 2]), parameters={"binary_data_output": "yes"}), "expected true or false"),
    ],
)
def test_a_faulty_json_request_is_refused_in_words(body: bytes, says: str) -> None:
    """Each fault has its own message."""
    assert says in refused(body)


@pytest.mark.parametrize(
    ("size", "rest", "says"),
    [
        (8, b"1234", "4 bytes are left"),
        (4, b"1234", "needs 8 bytes, but 4 bytes were sent"),
        (8, b"123456789", "1 bytes follow the last tensor"),
        (2**80, b"", "cannot be parsed|bytes are left"),
    ],
)
def test_a_lie_about_binary_sizes_is_refused(size: int, rest: bytes, says: str) -> None:
    """Too few bytes, too many bytes, and a size that does not match the shape are refused."""
    head = request(tensor(binary_data_size=size))
    with pytest.raises(DataError, match=says):
        oip.parse_request(head + rest, len(head))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x01\x00", "runs past the end"),
        (b"\xff\xff\xff\xff", "runs past the end"),
        (b"\x01\x00\x00\x00a", "has 1 elements"),
        (bytes(40), "more than 2"),
    ],
)
def test_a_lie_about_bytes_elements_is_refused(data: bytes, says: str) -> None:
    """Lengths inside BYTES are checked one by one."""
    head = request(tensor(datatype="BYTES", binary_data_size=len(data)))
    assert says in refused(head + data, len(head))


def test_the_header_length_must_be_within_the_body() -> None:
    """A header longer than the body, signed or not a number is refused; zero is the raw form."""
    body = request(tensor([1, 2]))
    assert "the body has" in refused(body, len(body) + 1)
    for value in ("-1", "+5", "1.5", "", "٣", "9" * 30):
        with pytest.raises(DataError, match=oip.HEADER):
            oip.header_length(value)
    assert oip.header_length("12") == 12
    assert oip.header_length("0") == 0
    assert oip.header_length(None) is None


@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 255))
def test_no_mutation_of_a_request_raises_anything_else(noise: bytes, at: int, flip: int) -> None:
    """Changed bytes parse or raise DataError; other errors fail the test."""
    body, length = oip.encode_request({"x": np.arange(3, dtype=np.float32)})
    damaged = bytearray(body + noise)
    damaged[at % len(damaged)] ^= flip
    for header in (length, None, len(noise) or None):
        try:
            oip.parse_request(bytes(damaged), header)
        except DataError:
            continue


def test_errors_are_one_key() -> None:
    """The body of every error answer is a JSON object with the message."""
    assert json.loads(oip.error_document("no")) == {"error": "no"}


def free(*shape: int | None, dtype: DType = DType.FLOAT32) -> list[TensorSpec]:
    return [TensorSpec("x", dtype, shape)]


@pytest.mark.parametrize(
    ("specs", "body", "shape"),
    [
        (free(None, 2), bytes(8), (1, 2)),
        (free(None, None), bytes(12), (1, 3)),
        (free(2, None, 2), bytes(32), (2, 2, 2)),
        (free(3), bytes(12), (3,)),
        (free(None, None), b"", (1, 0)),
        (free(None, 3, dtype=DType.FLOAT16), bytes(6), (1, 3)),
        (free(None, 3, dtype=DType.BOOL), b"\0\1\1", (1, 3)),
    ],
)
def test_the_raw_form_takes_its_shape_from_the_model(
    specs: list[TensorSpec], body: bytes, shape: tuple[int, ...]
) -> None:
    """The batch is one, the length of one more free axis follows from the bytes, and the answer is binary."""
    got = oip.parse_raw(body, specs)
    assert got.inputs["x"].shape == shape
    assert got.inputs["x"].dtype == specs[0].dtype.numpy
    assert got.inputs["x"].tobytes() == body
    assert got.binary_outputs


def test_the_raw_form_of_bytes_is_one_element() -> None:
    """The whole body is the one element, whatever bytes it has."""
    got = oip.parse_raw(b"\x04\x00a picture", free(None, dtype=DType.BYTES))
    assert got.inputs["x"].tolist() == [b"\x04\x00a picture"]


@pytest.mark.parametrize(
    ("specs", "body", "says"),
    [
        ([*free(None, 2), *free(None, 2)], bytes(8), "one input, this model has 2"),
        (free(None, None, None), bytes(8), "one free axis beside the batch"),
        (free(None, 2), bytes(9), "needs 8 bytes"),
        (free(None, 2), bytes(16), "needs 8 bytes"),
        (free(None, None), bytes(9), "needs 8 bytes"),
        (free(None, 2, dtype=DType.BYTES), b"abc", "BYTES"),
    ],
)
def test_the_raw_form_is_refused_where_it_cannot_be_meant(specs: list[TensorSpec], body: bytes, says: str) -> None:
    """Too many inputs, too many free axes, and bytes that do not fit are the client's errors."""
    with pytest.raises(DataError, match=says):
        oip.parse_raw(body, specs)


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"ready": 1}', b"\xff"])
def test_an_index_request_that_means_nothing_is_refused(body: bytes) -> None:
    """The body is an object with ``ready``, or empty; all else is refused."""
    with pytest.raises(DataError, match="cannot be parsed"):
        oip.wants_ready_only(body)


LONG = 4000  # elements


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats lists of a thousand numbers as long ones."""
    monkeypatch.setattr(tensor_data, "LONG_JSON", 4096)
    monkeypatch.setattr(tensor_data, "_PART", 512)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64", "bool"])
def test_long_json_is_read_and_written_in_parts_to_the_same_values(dtype: str) -> None:
    """Long flat lists are read in parts, nested ones at once; both give the values of short ones."""
    value = (np.random.default_rng(0).random((LONG // 2, 2)) * 2).astype(dtype)
    response = oip.InferResponse("m", "1", {"y": value})
    sent = oip.encode_response(response, oip.InferRequest({}))
    assert oip.json_elements(response, oip.InferRequest({})) == value.size
    np.testing.assert_array_equal(oip.parse_response(sent.body).outputs["y"], value)
    kind = {"float32": "FP32", "float64": "FP64", "int8": "INT8", "uint64": "UINT64", "bool": "BOOL"}[dtype]
    for data in (value.ravel().tolist(), value.tolist()):
        tensor = {"name": "x", "datatype": kind, "shape": value.shape, "data": data}
        text = json.dumps({"inputs": [tensor]}, indent=1)
        np.testing.assert_array_equal(oip.parse_request(text.encode()).inputs["x"], value)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[:-1] + ",]", "cannot be parsed"),
        (lambda t: t[:-1] + ", \n ]", "cannot be parsed"),
        (lambda t: t.replace("1,1", "1,,1", 1), "cannot be parsed"),
        (lambda t: t[:-2] + '"1"]', "Expected `int`"),
        (lambda t: t[:-2] + "300]", "not INT8"),
        (lambda t: t[:-2] + "1,1]", "elements"),
        (lambda t: t[:-2] + "1.5]", "not INT8"),
    ],
)
def test_long_json_with_a_fault_anywhere_is_refused_as_short_json_is(change: Callable[[str], str], says: str) -> None:
    """A comma too many, text, numbers out of range, and a wrong count, at the end of many numbers."""
    data = change(json.dumps([1] * LONG, separators=(",", ":")))
    text = f'{{"inputs":[{{"name":"x","datatype":"INT8","shape":[{LONG}],"data":{data}}}]}}'
    assert len(text) > tensor_data.LONG_JSON
    with pytest.raises(DataError, match=says):
        oip.parse_request(text.encode())


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">i8", ">u2", "|i1"])
def test_the_wire_is_little_endian_whatever_the_array_is(dtype: str) -> None:
    """An array of another byte order is sent as its numbers, not as its bytes."""
    value = np.array([[1, 2, 100]], dtype)
    body, length = oip.encode_request({"x": value})
    np.testing.assert_array_equal(oip.parse_request(body, length).inputs["x"], value)


def test_the_same_header_says_the_same_of_other_bytes() -> None:
    """A known JSON header is not parsed again, and each request has its own tensors."""
    first, second = (np.full(3, value, np.float32) for value in (1, 2))
    sent = [oip.encode_request({"x": value}) for value in (first, second, first)]
    assert len({body[:length] for body, length in sent}) == 1
    got = [oip.parse_request(*one) for one in sent]
    assert [one.inputs["x"].tolist() for one in got] == [first.tolist(), second.tolist(), first.tolist()]
    got[0].inputs.clear()
    assert list(got[2].inputs) == ["x"]
    assert {(one.id, one.binary_outputs, one.parameters["binary_data_output"]) for one in got} == {(None, True, True)}


def test_what_requests_with_one_header_share_cannot_be_changed() -> None:
    """Cached parts cannot be changed, because a change would show in other requests."""
    head = request(tensor(binary_data_size=8), outputs=[{"name": "y"}], parameters={"a": 1})
    got = oip.parse_request(head + bytes(8), len(head))
    for shared in (got.parameters, got.outputs):
        with pytest.raises(TypeError):
            shared["a"] = 2  # type: ignore[index]


@pytest.mark.parametrize("tail", [b"", bytes(7), bytes(9)])
def test_a_known_header_is_held_to_the_bytes_behind_it(tail: bytes) -> None:
    """Every body is checked against a known header, and a wrong body does not damage the cache."""
    head = request(tensor(binary_data_size=8))
    for _ in range(2):
        assert oip.parse_request(head + bytes(8), len(head)).inputs["x"].tolist() == [0, 0]
        with pytest.raises(DataError, match=r"left|follow"):
            oip.parse_request(head + tail, len(head))


def test_answers_of_other_shapes_and_types_say_so() -> None:
    """The cached JSON of a binary tensor depends on everything that it states."""
    got = oip.InferRequest({}, binary_outputs=True)
    for dtype in (np.float32, np.int32, np.float32):
        for shape in ((1, 4), (2, 2), (4,), (1, 4)):
            value = np.arange(4, dtype=dtype).reshape(shape)
            sent = oip.encode_response(oip.InferResponse("m", "1", {"y": value}), got)
            found = oip.parse_response(*sent).outputs["y"]
            assert (found.dtype, found.shape) == (value.dtype, shape)
            np.testing.assert_array_equal(found, value)


def test_null_stands_for_a_member_that_is_left_out() -> None:
    """Some clients send null for optional members, at every level."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5], "parameters": None}
    document = {"id": None, "parameters": None, "outputs": None, "inputs": [tensor]}
    found = oip.parse_request(msgspec.json.encode(document))
    assert (found.id, dict(found.parameters), dict(found.outputs)) == (None, {}, {})
    tensor |= {"data": None, "parameters": {"binary_data_size": 4}}
    text = msgspec.json.encode({"outputs": [{"name": "y", "parameters": None}], "inputs": [tensor]})
    found = oip.parse_request(text + b"\0\0\0\0", len(text))
    assert found.inputs["x"] == 0.0
    assert dict(found.outputs) == {"y": False}
    assert not oip.wants_ready_only(b'{"ready": null}')


@pytest.mark.parametrize("name", ["classification", "shared_memory_region", "sort"])
def test_an_output_parameter_that_is_not_served_is_refused(name: str) -> None:
    """It would change the answer, so it is not passed over; the hint of MLServer's clients is."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}
    document = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {name: 3}}]}
    with pytest.raises(DataError, match=f"'y' has the parameter '{name}', which is not served"):
        oip.parse_request(msgspec.json.encode(document))
    document["outputs"] = [{"name": "y", "parameters": {"content_type": "np", "binary_data": True}}]
    assert dict(oip.parse_request(msgspec.json.encode(document)).outputs) == {"y": True}


def test_datatypes_have_the_protocols_names() -> None:
    """One rule gives them, and errors about inputs use them."""
    assert {name: dtype.protocol for name, dtype in DATATYPES.items()} == {name: name for name in DATATYPES}
    spec = TensorSpec("x", DType.FLOAT32, (None,))
    assert spec.faults(np.ones(1, np.uint8)) == ["x: dtype is uint8, expected float32 (UINT8, not FP32)"]


def test_shared_memory_is_refused() -> None:
    """The data would be missing without a word."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"shared_memory_region": "r"}}
    with pytest.raises(DataError, match="shared memory is not served"):
        oip.parse_request(msgspec.json.encode({"inputs": [tensor]}))

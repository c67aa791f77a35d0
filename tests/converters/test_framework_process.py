import os
import pickle
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from converters import framework_process
from converters.framework_process import FrameworkProcess, TensorFlowProcess
from converters.frontends.tensorflow.source_file import SourceFile
from edgekit.errors import ConversionError, ModelFormatError, UnsupportedOpError
from tests.simulators import models


def test_child_that_died_is_a_conversion_error_and_is_replaced():
    """The error names the signal of a killed child, and the next call starts a new child."""
    with TensorFlowProcess() as child:
        process = child._started()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ConversionError, match="SIGKILL"):
            child.call("export_source", source=SourceFile("x", "keras"))
        assert child._started().pid != process.pid


@pytest.mark.parametrize("ended", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_memory_is_not_blamed_without_evidence(ended):
    """The error names the signal and the work; the system killed nothing for memory, so memory is not named."""
    with TensorFlowProcess() as child:
        os.kill(child._started().pid, ended)
        with pytest.raises(ConversionError) as caught:
            child.call("lower", model=b"")
    text = f"{caught.value} {caught.value.advice}"
    assert f"converting the graph to LiteRT: signal {ended.name}" in text
    assert "memory" not in text


def test_a_child_that_the_system_killed_for_memory_is_told(monkeypatch):
    """SIGKILL while the system's count of processes killed for memory rises is the evidence."""
    counts = iter([3, 4])
    monkeypatch.setattr(framework_process, "processes_killed_for_memory", lambda: next(counts))
    with TensorFlowProcess() as child:
        os.kill(child._started().pid, signal.SIGKILL)
        with pytest.raises(ConversionError, match="ran out of memory"):
            child.call("lower", model=b"")


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process uses")
def test_a_child_that_needs_too_much_memory_is_ended_and_told():
    """The parent watches the child; the message has the limit, and the next call starts another child."""
    with FrameworkProcess("TensorFlow", memory_bytes=100 << 20) as child:
        for _ in range(2):
            with pytest.raises(ConversionError, match=r"converting the graph to LiteRT needs more than the 0\.1 GiB"):
                child.call("lower", model=b"")


@pytest.mark.heavy
def test_a_child_that_holds_much_memory_is_ended_when_it_is_not_needed(child):
    """The next call starts another one; a child that holds little goes on."""
    child.call("find_loop", name="tests.converters.training.own_loops:worse")
    first = child._process.pid
    child.release()
    assert child._process.pid == first
    child.release(1 << 20)
    assert child._process is None
    child.call("find_loop", name="tests.converters.training.own_loops:worse")
    assert child._process.pid != first


def test_pytorch_ends_where_it_holds_less_than_tensorflow_may(monkeypatch):
    """It has nothing to do after the source model was read, and held 0.6 GB during the whole search."""
    pytest.importorskip("torch")
    with TensorFlowProcess() as child:
        assert not child.call("program_is_loaded", key="none")
        child.release()
        assert child._torch._process is not None
        monkeypatch.setattr(framework_process, "MOST_HELD_BY_TORCH", 1 << 20)
        child.release()
        assert child._torch._process is None


def test_an_unexpected_error_is_one_line_and_its_log_is_the_cause():
    """The message has no traceback; the cause, which only --verbose prints, has it."""
    with TensorFlowProcess() as child, pytest.raises(ConversionError) as caught:
        child.call("answers", source="x", inputs=0, wrong=1)
    assert "\n" not in str(caught.value)
    assert str(caught.value) == "TensorFlow failed while running the source model with TypeError"
    assert "unexpected keyword argument" in caught.value.foreign_text
    assert "Traceback" in str(caught.value.__cause__)


def test_child_ends_with_its_parent():
    """A parent that is killed by SIGKILL leaves no child behind."""
    script = textwrap.dedent("""
        import os, signal
        from converters.framework_process import TensorFlowProcess
        print(TensorFlowProcess()._started().pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    pid = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240).stdout)
    for _ in range(600):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail(f"process {pid} is still there")


def test_unknown_function_cannot_be_called():
    """Only functions of the table can be called."""
    with TensorFlowProcess() as child, pytest.raises(ValueError, match="not a function"):
        child.call("os.system", command="true")


@pytest.mark.heavy
def test_errors_come_back_as_they_were_raised(child, keras_folder, tmp_path):
    """A typed error keeps its type, fields and advice across processes."""
    node = models.helper.make_node("Det", ["x"], ["y"], name="det_1")
    model = models.model_of([node], {"x": ["batch", 2, 2]}, {"y": ["batch"]})
    with pytest.raises(UnsupportedOpError, match="LiteRT") as caught:
        child.call("lower", model=model.SerializeToString())
    assert (caught.value.op, caught.value.layer) == ("Det", "det_1")
    assert "--runtime onnxruntime" in caught.value.advice
    with pytest.raises(ModelFormatError):
        child.call("export_source", source=SourceFile(str(tmp_path / "none.keras"), "keras"))


@pytest.mark.parametrize("shown", [True, False])
def test_log_is_shown_as_it_comes_or_kept_for_errors(shown, capfd):
    """With show_log the child's output goes to stderr; without it, the end of the output is kept."""
    with TensorFlowProcess(show_log=shown) as child:
        process = child._started()
        process.stdin.write(b"?")  # no pickle: the child ends with a traceback
        process.stdin.flush()
        process.wait(timeout=240)
        kept = child.log_tail()
    seen = capfd.readouterr().err
    assert ("UnpicklingError" in seen) is shown
    assert ("UnpicklingError" in kept) is not shown


@pytest.mark.parametrize("size", [0, 10, 65_535, 65_536, 200_000, 3_000_000])
def test_a_message_is_read_without_waiting_for_the_next_one(size):
    """The pipe stays open, as between two calls; a message that breaks off is an error and not an endless wait."""
    reading, writing = os.pipe()
    value = {"name": "x", "data": bytes(size), "after": (1, [2.5])}
    with os.fdopen(reading, "rb") as answers, os.fdopen(writing, "wb") as requests, ThreadPoolExecutor(1) as other:
        for _ in range(2):
            sent = other.submit(framework_process._send, requests, value)
            assert framework_process._receive(answers) == value
            sent.result(timeout=60)
        broken = other.submit(lambda: (requests.write(pickle.dumps(value)[:-5]), requests.close()))
        with pytest.raises((EOFError, pickle.UnpicklingError)):
            framework_process._receive(answers)
        broken.result(timeout=60)

"""The queue refuses at once the requests that it would refuse later, and hands out the others in order."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from edgekit.serving.session.queue import DeadlineError, Job, JobQueue, OverloadedError, admit, expected_seconds


def refused(waiting: int, *, left: float | None = None, mean: float = 0.1, limit: int = 10) -> OverloadedError | None:
    """The error of `admit`, or None where it accepts the request."""
    expected = expected_seconds(waiting, mean, 1)
    try:
        admit("m", waiting=waiting, limit=limit, left=left, expected=expected)
    except OverloadedError as error:
        return error
    return None


def test_a_full_queue_is_refused_with_the_time_it_takes_to_empty() -> None:
    """The limit counts running requests too; Retry-After comes from the measured time of a run."""
    assert refused(9) is None
    found = refused(10, mean=0.5)
    assert type(found) is OverloadedError
    assert found.retry_after_seconds == pytest.approx(5.5)
    assert refused(10, mean=0.001).retry_after_seconds == 1.0


def test_what_would_be_late_is_refused_early() -> None:
    """With three requests of 0.1 s before it, 0.4 s are needed. Alone, a request runs whatever the mean is."""
    assert refused(3, left=0.5) is None
    found = refused(3, left=0.3)
    assert isinstance(found, DeadlineError)
    assert "would answer in about 400 ms, the deadline is in 300 ms" in str(found)
    assert "allow more time" in found.advice
    assert refused(0, left=0.01, mean=60.0) is None
    assert isinstance(refused(0, left=0.0), DeadlineError)


def test_copies_of_a_model_shorten_the_wait() -> None:
    """With three copies the fourth request is the first to wait for a turn."""
    assert [expected_seconds(n, 1.0, 3) for n in (0, 2, 3, 6)] == [1.0, 1.0, 2.0, 3.0]


class Bench:
    """A queue with a clock that is moved by hand."""

    def __init__(self, max_rows: int = 1) -> None:
        self.now = 0.0
        self.queue = JobQueue(lambda: self.now, lambda: DeadlineError("m", 0, 1.0), max_rows=max_rows)

    def put(self, **kwargs: object) -> Job:
        job = Job(**kwargs)  # type: ignore[arg-type]
        self.queue.put(job)
        return job


def test_jobs_come_out_in_order_and_the_end_comes_last() -> None:
    """Jobs in the queue at its close are still handed out; later jobs are cancelled."""
    bench = Bench()
    first, second = bench.put(), bench.put()
    bench.queue.close()
    late = bench.put()
    assert [bench.queue.take("a"), bench.queue.take("a"), bench.queue.take("a")] == [[first], [second], []]
    with pytest.raises(CancelledError):
        late.future.result(0)


def test_a_job_for_one_taker_is_not_given_to_another() -> None:
    """A taker gets its own jobs before the common ones."""
    bench = Bench()
    common, own = bench.put(), Job()
    bench.queue.put(own, only="b")
    assert bench.queue.take("b") == [own]
    assert bench.queue.take("a") == [common]


def test_a_job_whose_time_is_over_is_not_handed_out() -> None:
    """It fails with the queue's error, and the next is taken in its place."""
    bench = Bench()
    late, next_one = bench.put(deadline=1.0), bench.put(deadline=3.0)
    bench.now = 1.0
    assert bench.queue.take("a") == [next_one]
    with pytest.raises(DeadlineError):
        late.future.result(0)


def test_only_what_has_not_begun_expires() -> None:
    """A running job is finished."""
    bench = Bench()
    begun, waiting = bench.put(), bench.put()
    assert bench.queue.take("a") == [begun]
    assert not bench.queue.expire(begun)
    assert bench.queue.expire(waiting)
    assert not bench.queue.expire(waiting)
    with pytest.raises(DeadlineError):
        waiting.future.result(0)


def test_a_cancelled_job_is_out_of_the_queue() -> None:
    """A cancelled job is not handed out, whether it was forgotten or not."""
    bench = Bench()
    jobs = [bench.put() for _ in range(3)]
    jobs[0].future.cancel()
    jobs[1].future.cancel()
    bench.queue.forget(jobs[1])
    assert bench.queue.take("a") == [jobs[2]]


def test_neighbours_of_one_shape_come_out_together() -> None:
    """Jobs are joined up to the limit of rows, not across a job of another shape, and not without a shape."""
    bench = Bench(max_rows=4)
    a = [bench.put(shape="a", rows=rows) for rows in (1, 2, 2)]
    other = bench.put(shape="b", rows=9)
    alone = [bench.put(), bench.put()]
    taken = [bench.queue.take("t") for _ in range(5)]
    assert taken == [[a[0], a[1]], [a[2]], [other], [alone[0]], [alone[1]]]


def test_a_taker_wakes_for_work_and_for_the_end() -> None:
    """A thread that waits gets the next job, then the end."""
    bench = Bench()
    taken: list[list[Job]] = []

    def work() -> None:
        while jobs := bench.queue.take("a"):
            taken.append(jobs)

    thread = threading.Thread(target=work)
    thread.start()
    job = bench.put()
    bench.queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert taken == [[job]]

"""Work that crashes, hangs or eats memory stays in its own process."""

import threading

import pytest

from quietchoir.core.errors import ProtocolError, WorkerError
from quietchoir.core.worker import Worker, WorkerPool
from quietchoir.tests.fakes.search import Moody


@pytest.fixture(scope="module")
def worker():
    one = Worker(Moody)
    yield one
    one.close()


def test_a_crash_is_an_error_and_the_next_call_finds_a_fresh_child(worker):
    worker.call("echo")
    before = worker.starts
    with pytest.raises(WorkerError, match="ended with code -11"):
        worker.call("segfault")
    assert worker.call("echo", b"a") == [b"a", b"1"]
    assert worker.starts == before + 1


def test_a_child_past_its_deadline_is_killed(worker):
    worker.start()
    with pytest.raises(WorkerError, match="took longer than"):
        worker.call("hang", deadline_s=0.2)
    assert worker.call("echo")[-1] == b"1"


def test_an_ordinary_error_keeps_its_type_and_the_child(worker):
    worker.call("echo")
    before = worker.starts
    with pytest.raises(ProtocolError, match="as asked"):
        worker.call("raises", b"ProtocolError")
    with pytest.raises(WorkerError, match="as asked"):
        worker.call("raises", b"ValueError")
    with pytest.raises(WorkerError):
        worker.call("no_such_method")
    assert worker.starts == before


def test_more_memory_than_a_child_may_have_is_an_error_not_the_end_of_the_machine(worker):
    with pytest.raises(WorkerError):
        worker.call("devour")
    assert worker.call("echo", b"x")[0] == b"x"


def test_a_service_that_cannot_be_made_says_why():
    broken = Worker(Moody, 13)
    with pytest.raises(WorkerError, match="no"):
        broken.start()
    with pytest.raises(WorkerError):
        broken.call("echo")
    broken.close()


def test_a_pool_serves_many_threads_and_large_blobs():
    pool = WorkerPool(Moody, size=2)
    blobs, answers = [bytes([i]) * 300_000 for i in range(8)], {}
    threads = [
        threading.Thread(target=lambda b=b: answers.update({b: pool.call("echo", b)[0]}))
        for b in blobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert answers == {b: b for b in blobs}


def test_a_pool_whose_workers_are_all_busy_says_so():
    pool = WorkerPool(Moody)
    with pool._borrow(1), pytest.raises(WorkerError, match="free"):
        pool.call("echo", deadline_s=0.05)
    assert pool.call("echo")[-1] == b"1"
    pool.close()

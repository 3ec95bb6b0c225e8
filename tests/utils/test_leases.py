"""Leases: one worker has each thing, a dead one's are taken over, and whoever comes back has lost them."""

import shutil
import threading
import time
import uuid

import optuna
import pytest

from kdnas_hf.utils.leases import Leases, keep_worker, worker_of
from kdnas_hf.utils.shared_storage import open_storage

pytestmark = pytest.mark.long  # depends on no line of transformers

TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(params=["journal", "postgresql"])
def address(request, tmp_path):
    if request.param == "journal":
        return f"journal:{tmp_path}/study.log"
    return request.getfixturevalue("postgresql").url


@pytest.fixture
def worker(address):
    name = uuid.uuid4().hex  # the server serves all tests

    def make(worker):
        leases = Leases(open_storage(address), name, worker, TIMEOUT)
        leases._beat("first")
        leases.alive()
        return leases

    return make


def watch(clock, leases, timeouts, beating=()):
    """Let a worker watch the others for a while, some of which give a sign of life."""
    for _ in range(round(10 * timeouts)):
        clock.now += TIMEOUT / 10
        for other in beating:
            other._beat(uuid.uuid4().hex)
        leases.alive()


def at_once(works):
    """Do things in threads that begin together."""
    ready = threading.Barrier(len(works))
    threads = [threading.Thread(target=lambda work=work: (ready.wait(), work())) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_workers_that_take_at_once_one_has_each_thing(worker):
    things = [f"thing {number}" for number in range(5)]
    workers = [worker(f"worker {index}") for index in range(4)]
    taken = {leases.worker: set() for leases in workers}

    def take(leases):
        while {leases.holder(thing) for thing in things} & {None}:
            for thing in things:
                if leases.acquire(thing):
                    taken[leases.worker].add(thing)

    at_once([lambda leases=leases: take(leases) for leases in workers])
    assert sorted(thing for mine in taken.values() for thing in mine) == things
    for leases in workers:
        assert all(leases.holder(thing) == name for name, mine in taken.items() for thing in mine)


def test_the_first_value_counts_for_all(worker):
    workers = [worker(f"worker {index}") for index in range(4)]
    found = []
    at_once([lambda leases=leases: found.append(leases.first("what", leases.worker)) for leases in workers])
    assert len(found) == 4
    assert len(set(found)) == 1
    assert worker("late").first("what", {"another": 1}) == found[0]
    assert workers[0].first("another", {"of": [1, None]}) == {"of": [1, None]}


def test_a_dead_workers_lease_is_taken_over_and_lost_to_it_when_it_comes_back(worker, clock, caplog):
    suspended, other = worker("a"), worker("b")
    assert suspended.acquire("thing")
    assert other.acquire("thing") is None  # it has not been watched for long enough
    watch(clock, other, 0.9)
    assert other.acquire("thing") is None
    watch(clock, other, 0.2)
    assert other.acquire("thing")
    assert suspended.acquire("thing") is not True
    suspended.finish("thing")
    assert not suspended.release("thing")
    assert suspended.holder("thing") == "b"
    other.finish("thing")
    assert suspended.acquire("thing") is False


def test_a_lease_given_back_is_anybodys_and_one_that_is_finished_nobodys(worker, clock):
    first, other = worker("a"), worker("b")
    assert first.acquire("thing")
    watch(clock, other, 0.5, beating=[first])
    assert other.acquire("thing") is False  # it was seen alive
    assert first.release("thing")
    assert other.acquire("thing")
    other.finish("thing")
    watch(clock, first, 1.5)  # it ends
    assert first.acquire("thing") is False
    first.finish("thing")
    assert first.holder("thing") == other.holder("thing") == "b"
    assert worker("b").acquire("thing")  # it is started again: what it did is its own


def test_a_worker_that_is_started_again_has_its_leases(worker):
    assert worker("a").acquire("thing")
    again = worker("a")
    assert again.acquire("thing")
    again.finish("thing")
    assert again.holder("thing") == "a"


def test_a_lease_that_a_lost_answer_wrote_twice_is_given_back_as_one(worker):
    leases = worker("a")
    assert leases.acquire("thing")
    leases._write("thing", optuna.trial.TrialState.RUNNING)
    assert leases.release("thing")
    assert leases.holder("thing") is None


def test_a_worker_that_was_suspended_itself_takes_nobody_for_dead(worker, clock):
    working, suspended = worker("a"), worker("b")
    assert working.acquire("thing")
    watch(clock, suspended, 0.2, beating=[working])
    clock.now += 3600.0
    assert suspended.acquire("thing") is False
    watch(clock, suspended, 1.1)
    assert suspended.acquire("thing")


def test_the_heartbeat_keeps_a_working_worker_alive_until_it_says_that_it_ends(tmp_path):
    working, other = (Leases(open_storage(f"journal:{tmp_path}/study.log"), "kdnas", name, 3.0) for name in "ab")
    working.start()
    assert working.acquire("thing")
    end = time.monotonic() + 60
    while other.acquire("thing") is None and time.monotonic() < end:
        time.sleep(0.05)
    assert other.acquire("thing") is False
    assert other.alive() == {"a": True, "b": True}
    working.stop()  # nobody waits for its timeout
    assert other.alive() == {"a": False, "b": True}
    assert other.acquire("thing")


def test_a_copy_of_a_run_directory_is_another_worker(tmp_path):
    first = tmp_path / "a"
    first.mkdir()
    worker = worker_of(first, "kdnas")
    assert list(first.iterdir()) == []  # it may be refused yet
    keep_worker(first, worker, "kdnas")
    assert worker_of(first, "kdnas") == worker
    shutil.copytree(first, tmp_path / "b")
    assert worker_of(tmp_path / "b", "kdnas") != worker
    for other in ("other", None):
        with pytest.raises(ValueError, match="is that of a worker; .* study_name='kdnas'"):
            worker_of(first, other)
    assert worker_of(tmp_path, None) == "alone"

"""Leases: one worker has each thing, a dead one's are handed out again, and whoever comes back has lost them."""

import threading
import time
import uuid

import optuna
import pytest

from kdnas_hf.search import leases as module
from kdnas_hf.search.leases import Leases
from kdnas_hf.search.storage import open_storage

pytestmark = pytest.mark.long  # depends on no line of transformers


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

    def make(worker, timeout=60.0):
        leases = Leases(open_storage(address), name, worker, timeout)
        leases.workers.beat()
        leases.workers.alive()
        return leases

    return make


def watch(leases, seconds, beating=()):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for other in beating:
            other.workers.beat()
        leases.workers.alive()
        time.sleep(0.02)


def test_of_workers_that_ask_at_once_one_has_each_thing(worker):
    things = [f"thing {number}" for number in range(5)]
    workers = [worker(f"worker {index}") for index in range(4)]
    taken = {leases.worker: [] for leases in workers}
    ready = threading.Barrier(len(workers))

    def ask(leases):
        ready.wait()
        taken[leases.worker] += [thing for thing in things if leases.acquire(thing)]

    threads = [threading.Thread(target=ask, args=(leases,)) for leases in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted([thing for mine in taken.values() for thing in mine]) == things
    for leases in workers:
        assert all(leases.holder(thing) == name for name, mine in taken.items() for thing in mine)


def test_of_workers_that_name_a_value_at_once_the_first_counts_for_all(worker):
    workers = [worker(f"worker {index}") for index in range(4)]
    found, ready = [], threading.Barrier(len(workers))

    def name(leases):
        ready.wait()
        found.append(leases.first("configuration", {"of": leases.worker}))

    threads = [threading.Thread(target=name, args=(leases,)) for leases in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(one == workers[0].first("configuration", {"of": "late"}) for one in found)


def test_what_is_given_back_is_for_whoever_asks_next(worker):
    first, other = worker("a"), worker("b")
    assert first.acquire("thing")
    assert not other.acquire("thing")
    assert first.release("thing")
    assert other.acquire("thing")
    assert not first.release("thing")  # not its own any more
    assert other.holder("thing") == "b"


def test_a_dead_workers_lease_is_taken_over_and_lost_to_it_when_it_comes_back(worker):
    suspended, other = worker("a", 0.4), worker("b", 0.4)
    assert suspended.acquire("thing")
    assert other.acquire("thing") is None  # it was not seen to beat yet
    suspended.workers.beat()
    assert other.acquire("thing") is False
    watch(other, 0.6)
    assert other.acquire("thing")
    assert not suspended.finish("thing")
    assert not suspended.release("thing")
    assert not suspended.acquire("thing")
    assert other.finish("thing")
    assert suspended.holder("thing") == "b"


def test_what_is_done_stays_done(worker):
    first, other = worker("a", 0.2), worker("b", 0.2)
    assert first.acquire("thing")
    assert first.finish("thing")
    watch(other, 0.4)
    assert other.acquire("thing") is False
    assert not other.finish("thing")
    assert not other.release("thing")
    assert first.acquire("thing")
    assert first.finish("thing")
    assert other.holder("thing") == "a"


def test_a_worker_that_is_started_again_has_its_leases(worker):
    assert worker("a").acquire("thing")
    again = worker("a")
    assert again.acquire("thing")
    assert again.finish("thing")


def test_the_heartbeat_keeps_a_working_worker_alive(tmp_path):
    address = f"journal:{tmp_path}/study.log"
    working, other = (Leases(open_storage(address), "kdnas", name, 0.6) for name in "ab")
    working.workers.start()
    assert working.acquire("thing")
    watch(other, 1.5)
    assert other.acquire("thing") is False
    assert other.workers.alive() == {"a": True, "b": True}
    working.workers.stop()  # it says so: nobody waits for its timeout
    assert other.acquire("thing")


def test_a_worker_that_was_suspended_itself_takes_nobody_for_dead(worker, monkeypatch):
    working, suspended = worker("a", 60.0), worker("b", 60.0)
    assert working.acquire("thing")
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 3600.0)
    assert not suspended.acquire("thing")
    assert suspended.workers.alive()["a"] is not False

"""Claims: one worker has each thing, a dead one's are handed out again, and whoever comes back has lost them."""

import threading
import time
import uuid

import optuna
import pytest
from kdnas_hf.search.claims import ClaimLostError, Claims

from kdnas_hf.search import claims as module
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
        claims = Claims(open_storage(address), name, worker, timeout)
        claims.workers.beat()
        claims.workers.watch()
        return claims

    return make


def watch(claims, seconds, beating=()):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for other in beating:
            other.workers.beat()
        claims.workers.watch()
        time.sleep(0.02)


def test_of_workers_that_claim_at_once_one_has_each_thing(worker):
    things = [f"candidate {number}" for number in range(5)]
    workers = [worker(f"worker {index}") for index in range(4)]
    taken = {claims.worker: [] for claims in workers}
    ready = threading.Barrier(len(workers))

    def claim(claims):
        ready.wait()
        taken[claims.worker] += [thing for thing in things if claims.take(thing)]

    threads = [threading.Thread(target=claim, args=(claims,)) for claims in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted([thing for mine in taken.values() for thing in mine]) == things
    for claims in workers:
        assert {what: claim.worker for what, claim in claims.standing().items()} == {
            what: name for name, mine in taken.items() for what in mine
        }


def test_a_dead_workers_claim_is_taken_over_and_lost_to_it_when_it_comes_back(worker):
    suspended, other = worker("a", 0.4), worker("b", 0.4)
    assert suspended.take("candidate 1")
    assert not other.take("candidate 1")
    watch(other, 0.6)
    assert other.take("candidate 1")
    with pytest.raises(ClaimLostError):
        suspended.finish("candidate 1", "mine")
    assert not suspended.take("candidate 1")
    other.finish("candidate 1", "theirs")
    assert suspended.standing()["candidate 1"].record == "theirs"


def test_what_is_done_stays_done(worker):
    first, other = worker("a", 0.2), worker("b", 0.2)
    assert first.take("candidate 1")
    first.finish("candidate 1", "result")
    watch(other, 0.4)
    assert not other.take("candidate 1")
    with pytest.raises(ClaimLostError):
        other.finish("candidate 1", "another result")
    assert other.standing()["candidate 1"].record == "result"


def test_a_worker_that_is_started_again_has_its_claims(worker):
    assert worker("a").take("candidate 1")
    again = worker("a")
    assert again.take("candidate 1")
    again.finish("candidate 1", "result")


def test_the_heartbeat_keeps_a_working_worker_alive(tmp_path):
    address = f"journal:{tmp_path}/study.log"
    working, other = (Claims(open_storage(address), "kdnas", name, 0.6) for name in "ab")
    working.workers.start()
    assert working.take("candidate 1")
    watch(other, 1.5)
    assert not other.take("candidate 1")
    assert other.workers.is_alive("a")
    working.workers.stop()  # it says so: nobody waits for its timeout
    assert other.take("candidate 1")


def test_a_worker_that_was_suspended_itself_takes_nobody_for_dead(worker, monkeypatch):
    working, suspended = worker("a", 60.0), worker("b", 60.0)
    assert working.take("candidate 1")
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 3600.0)
    assert not suspended.take("candidate 1")

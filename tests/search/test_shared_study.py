"""A study that workers share: the same candidates as one alone, one result each, none lost."""

import logging
import shutil
import threading
import time
import uuid

import optuna
import pytest
from optuna.trial import TrialState
from records import SPACE, trial
from test_study import CONFIGURATION, lines, measure, result_of, shapes

from kdnas_hf.latency import Latency
from kdnas_hf.search import SearchStudy, make_controller
from kdnas_hf.search.leases import worker_of
from kdnas_hf.search.trial import KILLED

pytestmark = pytest.mark.long  # depends on no line of transformers


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def worker(tmp_path):
    opened = []

    def start(folder, controller="random", storage=None, configuration=CONFIGURATION, **kwargs):
        (tmp_path / folder).mkdir(exist_ok=True)
        sampler = make_controller(controller, SPACE, 4, seed=0)
        storage = storage or f"journal:{tmp_path}/study.log"
        opened.append(SearchStudy(tmp_path / folder, sampler, configuration, storage=storage, **kwargs))
        return opened[-1]

    yield start
    for study in opened:
        study.close()


def stand_still(study):
    """Stop the heart of a worker, as if its machine was suspended."""
    study.leases.workers._stopped.set()
    study.leases.workers._thread.join()


def when_ready(ask, seconds=20):
    """What a worker gets that asks again and again."""
    end = time.monotonic() + seconds
    while (answer := ask()) is None:
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return answer


@pytest.mark.parametrize("controller", ["random", "lstm"])
def test_two_workers_measure_what_one_measures_alone(worker, tmp_path, controller):
    a, b = worker("a", controller), worker("b", controller)
    (tmp_path / "alone").mkdir()
    alone = SearchStudy(tmp_path / "alone", make_controller(controller, SPACE, 4, seed=0), CONFIGURATION)
    for _ in range(2):
        measure(alone, alone.ask(4, 2))
        pools = [study.ask(4, 2) for study in (a, b)]
        assert [len(pool) for pool in pools] == [2, 2]  # a fair share
        measure(a, pools[0])
        assert a.ask(4, 2) is None  # the other's are still at work
        measure(b, pools[1])
    assert a.ask(4, 2) == b.ask(4, 2) == []
    expected = alone.trials()
    for study in (a, b):
        assert study.trials() == expected
        study.close()
        assert lines(study.folder) == expected


def test_a_worker_takes_no_more_than_it_asks_for_and_begins_nothing_before_it_is_done(worker):
    a, b = worker("a"), worker("b")
    first = a.ask(1, 1)
    assert a.ask(1, 1) == first
    assert len(b.ask(3, 1)) == 3  # who is at work needs nothing
    measure(a, first)
    assert a.ask(1, 1) is None


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_workers_that_ask_at_once_have_each_trial_once(worker, request, kind):
    storage = None if kind == "journal" else request.getfixturevalue("postgresql").url
    name = uuid.uuid4().hex  # the server serves all tests
    workers = [worker(one, storage=storage, name=name) for one in "abc"]
    pools, ready = [], threading.Barrier(len(workers))

    def search(study):
        ready.wait()
        while pool := when_ready(lambda: study.ask(2, 3), 60):
            pools.append((study.worker, shapes(pool)))
            measure(study, pool)

    threads = [threading.Thread(target=search, args=(study,)) for study in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = sorted(one for _, pool in pools for one in pool)
    assert asked == shapes(workers[0].trials())
    assert [(number, episode) for number, episode, _ in asked] == [(number, number // 4) for number in range(12)]
    assert len({architecture for _, _, architecture in asked}) == 12
    assert len({who for who, _ in pools}) > 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_dead_workers_trials_are_tried_again_and_its_results_do_not_count(worker, caplog, asynchronous):
    a, b = (worker(name, worker_timeout=1.0, asynchronous=asynchronous) for name in "ab")
    pool = a.ask(2, 1)
    measure(a, pool[:1])
    measure(b, b.ask(2, 1))
    c = worker("c", worker_timeout=1.0, asynchronous=asynchronous)
    assert b.ask(4, 1) is None  # another may die
    a.set_latency(pool[1].number, Latency(1.0, 0.1, 40.0), {}, "there")
    stand_still(a)
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        (again,) = when_ready(lambda: b.ask(4, 1))
        assert f"worker {a.worker} is gone" in caplog.text
        caplog.clear()
        assert a.tell(result_of(pool[1])) is False
        assert caplog.text.count("worker_timeout") == 1
    assert (again.number, again.episode, again.architecture) == (4, 0, pool[1].architecture)
    assert again.latency is None  # it is measured beside another teacher
    dead = b.study.trials[pool[1].number]
    assert (dead.state, dead.user_attrs["failure"]) == (TrialState.FAIL, KILLED)
    assert b.study.trials[4].user_attrs["retry_of"] == pool[1].number
    assert c.ask(4, 1) is None  # nothing is tried twice at a time
    a.report(pool[1].number, 5, 0.5)
    measure(b, [again])
    assert b.ask(4, 1) == c.ask(4, 1) == []
    assert [one.number for one in b.trials()] == [0, 2, 3, 4] == [one.number for one in lines(b.folder)]


def test_results_that_are_told_at_the_last_moment_count(worker, monkeypatch):
    a = worker("a", worker_timeout=1.0)
    asked, *others = a.ask(4, 1)
    measure(a, others)
    b = worker("b", worker_timeout=1.0)
    stand_still(a)
    kill = b._kill

    def beaten(dying):
        b.storage.set_trial_user_attr(dying._trial_id, "failure", KILLED)
        assert a.tell(result_of(asked))
        kill(dying)

    monkeypatch.setattr(b, "_kill", beaten)
    assert when_ready(lambda: b.ask(1, 1)) == []
    assert shapes(b.trials()) == shapes([asked, *others])
    assert b.trials()[0].is_complete
    assert b.trials()[0].failure is None


def test_who_asks_next_waits_until_the_one_before_has_chosen_or_is_dead(worker, monkeypatch):
    a, b = worker("a", worker_timeout=1.0), worker("b", worker_timeout=1.0)
    monkeypatch.setattr(a.storage, "set_trial_param", lambda *args: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        a.ask(4, 1)
    assert b.ask(4, 1) is None
    stand_still(a)
    pool = when_ready(lambda: b.ask(4, 1))
    assert [(one.number, one.episode) for one in pool] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    monkeypatch.undo()
    assert a.ask(4, 1) is None  # it comes back: there is nothing left for it
    measure(b, pool)
    assert a.ask(4, 1) == []


def test_what_a_suspended_worker_chose_meanwhile_is_its_own_or_nobodys(worker, monkeypatch):
    a, b = worker("a", worker_timeout=1.0), worker("b", worker_timeout=1.0)
    holder, theirs = a.leases.holder, []

    def suspended(what):  # between the look at the lease and the new trial
        holding = holder(what)
        if not theirs:
            stand_still(a)
            theirs.extend(when_ready(lambda: b.ask(2, 1)))
        return holding

    monkeypatch.setattr(a.leases, "holder", suspended)
    assert a.ask(4, 1) is None
    mine = when_ready(lambda: a.ask(4, 1))
    asked = [*theirs, *mine]
    assert len({one.architecture for one in asked}) == len({one.number for one in asked}) == len(asked)
    measure(a, mine)
    measure(b, theirs)
    while pool := when_ready(lambda: b.ask(4, 1)):
        measure(b, pool)
    assert len(b.trials()) == 4


def test_a_worker_that_has_ended_leaves_its_trials_to_others_at_once(worker):
    a, b = worker("a"), worker("b")
    pool = a.ask(2, 1)
    a.close()
    again = b.ask(4, 1)
    assert [one.architecture for one in again[:2]] == [one.architecture for one in pool]
    assert len(again) == 4


def test_a_worker_started_again_has_its_pool_as_it_was(worker):
    a = worker("a")
    worker("b")
    pool = a.ask(3, 1)
    told = measure(a, pool[:1])
    again = worker("a")
    assert again.worker == a.worker
    assert again.ask(3, 1) == [*told, *pool[1:]]  # the finished one too: the checkpoint has it


def test_asynchronous_workers_wait_for_nobody_until_the_end(worker):
    a, b = worker("a", asynchronous=True), worker("b", asynchronous=True)
    slow = a.ask(1, 2)
    asked = []
    while pool := b.ask(4, 2):
        asked += pool
        measure(b, pool)
    assert pool is None
    assert [(one.number, one.episode) for one in asked] == [(1, 0), (2, 0), (3, 0), *((n, 1) for n in range(4, 8))]
    measure(a, slow)
    assert b.ask(4, 2) == []
    waiting = worker("c")
    assert len(waiting.ask(1, 3)) == 1
    assert worker("d").ask(4, 4) != []


def test_another_configuration_is_refused_and_writes_nothing(worker, tmp_path):
    worker("a")
    with pytest.raises(ValueError, match=r"(?s)study_name='kdnas' in.*training.learning_rate: 0.001 there, 0.1 now"):
        worker("b", configuration={"teacher": "tiny", "training": {"learning_rate": 0.1}})
    assert not (tmp_path / "b" / "architectures.jsonl").exists()


def test_lines_that_the_study_does_not_have_are_not_lost(worker, tmp_path):
    (tmp_path / "a").mkdir()
    view = tmp_path / "a" / "architectures.jsonl"
    view.write_text(trial(0).to_json() + "\n")
    with pytest.raises(ValueError, match=r"output_dir=.* holds 1 measured architecture.*warm_start"):
        worker("a")
    assert lines(tmp_path / "a") == [trial(0)]


def test_a_copy_of_a_run_directory_is_another_worker(tmp_path):
    (tmp_path / "a").mkdir()
    first = worker_of(tmp_path / "a", "kdnas")
    assert worker_of(tmp_path / "a", "kdnas") == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert worker_of(tmp_path / "b", "kdnas") != first
    for other in ("other", None):
        with pytest.raises(ValueError, match="is that of a worker; give the storage .* study_name='kdnas'"):
            worker_of(tmp_path / "a", other)


def test_results_of_another_search_are_added_once(worker, tmp_path):
    (tmp_path / "before").mkdir()
    before = SearchStudy(tmp_path / "before", make_controller("lstm", SPACE, 4, seed=9), CONFIGURATION)
    measure(before, before.ask(4, 1))
    workers = [worker(name, worker_timeout=4.0) for name in "ab"]
    threads = [threading.Thread(target=study.add, args=(before.trials(),)) for study in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.number, one.episode) for one in workers[0].trials()] == [(number, -1) for number in range(4)]
    assert [one.architecture for one in workers[1].trials()] == [one.architecture for one in before.trials()]
    assert [one.episode for one in workers[1].ask(2, 1)] == [0, 0]


def test_one_worker_distils_and_another_takes_over_when_it_ends(worker):
    a, b = worker("a", worker_timeout=1.0), worker("b", worker_timeout=1.0)
    assert a.acquire("full distillation")
    assert when_ready(lambda: b.acquire("full distillation")) is False
    assert b.holder("full distillation") == a.worker
    a.close()
    assert b.acquire("full distillation")
    b.finish("full distillation")
    assert worker("c").acquire("full distillation") is False
    assert b.acquire("full distillation")  # done here before

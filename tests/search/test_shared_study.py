"""A study that workers share: the same candidates as one alone, one result each, none lost."""

import threading
import time
import uuid

import optuna
import pytest
from optuna.trial import TrialState
from records import SPACE, trial
from test_study import open_study

from kdnas_hf.search import make_controller
from kdnas_hf.search.study import SearchStudy, is_killed
from kdnas_hf.search.trial import Trial
from kdnas_hf.utils.shared_storage import MendedJournal, open_storage

pytestmark = pytest.mark.long  # depends on no line of transformers

CONFIGURATION = {"teacher": "tiny", "training": {"learning_rate": 1e-3}}
TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def worker(tmp_path):
    opened = []

    def start(name, controller="random", configuration=CONFIGURATION, study_name="kdnas", storage=None, **kwargs):
        (tmp_path / name).mkdir(exist_ok=True)
        study = SearchStudy(
            tmp_path / name,
            make_controller(controller, SPACE, 4, seed=0),
            configuration,
            storage=storage or f"journal:{tmp_path}/study.log",
            name=study_name,
            worker_timeout=TIMEOUT,
            **kwargs,
        )
        opened.append(study)
        return study

    yield start
    for study in opened:
        study.leases.stop()


def see_alive(*studies):
    """Let workers see each other alive."""
    for _ in range(2):
        for study in studies:
            study.leases._beat(uuid.uuid4().hex)
        for study in studies:
            study.leases.alive()


def outlive(clock, *studies):
    """Let workers watch those who give no sign of life until they are dead."""
    for _ in range(12):
        clock.now += TIMEOUT / 10
        see_alive(*studies)


def measure(study, pool):
    """Train and tell; which of the results count."""
    return [study.tell(result_of(asked)) for asked in pool if asked.state == "running"]


def result_of(asked):
    layers = asked.architecture.num_hidden_layers
    return trial(asked.number, asked.architecture, 0.1 * layers, 4.0 * layers, episode=asked.episode)


def numbers(pool):
    return [one.number for one in pool]


def shapes(pool):
    return [(one.number, one.episode, one.architecture) for one in pool]


def lines(study):
    return [Trial.from_json(line) for line in (study.folder / "architectures.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("controller", ["random", "lstm"])
def test_two_workers_measure_what_one_measures_alone(worker, tmp_path, controller):
    (tmp_path / "alone").mkdir()
    alone = open_study(tmp_path / "alone", controller)
    workers = [worker("a", controller), worker("b", controller)]
    for _ in range(2):
        expected = alone.ask(4, 2)
        measure(alone, expected)
        pools = [study.ask(4, 2) for study in workers]
        assert [len(pool) for pool in pools] == [2, 2]  # a fair share
        assert shapes(pools[0] + pools[1]) == shapes(expected)
        assert measure(workers[0], pools[0]) == [True, True]
        assert workers[0].ask(4, 2) is None  # the others' are still at work
        assert measure(workers[1], pools[1]) == [True, True]
    for study in workers:
        assert study.ask(4, 2) == []
        assert study.trials() == alone.trials()
        study.close()
        assert lines(study) == alone.trials()


def test_count_is_how_many_a_worker_takes_at_a_time(worker):
    a, b = worker("a"), worker("b")
    first = a.ask(1, 1)
    assert a.ask(1, 1) == first  # not before it has a result
    assert len(b.ask(3, 1)) == 3
    measure(a, first)
    assert a.ask(1, 1) is None


def test_an_asynchronous_search_has_no_barrier_between_episodes(worker):
    a, b = worker("a", asynchronous=True), worker("b", asynchronous=True)
    slow = a.ask(1, 3)
    found = []
    for _ in range(11):
        pool = b.ask(1, 3)
        found += pool
        measure(b, pool)
    assert [one.episode for one in found] == [0] * 3 + [1] * 4 + [2] * 4
    assert b.ask(1, 3) is None  # it may have to do it
    assert a.ask(1, 3) == slow
    measure(a, slow)
    assert a.ask(1, 3) == b.ask(1, 3) == []
    assert len({one.architecture for one in a.trials()}) == 12


@pytest.mark.parametrize(("kind", "asynchronous"), [("journal", False), ("journal", True), ("postgresql", False)])
def test_workers_that_ask_at_once_never_train_the_same(worker, request, kind, asynchronous):
    storage = request.getfixturevalue("postgresql").url if kind == "postgresql" else None
    name = uuid.uuid4().hex  # the server serves all tests
    studies = [worker(one, study_name=name, storage=storage, asynchronous=asynchronous) for one in "abc"]
    trained, failures = [], []

    def work(study):
        try:
            while (pool := study.ask(2, 3)) != []:
                if pool is None:
                    time.sleep(0.01)
                    continue
                trained.extend(one.architecture for one in pool)
                assert all(measure(study, pool))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(study,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(trained) == len(set(trained)) == 12
    assert sorted(one.episode for one in studies[0].trials()) == [0] * 4 + [1] * 4 + [2] * 4
    assert {one.architecture for one in studies[1].trials()} == set(trained)


def test_a_dead_workers_trials_are_tried_again_and_its_own_results_do_not_count(worker, clock, caplog):
    a, b = worker("a"), worker("b")
    lost = a.ask(2, 1)
    a.set_latency(0, result_of(lost[0]).latency, {"parameters": 5}, "here")
    measure(b, b.ask(4, 1))
    assert b.ask(4, 1) is None
    outlive(clock, b)
    again = b.ask(4, 1)
    assert [one.architecture for one in again] == [one.architecture for one in lost]
    assert [one.latency for one in again] == [None, None]  # another machine
    assert [t.user_attrs["retry_of"] for t in b.study.trials[4:]] == [0, 1]
    assert a.is_finished(0)
    a.set_latency(1, result_of(lost[1]).latency, {}, "here")  # no error
    a.report(0, 10, 0.5)
    measure(b, again[:1])
    assert measure(a, lost) == [False, False]
    assert "#1 was handed to another worker, as this one gave no sign of life for 60 seconds" in caplog.text
    measure(b, again[1:])
    assert a.ask(4, 1) == b.ask(4, 1) == []
    assert numbers(a.trials()) == numbers(lines(b)) == [2, 3, 4, 5]
    assert len({one.architecture for one in a.trials()}) == 4


def test_a_dead_workers_results_count_and_its_trial_is_tried_once(worker, clock):
    a, b, c = worker("a"), worker("b"), worker("c")
    pool = a.ask(2, 1)
    measure(a, pool[:1])
    outlive(clock, b, c)
    first, second = b.ask(4, 1), c.ask(4, 1)
    assert first[0].architecture == pool[1].architecture
    assert not {one.architecture for one in first + second} & {pool[0].architecture}
    assert len(first + second) == len({one.architecture for one in first + second}) == 3
    measure(b, first)
    measure(c, second)
    assert b.ask(4, 1) == []


def test_a_result_that_is_told_while_others_take_its_worker_for_dead_counts(worker, clock, monkeypatch):
    a, b = worker("a"), worker("b")
    (asked,) = a.ask(1, 1)
    measure(b, b.ask(4, 1))
    kill = b._kill
    monkeypatch.setattr(b, "_kill", lambda dying: (measure(a, [asked]), kill(dying)))
    outlive(clock, b)
    assert b.ask(4, 1) == []
    assert numbers(b.trials()) == [0, 1, 2, 3]
    assert b.trials()[0].is_complete


def test_a_worker_that_ends_frees_its_trials_at_once(worker):
    a, b = worker("a"), worker("b")
    lost = a.ask(2, 1)
    a.close()
    assert [one.architecture for one in b.ask(4, 1)[:2]] == [one.architecture for one in lost]


def test_a_worker_started_again_has_its_pool_as_it_was(worker):
    a = worker("a")
    pool = a.ask(3, 1)
    measure(a, pool[:1])
    again = worker("a")
    assert again.worker == a.worker
    asked = again.ask(3, 1)
    assert shapes(asked) == shapes(pool)  # the finished one too: the checkpoint has it
    assert [one.state for one in asked] == ["complete", "running", "running"]


def die_while_choosing(study, monkeypatch, writes):
    """Let a worker be killed after some of a choice's writes, its lease in its hand."""
    left = [writes]
    write = study.storage.set_trial_param

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    monkeypatch.setattr(study.storage, "set_trial_param", dying)
    with pytest.raises(KeyboardInterrupt):
        study.ask(4, 2)


@pytest.mark.parametrize("writes", [0, 2, 5, 7])
def test_a_worker_killed_in_mid_choice_goes_on_or_is_replaced(worker, clock, monkeypatch, writes):
    a, b = worker("a"), worker("b")
    die_while_choosing(a, monkeypatch, writes)
    assert b.ask(4, 2) is None  # the choice is another's
    outlive(clock, b)
    pool = b.ask(4, 2)
    assert len(pool) == len({one.architecture for one in pool}) == 4
    assert {one.episode for one in pool} == {0}
    measure(b, pool)
    assert [one.episode for one in b.ask(4, 2)] == [1] * 4
    assert worker("a").ask(4, 2) is None


def test_a_choice_that_was_cut_short_is_not_completed_with_what_came_in_since(worker, monkeypatch):
    a, b = worker("a", "tpe", asynchronous=True), worker("b", "tpe", asynchronous=True)
    pool = b.ask(4, 4)
    for writes in (2, 5):
        die_while_choosing(a, monkeypatch, writes)
        measure(b, pool[:1])
        del pool[:1]
        a = worker("a", "tpe", asynchronous=True)
        see_alive(a, b)
        found = a.ask(4, 4)
        measure(a, found)
    chosen = [one for one in b.trials() + b.running() if one.architecture in SPACE]
    assert len(chosen) == len({one.architecture for one in chosen})
    assert any(is_killed(t) and 0 < len(t.params) < len(SPACE.choices) for t in b.study.trials)


def test_a_suspended_worker_that_lost_the_choice_chooses_nothing(worker, clock, monkeypatch):
    a, b = worker("a"), worker("b")
    create, pools = a._create, []

    def suspended(*args, **kwargs):
        if not pools:
            outlive(clock, b)
            pools.append(b.ask(4, 1))
        create(*args, **kwargs)

    monkeypatch.setattr(a, "_create", suspended)
    assert a.ask(4, 1) is None
    see_alive(a, b)
    later = a.ask(4, 1) or []
    assert len(pools[0]) in (2, 4)
    both = [one.architecture for one in pools[0] + later]
    assert len(both) == len(set(both))
    measure(b, pools[0])
    measure(a, later)
    while pool := a.ask(4, 1):
        measure(a, pool)
    found = [one.architecture for one in a.trials()]
    assert len(found) == len(set(found))


def test_who_waits_writes_nothing(worker):
    a, b = worker("a"), worker("b")
    a.ask(4, 1)
    b.ask(4, 1)
    measure(b, b.ask(4, 1))
    before = len(b.storage.get_all_trials(b.leases.study_id))
    for _ in range(3):
        assert b.ask(4, 1) is None
    assert len(b.storage.get_all_trials(b.leases.study_id)) == before


def test_episodes_may_be_added_to_a_search_that_has_ended(worker):
    a = worker("a")
    measure(a, a.ask(4, 1))
    assert a.ask(4, 1) == []
    a.close()
    b = worker("b")
    assert b.ask(4, 1) == []
    assert [one.episode for one in b.ask(4, 2)] == [1] * 4


def test_results_of_another_search_are_added_once_by_whichever_worker(worker):
    studies = [worker(name) for name in "ab"]
    earlier = [trial(0, SPACE.decode(SPACE.encode(one))) for one in list(SPACE)[:5]]
    for study in studies:
        study.poll_seconds = 0.01
    threads = [threading.Thread(target=study.add, args=(earlier,)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.architecture for one in studies[0].trials()] == [one.architecture for one in earlier]
    assert {one.episode for one in lines(studies[1])} == {-1}


def test_another_configuration_is_refused_and_writes_nothing(worker, tmp_path):
    worker("a")
    other = {"teacher": "tiny", "training": {"learning_rate": 0.1}}
    with pytest.raises(ValueError, match=r"(?s)study_name='kdnas' .*training.learning_rate: 0.001 there, 0.1 now"):
        worker("b", configuration=other)
    assert list((tmp_path / "b").iterdir()) == []
    assert worker("b", configuration=other, study_name="another").ask(1, 1)


def test_lines_that_the_study_does_not_have_are_not_lost(worker, tmp_path):
    (tmp_path / "a").mkdir()
    view = tmp_path / "a" / "architectures.jsonl"
    view.write_text(trial(0).to_json() + "\n")
    with pytest.raises(ValueError, match=r"output_dir=.* holds 1 measured architecture.*warm_start"):
        worker("a")
    assert view.read_text() == trial(0).to_json() + "\n"


def test_what_is_of_the_whole_search_is_one_workers(worker):
    a, b = worker("a"), worker("b")
    assert a.acquire("full distillation")
    see_alive(a, b)
    assert b.acquire("full distillation") is False
    a.remember("design", [1, 2.5])
    assert b.remembered("design") == [1, 2.5]
    a.close()
    assert b.acquire("full distillation")
    b.finish("full distillation")
    b.close()
    assert worker("c").acquire("full distillation") is False
    assert b.holder("full distillation") == b.worker


def test_a_worker_ends_soon_when_the_storage_is_away(worker, monkeypatch):
    a = worker("a")
    a.ask(4, 1)

    def away(*args):
        raise OSError("stale file handle")

    monkeypatch.setattr(MendedJournal, "read_logs", away)
    monkeypatch.setattr(MendedJournal, "append_logs", away)
    started = time.monotonic()
    a.close()
    assert time.monotonic() - started < 60
    monkeypatch.undo()
    assert [t.state for t in a.study.trials] == [TrialState.RUNNING] * 4


def test_a_shared_study_is_an_optuna_study(worker, tmp_path):
    a = worker("a")
    measure(a, a.ask(4, 1))
    study = optuna.load_study(study_name="kdnas", storage=open_storage(f"journal:{tmp_path}/study.log"))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4
    assert study.best_value == max(one.reward for one in a.trials())

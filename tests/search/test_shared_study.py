"""A study that workers share: the same candidates as one alone, one result each, none lost."""

import shutil
import time

import optuna
import pytest
from optuna.trial import TrialState
from records import SPACE, record

from kdnas_hf.search import Ledger, SearchStudy, SharedStudy, make_controller
from kdnas_hf.search.shared_study import worker_of

pytestmark = pytest.mark.long  # depends on no line of transformers

CONFIGURATION = {"teacher": "tiny", "training": {"learning_rate": 1e-3}}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def worker(tmp_path):
    opened = []

    def start(name, configuration=CONFIGURATION, timeout=60.0, controller="random"):
        (tmp_path / name).mkdir(exist_ok=True)
        study = SharedStudy(
            tmp_path / name,
            make_controller(controller, SPACE, 4, seed=0),
            f"journal:{tmp_path}/study.log",
            configuration,
            worker_timeout=timeout,
        )
        study.begin(None)
        opened.append(study)
        return study

    yield start
    for study in opened:
        study.close()


def measured(number, architecture, episode=0):
    layers = architecture.num_hidden_layers
    return record(number, architecture, r2=0.1 * layers, latency=4.0 * layers, episode=episode)


def measure(study, chosen, numbers, episode=0):
    return [study.record(measured(number, chosen[number], episode)) for number in numbers]


@pytest.mark.parametrize("controller", ["random", "lstm"])
def test_two_workers_measure_what_one_measures_alone(worker, tmp_path, controller):
    workers = [worker("a", controller=controller), worker("b", controller=controller)]
    alone = SearchStudy(tmp_path, make_controller(controller, SPACE, 4, seed=0))
    for episode in range(2):
        chosen = alone.candidates(episode)
        measure(alone, chosen, chosen, episode)
        shared = [study.candidates(episode) for study in workers]
        assert shared == [chosen, chosen]
        taken = [study.take(chosen) for study in workers]
        assert [len(numbers) for numbers in taken] == [2, 2]  # a fair share
        assert sorted([*taken[0], *taken[1]]) == sorted(chosen)
        measure(workers[0], chosen, taken[0], episode)
        assert workers[0].take(chosen) == []  # the others' are still at work
        measure(workers[1], chosen, taken[1], episode)
        assert [study.take(chosen) for study in workers] == [None, None]
    expected = alone.ledger.read()
    for study in workers:
        assert study.records() == expected
        study.close()
        assert study.ledger.read() == expected


def test_pool_size_is_how_many_a_worker_takes_at_a_time(worker):
    a, b = worker("a"), worker("b")
    chosen = a.candidates(0)
    first = a.take(chosen, pool_size=1)
    assert a.take(chosen, pool_size=1) == first  # not before it has a result
    assert len(b.take(chosen, pool_size=3)) == 3
    measure(a, chosen, first)
    assert a.take(chosen, pool_size=1) == []


def test_a_result_that_was_recorded_in_a_claim_alone_is_not_lost(worker):
    a, b = worker("a"), worker("b")
    chosen = a.candidates(0)
    (number,) = a.take(chosen, pool_size=1)
    a.claims.finish(f"candidate {number}", measured(number, chosen[number]).to_json())  # and dies
    b.take(chosen, pool_size=1)
    assert b.study.trials[number].state == TrialState.COMPLETE
    assert [r.number for r in b.records()] == [number]


def test_a_suspended_workers_result_does_not_count_twice(worker):
    a, b = worker("a", timeout=0.6), worker("b", timeout=0.6)
    chosen = a.candidates(0)
    a.take(chosen, pool_size=4)
    a.claims.workers._stopped.set()  # its heart stands still
    end = time.monotonic() + 10
    while not (taken := b.take(chosen, pool_size=4)) and time.monotonic() < end:
        time.sleep(0.05)
    assert taken == list(chosen)
    measure(b, chosen, taken[:1])
    assert measure(a, chosen, chosen) == [False] * 4
    assert [r.number for r in a.records()] == taken[:1]
    assert Ledger(a.ledger.path).read() == []


def test_a_worker_started_again_has_its_pool_as_it_was(worker):
    a = worker("a")
    chosen = a.candidates(0)
    taken = a.take(chosen, pool_size=3)
    measure(a, chosen, taken[:1])
    again = worker("a")
    assert again.worker == a.worker
    assert again.take(chosen, pool_size=3) == taken  # the finished one too: the checkpoint has it


def test_another_configuration_is_refused_and_writes_nothing(worker, tmp_path):
    worker("a")
    with pytest.raises(ValueError, match=r"training.learning_rate: 0.001 there, 0.1 now"):
        worker("b", configuration={"teacher": "tiny", "training": {"learning_rate": 0.1}})
    assert not (tmp_path / "b" / "architectures.jsonl").exists()


def test_lines_that_the_study_does_not_have_are_not_lost(worker, tmp_path):
    (tmp_path / "a").mkdir()
    Ledger(tmp_path / "a" / "architectures.jsonl").append(record(0))
    with pytest.raises(ValueError, match=r"output_dir=.* holds 1 measured architecture.*warm_start"):
        worker("a")
    assert Ledger(tmp_path / "a" / "architectures.jsonl").read() == [record(0)]


def test_a_copy_of_a_run_directory_is_another_worker(tmp_path):
    (tmp_path / "a").mkdir()
    first = worker_of(tmp_path / "a", "kdnas")
    assert worker_of(tmp_path / "a", "kdnas") == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert worker_of(tmp_path / "b", "kdnas") != first
    with pytest.raises(ValueError, match="is of a worker of study_name='kdnas'"):
        worker_of(tmp_path / "a", "other")


def test_one_worker_distils_and_another_takes_over_when_it_ends(worker):
    a, b = worker("a", timeout=0.6), worker("b", timeout=0.6)
    assert a.may_distil()
    end = time.monotonic() + 10
    while (may := b.may_distil()) is None and time.monotonic() < end:
        time.sleep(0.05)
    assert may is False
    a.close()
    assert b.may_distil()
    b.distilled()
    assert worker("c").may_distil() is False

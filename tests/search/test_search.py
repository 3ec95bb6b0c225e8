"""A whole search: what it leaves behind, and that nothing is lost when it is killed."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import optuna
import pytest
import torch
import yaml
from filelock import FileLock
from optuna.trial import TrialState
from tiny_search import SPACE, tiny_search
from transformers import AutoModel, AutoTokenizer

from kdnas_hf import (
    Architecture,
    ArchitectureSearch,
    KDNASModel,
    NASSearchCallback,
    SearchArguments,
    SearchError,
    SearchSpace,
)
from kdnas_hf.data.batching import text_lengths
from kdnas_hf.distillation.member import Member
from kdnas_hf.search import REWARDS, SearchStudy, Trial
from kdnas_hf.search import confirm as confirm_module
from kdnas_hf.search.mini_kd import MiniKD
from kdnas_hf.students import SentenceEncoder
from kdnas_hf.utils.sentence_head import Normalize, SentenceHead
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer

SCRIPT = Path(__file__).parent / "tiny_search.py"


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tiny_search(folder).run()


def trials_of(folder):
    return [Trial.from_json(line) for line in (folder / "architectures.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    return tiny_search(tmp_path_factory.mktemp("confirmed"), num_episodes=2, confirm=3).run()


def outcome(folder):
    """What a search measured, without what depends on the clock."""
    return [(t.number, t.architecture, t.loss, t.quality, t.latency.student_ms, t.reward) for t in trials_of(folder)]


def last_error(result):
    """L of the full distillation, of a single student."""
    return [entry for entry in result.log_history if "eval_error" in entry][-1]["eval_error"]


def test_run_directory_is_as_documented(finished):
    folder = finished.folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "study.db", "architectures.jsonl", "report.md", "pareto.png", "student"} <= names
    assert not {"episodes", "confirmation", "distillation"} & names  # checkpoints are gone when their work is done
    assert yaml.safe_load((folder / "config.yaml").read_text())["choice"]["num_episodes"] == 3
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_every_line_of_the_architectures_is_a_trial_of_the_study(finished):
    study = optuna.load_study(study_name="kdnas", storage=f"sqlite:///{finished.folder}/study.db")
    trials = {trial.number: trial for trial in study.trials}
    lines = [json.loads(line) for line in (finished.folder / "architectures.jsonl").read_text().splitlines()]
    assert len(lines) == 9
    for line in lines:
        trial = trials[line["number"]]
        assert trial.state == TrialState.COMPLETE
        assert trial.value == line["reward"]
        assert trial.params == line["architecture"]
        assert trial.user_attrs["episode"] == line["episode"]
        assert {str(step): value for step, value in trial.intermediate_values.items()} == line["readings"]
        assert line["readings"]  # progress was reported
        latency = line["latency"]
        assert line["speedup"] == pytest.approx(latency["teacher_ms"] / latency["student_ms"])
        assert line["quality"] == pytest.approx(line["readings"][max(line["readings"], key=int)])
        assert line["reward"] == pytest.approx(
            line["quality"] * (latency["student_ms"] / (0.6 * latency["teacher_ms"])) ** REWARDS["quality"].alpha
        )
    assert len({tuple(line["architecture"].items()) for line in lines}) == 9


def test_the_best_confirmed_architecture_is_distilled_and_loads(confirmed):
    finished, reward = confirmed, REWARDS["quality"]
    best = max(finished.confirmations, key=lambda one: reward(one.quality, one.latency))
    (student,) = finished.students
    assert student.architecture == best.architecture
    assert student.quality > best.quality  # twice the text
    assert (student.latency, student.costs) == (best.latency, best.costs)
    path = finished.folder / student.path
    model = AutoModel.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert isinstance(model, KDNASModel)
    assert sum(p.numel() for p in model.parameters()) == student.parameters == best.costs["parameters"]
    states = model(**tokenizer("bap dat", return_tensors="pt")).last_hidden_state
    assert states.shape[-1] == student.architecture.hidden_size


@pytest.mark.parametrize("losses", ["hidden_states", "sentence_vectors"])
def test_the_students_of_an_embedder_are_embedders(tmp_path, losses):
    head = SentenceHead("mean", [Normalize()], {"query": "bap "}, "query")
    found = tiny_search(tmp_path, sentence_head=head, losses=[losses], num_episodes=1, candidates_per_episode=2).run()
    (student,) = found.students
    encoder = SentenceEncoder.from_pretrained(found.folder / student.path)
    assert encoder.prompts == head.prompts
    texts = make_texts(40, seed=2)
    teacher = SentenceEncoder(make_teacher_model().eval(), make_tokenizer(), head)
    cosines = (encoder.encode(texts) * teacher.encode(texts)).sum(1)
    assert cosines.mean() > 0.5
    if losses == "sentence_vectors":  # what is searched for is what is kept of the vector
        assert all(0 < trial.quality < 1 for trial in found.trials)
        assert student.quality_per_layer == {}


def test_the_best_are_confirmed_with_further_seeds_beside_rules_of_thumb_and_random_shapes(confirmed):
    finished = confirmed
    origins = [one.origin for one in finished.confirmations]
    assert origins.count("search") == 3
    assert origins.count("random") == 3
    assert len(origins) > 6
    assert all(len(one.qualities) == 2 for one in finished.confirmations)
    measured = {trial.number: trial for trial in finished.trials}
    for one in finished.confirmations:
        if one.origin == "search":
            assert one.architecture == measured[one.trial].architecture
            assert measured[one.trial].quality not in one.qualities  # other seeds
        else:
            assert one.trial is None
    rules = {one.architecture for one in finished.confirmations if one.is_rule}
    assert len({one.architecture for one in finished.confirmations} | rules) >= len(origins) - len(rules)


def test_without_a_confirmation_the_best_measured_is_distilled(finished, tmp_path):
    result = tiny_search(tmp_path, confirm=0, controller="random", num_episodes=1).run()  # too few for a model
    best = max(result.trials, key=lambda trial: trial.reward)
    assert result.students[0].architecture == best.architecture
    assert result.confirmations == []


def test_a_confirmation_that_dies_goes_on_where_it_was(confirmed, tmp_path, monkeypatch):
    measure, seeds = MiniKD.measure, []

    def dies(self, architectures, folder, seed):
        if seeds:
            raise KeyboardInterrupt
        seeds.append(seed)
        return measure(self, architectures, folder, seed)

    monkeypatch.setattr(MiniKD, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny_search(tmp_path, num_episodes=2, confirm=3).run()
    monkeypatch.setattr(MiniKD, "measure", lambda self, a, f, seed: seeds.append(seed) or measure(self, a, f, seed))
    again = tiny_search(tmp_path, num_episodes=2, confirm=3).run()
    assert seeds == [2, 3]
    for one, other in zip(again.confirmations, confirmed.confirmations, strict=True):
        assert (one.architecture, one.origin) == (other.architecture, other.origin)
        assert one.qualities == pytest.approx(other.qualities, rel=1e-4)


@pytest.mark.parametrize("seed", [2, 3])
def test_a_confirmation_that_dies_while_checkpoints_are_removed_is_not_repeated(confirmed, tmp_path, monkeypatch, seed):
    rmtree, measure, seeds = shutil.rmtree, MiniKD.measure, []

    def dies(path, *args, **kwargs):
        if f"seed_{seed}" in Path(path).name:
            first = next(file for file in sorted(Path(path).rglob("*")) if file.is_file())
            first.unlink()  # half removed
            raise KeyboardInterrupt
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(MiniKD, "measure", lambda self, a, f, seed: seeds.append(seed) or measure(self, a, f, seed))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            tiny_search(tmp_path, num_episodes=2, confirm=3).run()
    again = tiny_search(tmp_path, num_episodes=2, confirm=3).run()
    assert seeds == [2, 3]
    for one, other in zip(again.confirmations, confirmed.confirmations, strict=True):
        assert one.qualities == pytest.approx(other.qualities, rel=1e-4)
    assert not (tmp_path / "confirmation").exists()


def test_report_says_whether_the_search_was_worth_it(confirmed, finished):
    assert "best rule of thumb" in (confirmed.folder / "report.md").read_text()
    assert "Not known: the winner was not compared" in (finished.folder / "report.md").read_text()


def test_report_names_the_front_the_recommendations_and_the_cost(finished):
    report = (finished.folder / "report.md").read_text()
    assert "| at least 2x faster than the teacher |" in report
    assert "| at least 10x faster than the teacher |" in report
    assert "mini-KD of all candidates" in report
    for trial in finished.trials:
        assert f"| #{trial.number} |" in report


def test_a_finished_search_is_not_done_again(finished):
    modified = (finished.folder / "student" / "model.safetensors").stat().st_mtime_ns
    before = outcome(finished.folder)
    again = tiny_search(finished.folder).run()
    assert (finished.folder / "student" / "model.safetensors").stat().st_mtime_ns == modified
    assert outcome(finished.folder) == before
    assert again.students == finished.students


def test_another_configuration_is_refused(finished):
    with pytest.raises(ValueError, match=r"search.mini_kd_epochs: 2 there, 4 now"):
        tiny_search(finished.folder, mini_kd_epochs=4).run()
    with pytest.raises(ValueError, match="resume is off"):
        tiny_search(finished.folder, resume=False).run()


def test_more_episodes_go_on_where_a_finished_search_ended(finished, tmp_path):
    tiny_search(tmp_path, num_episodes=1).run()
    first = outcome(tmp_path)
    result = tiny_search(tmp_path, num_episodes=3).run()
    assert outcome(tmp_path)[:3] == first
    assert [entry[:2] for entry in outcome(tmp_path)] == [entry[:2] for entry in outcome(finished.folder)]
    assert result.students[0].architecture == finished.students[0].architecture


@pytest.mark.long
def test_a_pool_of_any_size_measures_the_same(finished, tmp_path):
    tiny_search(tmp_path, pool_size=1).run()
    for one, many in zip(outcome(tmp_path), outcome(finished.folder), strict=True):
        assert one[:2] == many[:2]
        assert one[2:] == pytest.approx(many[2:], rel=1e-4)


def wait_for(condition, process, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition() or process.poll() is not None:
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError("the search did not get there")


@pytest.mark.long
def test_a_killed_search_resumes_with_the_same_candidates_and_the_same_result(finished, tmp_path):
    """SIGKILL before the first result, in mid-episode, between episodes and during the full distillation."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    ledger = tmp_path / "architectures.jsonl"

    def lines():
        return len(ledger.read_bytes().splitlines()) if ledger.exists() else 0

    def checkpoint(folder):
        return any((tmp_path / folder).glob("**/trainer_state.json"))

    moments = [
        lambda: (tmp_path / "study.db").exists() and checkpoint("episodes"),
        lambda: lines() >= 3,
        lambda: lines() >= 6 and checkpoint("episodes"),
        lambda: checkpoint("distillation"),
    ]
    seen: list[str] = []
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path, "lstm", "0.05"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for(moment, process)
        assert process.poll() is None, process.stdout.read().decode()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        now = ledger.read_text().splitlines() if ledger.exists() else []
        assert now[: len(seen)] == seen  # what the ledger has shown is never lost
        seen = now
    tiny_search(tmp_path).run()
    resumed, whole = outcome(tmp_path), outcome(finished.folder)
    assert [entry[:2] for entry in resumed] == [entry[:2] for entry in whole]
    for one, other in zip(resumed, whole, strict=True):
        assert one[2:] == pytest.approx(other[2:], rel=1e-3)
    result = json.loads((tmp_path / "distillation.json").read_text())
    assert result[0]["quality"] == pytest.approx(finished.students[0].quality, abs=1e-3)
    assert result[0]["tokens"] == finished.students[0].tokens


def test_a_search_that_dies_between_two_records_measures_nothing_again(finished, tmp_path, monkeypatch):
    tell = SearchStudy.tell
    told = []

    def dies(self, trial):
        if len(told) == 1:
            raise KeyboardInterrupt
        told.append(trial.number)
        return tell(self, trial)

    monkeypatch.setattr(SearchStudy, "tell", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny_search(tmp_path).run()
    assert len(outcome(tmp_path)) == 1
    monkeypatch.setattr(SearchStudy, "tell", tell)
    steps = []
    monkeypatch.setattr(NASSearchCallback, "on_step_begin", lambda *args, **kwargs: steps.append(1), raising=False)
    tiny_search(tmp_path, num_episodes=3).run()
    for one, other in zip(outcome(tmp_path), outcome(finished.folder), strict=True):
        assert one[:2] == other[:2]
        assert one[2:] == pytest.approx(other[2:], rel=1e-4)
    assert len(steps) == 2 * 10  # of two episodes: the first one's last checkpoint was only evaluated


@pytest.mark.long
def test_a_full_disk_is_named_and_the_search_resumes_to_the_same_result(finished, tmp_path, monkeypatch):
    write = SearchStudy.write_view

    def full(self):
        if len(self.trials()) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self)

    monkeypatch.setattr(SearchStudy, "write_view", full)
    with pytest.raises(SearchError, match="the disk is full, of output_dir=.*start the same search again"):
        tiny_search(tmp_path).run()
    monkeypatch.setattr(SearchStudy, "write_view", write)
    tiny_search(tmp_path).run()
    for one, other in zip(outcome(tmp_path), outcome(finished.folder), strict=True):
        assert one[:2] == other[:2]
        assert one[2:] == pytest.approx(other[2:], rel=1e-4)


def test_an_error_of_another_kind_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def broken(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(SearchStudy, "write_view", broken)
    with pytest.raises(PermissionError):
        tiny_search(tmp_path, num_episodes=1, candidates_per_episode=1, mini_kd_epochs=1).run()


def test_a_directory_in_use_is_refused(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="is in use by another process"):
        tiny_search(tmp_path).run()


def test_text_that_is_too_long_for_a_student_is_refused(tmp_path):
    search = tiny_search(tmp_path)
    long = datasets.Dataset.from_dict({"input_ids": [[5] * 600]})
    given = search.setting
    datasets_of = (given.train_dataset, given.proxy_dataset, long)
    with pytest.raises(ValueError, match="a text of 600 tokens; truncate to max_length at most 512"):
        ArchitectureSearch(given.teacher, given.space, *datasets_of, given.args, given.training_args)


def test_several_students_are_distilled(tmp_path):
    result = tiny_search(tmp_path, num_episodes=1, top_k=2).run()
    assert [student.path for student in result.students] == ["student", "student_2"]
    assert result.students[0].reward >= result.students[1].reward
    for student in result.students:
        config = AutoModel.from_pretrained(tmp_path / student.path).config
        assert config.hidden_size == student.architecture.hidden_size


def test_a_search_ends_when_its_space_is_exhausted(tmp_path):
    space = SearchSpace.from_dict({**SPACE, "num_hidden_layers": [1], "hidden_act": ["gelu"]})
    result = tiny_search(tmp_path, space=space).run()
    assert len(result.trials) == len(space) == 4


def test_a_diverging_candidate_is_recorded_and_the_search_goes_on(tmp_path, monkeypatch):
    from kdnas_hf.students import starts

    create = starts.create_student

    def poisoned(config, *args, **kwargs):
        student = create(config, *args, **kwargs)
        if config.hidden_size == 16:
            next(student.encoder.parameters()).data.fill_(float("nan"))
        return student

    monkeypatch.setattr(starts, "create_student", poisoned)
    result = tiny_search(tmp_path).run()
    states = {(t.architecture.hidden_size, t.state, t.failure) for t in result.trials}
    assert states == {(8, "complete", None), (16, "failed", "diverged")}
    assert all(t.reward is None and t.quality is None for t in result.trials if t.state == "failed")
    assert result.students[0].architecture.hidden_size == 8


def test_when_no_architecture_can_be_fast_enough_it_says_so_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(MiniKD, "search", None)
    with pytest.raises(ValueError, match="no architecture of the space .*10000x.*smaller speedup"):
        tiny_search(tmp_path, speedup=10000.0, num_episodes=1).run()


def test_what_misses_a_hard_budget_is_never_trained(finished, tmp_path, monkeypatch):
    speedups = sorted(trial.speedup for trial in finished.trials)
    needed, trained, train = speedups[len(speedups) // 2], [], MiniKD.search

    def search(self, architectures, folder, callback):
        trained.extend(architectures.values())
        train(self, architectures, folder, callback)

    monkeypatch.setattr(MiniKD, "search", search)
    result = tiny_search(tmp_path, speedup=needed).run()
    fast = {trial.architecture for trial in result.trials if trial.speedup >= needed}
    assert trained
    assert set(trained) <= fast
    assert {trial.state for trial in result.trials if trial.architecture in trained} == {"complete"}
    slow = [trial for trial in result.trials if trial.speedup < needed]
    assert all((trial.failure, trial.quality, trial.tokens) == ("too slow", None, 0) for trial in slow)
    assert result.students[0].speedup >= needed


def test_budgets_of_the_shape_need_no_timing(tmp_path):
    limit = 3000
    result = tiny_search(tmp_path, max_encoder_parameters=limit, num_episodes=2).run()
    assert all(trial.architecture.encoder_parameters <= limit for trial in result.trials)
    assert all(trial.is_complete for trial in result.trials)


def test_budgets_each_get_the_architecture_that_is_best_within_them(tmp_path):
    budgets = [1.5, 3.0, 1e6]  # nothing is a million times faster
    result = tiny_search(tmp_path, speedup_budgets=budgets, num_train_epochs=1, num_episodes=2, confirm=2).run()

    def best(speedup):
        able = [one for one in result.confirmations if one.latency.speedup >= speedup]
        return max(able, key=lambda one: one.quality).architecture

    assert {student.architecture for student in result.students} == {best(1.5), best(3.0)}
    assert len(list(tmp_path.glob("student*"))) == len(result.students)


@pytest.mark.parametrize("budgets", [[], [0.0], [4.0, -1.0]])
def test_impossible_budgets_are_refused(budgets):
    with pytest.raises(ValueError, match="speedup_budgets"):
        SearchArguments(speedup_budgets=budgets)


@pytest.mark.long
@pytest.mark.parametrize("controller", ["tpe", "gp", "nsga2", "random"])
def test_every_controller_runs_a_search(tmp_path, controller):
    result = tiny_search(
        tmp_path, controller=controller, num_episodes=2, candidates_per_episode=2, mini_kd_epochs=1
    ).run()
    assert len(result.trials) == 4


def test_misfits_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="teacher layer 9"):
        tiny_search(tmp_path, layer_mapping="1:9")
    with pytest.raises(ValueError, match="student layer 3, but the student has layers 1 to 1"):
        tiny_search(tmp_path, layer_mapping="3:4")
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_whose_states_do_not_fit_is_refused_before_the_search(tmp_path):
    """Not after hours, when the full distillation begins."""
    search = tiny_search(tmp_path)
    layers = len(search.mini_kd.required.hidden_states)
    size = search.setting.teacher.dimensions.hidden_size

    def gigabytes(*texts):
        return sum(sum(text_lengths(each)) for each in texts) * layers * size * 4 / 1e9

    fits_proxy = gigabytes(search.setting.proxy_dataset, search.setting.heldout_dataset) * 1.01
    assert fits_proxy < gigabytes(search.setting.train_dataset, search.setting.heldout_dataset)
    with pytest.raises(ValueError, match="cache_teacher_states=true: they would take .* more than cache_max_gb"):
        tiny_search(tmp_path, cache_teacher_states="true", cache_max_gb=fits_proxy)
    assert list(tmp_path.iterdir()) == []


def test_one_line_is_logged_for_each_candidate(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="kdnas_hf"):
        tiny_search(tmp_path, num_episodes=1).run()
    lines = [message for message in caplog.messages if message.startswith("#")]
    assert len(lines) == 3
    assert all("reward" in line and "ms = " in line for line in lines)


@pytest.mark.parametrize("pool_size", [0, 1])
def test_a_candidate_that_does_not_fit_into_memory_has_failed_and_the_others_go_on(tmp_path, monkeypatch, pool_size):
    backward = Member.backward

    def short_of_memory(self, *args, **kwargs):
        if self.student.config.num_hidden_layers > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(Member, "backward", short_of_memory)
    trials = tiny_search(tmp_path, pool_size=pool_size, confirm=0).run().trials
    failures = {trial.failure for trial in trials if trial.architecture.num_hidden_layers > 1}
    assert failures <= {"out of memory"}
    assert {trial.state for trial in trials if trial.architecture.num_hidden_layers == 1} == {"complete"}


def test_a_search_needs_no_hidden_states(tmp_path):
    search = tiny_search(tmp_path, losses=["relations"])
    result = search.run()
    assert search.setting.quality.label == "1 - L"
    assert all(trial.is_complete and 0 < trial.loss < 1 for trial in result.trials)
    assert result.students[0].quality == pytest.approx(1 - last_error(result))


def test_the_full_distillation_may_have_stages_of_other_losses(tmp_path):
    stages = [
        {"losses": "hidden_states", "max_steps": 4},
        {"losses": "relations", "max_steps": 4, "trains": "layers:1"},
    ]
    result = tiny_search(tmp_path, num_episodes=1, stages=stages).run()
    assert all(trial.is_complete for trial in result.trials)
    assert result.students[0].quality == pytest.approx(1 - last_error(result))  # of the last stage's relations
    assert (tmp_path / "student" / "config.json").is_file()


def test_a_warm_up_in_steps_is_refused_since_a_mini_kd_has_fewer(tmp_path):
    with pytest.raises(ValueError, match="warmup_steps=10 .* give warmup_fraction"):
        tiny_search(tmp_path, warmup_steps=10)


def test_a_search_learns_by_relations_too_from_states_on_the_disk(tmp_path):
    result = tiny_search(tmp_path, losses=["hidden_states", "relations:0.5"]).run()
    assert all(trial.is_complete for trial in result.trials)
    assert not (tmp_path / "teacher_states").exists()


@pytest.mark.parametrize(
    ("depths", "mapping", "compared"),
    [([1, 2], "uniform", {"one layer", "two layers"}), ([2], "1:2,2:4", {"two layers", "three layers"})],
)
def test_rules_of_thumb_that_learn_from_what_is_not_stored_are_not_compared(
    depths, mapping, compared, tmp_path, monkeypatch
):
    rules = {"three layers": Architecture(3, 2, 16, 32), "one layer": Architecture(1, 4, 32, 32)}
    rules |= {"two layers": Architecture(2, 2, 16, 24)}
    monkeypatch.setattr(confirm_module, "rules_of_thumb", lambda *given: rules)
    result = tiny_search(
        tmp_path,
        space=SearchSpace.from_dict(SPACE | {"num_hidden_layers": depths}),
        layer_mapping=mapping,
        cache_teacher_states="true",
        num_episodes=1,
        mini_kd_epochs=1,
        confirm=1,
        confirm_seeds=1,
    ).run()
    assert {one.origin for one in result.confirmations if one.is_rule} == compared

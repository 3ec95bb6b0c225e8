"""A search that begins with another's results: nothing is measured twice, and misfits are refused."""

from dataclasses import replace

import optuna
import pytest
import yaml
from records import SPACE, trial
from tiny_search import tiny_search

from kdnas_hf import SearchSpace
from kdnas_hf.search import SearchStudy, make_controller
from kdnas_hf.search.trial import DIVERGED, OUT_OF_MEMORY, TOO_SLOW
from kdnas_hf.search.warm_start import read_warm_start

CONFIGURATION = {"teacher": "tiny", "texts": {"train": "x"}, "search": {"reward_alpha": -0.1}, "training": {"seed": 1}}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(folder, controller="random", seed=0):
    folder.mkdir(exist_ok=True)
    return SearchStudy(folder, make_controller(controller, SPACE, 5, seed=seed), CONFIGURATION)


def measured_study(folder, failures=()):
    study = open_study(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    for asked in study.ask(5, 1):
        state = {"state": "failed", "failure": failures[asked.number]} if asked.number < len(failures) else {}
        study.tell(trial(asked.number, asked.architecture, 0.1 + 0.01 * asked.number, **state))
    return study


def test_results_come_before_the_first_episode_and_are_not_candidates_again(tmp_path):
    before = measured_study(tmp_path / "before")
    earlier = read_warm_start(str(tmp_path / "before"), SPACE, CONFIGURATION)
    study = open_study(tmp_path / "now", "lstm", 3)
    study.add(earlier)
    assert [(one.number, one.episode) for one in study.trials()] == [(number, -1) for number in range(5)]
    pool = study.ask(5, 1)
    assert [(one.number, one.episode) for one in pool] == [(number, 0) for number in range(5, 10)]
    assert not {one.architecture for one in before.trials()} & {one.architecture for one in pool}
    assert [one.reward for one in study.trials()] == [one.reward for one in before.trials()]
    again = open_study(tmp_path / "now", "lstm", 3)
    again.add(earlier)
    assert again.ask(5, 1) == pool


def test_what_failed_by_its_budget_or_machine_is_not_taken_over(tmp_path):
    measured_study(tmp_path / "before", failures=[TOO_SLOW, DIVERGED, OUT_OF_MEMORY])
    earlier = read_warm_start(str(tmp_path / "before"), SPACE, CONFIGURATION)
    assert [(one.number, one.failure) for one in earlier] == [(1, DIVERGED), (3, None), (4, None)]


def test_only_members_of_the_space_are_taken_over(tmp_path):
    before = measured_study(tmp_path / "before").trials()
    choices = {"num_hidden_layers": [1, 2], "num_attention_heads": [2], "hidden_size": [8, 16]}
    small = SearchSpace.from_dict(choices | {"intermediate_size": [16, 32], "hidden_act": ["gelu", "relu"]})
    earlier = read_warm_start(str(tmp_path / "before"), small, CONFIGURATION)
    assert earlier == [one for one in before if one.architecture.num_hidden_layers < 3]
    assert 0 < len(earlier) < len(before)


def test_an_architecture_counts_once_as_it_was_measured_first(tmp_path):
    first, second, *_ = measured_study(tmp_path / "before").trials()
    view = tmp_path / "before" / "architectures.jsonl"
    view.write_text("".join(one.to_json() + "\n" for one in (first, second, replace(first, number=9, quality=0.9))))
    assert read_warm_start(str(tmp_path / "before"), SPACE, CONFIGURATION) == [first, second]


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (None, "teacher", "another"),
        (None, "texts", {"train": "y"}),
        ("search", "reward_alpha", -0.2),
        ("search", "mini_kd_epochs", 3),
        ("search", "latency_sequence_length", 64),
        ("training", "losses", ["logits"]),
    ],
)
def test_what_results_depend_on_must_be_the_same(tmp_path, section, name, value):
    measured_study(tmp_path / "before")
    now = CONFIGURATION | ({name: value} if section is None else {section: {**CONFIGURATION[section], name: value}})
    now["search"] = now["search"] | {"controller": "tpe", "num_episodes": 9}
    now["training"] = now["training"] | {"seed": 2, "max_steps": 9}
    with pytest.raises(
        ValueError, match=rf"(?s)warm_start=.* do not fit this search:\n  {section or name}.*"
    ) as caught:
        read_warm_start(str(tmp_path / "before"), SPACE, now)
    assert len(str(caught.value).splitlines()) == 3  # what is not that of a result may differ


def test_all_differences_are_named_at_once(tmp_path):
    measured_study(tmp_path / "before")
    now = {**CONFIGURATION, "teacher": "another", "search": {"reward_alpha": -0.2}}
    with pytest.raises(ValueError, match=r"(?s)teacher: 'tiny' there.*search.reward_alpha: -0.1 there, -0.2 now"):
        read_warm_start(str(tmp_path / "before"), SPACE, now)


@pytest.mark.parametrize("name", ["nothing", "before/study.db", "postgresql://user@host/database"])
def test_what_is_no_run_directory_is_refused(tmp_path, name):
    measured_study(tmp_path / "before")
    with pytest.raises(ValueError, match=r"warm_start=.* has no architectures.jsonl and config.yaml; name a run"):
        read_warm_start(str(tmp_path / name), SPACE, CONFIGURATION)


def test_a_search_that_has_begun_takes_over_what_it_does_not_have(tmp_path):
    earlier = measured_study(tmp_path / "before").trials()
    study = open_study(tmp_path / "now")  # chooses the same
    (own,) = study.ask(1, 1)
    study.tell(trial(own.number, own.architecture, 0.5))
    study.add(earlier)
    study.add(earlier)
    assert [(one.number, one.episode) for one in study.trials()] == [(0, 0)] + [(number, -1) for number in range(1, 5)]
    assert study.trials()[0].quality == 0.5
    assert {one.architecture for one in study.trials()} == {one.architecture for one in earlier}


def test_a_warm_start_trains_only_what_is_new(tmp_path):
    first = tiny_search(tmp_path / "first", num_episodes=1).run()
    second = tiny_search(
        tmp_path / "second", num_episodes=1, controller="tpe", warm_start=str(tmp_path / "first")
    ).run()
    assert [one.architecture for one in second.trials[:3]] == [one.architecture for one in first.trials]
    assert [one.reward for one in second.trials[:3]] == [one.reward for one in first.trials]
    assert [one.episode for one in second.trials] == [-1] * 3 + [0] * 3
    assert len({one.architecture for one in second.trials}) == 6

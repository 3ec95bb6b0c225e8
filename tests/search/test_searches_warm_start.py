"""A search that begins with another's results: what counts is taken, and misfits are refused."""

import optuna
import pytest
import yaml
from records import LANDSCAPE, SPACE, trial
from tiny_search import tiny_search

from kdnas_hf.search.trial import DIVERGED, OUT_OF_MEMORY, TOO_SLOW
from kdnas_hf.search.warm_start import read_warm_start

CONFIGURATION = {
    "teacher": "tiny",
    "texts": {"train": "x"},
    "search": {"reward_alpha": -0.1, "mini_kd_epochs": 2, "controller": "lstm", "num_episodes": 3},
    "training": {"seed": 1, "learning_rate": 1e-3},
}
SHAPES = list(SPACE)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def before(tmp_path):
    """The run directory of a search."""
    trials = [
        trial(0, SHAPES[0], quality=0.1),
        trial(1, SHAPES[1], quality=0.2, state="stopped"),
        trial(2, SHAPES[2], state="failed", failure=DIVERGED),
        trial(3, SHAPES[3], state="failed", failure=TOO_SLOW),
        trial(4, SHAPES[4], state="failed", failure=OUT_OF_MEMORY),
        trial(5, next(iter(LANDSCAPE)), quality=0.4),
        trial(6, SHAPES[0], quality=0.5, episode=1),
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIGURATION))
    (tmp_path / "architectures.jsonl").write_text("".join(one.to_json() + "\n" for one in trials))
    return tmp_path


def test_members_of_the_space_count_once_and_failures_of_their_own(before):
    found = read_warm_start(str(before), SPACE, CONFIGURATION)
    assert [(one.number, one.architecture) for one in found] == [(n, SHAPES[n]) for n in range(3)]
    assert found[0] == trial(0, SHAPES[0], quality=0.1)


def test_lines_after_a_damaged_one_do_not_count(before):
    view = before / "architectures.jsonl"
    first, *_ = view.read_text().splitlines(keepends=True)
    view.write_text(first + '{"number": 1, "epis')
    assert len(read_warm_start(str(before), SPACE, CONFIGURATION)) == 1


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "teacher", "another"),
        (None, "texts", {"train": "y"}),
        ("search", "reward_alpha", -0.2),
        ("search", "mini_kd_epochs", 3),
        ("search", "latency_sequence_length", 64),
        ("training", "learning_rate", 0.1),
        ("training", "losses", ["logits"]),
    ],
)
def test_what_results_depend_on_must_be_the_same(before, section, key, value):
    now = CONFIGURATION | ({key: value} if section is None else {section: {**CONFIGURATION[section], key: value}})
    with pytest.raises(ValueError, match=rf"warm_start=.*do not fit(.|\n)*{key}") as caught:
        read_warm_start(str(before), SPACE, now)
    assert "controller" not in str(caught.value)


def test_all_differences_are_named_at_once(before):
    now = {**CONFIGURATION, "teacher": "another", "search": {"reward_alpha": -0.2}}
    with pytest.raises(ValueError, match=r"(?s)teacher: .*search.mini_kd_epochs: .*search.reward_alpha: -0.1 there"):
        read_warm_start(str(before), SPACE, now)


def test_who_chose_and_for_how_long_may_differ(before):
    now = {
        **CONFIGURATION,
        "search": CONFIGURATION["search"] | {"controller": "tpe", "num_episodes": 9, "speedup": 4.0},
        "training": CONFIGURATION["training"] | {"seed": 2, "num_train_epochs": 9},
    }
    assert len(read_warm_start(str(before), SPACE, now)) == 3


def test_what_is_no_run_directory_is_refused(before, tmp_path):
    (before / "config.yaml").unlink()
    for name in (tmp_path, tmp_path / "study.db", "postgresql://user@host/database"):
        with pytest.raises(ValueError, match=r"warm_start=.* has no architectures.jsonl and config.yaml; name a run"):
            read_warm_start(str(name), SPACE, CONFIGURATION)


def test_a_warm_start_trains_only_what_is_new(tmp_path):
    first = tiny_search(tmp_path / "first", num_episodes=1).run()
    second = tiny_search(
        tmp_path / "second", num_episodes=1, controller="tpe", warm_start=str(tmp_path / "first")
    ).run()
    assert [one.architecture for one in second.trials[:3]] == [one.architecture for one in first.trials]
    assert [one.reward for one in second.trials[:3]] == [one.reward for one in first.trials]
    assert [one.episode for one in second.trials] == [-1] * 3 + [0] * 3
    assert len({one.architecture for one in second.trials}) == 6

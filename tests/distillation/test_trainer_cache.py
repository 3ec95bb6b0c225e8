"""`DistillationTrainer` on teacher states that are kept on disk: the same students, without the teacher's passes."""

import shutil

import pytest
import torch
from test_trainer import arguments, assert_same_weights, config_of, make, weights

from kdnas_hf import DistillationTrainer, TeacherStateCache
from kdnas_hf.distillation import cache_teacher_states


class Calls:
    """Counts the teacher's passes."""

    def __init__(self, teacher, monkeypatch):
        self.count = 0
        features = teacher.features

        def counted(*args, **kwargs):
            self.count += 1
            return features(*args, **kwargs)

        monkeypatch.setattr(teacher, "features", counted)


@pytest.mark.parametrize("losses", [["hidden_states"], ["hidden_states", "relations:0.5"], ["relations"]])
def test_students_learn_the_same_from_the_cache(losses, teacher, train_texts, heldout_texts, tmp_path):
    results = []
    for cached in ("false", "true"):
        trainer = make(
            teacher, tmp_path / cached, train_texts, heldout_texts, students=("deep", "wide"), losses=losses,
            max_steps=-1, num_train_epochs=2, cache_teacher_states=cached, cache_precision="float32",
            eval_strategy="epoch",
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer, "deep"), weights(trainer, "wide"), trainer.state.log_history))
    (deep, wide, log), (cached_deep, cached_wide, cached_log) = results
    assert_same_weights(deep, cached_deep, rtol=1e-3, atol=1e-5)
    assert_same_weights(wide, cached_wide, rtol=1e-3, atol=1e-5)
    evaluations = [[entry for entry in entries if "eval_loss" in entry] for entries in (log, cached_log)]
    for direct, kept in zip(*evaluations, strict=True):
        assert kept["eval_loss"] == pytest.approx(direct["eval_loss"], rel=1e-4)


def test_bf16_states_on_disk_are_exact_for_a_teacher_in_bf16(teacher, train_texts, tmp_path):
    results = []
    for cached in ("false", "true"):
        trainer = make(
            teacher, tmp_path / cached, train_texts, max_steps=-1, num_train_epochs=2, cache_teacher_states=cached,
            teacher_dtype="bfloat16",
        )  # fmt: skip
        trainer.train()
        results.append(weights(trainer, "deep"))
    # the teacher's batches differ, and with them its rounding: not the last bit, but nothing that is learnt
    assert_same_weights(*results, rtol=5e-2, atol=5e-3)


def test_each_text_passes_the_teacher_once(teacher, train_texts, heldout_texts, tmp_path, monkeypatch):
    trainer = make(
        teacher, tmp_path, train_texts, heldout_texts, max_steps=-1, num_train_epochs=4, eval_strategy="epoch",
        per_device_eval_batch_size=32,
    )  # fmt: skip
    calls = Calls(teacher, monkeypatch)
    trainer.train()
    assert calls.count == (len(train_texts) + len(heldout_texts)) // 32
    assert not (tmp_path / "teacher_states").exists()


def test_other_texts_than_the_cached_ones_are_evaluated_by_the_teacher(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, heldout_texts, cache_dir=str(tmp_path / "states"), max_steps=40)
    trainer._open_states()
    assert trainer.eval_states is not None
    other = heldout_texts.select(range(7))
    direct = trainer.evaluate(other)
    trainer.eval_states = None
    assert direct["eval_loss"] == trainer.evaluate(other)["eval_loss"]


def test_a_trainer_that_is_given_states_asks_the_teacher_for_nothing(
    teacher, train_texts, heldout_texts, tmp_path, monkeypatch
):
    direct = make(teacher, tmp_path / "direct", train_texts, heldout_texts, cache_teacher_states="false")
    args = arguments(tmp_path / "cached", cache_precision="float32")
    states = cache_teacher_states(teacher, [train_texts, heldout_texts], direct.pool.features, args, passes=2)
    calls = Calls(teacher, monkeypatch)
    cached = make(teacher, tmp_path / "cached", train_texts, heldout_texts, states=states)
    cached.train()
    cached.evaluate()
    assert calls.count == 0
    for layer, mean in direct.statistics.mean.items():
        torch.testing.assert_close(cached.statistics.mean[layer], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(cached.statistics.std[layer], direct.statistics.std[layer], rtol=1e-4, atol=1e-5)
    # also the start, fitted to a sample, is the same
    direct.train()
    assert_same_weights(weights(direct, "deep"), weights(cached, "deep"), rtol=1e-3, atol=1e-5)


def test_states_without_a_layer_that_is_learnt_from_are_refused(teacher, train_texts, tmp_path):
    states = cache_teacher_states(
        teacher, [train_texts], ["hidden_states.1"], arguments(tmp_path), passes=2
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"train_states lack hidden_states\."):
        make(teacher, tmp_path, train_texts, states=(states[0], None))


def test_a_cache_serves_another_run(teacher, train_texts, tmp_path, monkeypatch):
    kwargs = {
        "cache_dir": str(tmp_path / "states"), "max_steps": -1, "num_train_epochs": 2, "projection_init": "basis",
    }  # fmt: skip
    first = make(teacher, tmp_path / "a", train_texts, **kwargs)
    first.train()
    calls = Calls(teacher, monkeypatch)
    second = make(teacher, tmp_path / "b", train_texts, statistics=first.statistics, **kwargs)
    second.train()
    assert calls.count == 0
    assert_same_weights(weights(first, "deep"), weights(second, "deep"))


def test_resuming_with_a_cache_changes_nothing(teacher, train_texts, tmp_path):
    kwargs = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20}
    trainer = make(teacher, tmp_path, train_texts, **kwargs)
    trainer.train()
    resumed = make(teacher, tmp_path, train_texts, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert_same_weights(weights(trainer, "deep"), weights(resumed, "deep"))


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"losses": ["hidden_states", "masked_lm"]}, "a loss masks other tokens in each epoch"),
        ({"losses": ["hidden_states", "attention_maps"]}, "attention maps are not cached"),
        ({"losses": ["attention_maps"]}, "no loss compares states"),
        ({"cache_max_gb": 1e-6}, "more than cache_max_gb"),
    ],
)
def test_what_cannot_be_cached_says_why(kwargs, reason, teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, cache_teacher_states="true", **kwargs)
    with pytest.raises(ValueError, match=reason):
        trainer.train()
    trainer = make(teacher, tmp_path, train_texts, max_steps=2, **kwargs)
    trainer.train()
    assert trainer.train_states is None


def test_automatic_caching_pays_from_the_second_pass_on(teacher, train_texts, tmp_path):
    args = arguments(tmp_path)
    features = ["hidden_states.4"]
    assert cache_teacher_states(teacher, [train_texts], features, args, passes=1.0) is None
    found = cache_teacher_states(teacher, [train_texts], features, args, passes=1.5)
    assert found is not None
    assert found[0].num_texts == len(train_texts)


def test_yaml_booleans_are_understood(tmp_path):
    assert arguments(tmp_path, cache_teacher_states=True).cache_teacher_states == "true"
    with pytest.raises(ValueError, match="cache_teacher_states='maybe'"):
        arguments(tmp_path, cache_teacher_states="maybe")


def test_numbered_texts_reach_the_pool_in_any_order(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, cache_teacher_states="true", cache_precision="float32")
    trainer._open_states()
    numbers = torch.tensor([200, 3, 77])
    inputs = trainer.data_collator([{"input_ids": train_texts[int(i)]["input_ids"]} for i in numbers])
    direct = trainer._batch(inputs, None, torch.ones(()))
    kept = trainer._batch(inputs | {"text_number": numbers}, trainer.train_states, torch.ones(()))
    for layer, values in direct.targets.items():
        torch.testing.assert_close(values, kept.targets[layer], rtol=1e-4, atol=1e-4)


def test_several_evaluation_sets_train_too(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(
        teacher, tmp_path, train_texts, {"a": heldout_texts, "b": heldout_texts.select(range(9))}, max_steps=-1,
        num_train_epochs=2, eval_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    assert {"eval_a_r2", "eval_b_r2"} <= {key for entry in trainer.state.log_history for key in entry}


def test_states_of_other_texts_are_refused(teacher, train_texts, heldout_texts, tmp_path):
    args = arguments(tmp_path, cache_teacher_states="true")
    states = cache_teacher_states(teacher, [heldout_texts], ["hidden_states.4"], args, passes=2)[0]
    for losses, message in ((["hidden_states"], "other texts"), (["hidden_states", "masked_lm"], "masked tokens")):
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(
                model=config_of("deep", teacher), teacher=teacher, train_dataset=train_texts, train_states=states,
                args=arguments(tmp_path, losses=losses),
            )  # fmt: skip


def test_a_resumed_run_does_not_count_its_own_states_against_the_disk(teacher, train_texts, tmp_path, monkeypatch):
    args = arguments(tmp_path)
    features = ["hidden_states.4"]
    states = cache_teacher_states(teacher, [train_texts], features, args, passes=2)[0]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.5 * states.num_bytes)))
    assert cache_teacher_states(teacher, [train_texts], features, args, passes=2) is not None
    TeacherStateCache.remove(tmp_path / "teacher_states", states.key)
    assert cache_teacher_states(teacher, [train_texts], features, args, passes=2) is None

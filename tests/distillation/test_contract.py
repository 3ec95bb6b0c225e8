"""What `DistillationTrainer` keeps of what `Trainer` promises: each argument is honored or refused by name."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch
from test_trainer import Losses, arguments, assert_same_weights, config_of, make, weights
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

from kdnas_hf import DistillationTrainer
from kdnas_hf.distillation.contract import REFUSED_TRAINER_ARGUMENTS, REFUSED_TRAINING_ARGUMENTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "distillation.md"
FIELDS = [field for field in dataclasses.fields(TrainingArguments) if field.init]
PARAMETERS = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


@pytest.fixture(scope="module")
def documented():
    """What the tables say of each argument."""
    rows = re.findall(r"^\| `(\w+)` \|(?: [\d.]* ?\|)? (.+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("name", [*PARAMETERS, *(field.name for field in FIELDS)])
def test_each_argument_is_documented_as_honored_or_with_the_reason_that_it_is_refused(name, documented):
    reason = {**REFUSED_TRAINER_ARGUMENTS, **REFUSED_TRAINING_ARGUMENTS}.get(name)
    if reason is None:
        assert documented[name].split(":")[0] == "honored"
    else:
        assert documented[name] == f"refused: {reason}"


def another(field):
    """A value other than the default, of the field's type."""
    if field.default is dataclasses.MISSING:
        return ["something"]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int | float):
        return field.default + 1
    kind = str(field.type)
    return next(
        (
            value
            for name, value in (("bool]", {"a": True}), ("dict", {"a": 1}), ("bool", True), ("int", 3))
            if name in kind
        ),
        "something",
    )


@pytest.mark.parametrize("field", [f for f in FIELDS if f.name in REFUSED_TRAINING_ARGUMENTS], ids=lambda f: f.name)
def test_what_is_not_honored_is_refused_by_name_at_once(field, tmp_path):
    with pytest.raises(ValueError, match=rf"^{field.name}=.* is not supported in a distillation: \w") as error:
        arguments(tmp_path, **{field.name: another(field)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REFUSED_TRAINER_ARGUMENTS)
def test_what_the_trainer_would_ignore_is_refused_by_name(name, teacher, train_texts, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name} is not supported by DistillationTrainer: \w"):
        DistillationTrainer(
            config_of("small", teacher),
            teacher,
            arguments(tmp_path),
            train_texts,
            **{name: lambda *given: {"mine": 1.0}},
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.1 is not supported"),
        ({"neftune_noise_alpha": 5.0}, r"neftune_noise_alpha=5\.0 is not supported"),
        ({"optim": "galore_adamw"}, "optim='galore_adamw' is not supported in a distillation"),
        ({"optim": "lomo"}, "optim='lomo' is not supported in a distillation"),
        ({"hub_strategy": "all_checkpoints"}, "hub_strategy='all_checkpoints' is not supported in a distillation"),
        ({"fp16": True}, "fp16=true needs an accelerator; choose bf16=true on a CPU"),
    ],
)
def test_some_values_are_refused(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **values)


@pytest.mark.parametrize("flag", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_launching_with_a_sharding_engine_is_refused(flag, tmp_path, monkeypatch):
    monkeypatch.setenv(flag, "true")
    with pytest.raises(ValueError, match=r"accelerate launch with \w+ is not supported in a distillation"):
        arguments(tmp_path)


def test_a_copy_of_arguments_is_not_refused(tmp_path):
    args = arguments(tmp_path, report_to="none")
    assert dataclasses.replace(args, max_steps=3).max_steps == 3


def test_a_pool_is_not_pushed_and_that_is_said_at_once(teacher, train_texts, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub sends one student"):
        make(teacher, tmp_path, train_texts, students=("small", "deep"), push_to_hub=True)


def test_predictions_are_refused(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts)
    with pytest.raises(ValueError, match="predict is not supported by DistillationTrainer, .* call the student"):
        trainer.predict(train_texts)


# ---- what users rely on ----

EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


class Poison(TrainerCallback):
    """Spoils a student after a step."""

    def __init__(self, name, step):
        self.name, self.step = name, step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.members[self.name].model.embeddings.LayerNorm.weight.detach().fill_(float("nan"))


def test_the_best_checkpoint_is_loaded_at_the_end(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(
        teacher, tmp_path, train_texts, heldout_texts, max_steps=6, load_best_model_at_end=True, save_total_limit=1,
        metric_for_best_model="eval_r2", greater_is_better=False, **EVALUATING,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")  # as the worst counts as the best here
    assert trainer.evaluate()["eval_r2"] == pytest.approx(trainer.state.best_metric, abs=1e-6)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # of all the one that is needed


@pytest.mark.parametrize("students", [["small"], ["small", "deep"]])
def test_a_student_that_is_dropped_after_the_best_checkpoint_is_back_with_it(
    students, teacher, train_texts, heldout_texts, tmp_path
):
    metric = "eval_loss" if len(students) == 1 else "eval_small_loss"
    trainer = make(
        teacher, tmp_path, train_texts, heldout_texts, students, callbacks=[Poison("small", 5)], max_steps=8,
        load_best_model_at_end=True, metric_for_best_model=metric, **EVALUATING,
    )  # fmt: skip
    dropped = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            dropped.append(dict(trainer.pool.dropped))

    trainer.add_callback(Watch())
    trainer.train()
    assert [list(names) for names in dropped[4:6]] == [[], ["small"]]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert trainer.pool.dropped == {}
    assert trainer.evaluate()[metric] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_the_metric_that_decides_may_be_the_error(teacher, train_texts, heldout_texts, tmp_path):
    assert arguments(tmp_path, metric_for_best_model="eval_error").greater_is_better is False
    assert arguments(tmp_path, metric_for_best_model="eval_r2").greater_is_better is True
    with pytest.raises(KeyError, match="eval_los"):
        make(
            teacher, tmp_path, train_texts, heldout_texts, max_steps=2, load_best_model_at_end=True,
            metric_for_best_model="eval_los", **EVALUATING,
        ).train()  # fmt: skip


def test_checkpoints_are_limited_and_the_last_whole_one_is_resumed(teacher, train_texts, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    whole = make(teacher, tmp_path, train_texts, **saving)
    whole.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    (tmp_path / "checkpoint-8" / "trainer_state.json").unlink()  # as of a process that was killed in the middle
    steps = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    resumed = make(teacher, tmp_path, train_texts, callbacks=[Count()], **saving)
    resumed.train(resume_from_checkpoint=True)
    assert steps == [7, 8]
    assert_same_weights(weights(resumed, "deep"), weights(whole, "deep"), rtol=0, atol=0)
    with pytest.raises(ValueError, match="holds no whole checkpoint to resume from"):
        make(teacher, tmp_path / "empty", train_texts).train(resume_from_checkpoint=True)


def test_each_epoch_is_evaluated_and_reported_and_the_rate_may_be_constant(
    teacher, train_texts, heldout_texts, tmp_path, monkeypatch
):
    class Report(TrainerCallback):
        logs = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mine", Report)
    trainer = make(
        teacher, tmp_path, train_texts, heldout_texts, max_steps=-1, num_train_epochs=2, eval_strategy="epoch",
        report_to=["mine"], lr_scheduler_type="constant", logging_steps=4,
    )  # fmt: skip
    late = Losses()
    trainer.add_callback(late)
    trainer.train()
    assert [logs["epoch"] for logs in Report.logs if "eval_loss" in logs] == [1.0, 2.0]
    assert {logs["learning_rate"] for logs in Report.logs if "loss" in logs} == {5e-3}
    assert late.values == [logs["loss"] for logs in Report.logs if "loss" in logs]
    assert len(late.values) == 8


def test_texts_with_more_columns_are_read_by_workers_and_with_stored_targets(teacher, train_texts, tmp_path):
    texts = train_texts.map(lambda row: {"language": "de", "scores": [0.5] * len(row["input_ids"])})
    plain = make(teacher, tmp_path / "a", train_texts, train_texts, max_steps=4)
    plain.train()
    expected = plain.evaluate()
    forms = {
        "columns": (texts, {}),
        "rows": (list(texts), {}),
        "stored": (texts, {"cache_teacher_states": "true"}),
        "worker": (texts, {"cache_teacher_states": "true", "dataloader_num_workers": 1}),
    }
    for name, (form, changes) in forms.items():
        trainer = make(teacher, tmp_path / name, form, form, max_steps=4, **changes)
        trainer.train()
        assert_same_weights(weights(trainer, "deep"), weights(plain, "deep"), rtol=1e-4, atol=1e-6)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


def test_other_texts_and_several_texts_are_evaluated(teacher, train_texts, heldout_texts, tmp_path):
    parts = {"de": heldout_texts.select(range(20)), "fr": heldout_texts.select(range(20, 64))}
    trainer = make(
        teacher, tmp_path, train_texts, parts, max_steps=2, metric_for_best_model="eval_fr_loss",
        load_best_model_at_end=True, **EVALUATING,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_fr_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    for name, part in parts.items():
        assert trainer.evaluate(part)["eval_loss"] == pytest.approx(metrics[f"eval_{name}_loss"], rel=1e-6)
    again = trainer.evaluate({"it": parts["de"]}, metric_key_prefix="test")
    assert again["test_it_r2"] == pytest.approx(metrics["eval_de_r2"], abs=1e-6)


def test_the_tokenizer_that_was_given_is_saved(teacher, train_texts, tmp_path):
    tokenizer = teacher.tokenizer.__class__(tokenizer_object=teacher.tokenizer.backend_tokenizer, model_max_length=17)
    trainer = DistillationTrainer(
        config_of("small", teacher), teacher, arguments(tmp_path), train_texts, processing_class=tokenizer
    )
    trainer.save_model(str(tmp_path / "student"))
    assert AutoTokenizer.from_pretrained(tmp_path / "student").model_max_length == 17


def test_checkpointing_of_activations_changes_nothing_that_is_learned(teacher, train_texts, tmp_path):
    new_name = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    option = "activation_checkpointing" if new_name else "gradient_checkpointing"
    found = []
    for changes in ({}, {option: True}):
        losses = Losses()
        trainer = make(
            teacher, tmp_path, train_texts, students=("small", "deep"), callbacks=[losses], logging_steps=1, **changes
        )
        trainer.train()
        found.append(losses.values)
    assert getattr(trainer.pool.students["deep"], f"is_{option}")
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_an_optimizer_may_be_given_and_memory_is_emptied_when_asked(teacher, train_texts, tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr("kdnas_hf.distillation.trainer.clear_device_cache", lambda: emptied.append(1))
    trainer = make(teacher, tmp_path, train_texts, max_steps=4, torch_empty_cache_steps=2)
    args = arguments(tmp_path, max_steps=4, torch_empty_cache_steps=2, max_grad_norm=0.0)
    optimizer = torch.optim.SGD([p for p in trainer.pool.parameters() if p.requires_grad], lr=0.0)
    before = weights(trainer, "deep")
    given = DistillationTrainer(trainer.pool, teacher, args, train_texts, optimizers=(optimizer, None))
    given.train()
    assert_same_weights(weights(given, "deep"), before, rtol=0, atol=0)  # at a rate of 0
    assert len(emptied) == 2

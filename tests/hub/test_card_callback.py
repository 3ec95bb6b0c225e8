"""`ModelCardCallback`: what a training knows of itself reaches the card, also after an interruption."""

import pytest
from transformers import TrainerCallback

from kdnas_hf import (
    DataArguments,
    DistillationTrainer,
    DistillationTrainingArguments,
    KDNASConfig,
    ModelCardCallback,
    StudentEvidence,
    TeacherArguments,
)

STEPS = 6


class Stop(TrainerCallback):
    """Ends a training as a kill would, but for the files of a checkpoint that is whole."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_callback(teacher):
    return ModelCardCallback(
        teacher, TeacherArguments(), DataArguments(dataset=["someone/texts"]), languages=["de", "sw"], sentences=256,
        command=["train.py"],
    )  # fmt: skip


def make_trainer(teacher, train_texts, heldout_texts, folder, *callbacks):
    shape = KDNASConfig(
        vocab_size=len(teacher.tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    args = DistillationTrainingArguments(
        output_dir=str(folder), max_steps=STEPS, logging_steps=1, save_steps=2, per_device_train_batch_size=8,
        report_to="none", use_cpu=True, statistics_sentences=32, disable_tqdm=True,
    )  # fmt: skip
    return DistillationTrainer(
        model=shape, teacher=teacher, args=args, train_dataset=train_texts, eval_dataset=heldout_texts,
        callbacks=list(callbacks),
    )  # fmt: skip


def test_a_card_holds_what_the_training_logged_and_measured(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make_trainer(teacher, train_texts, heldout_texts, tmp_path / "run", make_callback(teacher))
    trainer.train()
    measured = trainer.evaluate()
    trainer.save_students(tmp_path / "student")
    trainer.create_model_card(student=tmp_path / "student")
    training = StudentEvidence.load(tmp_path / "student").training
    assert [point.step for point in training.curve] == [1, 2, 3, 4, 5, 6]
    assert [point.tokens for point in training.curve] == sorted({point.tokens for point in training.curve})
    assert training.curve[-1].tokens == training.tokens == trainer.trained_tokens
    assert training.r2 == pytest.approx(measured["eval_r2"])
    assert set(training.r2_per_layer) == {"1", "2"}
    assert training.seconds > 0
    assert training.languages == ["de", "sw"]
    card = (tmp_path / "student" / "README.md").read_text()
    assert f"| {measured['eval_r2']:.3f} |" in card
    assert "(evidence/distillation.png)" in card
    assert "\ntrain.py\n" in card


def test_a_resumed_training_keeps_the_curve_and_the_time_before(teacher, train_texts, heldout_texts, tmp_path):
    first = make_trainer(teacher, train_texts, heldout_texts, tmp_path / "run", Stop(5))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    before = first.state.log_history[3]["elapsed_seconds"]  # of step 4, the last checkpoint
    callback = make_callback(teacher)
    second = make_trainer(teacher, train_texts, heldout_texts, tmp_path / "run", callback)
    second.train(resume_from_checkpoint=True)
    logged = [entry for entry in callback.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4, 5, 6]
    seconds = [entry["elapsed_seconds"] for entry in logged]
    assert seconds == sorted(seconds)
    assert seconds[3] == before


def test_without_training_there_is_nothing_to_write(teacher, tmp_path):
    with pytest.raises(ValueError, match="nothing was trained"):
        make_callback(teacher).write_card(tmp_path)


def test_without_the_callback_there_is_no_card(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make_trainer(teacher, train_texts, heldout_texts, tmp_path / "run")
    trainer.create_model_card(student=tmp_path)
    assert not (tmp_path / "README.md").exists()

"""`ModelCardCallback`: what a training knows of itself reaches the card, also after an interruption."""

import pytest
from transformers import TrainerCallback

from kdnas_hf import (
    DataArguments,
    DistillationTrainer,
    DistillationTrainingArguments,
    KDNASConfig,
    KDNASModel,
    ModelCardCallback,
    StudentEvidence,
    StudentPool,
    TeacherArguments,
    TrainingSetup,
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
    setup = TrainingSetup(
        teacher, TeacherArguments(), DataArguments(dataset=["someone/texts"]), sentences=256, languages=["de", "sw"],
        command=["train.py"],
    )  # fmt: skip
    return ModelCardCallback(setup)


def make_shape(teacher):
    return KDNASConfig(
        vocab_size=len(teacher.tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip


def make_args(folder, **changes):
    return DistillationTrainingArguments(
        output_dir=str(folder), max_steps=STEPS, logging_steps=1, save_steps=2, per_device_train_batch_size=8,
        report_to="none", use_cpu=True, statistics_sentences=32, disable_tqdm=True, **changes,
    )  # fmt: skip


def make_trainer(teacher, train_texts, heldout_texts, folder, *callbacks, **changes):
    return DistillationTrainer(
        model=make_shape(teacher), teacher=teacher, args=make_args(folder, **changes), train_dataset=train_texts,
        eval_dataset=heldout_texts, callbacks=list(callbacks),
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


def test_a_push_sends_the_student_and_its_card_and_nothing_of_the_training(
    hub, teacher, train_texts, heldout_texts, tmp_path
):
    callback = make_callback(teacher)
    trainer = make_trainer(teacher, train_texts, heldout_texts, tmp_path / "run", callback)
    trainer.train()
    trainer.evaluate()
    trainer.args.hub_model_id = "jane/pushed"
    commit = trainer.push_to_hub(token=hub.token_of("jane"), private=True)
    repository = hub.repositories["jane/pushed"]
    assert repository.private
    assert repository.branches["main"].oid == commit.oid
    assert set(repository.branches["main"].files) - {"special_tokens_map.json"} == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "configuration_kdnas.py", "modeling_kdnas.py", "evidence/training.json", "evidence/distillation.png",
    }  # fmt: skip
    everything = b"".join(repository.branches["main"].files.values())
    assert str(tmp_path).encode() not in everything


def test_a_training_pushes_as_it_goes(hub, teacher, train_texts, heldout_texts, tmp_path):
    trainer = make_trainer(
        teacher, train_texts, heldout_texts, tmp_path / "run", make_callback(teacher),
        push_to_hub=True, hub_model_id="jane/going", hub_token=hub.token_of("jane"), hub_strategy="every_save",
    )  # fmt: skip
    trainer.train()
    titles = [commit.title for commit in hub.repositories["jane/going"].commits]
    assert titles == [
        "initial commit", *(f"Training in progress, step {step}" for step in (2, 4, 6)),
    ]  # fmt: skip
    assert "training_args.bin" not in hub.repositories["jane/going"].branches["main"].files


def test_students_of_a_pool_are_not_pushed_as_one(teacher, train_texts, heldout_texts, tmp_path):
    args = make_args(tmp_path)
    pool = StudentPool.create({"a": make_shape(teacher), "b": make_shape(teacher)}, teacher, args)
    trainer = DistillationTrainer(model=pool, teacher=teacher, args=args, train_dataset=train_texts)
    with pytest.raises(ValueError, match="sends one student"):
        trainer.push_to_hub()


def test_a_model_pushes_itself_with_its_code(hub, teacher):
    KDNASModel(make_shape(teacher)).push_to_hub("jane/direct", token=hub.token_of("jane"))
    pushed = set(hub.repositories["jane/direct"].branches["main"].files)
    assert {"config.json", "model.safetensors", "configuration_kdnas.py", "modeling_kdnas.py"} <= pushed


def test_without_training_there_is_nothing_to_write(teacher, tmp_path):
    with pytest.raises(ValueError, match="nothing was trained"):
        make_callback(teacher).write_card(tmp_path)


def test_without_the_callback_there_is_no_card(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make_trainer(teacher, train_texts, heldout_texts, tmp_path / "run")
    trainer.create_model_card(student=tmp_path)
    assert not (tmp_path / "README.md").exists()

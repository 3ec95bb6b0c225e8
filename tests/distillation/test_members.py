"""Students of a pool: each steps as if it were alone, whatever happens to the others."""

import pytest
import torch
from test_task_labels import labelled, task_teacher
from test_trainer import arguments, assert_same_weights, config_of, make, weights
from test_trainer_losses import teacher_with_masked_lm
from transformers import TrainerCallback

from kdnas_hf import DistillationTrainer, StudentPool, Teacher
from tiny_teacher import make_teacher_model

NAMES = ("small", "deep", "wide")
# two micro-batches a step, clipped
STEPS = {
    "max_steps": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1,
    "cache_teacher_states": "false", "warmup_fraction": 0.0,
}  # fmt: skip


def trained(teacher, folder, texts, students, callbacks=None, **changes):
    """Weights of each student after a training; encoders have dropout as well."""
    args = arguments(folder, **STEPS | changes)
    configs = {name: config_of(name, teacher) for name in students}
    for config in configs.values():
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.1
    pool = StudentPool.create(configs, teacher, args)
    trainer = DistillationTrainer(pool, teacher, args, train_dataset=texts, callbacks=callbacks)
    trainer.train()
    return trainer, {name: weights(trainer, name) for name in students}


def assert_equal(found, expected):
    assert_same_weights(found, expected, rtol=0, atol=0)


def make_setting(kind, tokenizer, texts):
    """A teacher, texts and losses."""
    if kind == "states":
        teacher = teacher_with_masked_lm(tokenizer)
        return teacher, texts, ["hidden_states relations:0.5 attention_maps"]
    if kind == "masked tokens":
        return teacher_with_masked_lm(tokenizer), texts, ["logits masked_lm hidden_states"]
    teacher = task_teacher(tokenizer, "texts")
    return teacher, labelled(teacher, 64, 1), ["soft_labels labels:0.5 hidden_states"]


@pytest.mark.parametrize("kind", ["states", "masked tokens", "task heads"])
def test_weights_are_those_of_each_student_alone_bit_by_bit(kind, tokenizer, train_texts, tmp_path):
    teacher, texts, losses = make_setting(kind, tokenizer, train_texts)
    _, together = trained(teacher, tmp_path, texts, NAMES, losses=losses)
    for name in NAMES:
        _, alone = trained(teacher, tmp_path, texts, [name], losses=losses)
        assert_equal(together[name], alone[name])


class Disturb(TrainerCallback):
    """Replaces ``loss`` or ``backward`` of the student ``small`` in one micro-batch, counted from 0."""

    def __init__(self, method, at, disturbed):
        self.method, self.at, self.disturbed = method, at, disturbed
        self.calls = -1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        member = model.members["small"]
        original = getattr(member, self.method)

        def call(*given):
            self.calls += 1
            return self.disturbed(original, *given) if self.calls == self.at else original(*given)

        setattr(member, self.method, call)


@pytest.fixture(scope="module")
def undisturbed(tokenizer, train_texts, tmp_path_factory):
    """Weights that students have without any disturbance."""
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                parameters = model.members["small"].named_parameters()
                kept["small after two steps"] = {key: p.detach().clone() for key, p in parameters if p.requires_grad}

    teacher = Teacher(make_teacher_model(), tokenizer)
    _, found = trained(teacher, tmp_path_factory.mktemp("undisturbed"), train_texts, NAMES, [Keep()])
    return found | kept


def raise_out_of_memory(original, *given):
    raise torch.OutOfMemoryError("out of memory: tried to allocate 2 GiB")


# the fifth micro-batch is the first of two of the third step
@pytest.mark.parametrize(
    ("method", "disturbed", "reason"),
    [
        # whose gradient is finite, so that nothing else shows it
        ("loss", lambda loss, *given: loss(*given) * 0 + float("nan"), "its loss was not finite at step 3"),
        ("loss", lambda loss, *given: (loss(*given) * 0).sqrt(), "its gradient was not finite at step 3"),
        ("backward", raise_out_of_memory, "out of memory at step 3: out of memory: tried to allocate 2 GiB"),
    ],
)
def test_a_student_that_fails_is_dropped_and_the_others_do_not_notice(
    method, disturbed, reason, undisturbed, teacher, train_texts, tmp_path
):
    trainer, together = trained(teacher, tmp_path, train_texts, NAMES, [Disturb(method, 4, disturbed)])
    assert trainer.pool.dropped == {"small": reason}
    assert trainer.state.global_step == 4
    for name in ("deep", "wide"):
        assert_equal(together[name], undisturbed[name])
    assert_equal(together["small"], undisturbed["small after two steps"])
    assert "eval_small_loss" not in trainer.evaluate(train_texts.select(range(8)))


def test_a_lone_student_that_does_not_fit_into_memory_ends_the_training(teacher, train_texts, tmp_path):
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate 2 GiB"):
        trained(teacher, tmp_path, train_texts, ["small"], [Disturb("backward", 4, raise_out_of_memory)])


def test_an_overflow_in_fp16_is_nobody_elses(teacher, train_texts, tmp_path):
    class Record(TrainerCallback):
        """Keeps weights of ``small`` and scales after each step; gives each student a scaler of its own first."""

        def __init__(self):
            self.small, self.scales = [], []

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.small.append(weights_of(model.members["small"]))

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.small.append(weights_of(model.members["small"]))
            self.scales.append({name: member.scaler.get_scale() for name, member in model.items()})

    def weights_of(member):
        return {key: p.detach().clone() for key, p in member.named_parameters() if p.requires_grad}

    def scaled(folder, callbacks, resume=None, **changes):
        trainer = make(
            teacher, folder, train_texts, students=("small", "deep"), callbacks=callbacks, **STEPS | changes
        )  # fmt: skip
        for _, member in trainer.pool.items():
            member.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    # finite, but beyond float32 once it is scaled
    overflow = Disturb("loss", 2, lambda loss, *given: loss(*given) * 1e9)
    record, saving = Record(), {"save_strategy": "steps", "save_steps": 3}
    trainer = scaled(tmp_path / "a", [overflow, record], **saving)
    assert trainer.pool.dropped == {}
    assert record.scales[0] == {"small": 2.0**100, "deep": 2.0**100}
    assert record.scales[1:] == [{"small": 2.0**99, "deep": 2.0**100}] * 3
    stayed = [
        all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(record.small, record.small[1:], strict=False)
    ]
    assert stayed == [False, True, False, False]
    # powers of two are exact: without any scaler the other one learns the same
    alone = make(teacher, tmp_path / "b", train_texts, students=("deep",), **STEPS)
    alone.train()
    assert_equal(weights(trainer, "deep"), weights(alone, "deep"))
    # scales are a part of a checkpoint
    again = Record()
    resumed = scaled(tmp_path / "a", [again], str(tmp_path / "a" / "checkpoint-3"), **saving)
    assert again.scales == record.scales[3:]
    for name in ("small", "deep"):
        assert_equal(weights(resumed, name), weights(trainer, name))


def test_activations_of_a_student_are_free_before_the_next_one_reads(teacher, train_texts, tmp_path):
    class Held:
        """A tensor that a graph keeps for its backward pass."""

        now = peak = 0

        def __init__(self, tensor):
            self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
            Held.now += self.bytes
            Held.peak = max(Held.peak, Held.now)

        def __del__(self):
            Held.now -= self.bytes

    def peak(count):
        args = arguments(tmp_path, max_steps=2)
        pool = StudentPool.create({f"{n}": config_of("deep", teacher) for n in range(count)}, teacher, args)
        trainer = DistillationTrainer(pool, teacher, args, train_dataset=train_texts)
        Held.now = Held.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            trainer.train()
        return Held.peak

    assert 0 < peak(4) <= 1.3 * peak(1)


def test_the_global_random_state_is_left_as_it_is(tokenizer, train_texts, tmp_path):
    teacher = teacher_with_masked_lm(tokenizer)
    before = torch.get_rng_state()
    for init in ("auto", "random"):
        args = arguments(tmp_path, losses=["masked_lm hidden_states"], student_init=init, projection_init="random")
        StudentPool.create({name: config_of(name, teacher) for name in NAMES}, teacher, args)
    assert torch.equal(torch.get_rng_state(), before)
    states = []

    class States(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            states.append(torch.get_rng_state())

    # masked tokens and dropout
    trained(teacher, tmp_path, train_texts, NAMES, [States()], losses=["masked_lm hidden_states"])
    assert len(states) == 4
    assert all(torch.equal(state, states[0]) for state in states)

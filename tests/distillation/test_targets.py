"""Targets of a batch: the same whether the teacher computes them or they were stored."""

import pytest
import torch
from tiny_runs import batch_of, teacher_with_head

from kdnas_hf import Teacher
from kdnas_hf.distillation import HiddenStateStatistics, Required
from kdnas_hf.distillation.labelled_texts import padding_collator
from kdnas_hf.distillation.stored_targets import StoredTargetsCollator, store_targets
from kdnas_hf.distillation.targets import STORED, Targets
from tiny_teacher import make_teacher_model, make_texts, tokenized

STATES = Required(hidden_states=frozenset({1, 4}), queries_keys_values=frozenset({2, 4}))
TASK = Required(hidden_states=frozenset({3}), task_logits=True)
KINDS = {
    "states": (lambda tokenizer: Teacher(make_teacher_model(), tokenizer), STATES),
    "classes of texts": (lambda tokenizer: teacher_with_head("texts", tokenizer), TASK),
    "classes of tokens": (lambda tokenizer: teacher_with_head("tokens", tokenizer), TASK),
}


@pytest.fixture(scope="module")
def texts(tokenizer):
    return tokenized(tokenizer, make_texts(12, seed=3))


def tensors(outputs):
    """By name everything that is compared, ``(batch, …)``."""
    named = {f"states of {layer}": states for layer, states in outputs.hidden_states.items()}
    for layer, three in outputs.queries_keys_values.items():
        named |= {f"{kind} of {layer}": states for kind, states in zip("qkv", three, strict=True)}
    if outputs.task_logits is not None:
        named["classes"] = outputs.task_logits
    return named


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_targets_are_the_computed_ones_bit_by_bit(kind, dtype, tokenizer, texts, tmp_path):
    make, required = KINDS[kind]
    standardized = Targets(make(tokenizer), required, dtype)
    mean = {layer: torch.full((32,), float(layer)) for layer in required.hidden_states}
    standardized.statistics = HiddenStateStatistics(mean, {layer: 2 * values for layer, values in mean.items()})
    # one text in each pass of the teacher, as below: in other batches the last bit is another
    stored = store_targets(standardized.teacher, texts, required, tmp_path, dtype=dtype, batch_size=1)
    chosen = [7, 2, 11, 2, 0]
    inputs = StoredTargetsCollator(padding_collator(tokenizer, tags=False))(stored.__getitems__(chosen))
    for targets in (standardized, standardized.raw()):
        together = batch_of(tokenizer, texts.select(chosen))
        targets(inputs, together)
        found = tensors(together.teacher)
        layers = len(required.hidden_states) + 3 * len(required.queries_keys_values)
        assert len(found) == layers + required.task_logits
        for row, index in enumerate(chosen):
            alone = batch_of(tokenizer, texts.select([index]))
            targets({}, alone)
            for name, expected in tensors(alone.teacher).items():
                values = found[name][row, : expected.shape[1]] if expected.dim() == 3 else found[name][row]
                assert torch.equal(values, expected[0]), (name, index)
                assert values.dtype == (torch.float32 if "states" in name else dtype)


def test_standardized_targets_are_the_raw_ones_standardized(teacher, tokenizer, texts):
    targets = Targets(teacher, STATES)
    mean = {layer: torch.randn(32) for layer in (1, 4)}
    targets.statistics = HiddenStateStatistics(mean, {1: torch.full((32,), 2.0), 4: torch.full((32,), 4.0)})
    batch, plain = batch_of(tokenizer, texts), batch_of(tokenizer, texts)
    targets({}, batch)
    targets.raw()({}, plain)
    for layer, states in plain.teacher.hidden_states.items():
        torch.testing.assert_close(
            batch.teacher.hidden_states[layer], (states - mean[layer]) / (2 if layer == 1 else 4)
        )
    assert targets.statistics is not None
    assert torch.equal(batch.teacher.queries_keys_values[2][0], plain.teacher.queries_keys_values[2][0])


def test_stored_targets_stay_raw_however_often_they_are_read(teacher, tokenizer, texts, tmp_path):
    stored = store_targets(teacher, texts, STATES, tmp_path, dtype=torch.float32, batch_size=4)
    inputs = StoredTargetsCollator(padding_collator(tokenizer, tags=False))(stored.__getitems__([0, 1]))
    targets = Targets(teacher, STATES)
    mean = {layer: torch.ones(32) for layer in (1, 4)}
    targets.statistics = HiddenStateStatistics(mean, mean)
    found = []
    for _ in range(2):
        batch = batch_of(tokenizer, texts.select([0, 1]))
        targets(inputs, batch)
        found.append(batch.teacher.hidden_states[4])
    assert torch.equal(*found)
    assert torch.equal(inputs[STORED].hidden_states[4] - 1, found[0])


def test_stored_targets_are_read_without_the_teacher(teacher, tokenizer, texts, tmp_path, monkeypatch):
    stored = store_targets(teacher, texts, STATES, tmp_path, dtype=torch.float32, batch_size=4)
    monkeypatch.setattr(Teacher, "__call__", lambda *_: pytest.fail("the teacher is called"))
    batch = batch_of(tokenizer, texts.select([5]))
    Targets(teacher, STATES)(StoredTargetsCollator(padding_collator(tokenizer, tags=False))([stored[5]]), batch)
    assert set(batch.teacher.hidden_states) == {1, 4}


def test_only_masked_text_has_predictions_to_learn_from(tokenizer, texts):
    targets = Targets(teacher_with_head("masked_lm", tokenizer), STATES | Required(token_logits=True))
    whole = batch_of(tokenizer, texts)
    targets({}, whole)
    assert whole.teacher.decoder is None
    assert set(whole.teacher.hidden_states) == {1, 4}
    labels = torch.full_like(whole.input_ids, -100)
    labels[:3, 1] = 7
    masked = batch_of(tokenizer, texts, labels=labels)
    targets({}, masked)
    assert len(masked.teacher.decoder.states) == 3
    assert set(masked.teacher.hidden_states) == {1, 4}
    targets({}, masked, masked_text=True)  # as an evaluation compares states on whole texts
    assert len(masked.teacher.decoder.states) == 3
    assert not masked.teacher.hidden_states
    assert not masked.teacher.queries_keys_values


def test_where_nothing_is_learned_from_the_teacher_it_is_not_asked(teacher, tokenizer, texts, monkeypatch):
    monkeypatch.setattr(Teacher, "__call__", lambda *_: pytest.fail("the teacher is called"))
    batch = batch_of(tokenizer, texts)
    Targets(teacher, Required())({}, batch)
    assert not tensors(batch.teacher)


class TwoProcesses:
    """Gathers what the first process made and what it would have made as the second."""

    num_processes = 2

    def __init__(self):
        self.process_index = 0
        self.shares = []

    def gather(self, own):
        self.shares.append(own)
        return own


@pytest.mark.parametrize("count", [1, 5, 6])
def test_processes_with_the_same_batch_compute_a_share_each(count, teacher, tokenizer, texts):
    required = Required(hidden_states=frozenset({4}))
    processes = TwoProcesses()
    targets = Targets(teacher, required, accelerator=processes)
    for processes.process_index in range(2):
        targets({}, batch_of(tokenizer, texts.select(range(count))))
    whole = batch_of(tokenizer, texts.select(range(count)))
    Targets(teacher, required)({}, whole)
    first, second = processes.shares
    assert len(first) == len(second) == -(-count // 2)  # as gathering needs
    torch.testing.assert_close(torch.cat([first, second])[:count], whole.teacher.hidden_states[4], rtol=1e-4, atol=1e-5)

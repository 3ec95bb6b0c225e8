"""Mean and standard deviation of the teacher's states."""

import pytest
import torch
from tiny_runs import batch_of, run_arguments

from kdnas_hf.distillation import HiddenStateStatistics, Required
from kdnas_hf.distillation.samples import estimate_statistics
from kdnas_hf.distillation.targets import Targets
from tiny_teacher import make_texts, tokenized

LAYERS = (2, 4)


def states_of(teacher, rows):
    """States of real tokens, text by text."""
    found = {layer: [] for layer in LAYERS}
    for row in rows:
        batch = batch_of(teacher.tokenizer, [row])
        for layer, states in teacher.hidden_states(batch.input_ids, batch.attention_mask, LAYERS).items():
            found[layer].append(states[0])
    return found


def estimate(teacher, rows, folder, count):
    targets = Targets(teacher, Required(hidden_states=frozenset(LAYERS)))
    args = run_arguments(folder, statistics_sentences=count)
    return estimate_statistics(targets, rows, args, torch.device("cpu"))


def test_statistics_are_those_of_the_real_tokens(teacher, tokenizer, tmp_path):
    rows = tokenized(tokenizer, make_texts(20))
    statistics = estimate(teacher, rows, tmp_path, count=20)
    for layer, parts in states_of(teacher, rows).items():
        real = torch.cat(parts)
        torch.testing.assert_close(statistics.mean[layer], real.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(statistics.std[layer], real.std(0, correction=0), atol=1e-5, rtol=1e-4)
        standardized = statistics.standardize(layer, real)
        torch.testing.assert_close(standardized.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
        torch.testing.assert_close(standardized.std(0, correction=0), torch.ones(32), atol=1e-3, rtol=0)
    assert set(statistics.mean) == set(statistics.std) == set(LAYERS)


def test_statistics_do_not_depend_on_the_order_of_the_corpus(teacher, tokenizer, tmp_path):
    """A corpus ordered by language must not be standardized by its first languages alone."""
    rows = list(tokenized(tokenizer, make_texts(1) * 200 + make_texts(200, seed=5)))
    sampled = estimate(teacher, rows, tmp_path, count=100)
    everything = estimate(teacher, rows, tmp_path, count=400)
    first = estimate(teacher, rows[:200], tmp_path, count=100)

    def distance(other):
        return float((other.mean[4] - everything.mean[4]).norm())

    assert distance(sampled) < 0.3 * distance(first)


def test_a_dimension_in_which_the_teacher_is_constant_is_not_blown_up():
    states = torch.tensor([[1.0, 1000.1], [3.0, 1000.1]])
    statistics = HiddenStateStatistics.estimate([{1: states[:1]}, {1: states[1:]}])
    assert statistics.standardize(1, states).tolist() == [[-1, 0], [1, 0]]
    assert statistics.std[1].tolist() == [1, 1]


@pytest.mark.parametrize("batches", [[], [{1: torch.ones(1, 4)}]])
def test_fewer_than_two_tokens_are_refused(batches):
    with pytest.raises(ValueError, match="need at least two tokens of training text"):
        HiddenStateStatistics.estimate(batches)


def test_statistics_outlive_the_file_that_they_are_read_from(tmp_path):
    statistics = HiddenStateStatistics.estimate([{1: torch.randn(5, 4), 3: torch.randn(5, 4)}])
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    loaded = HiddenStateStatistics.load(path)
    with path.open("r+b") as file:
        file.write(b"\1" * path.stat().st_size)
    path.unlink()
    for layer in (1, 3):
        assert torch.equal(loaded.mean[layer], statistics.mean[layer])
        assert torch.equal(loaded.std[layer], statistics.std[layer])

"""The memory of a pool: the estimate against what autograd really keeps, and groups that fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import arguments, config_of, make

from kdnas_hf.distillation.pool_memory import halves, is_out_of_memory, split_by_memory, training_bytes


@pytest.mark.parametrize("name", ["small", "deep", "wide"])
def test_the_estimate_is_near_what_training_keeps(name, teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, students=(name,))
    trainer.create_optimizer()
    length = max(train_texts["length"])
    ids = torch.randint(4, 100, (16, length))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = {p.untyped_storage().data_ptr() for p in trainer.pool.parameters()}
    trainer.pool.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.compute_loss(trainer.pool, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    activations = sum(size for pointer, size in kept.items() if pointer not in parameters)
    trained = sum(p.numel() for p in trainer.pool.parameters() if p.requires_grad)
    loss.backward()
    estimate = training_bytes(config_of(name, teacher), teacher, arguments(tmp_path), length)
    assert 0.6 < estimate / (activations + 16 * trained) < 2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 100))
def test_groups_fit_and_keep_the_order(sizes, limit):
    groups = split_by_memory(dict(enumerate(sizes)), limit)
    assert [key for group in groups for key in group] == list(range(len(sizes)))
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        assert sum(sizes[key] for key in group) <= limit or len(group) == 1
        if following is not None:  # the next one would not have fitted
            assert sum(sizes[key] for key in group) + sizes[following[0]] > limit


def test_without_a_limit_all_train_together():
    assert split_by_memory({"a": 10**12, "b": 10**12}, None) == [["a", "b"]]


def test_halves_lose_nobody():
    assert halves([1, 2, 3]) == ([1, 2], [3])
    assert halves([1, 2]) == ([1], [2])


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyboardInterrupt())

"""Muon beside AdamW: torch's own, each on its share, under Trainer's schedule and checkpoints."""

import pytest
import torch
from test_trainer import arguments, assert_same_weights, make, weights

from kdnas_hf.distillation.muon import MuonWithAdamW


def test_steps_are_those_of_the_two_optimizers_apart():
    torch.manual_seed(0)
    matrix, vector = torch.randn(6, 4), torch.randn(5)
    together = [torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())]
    apart = [torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())]
    both = MuonWithAdamW([together[0]], [{"params": [together[1]], "weight_decay": 0.1}], 1e-2, 1e-3)
    muon = torch.optim.Muon([apart[0]], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([apart[1]], lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 1 / (1 + step))
    for step in range(4):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = (1e-2 if group in muon.param_groups else 1e-3) / (1 + step)
        for parameters in (together, apart):
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
        both.step()
        muon.step()
        adamw.step()
        schedule.step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_the_matrices_of_the_layers_are_muons(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, matrix_optimizer="muon", max_steps=3)
    trainer.train()
    muon = {id(p) for group in trainer.optimizer.optimizer.parts[0].param_groups for p in group["params"]}
    adamw = {id(p) for group in trainer.optimizer.optimizer.parts[1].param_groups for p in group["params"]}
    for name, parameter in trainer.pool.named_parameters():
        if parameter.requires_grad:
            layer_matrix = "encoder.layer" in name and parameter.ndim == 2
            assert (id(parameter) in muon) == layer_matrix, name
            assert (id(parameter) in adamw) == (not layer_matrix), name


def test_resuming_changes_nothing(teacher, train_texts, tmp_path):
    kwargs = {"matrix_optimizer": "muon", "save_strategy": "steps", "save_steps": 4}
    trainer = make(teacher, tmp_path, train_texts, **kwargs)
    trainer.train()
    resumed = make(teacher, tmp_path, train_texts, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_weights(weights(trainer, "deep"), weights(resumed, "deep"))


def test_each_student_of_a_pool_learns_as_if_alone(teacher, train_texts, tmp_path):
    pool = make(teacher, tmp_path, train_texts, students=("deep", "wide"), matrix_optimizer="muon")
    pool.train()
    for name in ("deep", "wide"):
        alone = make(teacher, tmp_path, train_texts, students=(name,), matrix_optimizer="muon")
        alone.train()
        assert_same_weights(weights(pool, name), weights(alone, name), rtol=1e-2, atol=1e-3)


def test_bad_choices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="matrix_optimizer='sgd'"):
        arguments(tmp_path, matrix_optimizer="sgd")
    with pytest.raises(ValueError, match="optim=adamw_torch_fused"):
        arguments(tmp_path, matrix_optimizer="muon", optim="sgd")
    with pytest.raises(ValueError, match="muon_learning_rate=0"):
        arguments(tmp_path, matrix_optimizer="muon", muon_learning_rate=0.0)

"""A loss from outside: a class under `register_loss`, and everything works with it."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import run_arguments, student_shape, trained_parameters
from tiny_search import tiny_search
from torch import nn
from transformers import AutoModel

import kdnas_hf
from kdnas_hf import DistillationTrainer
from kdnas_hf.distillation import LOSSES, Loss, Measure, Required, register_loss
from kdnas_hf.distillation.stored_targets import store_targets
from kdnas_hf.utils.random_state import drawing

NAME = "absolute_error"


class AbsoluteErrorLoss(Loss):
    """Absolute error of the student's last layer, mapped, against one layer of the teacher."""

    name = NAME
    description = "absolute error between the student's last layer and the teacher's"

    def __init__(self, setting):
        super().__init__(setting)
        (self.layer,) = self.required.hidden_states
        with drawing(setting.seed):
            self.map = nn.Linear(setting.student.config.hidden_size, setting.teacher.dimensions.hidden_size)

    @classmethod
    def requires(cls, args, pairs, teacher):
        return Required(hidden_states=frozenset({teacher.dimensions.num_layers}))

    def differences(self, student, batch):
        return (self.map(student.states(-1)) - batch.teacher_states(self.layer)).float().abs()

    def forward(self, student, batch):
        return self.differences(student, batch).mean(1).sum() / batch.num_tokens

    def measure(self):
        return Nearness(self)


class Nearness(Measure):
    """Beside the loss, how many numbers are nearly right."""

    def __init__(self, loss):
        super().__init__(loss)
        self.sums = torch.zeros(3, dtype=torch.float64)

    def add(self, student, batch):
        differences = self.loss.differences(student, batch).double()
        self.sums += torch.stack([differences.mean(1).sum(), torch.tensor(len(differences)), (differences < 0.5).sum()])

    def metrics(self):
        numbers = self.sums[1] * self.loss.map.out_features
        return super().metrics() | {"near": float(self.sums[2] / numbers)}


@pytest.fixture(autouse=True)
def registered():
    register_loss(AbsoluteErrorLoss)
    yield
    LOSSES.pop(NAME)


def make_trainer(teacher, folder, train, heldout=None, **kwargs):
    args = run_arguments(folder, losses=[NAME], **kwargs)
    return DistillationTrainer(student_shape(teacher), teacher, args, train, heldout)


def test_a_student_learns_by_it_and_is_saved_without_it(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make_trainer(teacher, tmp_path, train_texts, heldout_texts, max_steps=40)
    before, start = trained_parameters(trainer), trainer.evaluate()
    trainer.train()
    after, end = trained_parameters(trainer), trainer.evaluate()
    assert end["eval_loss"] < 0.9 * start["eval_loss"]
    assert end["eval_near"] > start["eval_near"]
    own = [name for name in before if f"losses.{NAME}." in name]
    assert len(own) == 2
    assert not any(torch.equal(before[name], after[name]) for name in own)
    trainer.save_model(str(tmp_path / "student"))
    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert not [name for name in saved if NAME in name or "map" in name]
    _, info = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_it_reports_its_value_its_error_and_what_else_it_measures(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make_trainer(teacher, tmp_path, train_texts, heldout_texts)
    metrics = trainer.evaluate()
    member = trainer.pool.members["student"].eval()
    total, near, numbers = 0.0, 0, 0
    for row in heldout_texts:
        ids = torch.tensor([row["input_ids"]])
        mask = torch.ones_like(ids)
        with torch.no_grad():
            predicted = member.losses[NAME].map(member.student(ids, attention_mask=mask).last_hidden_state[0])
        target = trainer.statistics.standardize(4, teacher.hidden_states(ids, mask, [4])[4][0])
        total += float((predicted - target).abs().sum())
        near += int(((predicted - target).abs() < 0.5).sum())
        numbers += target.numel()
    loss = total / numbers
    assert metrics[f"eval_{NAME}_loss"] == metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["eval_error"] == pytest.approx(loss / (1 + loss), rel=1e-5)
    assert metrics["eval_near"] == pytest.approx(near / numbers, abs=1e-3)


def test_its_targets_may_be_stored(teacher, train_texts, tmp_path):
    texts = train_texts.select(range(48))
    learned = []
    for cached in ("false", "true"):
        trainer = make_trainer(
            teacher, tmp_path / cached, texts, max_steps=-1, num_train_epochs=2, cache_teacher_states=cached
        )
        trainer.train()
        learned.append(trained_parameters(trainer))
    required = AbsoluteErrorLoss.requires(None, (), teacher)
    stored = store_targets(teacher, texts, required, tmp_path, dtype=torch.float32, batch_size=8)
    trainer = make_trainer(teacher, tmp_path / "given", stored, max_steps=-1, num_train_epochs=2)
    trainer.train()
    learned.append(trained_parameters(trainer))
    for name, value in learned[0].items():
        for other in learned[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_it_is_fitted_before_the_first_step_if_it_says_how(teacher, train_texts, tmp_path, monkeypatch):
    counted = []

    def fit(self, samples):
        counted.append(sum(int(batch.attention_mask.sum()) for _, batch in samples))

    monkeypatch.setattr(AbsoluteErrorLoss, "fit", fit)
    make_trainer(teacher, tmp_path, train_texts, statistics_sentences=len(train_texts))
    assert counted == [sum(train_texts["length"])]


def test_a_search_finds_a_student_by_it(tmp_path):
    result = tiny_search(tmp_path, losses=[NAME], num_episodes=1, candidates_per_episode=2, mini_kd_epochs=1).run()
    assert len(result.trials) == 2
    assert all(trial.reward > 0 for trial in result.trials)
    (student,) = result.students
    AutoModel.from_pretrained(tmp_path / student.path)
    logged = {key for entry in result.log_history for key in entry}
    assert {f"eval_{NAME}_loss", "eval_error", "eval_near"} <= logged


# ---- no file but its own knows a loss ----

SOURCE = Path(inspect.getfile(kdnas_hf)).parent


def literals(node):
    """The strings that an expression is: one, or those of a tuple, list, set or mapping."""
    parts = [node, *getattr(node, "elts", []), *getattr(node, "keys", [])]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def asks_for_a_loss(source, names):
    """Lines that compare something with the name of a loss, look one up, or ask what a loss needs by another word."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            named = set().union(*map(literals, [node.left, *node.comparators]))
        elif isinstance(node, ast.MatchValue):
            named = literals(node.value)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "LOSSES":
            named = literals(node.slice)
        else:
            named = set()
        if named & names or (isinstance(node, ast.Attribute) and node.attr.startswith("needs_")):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "if name == 'relations': pass",
        "if name in ('relations', 'x'): pass",
        "if 'relations' in losses: pass",
        "if name in {'relations': 1}: pass",
        "x = 1 if 'relations' not in losses else 2",
        "LOSSES['relations']",
        "match name:\n    case 'relations': pass",
        "loss.needs_logits",
    ],
)
def test_code_that_knows_a_loss_is_found(line):
    assert asks_for_a_loss(line, {"relations"})


def test_no_other_file_knows_a_loss_by_its_name():
    names = set(LOSSES) - {NAME, "labels"}  # that is a column of data sets too
    for path in sorted(SOURCE.rglob("*.py")):
        if SOURCE / "distillation" / "losses" not in path.parents:
            lines = asks_for_a_loss(path.read_text(encoding="utf-8"), names)
            assert not lines, f"{path.relative_to(SOURCE)}: lines {lines}"

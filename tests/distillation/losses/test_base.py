"""Losses by their names: how a choice of them is read, what may be registered, and what every one measures."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from losses.given_states import make_loss, make_states
from transformers import HfArgumentParser

from kdnas_hf import DistillationTrainingArguments
from kdnas_hf.distillation import LOSSES, Loss, Measure, register_loss
from kdnas_hf.distillation.losses import LossArguments, describe_losses, first_loss, parse_losses
from kdnas_hf.distillation.losses.cosine import CosineLoss


@pytest.mark.parametrize(
    "values",
    [
        "hidden_states:1.0 relations:0.5",
        "hidden_states, relations:0.5",
        ["hidden_states", "relations:5e-1"],
        ["hidden_states:1 relations:0.5"],
    ],
)
def test_weights_are_read_in_order(values):
    assert list(parse_losses(values).items()) == [("hidden_states", 1.0), ("relations", 0.5)]


@given(
    st.dictionaries(
        st.sampled_from(sorted(LOSSES)), st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1
    )
)
def test_what_is_written_is_read(weights):
    masked = {"logits", "masked_lm"} & set(weights)
    assume(not (masked and {"soft_labels", "labels"} & set(weights)))  # they do not go together
    items = [f"{name}:{weight!r}" for name, weight in weights.items()]
    assert parse_losses(items) == parse_losses(" ".join(items)) == weights


CHOICES = ", ".join(LOSSES)
BAD = {
    "relations relation:0.5": f"losses: 'relation:0.5' is unknown; did you mean 'relations'? Choose from {CHOICES}.",
    "xyzzy": f"losses: 'xyzzy' is unknown. Choose from {CHOICES}.",
    "": f"losses='' names none; choose from {CHOICES}.",
    " ,": f"losses=' ,' names none; choose from {CHOICES}.",
    "cosine:0": "losses: the weight of 'cosine:0' is not a positive finite number; leave out what has none.",
    "cosine:-1": "losses: the weight of 'cosine:-1' is not a positive finite number; leave out what has none.",
    "cosine:nan": "losses: the weight of 'cosine:nan' is not a positive finite number; leave out what has none.",
    "cosine:1e999": "losses: the weight of 'cosine:1e999' is not a positive finite number; leave out what has none.",
    "cosine:": "losses: 'cosine:' is not of the form <name>:<weight>; write it as 'cosine:0.5', without spaces.",
    "cosine: 1": "losses: 'cosine:' is not of the form <name>:<weight>; write it as 'cosine:0.5', without spaces.",
    "cosine:much": "losses: 'cosine:much' is not of the form <name>:<weight>; write it as 'cosine:0.5', without "
    "spaces.",
    "cosine:1:2": "losses: 'cosine:1:2' is not of the form <name>:<weight>; write it as 'cosine:0.5', without spaces.",
    "logits:1 logits:2": "losses: 'logits:2' names logits a second time; give each once.",
    "labels cosine masked_lm": "losses: 'masked_lm' masks tokens, whose text 'labels' must read whole; leave one of "
    "them out.",
}


@pytest.mark.parametrize("values", BAD)
def test_what_is_wrong_is_answered_in_a_line(values):
    with pytest.raises(ValueError, match="losses") as error:
        parse_losses(values)
    assert str(error.value) == BAD[values]


@pytest.mark.parametrize("values", [{"cosine": 2.0}, [{"cosine": 2.0}], [1.0]])
def test_what_a_yaml_file_may_hold_instead_of_text_is_refused(values):
    with pytest.raises(ValueError, match=r"losses=.* is not text; write <name>:<weight>, as 'attention_maps:0"):
        parse_losses(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("mlm_probability", 1.0),
        ("relation_heads", -1),
        ("relation_teacher_layer", -1),
        ("projection", "each"),
        ("projection_init", "fitted"),
        ("layer_mapping", "unifrom"),
    ],
)
def test_what_losses_read_of_the_arguments_is_checked(field, value):
    LossArguments().check_loss_arguments()
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        LossArguments(**{field: value}).check_loss_arguments()


# ---- the registry ----


def test_help_describes_every_loss():
    parser = HfArgumentParser(DistillationTrainingArguments)
    (text,) = (action.help for action in parser._actions if "--losses" in action.option_strings)
    assert describe_losses() in text
    for name, loss in LOSSES.items():
        assert f"{name}: {loss.description}" in text
        assert loss.name == name
        assert loss.description
        assert "\n" not in loss.description


def make_class(name):
    return type("Another", (Loss,), {"name": name})


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match=r"name='cosine' of Another is taken by CosineLoss; choose another\."):
        register_loss(make_class("cosine"))
    assert register_loss(CosineLoss) is LOSSES["cosine"] is CosineLoss  # as where a module is read twice


@pytest.mark.parametrize("name", ["my-loss", "my:loss", "my loss", "1st", ""])
def test_a_name_that_could_not_be_given_is_refused(name):
    with pytest.raises(ValueError, match=f"name='{name}' of Another is not a Python identifier; choose one such as"):
        register_loss(make_class(name))
    assert name not in LOSSES


def test_losses_on_predicted_tokens_mask_tokens_and_cannot_be_stored():
    assert {name for name, loss in LOSSES.items() if loss.masks_tokens} == {"logits", "masked_lm"}
    for loss in LOSSES.values():
        assert loss.masks_tokens == (loss.student_head == "masked_lm")
        assert loss.uses_labels == (loss.student_head == "task")
        assert not (loss.masks_tokens and loss.storable)
    assert first_loss(["cosine", "labels", "logits"], lambda loss: loss.masks_tokens) == "logits"
    assert first_loss(["cosine"], lambda loss: loss.masks_tokens) is None


# ---- what a loss measures unless it says otherwise ----


@torch.no_grad()
def test_a_measure_is_the_loss_over_all_tokens_and_an_error_between_0_and_1():
    loss = make_loss(CosineLoss)
    parts = [make_states([4, 2], seed=0), make_states([5, 1, 3], seed=1)]
    total = sum(float(loss(*part)) for part in parts) / 15
    measured, gathered = loss.measure(), loss.measure()
    assert type(measured) is Measure
    for number, part in enumerate(parts):
        measured.add(*part)
        one = loss.measure()
        one.add(*part)
        gathered.sums = one.sums if number == 0 else gathered.sums + one.sums
    assert measured.metrics() == pytest.approx({"loss": total, "error": total / (1 + total)}, rel=1e-6)
    assert gathered.metrics() == pytest.approx(measured.metrics())

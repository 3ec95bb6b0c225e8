"""Reading a weighted choice of losses."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdnas_hf.distillation.losses import LOSS_SPECIFICATIONS, LOSSES, parse_losses


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
    st.dictionaries(st.sampled_from(LOSSES), st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1)
)
def test_what_is_written_is_read(weights):
    masked = {"logits", "masked_lm"} & set(weights)
    assume(not (masked and {"soft_labels", "labels"} & set(weights)))  # they do not go together
    items = [f"{name}:{weight!r}" for name, weight in weights.items()]
    assert parse_losses(items) == parse_losses(" ".join(items)) == weights


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"losses: 'relation:0.5' names no loss; did you mean 'relations'\?") as error:
        parse_losses("hidden_states relation:0.5")
    assert all(name in str(error.value) for name in LOSSES)


def test_an_unknown_name_is_answered_with_the_choices():
    with pytest.raises(ValueError, match=r"losses: 'xyzzy' names no loss\. Choose from hidden_states, cosine"):
        parse_losses(["xyzzy"])


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "-inf", "1e999", "0.0"])
def test_weights_that_are_not_positive_and_finite_are_refused(weight):
    with pytest.raises(ValueError, match=f"losses: the weight of 'cosine:{weight}' is not a positive finite number"):
        parse_losses(f"cosine:{weight}")


@pytest.mark.parametrize("item", ["cosine:", "cosine:much", "cosine:1:2", "cosine: 1"])
def test_weights_that_are_no_numbers_are_refused(item):
    with pytest.raises(ValueError, match="losses: 'cosine:.*' is not of the form <name>:<weight>"):
        parse_losses(item)


def test_a_loss_is_given_once():
    with pytest.raises(ValueError, match="losses: 'logits:2' names logits a second time"):
        parse_losses(["logits:1", "logits:2"])


@pytest.mark.parametrize("values", ["", "  ", [], [""], ","])
def test_no_loss_is_refused(values):
    with pytest.raises(ValueError, match=r"losses=.* names no loss; choose from hidden_states"):
        parse_losses(values)


@pytest.mark.parametrize("values", [{"cosine": 2.0}, [{"cosine": 2.0}], [1.0]])
def test_what_a_yaml_file_may_hold_instead_of_text_is_refused(values):
    with pytest.raises(ValueError, match="losses=.* is no text"):
        parse_losses(values)


def test_losses_on_predictions_are_those_that_mask_tokens():
    assert [name for name in LOSSES if LOSS_SPECIFICATIONS[name].masks_tokens] == ["logits", "masked_lm"]
    for specification in LOSS_SPECIFICATIONS.values():
        assert specification.masks_tokens == specification.needs_masked_lm_head
        needs = (
            specification.needs_hidden_states,
            specification.needs_attention_inputs,
            specification.needs_attention_maps,
            specification.needs_masked_lm_head,
            specification.needs_task_head,
        )
        assert sum(needs) == 1
        assert "\n" not in specification.description

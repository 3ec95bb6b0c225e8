"""Training only the rows that occur is training the table."""

import copy

import pytest
import torch
from torch import nn

from kdnas_hf import KDNASConfig, KDNASModel, fold_embeddings
from kdnas_hf.students import OccurringWordEmbeddings, add_masked_lm_head, train_only

CONFIG = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
}


@pytest.fixture
def student():
    torch.manual_seed(0)
    return KDNASModel(KDNASConfig(**CONFIG)).eval()


OCCURRING = torch.tensor([7, 0, 2, 30, 7])


def test_every_token_is_embedded_as_before(student):
    ids = torch.arange(40)[None]
    before = student.get_input_embeddings()(ids)
    assert train_only(student, OCCURRING)
    torch.testing.assert_close(student.get_input_embeddings()(ids), before, rtol=0, atol=0)


def test_steps_of_adam_are_those_of_the_whole_table(student):
    whole = copy.deepcopy(student).train()
    train_only(student, OCCURRING)
    student.train()
    batches = [torch.tensor([[0, 7, 2, 1]]), torch.tensor([[0, 30, 30, 2]]), torch.tensor([[0, 7, 30, 2]])]
    for model in (whole, student):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
        for ids in batches * 3:
            model(input_ids=ids).last_hidden_state.square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(student.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    moved = (whole.get_input_embeddings().weight - initial_table()).abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [0, 2, 7, 30]


def initial_table():
    torch.manual_seed(0)
    return KDNASModel(KDNASConfig(**CONFIG)).get_input_embeddings().weight


def test_a_checkpoint_holds_an_ordinary_table(student, tmp_path):
    train_only(student, OCCURRING)
    with torch.no_grad():
        student.get_input_embeddings().rows.add_(1.0)
    student.save_pretrained(tmp_path)
    loaded = KDNASModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[0, 7, 11, 2]])
    torch.testing.assert_close(loaded(input_ids=ids).last_hidden_state, student(input_ids=ids).last_hidden_state)


def test_folding_gives_a_table_that_trains_as_a_whole(student):
    train_only(student, OCCURRING)
    with torch.no_grad():
        student.get_input_embeddings().rows.mul_(2.0)
    weight = student.get_input_embeddings().weight.clone()
    fold_embeddings(student)
    folded = student.get_input_embeddings()
    assert isinstance(folded, nn.Embedding)
    assert folded.weight.requires_grad
    assert torch.equal(folded.weight, weight)


def test_a_copy_is_independent(student):
    train_only(student, OCCURRING)
    copied = copy.deepcopy(student)
    with torch.no_grad():
        copied.get_input_embeddings().rows.zero_()
    assert student.get_input_embeddings().rows.abs().sum() > 0
    assert isinstance(copied.get_input_embeddings(), OccurringWordEmbeddings)


def test_a_token_that_was_not_announced_is_no_silent_mistake(student):
    train_only(student, OCCURRING)
    with pytest.raises(IndexError):
        student.train()(input_ids=torch.tensor([[0, 11, 2]]))


def test_padding_never_trains(student):
    train_only(student, OCCURRING)
    student.train()
    student(input_ids=torch.tensor([[0, 7, 2, 1]])).last_hidden_state.sum().backward()
    embeddings = student.get_input_embeddings()
    assert embeddings.rows.grad[embeddings.get_buffer("place")[1]].abs().sum() == 0


def test_frozen_tables_are_left_alone(student):
    student.get_input_embeddings().weight.requires_grad_(False)
    assert not train_only(student, OCCURRING)


def test_a_state_dict_is_not_loaded_into_it(student):
    state = student.state_dict()
    train_only(student, OCCURRING)
    with pytest.raises(RuntimeError, match="fold_embeddings"):
        student.load_state_dict(state)


def test_another_text_trains_other_rows(student):
    train_only(student, OCCURRING)
    with torch.no_grad():
        student.get_input_embeddings().rows.mul_(2.0)
    weight = student.get_input_embeddings().weight.clone()
    assert train_only(student, torch.tensor([11, 12]))
    assert student.get_input_embeddings().get_buffer("tokens").tolist() == [1, 11, 12]
    assert torch.equal(student.get_input_embeddings().weight, weight)


def test_a_head_predicts_every_token(student):
    train_only(student, OCCURRING)
    model = add_masked_lm_head(student)
    assert model.get_output_embeddings().weight is student.get_input_embeddings().weight

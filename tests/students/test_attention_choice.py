"""The attention implementation can be chosen when a student is loaded, and afterwards."""

import torch

from kdnas_hf import KDNASConfig, KDNASModel


def test_attention_can_be_changed_on_a_loaded_model():
    model = KDNASModel(
        KDNASConfig(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16)
    ).eval()
    ids = torch.tensor([[0, 7, 9, 2], [0, 8, 2, 1]])
    mask = (ids != 1).long()
    states = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        states[implementation] = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(states["sdpa"], states["eager"], atol=1e-5, rtol=1e-4)


def test_position_rows_may_be_apart_from_the_padding_token():
    shape = {"vocab_size": 900, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3}
    model = KDNASModel(KDNASConfig(**shape, intermediate_size=16, pad_token_id=800, position_padding_idx=1)).eval()
    ids = torch.tensor([[0, 7, 9], [0, 8, 800]])
    assert model.embeddings.create_position_ids(ids).tolist() == [[2, 3, 4], [2, 3, 1]]
    mask = (ids != 800).long()
    padded = model(ids, attention_mask=mask).last_hidden_state[1, :2]
    torch.testing.assert_close(padded, model(ids[1:, :2]).last_hidden_state[0], atol=1e-5, rtol=1e-4)

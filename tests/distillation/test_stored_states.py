"""The rounding of what is stored."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnas_hf.distillation.stored_states import decode, encode


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), st.floats(1e-12, 1.0))
def test_int8_rounds_by_half_a_step_at_most(values, factor):
    vectors = torch.tensor([values, [0.0] * len(values), [value * factor for value in values]])
    stored = decode(encode(vectors, "int8"))
    step = vectors.double().abs().amax(1, keepdim=True) / 127
    assert ((stored.double() - vectors.double()).abs() <= step * 0.5001 + 1e-37).all()
    assert torch.equal(stored[1], torch.zeros(len(values)))

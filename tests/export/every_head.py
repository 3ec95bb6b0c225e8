"""A tiny student with each head, whose layers differ, and texts of uneven length to compare it by."""

import torch
from tiny_students import CLASSES, make_student

EVERY_HEAD = list(CLASSES)
SHAPES = ((1, 1), (1, 5), (3, 40))
UNEVEN = {
    "num_attention_heads": [2, 4],
    "intermediate_size": [48, 32],
    "hidden_act": ["gelu", "silu"],
    "embedding_size": 16,
    "num_labels": 3,
}


def make_uneven_student(kind="encoder"):
    return make_student(kind, **UNEVEN)


def make_inputs(rows, length):
    """Token ids and mask; the last row is half padding."""
    ids = torch.randint(4, 145, (rows, length), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def assert_same_outputs(model, exported):
    """Whatever the shape, `exported(**inputs)` gives what the model gives, to 1e-4."""
    for shape in SHAPES:
        inputs = make_inputs(*shape)
        with torch.no_grad():
            wanted = model(**inputs)
        given = exported(**inputs)
        assert set(given) == set(wanted)
        for name, values in wanted.items():
            assert given[name].shape == values.shape
            assert (given[name] - values).abs().max() <= 1e-4, name

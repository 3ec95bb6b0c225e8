"""A tiny student with each head, whose layers differ, and texts of uneven length."""

import pytest
import torch

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
)

EVERY_HEAD = [
    pytest.param(model_class, id=model_class.__name__)
    for model_class in (
        KDNASModel,
        KDNASForMaskedLM,
        KDNASForSequenceClassification,
        KDNASForTokenClassification,
        KDNASForQuestionAnswering,
    )
]
SHAPES = ((1, 1), (1, 5), (3, 40))


def make_student(model_class):
    config = KDNASConfig(
        vocab_size=150,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=[2, 3],
        intermediate_size=[16, 8],
        hidden_act=["gelu", "silu"],
        embedding_size=6,
        max_position_embeddings=66,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_inputs(rows, length):
    """Token ids and mask; the last row is half padding."""
    ids = torch.randint(4, 150, (rows, length), generator=torch.Generator().manual_seed(rows))
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

"""Costs of a shape, against modules that are built and files that are written."""

import numpy as np
import pytest
import torch
from tiny_students import make_student
from torch.utils.flop_counter import FlopCounterMode

from kdnas_hf.export import Sizes, artefact_files, make_runner, shape_costs

SHAPES = [
    {},
    {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3, "type_vocab_size": 2},
    {"intermediate_size": [16, 80], "num_attention_heads": [1, 4], "hidden_act": ["gelu", "relu"]},
    {"embedding_size": 12, "vocab_size": 300, "max_position_embeddings": 100},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_and_operations_are_those_of_the_module(shape):
    model = make_student(**shape, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.full((3, 7), 5))
    costs = shape_costs(model.config, batch_size=3, sequence_length=7)
    assert costs["parameters"] == sum(p.numel() for p in model.parameters())
    assert costs["encoder_parameters"] == sum(p.numel() for p in model.encoder.parameters())
    assert costs["flops"] == counter.get_total_flops()


def test_operations_of_several_lengths_are_their_mean_by_shares():
    config = make_student().config
    short, long = (shape_costs(config, sequence_length=tokens)["flops"] for tokens in (8, 64))
    mixed = shape_costs(config, sequence_length={8: 3, 64: 1})["flops"]
    assert mixed == pytest.approx(0.75 * short + 0.25 * long)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_in_pytorch_is_that_of_the_saved_file(shape, tmp_path):
    model = make_student(**shape)
    model.save_pretrained(tmp_path)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) / 1e6
    for backend in ("torch", "torch-bf16"):  # which is made of the same file
        assert shape_costs(model.config, backend)["size_mb"] == pytest.approx(written, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize(("runtime", "backend"), [("onnxruntime", "onnx-int8"), ("openvino", "openvino-int8")])
def test_the_size_of_an_artefact_is_that_of_its_files(runtime, backend, tmp_path):
    pytest.importorskip(runtime)
    shape = {"hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": [256, 512, 256], "vocab_size": 5000}
    model = make_student(**shape, embedding_size=32, max_position_embeddings=512)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # equal ones would be stored once
    make_runner(model, backend, tmp_path)
    written = sum(path.stat().st_size for path in artefact_files(tmp_path, backend)) / 1e6
    assert shape_costs(model.config, backend)["size_mb"] == pytest.approx(written, rel=0.03)


def test_int8_is_a_quarter_of_a_large_table():
    config = make_student(vocab_size=250_000, embedding_size=16, max_position_embeddings=66).config
    table = 250_000 * 16 / 1e6
    assert shape_costs(config)["size_mb"] == pytest.approx(4 * table, rel=0.02)
    for backend in ("onnx-int8", "openvino-int8"):  # and a scale for each row
        assert shape_costs(config, backend)["size_mb"] == pytest.approx(table + 1.0, rel=0.1)


def test_many_sizes_at_once_cost_what_each_does():
    configs = [make_student(**shape).config for shape in ({}, {"hidden_size": 64}, {"embedding_size": 8})]
    sizes = Sizes(*np.array([Sizes.of(config) for config in configs], dtype=float).T)
    for backend in ("torch", "onnx-int8", "openvino-int8"):
        together = shape_costs(configs[0], backend, 2, {8: 1, 16: 1}, sizes)
        for index, config in enumerate(configs):
            alone = shape_costs(config, backend, 2, {8: 1, 16: 1})
            assert {name: values[index] for name, values in together.items()} == pytest.approx(alone)

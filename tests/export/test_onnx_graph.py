"""ONNX graphs: the same outputs as in PyTorch, for every head and any batch and length."""

import numpy as np
import onnx
import pytest
import torch
from tiny_students import CLASSES, make_student
from transformers import BertConfig, BertModel

from kdnas_hf.export import ExportedModel, export_onnx
from tiny_teacher import make_teacher_model


def padded_batch(rows, length, vocabulary=140):
    generator = np.random.default_rng(rows * 100 + length)
    ids = generator.integers(4, vocabulary, (rows, length))
    mask = np.ones_like(ids)
    for row in range(1, rows):
        mask[row, max(1, length - row) :] = 0
    ids[mask == 0] = 1
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def assert_same_outputs(path, model, tolerance=1e-5):
    exported = ExportedModel(path, "onnx", model.config, threads=1)
    for rows, length in [(1, 1), (1, 17), (2, 8), (3, 40)]:
        batch = padded_batch(rows, length)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(values) for name, values in batch.items()})
        found = exported(**batch)
        for name in exported.output_names:
            value = expected[name].numpy()
            real = batch["attention_mask"].astype(bool)
            if value.ndim == 3 or value.shape == real.shape:
                np.testing.assert_allclose(found[name][real], value[real], atol=tolerance)
            else:
                np.testing.assert_allclose(found[name], value, atol=tolerance)
    return exported


@pytest.mark.parametrize("kind", CLASSES)
def test_every_head_exports_with_any_batch_and_length(kind, tmp_path):
    model = make_student(kind)
    names = export_onnx(model, tmp_path / "model.onnx")
    expected = {"encoder": ["last_hidden_state"], "question": ["start_logits", "end_logits"]}.get(kind, ["logits"])
    assert names == expected
    assert_same_outputs(tmp_path / "model.onnx", model)


def test_students_whose_layers_differ_export_as_well(tmp_path):
    model = make_student(
        num_attention_heads=[2, 4], intermediate_size=[24, 48], hidden_act=["gelu", "silu"], embedding_size=16
    )
    export_onnx(model, tmp_path / "model.onnx")
    assert_same_outputs(tmp_path / "model.onnx", model)


@pytest.mark.parametrize("make", [make_teacher_model, lambda: BertModel(BertConfig(
    vocab_size=140, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))])  # fmt: skip
def test_teachers_export_for_the_comparison(make, tmp_path):
    model = make().eval()
    export_onnx(model, tmp_path / "model.onnx")
    assert_same_outputs(tmp_path / "model.onnx", model, tolerance=1e-4)


def test_inputs_and_axes_have_the_names_of_the_ecosystem(tmp_path):
    export_onnx(make_student(), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    for value in (*graph.input, *graph.output):
        axes = [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        assert axes[:2] == ["batch_size", "sequence_length"]


def test_the_model_is_left_as_it_was(tmp_path):
    model = make_student().train()
    model.set_attn_implementation("sdpa")
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_other_precisions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the model is in torch.bfloat16; load it with dtype='float32'"):
        export_onnx(make_student().to(torch.bfloat16), tmp_path / "model.onnx")


def test_weights_beyond_what_protobuf_holds_go_beside_the_graph(tmp_path, monkeypatch):
    from kdnas_hf.export import artefacts, embedding_table, make_artefact, onnx_graph

    for module in (onnx_graph, embedding_table):
        monkeypatch.setattr(module, "MAX_PROTOBUF_BYTES", 1000)
    model = make_student()
    for backend in ("onnx", "onnx-int8"):
        path = make_artefact(model, tmp_path, backend)
        files = artefacts.artefact_files(tmp_path, backend)
        assert [file.name for file in files] == [path.name, f"{path.name}.data"]
        exported = ExportedModel(path, backend, model.config)
        batch = padded_batch(1, 5)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(values) for name, values in batch.items()}).last_hidden_state
        assert np.abs(exported(**batch).last_hidden_state - expected.numpy()).max() < 0.5

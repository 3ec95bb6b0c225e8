"""int8: word embeddings by rows, linear maps by both quantizers."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_students import make_student

from kdnas_hf.export import ExportedModel, compare_outputs, export_onnx, make_artefact, quantize_rows
from kdnas_hf.export.embedding_table import quantize_word_embeddings

tables = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.floats(-1e4, 1e4, width=32)
)


@given(tables)
@settings(max_examples=60, deadline=None)
def test_a_row_loses_at_most_half_a_level_of_its_own_scale(table):
    values, scales = quantize_rows(table)
    assert values.dtype == np.int8
    assert scales.shape == (len(table), 1)
    error = np.abs(values.astype(np.float64) * scales - table)
    assert (error <= np.abs(table).max(axis=1, keepdims=True) / 127 * 0.5001 + 1e-30).all()


def test_rows_of_small_numbers_keep_them():
    table = np.array([[1e-3, -5e-4], [100.0, 50.0], [0.0, 0.0]], dtype=np.float32)
    values, scales = quantize_rows(table)
    np.testing.assert_allclose(values * scales, table, rtol=0.01)


@pytest.mark.parametrize("config", [{}, {"embedding_size": 16}])
def test_the_table_of_a_graph_becomes_int8_and_nothing_else(config, tmp_path, batches):
    model = make_student(**config)
    export_onnx(model, tmp_path / "model.onnx")
    assert quantize_word_embeddings(tmp_path / "model.onnx", tmp_path / "small.onnx", model.config.vocab_size)
    graph = onnx.load(tmp_path / "small.onnx").graph
    size = config.get("embedding_size", 32)
    kinds = {(tuple(t.dims), t.data_type) for t in graph.initializer if t.dims and t.dims[0] == model.config.vocab_size}
    assert kinds == {
        ((model.config.vocab_size, size), onnx.TensorProto.INT8),
        ((model.config.vocab_size, 1), onnx.TensorProto.FLOAT),
    }
    onnx.checker.check_model(str(tmp_path / "small.onnx"))
    # the same as the model whose table is rounded
    table = model.get_input_embeddings().weight.data
    values, scales = quantize_rows(table.numpy())
    table.copy_(torch.from_numpy(values * scales))
    check = compare_outputs(ExportedModel(tmp_path / "small.onnx", "onnx", model.config), model, batches)
    assert check.max_difference < 1e-5


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *(("onnx-int8", kind) for kind in ("encoder", "sequence", "token", "question")),
        ("onnx-int8-static", "token"),
        ("openvino-int8", "encoder"),
        ("openvino-int8", "sequence"),
    ],
)
def test_int8_artefacts_are_near_the_model_they_were_made_of(backend, kind, tmp_path, batches, graph_of):
    if backend.startswith("openvino"):
        pytest.importorskip("nncf")
    model = make_student(kind)
    path = make_artefact(model, tmp_path, backend, batches, graph=graph_of(kind))
    check = compare_outputs(ExportedModel(path, backend, model.config, threads=1), model, batches)
    assert check.median_cosine > 0.99
    assert check.max_difference > 1e-4  # something was rounded


def test_the_heads_of_masked_language_models_keep_their_tied_table(tmp_path, batches):
    model = make_student("masked_lm")
    path = make_artefact(model, tmp_path, "onnx-int8")
    check = compare_outputs(ExportedModel(path, "onnx-int8", model.config), model, batches)
    assert check.median_cosine > 0.99
    assert check.label_agreement > 0.9


def test_int8_files_are_smaller_unless_word_embeddings_stay_in_float32(tmp_path):
    model = make_student(vocab_size=20_000)
    whole = make_artefact(model, tmp_path, "onnx")
    kept = make_artefact(model, tmp_path / "kept", "onnx-int8", int8_embeddings=False, graph=whole)
    small = make_artefact(model, tmp_path / "small", "onnx-int8", graph=whole)
    assert small.stat().st_size < 0.35 * whole.stat().st_size  # a scale for each row of 32 numbers
    assert kept.stat().st_size > 3 * small.stat().st_size


def test_static_ranges_need_text(tmp_path):
    with pytest.raises(ValueError, match="backend='onnx-int8-static' needs text for calibration"):
        make_artefact(make_student(), tmp_path, "onnx-int8-static")


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch, graph_of):
    from kdnas_hf.export import artefacts

    def fail(*args, **kwargs):
        raise RuntimeError("out of disk")

    monkeypatch.setattr(artefacts, "quantize_onnx", fail)
    with pytest.raises(RuntimeError, match="out of disk"):
        make_artefact(make_student(), tmp_path, "onnx-int8", graph=graph_of())
    assert list((tmp_path / "onnx").iterdir()) == []

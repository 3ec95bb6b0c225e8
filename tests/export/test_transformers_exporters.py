"""The exporter of transformers itself exports students."""

import pytest
import torch
import transformers
from every_head import EVERY_HEAD, assert_same_outputs, make_uneven_student
from packaging.version import Version

from kdnas_hf.export.transformers_exporters import export_with_transformers

needs_exporters = pytest.mark.skipif(
    Version(transformers.__version__).release[:2] != (5, 23), reason="the extra exporters is transformers 5.23"
)


@needs_exporters
@pytest.mark.parametrize("kind", EVERY_HEAD)
def test_every_head_is_exported_and_read_back(kind, tmp_path):
    from transformers.exporters import ExportedModel

    model = make_uneven_student(kind)
    assert export_with_transformers(model, tmp_path) == tmp_path / "onnx" / "model.onnx"
    assert_same_outputs(model, ExportedModel.from_pretrained(tmp_path, subfolder="onnx"))


@needs_exporters
def test_the_report_of_the_graph_that_is_replaced_goes(tmp_path):
    report = tmp_path / "evidence" / "exports" / "onnx.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    export_with_transformers(make_uneven_student(), tmp_path)
    assert not report.exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model in training mode, its weights as they were, and the file that was made of it."""
    model = make_uneven_student("masked_lm").train()
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    return model, weights, export_with_transformers(model, tmp_path_factory.mktemp("student"))


@needs_exporters
def test_inputs_are_token_ids_and_mask_with_dynamic_batch_and_sequence(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[-1])
    axes = ["batch_size", "sequence_length"]
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", axes),
        ("attention_mask", "tensor(int64)", axes),
    ]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("logits", [*axes, 145])]


@needs_exporters
def test_the_model_stays_as_it_was(exported):
    model, weights, _ = exported
    assert model.training
    assert model.config._attn_implementation == make_uneven_student().config._attn_implementation != "eager"
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())


@pytest.mark.parametrize("installed", ["4.57.6", "5.22.0", "5.24.1"])
def test_other_versions_are_refused_before_anything_is_written(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", installed)
    with pytest.raises(ImportError, match=rf"transformers {installed} .*kdnas-hf\[exporters\]"):
        export_with_transformers(make_uneven_student(), tmp_path)
    assert not list(tmp_path.iterdir())

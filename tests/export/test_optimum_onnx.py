"""Optimum exports students: by its classes and from its command line."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from every_head import EVERY_HEAD, assert_same_outputs, make_inputs, make_uneven_student

from kdnas_hf.students import KDNASModel

HAS_OPTIMUM_ONNX = find_spec("optimum.exporters.onnx") is not None
needs_optimum_onnx = pytest.mark.skipif(
    not HAS_OPTIMUM_ONNX, reason="the extra optimum goes with transformers 4.57: make test-oldest"
)
CLI = "optimum.commands.optimum_cli"


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@needs_optimum_onnx
@pytest.mark.parametrize("kind", EVERY_HEAD)
def test_optimum_exports_and_runs_every_head(kind, tmp_path):
    import optimum.onnxruntime

    from kdnas_hf.export.optimum_onnx import register_with_optimum

    model = make_uneven_student(kind)
    model.save_pretrained(tmp_path)
    register_with_optimum()
    head = type(model).__name__.removeprefix("KDNASFor").replace("KDNASModel", "FeatureExtraction")
    exported = getattr(optimum.onnxruntime, f"ORTModelFor{head}").from_pretrained(tmp_path, export=True)
    assert_same_outputs(model, exported)


@needs_optimum_onnx
def test_registering_twice_changes_nothing_and_other_models_are_recognised_as_before():
    from optimum.exporters.tasks import TasksManager
    from transformers import BertModel

    from kdnas_hf.export.optimum_onnx import TASKS, register_with_optimum

    register_with_optimum()
    before = TasksManager._infer_library_from_model_or_model_class
    register_with_optimum()
    assert TasksManager._infer_library_from_model_or_model_class == before
    assert set(TasksManager.get_supported_tasks_for_model_type("kdnas", "onnx")) == set(TASKS)
    assert TasksManager.infer_library_from_model(BertModel) == "transformers"
    assert TasksManager.infer_library_from_model(KDNASModel) == "transformers"
    with pytest.raises(ValueError, match="could not be automatically inferred"):
        TasksManager.infer_library_from_model(torch.nn.Linear)


@needs_optimum_onnx
def test_the_exported_model_keeps_its_attention(tmp_path):
    from optimum.exporters.onnx import onnx_export_from_model

    from kdnas_hf.export.optimum_onnx import register_with_optimum

    register_with_optimum()
    model = make_uneven_student()
    implementation = model.config._attn_implementation
    onnx_export_from_model(model, tmp_path, task="feature-extraction")
    assert model.config._attn_implementation == implementation != "eager"


@needs_optimum_onnx
def test_optimum_cli_exports_a_student(tmp_path, tokenizer):
    import onnxruntime

    student, folder = tmp_path / "student", tmp_path / "onnx"
    model = make_uneven_student("token")
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    done = run_python("-m", CLI, "export", "onnx", "--model", student, "--task", "token-classification", folder)
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    inputs = make_inputs(3, 9)
    logits = session.run(["logits"], {name: values.numpy() for name, values in inputs.items()})[0]
    with torch.no_grad():
        assert (torch.from_numpy(logits) - model(**inputs).logits).abs().max() <= 1e-4


@needs_optimum_onnx
def test_another_version_of_optimum_onnx_is_refused(monkeypatch):
    from kdnas_hf.export import optimum_onnx

    monkeypatch.setattr(optimum_onnx, "version", lambda package: "0.2.3")
    with pytest.raises(ImportError, match=r"optimum-onnx 0\.2\.3 .*kdnas-hf\[optimum\]"):
        optimum_onnx.register_with_optimum()


@pytest.mark.skipif(HAS_OPTIMUM_ONNX, reason="optimum-onnx is installed")
def test_without_optimum_onnx_the_error_names_the_extra():
    with pytest.raises(ImportError, match=r"pip install 'kdnas-hf\[optimum\]'"):
        import kdnas_hf.export.optimum_onnx  # noqa: F401


def test_other_commands_of_optimum_cli_do_not_load_kdnas():
    """Its file is in the folder of which optimum-cli imports every file, with optimum-onnx and without."""
    code = (
        f"import sys; sys.argv = ['optimum-cli', 'env']; from {CLI} import main; main();"
        "print('register_kdnas' in str(sys.modules), 'kdnas_hf' in sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False"

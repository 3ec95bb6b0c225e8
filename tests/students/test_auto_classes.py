"""Checkpoints load by the Auto classes: with the package as its own classes, without it as remote code."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
)

CLASSES = {
    AutoModel: KDNASModel,
    AutoModelForMaskedLM: KDNASForMaskedLM,
    AutoModelForSequenceClassification: KDNASForSequenceClassification,
    AutoModelForTokenClassification: KDNASForTokenClassification,
    AutoModelForQuestionAnswering: KDNASForQuestionAnswering,
}
CODE = {"configuration_kdnas.py", "modeling_kdnas.py"}


def make_config(**fields):
    return KDNASConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=[2, 3],
        intermediate_size=[16, 8],
        hidden_act=["gelu", "silu"],
        embedding_size=6,
        max_position_embeddings=16,
        **fields,
    )


def make_model(model_class):
    torch.manual_seed(0)
    model = model_class(make_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("auto_class", CLASSES, ids=lambda auto_class: auto_class.__name__)
def test_with_the_package_its_own_classes_are_loaded(auto_class, tmp_path):
    make_model(KDNASModel).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is KDNASConfig
    assert type(auto_class.from_pretrained(tmp_path)) is CLASSES[auto_class]
    assert type(auto_class.from_config(make_config())) is CLASSES[auto_class]


@pytest.mark.parametrize("model_class", CLASSES.values())
def test_every_saved_class_carries_the_code_and_the_names_of_all_classes(model_class, tmp_path):
    make_model(model_class).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= CODE
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_kdnas.KDNASConfig",
        **{auto.__name__: f"modeling_kdnas.{model.__name__}" for auto, model in CLASSES.items()},
    }


def test_a_trainer_saves_the_code_too(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = make_model(KDNASForTokenClassification)
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [0, 1, 0]}] * 4
    args = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, save_steps=1, disable_tqdm=True
    )
    Trainer(model=model, args=args, train_dataset=rows).train()
    checkpoint = tmp_path / "checkpoint-1"
    assert {path.name for path in checkpoint.iterdir()} >= CODE
    assert type(AutoModelForTokenClassification.from_pretrained(checkpoint)) is KDNASForTokenClassification


WITHOUT_THE_PACKAGE = """
    import sys

    sys.modules["kdnas_hf"] = None  # importing it fails from here on
    from pathlib import Path

    import torch
    import transformers
    from safetensors.torch import load_file

    root, names = Path(sys.argv[1]), sys.argv[2:]
    input_ids = load_file(root / "input_ids.safetensors")["input_ids"]

    def states(model):
        base = getattr(model.eval(), "kdnas", model)
        with torch.no_grad():
            return base(input_ids, output_hidden_states=True).hidden_states

    for name in names:
        auto_class = getattr(transformers, name)
        expected = load_file(root / name / "outputs.safetensors")
        # its own checkpoint gives the same outputs
        model = auto_class.from_pretrained(root / name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        with torch.no_grad():
            assert torch.equal(model.eval()(input_ids)[0], expected["output"]), name
        # any other class loads from it, and its encoder gives the same hidden states
        for other in names:
            loaded = getattr(transformers, other).from_pretrained(root / name, trust_remote_code=True)
            for layer, state in enumerate(states(loaded)):
                # up to rounding, as tensors lie elsewhere in other files
                torch.testing.assert_close(state, expected[f"states.{layer}"], rtol=0, atol=1e-6)
        # what is saved here is complete again
        model.save_pretrained(root / "again" / name)
        again = auto_class.from_pretrained(root / "again" / name, trust_remote_code=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(input_ids)[0], expected["output"], rtol=0, atol=1e-6)
    config = transformers.AutoConfig.from_pretrained(root / names[0], trust_remote_code=True)
    assert config.attention_heads_per_layer == (2, 3)
    print("all the same")
"""


def test_without_the_package_every_class_loads_from_every_checkpoint_exactly(tmp_path):
    input_ids = torch.randint(3, 40, (2, 7))
    save_file({"input_ids": input_ids}, tmp_path / "input_ids.safetensors")
    for auto_class, model_class in CLASSES.items():
        folder = tmp_path / auto_class.__name__
        make_model(model_class).save_pretrained(folder)
        model = model_class.from_pretrained(folder).eval()
        with torch.no_grad():
            outputs = model(input_ids, output_hidden_states=True)
        expected = {f"states.{layer}": state for layer, state in enumerate(outputs.hidden_states)}
        save_file({"output": outputs[0].clone(), **expected}, folder / "outputs.safetensors")

    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    script = tmp_path / "without_the_package.py"
    script.write_text(textwrap.dedent(WITHOUT_THE_PACKAGE))
    names = [auto_class.__name__ for auto_class in CLASSES]
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path), *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "all the same" in result.stdout, result.stderr[-3000:]
    # and what was saved there is loaded here
    again = AutoModel.from_pretrained(tmp_path / "again" / "AutoModel").eval()
    assert type(again) is KDNASModel
    expected = load_file(tmp_path / "AutoModel" / "outputs.safetensors")["output"]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids)[0], expected, rtol=0, atol=1e-6)

"""Checkpoints that bring their code: it travels with every save, and loads in every way that transformers has."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    why_not_native,
)

CODE = {"configuration_kdnas.py", "modeling_kdnas.py"}
AUTO_CLASSES = {
    AutoModel: KDNASModel,
    AutoModelForMaskedLM: KDNASForMaskedLM,
    AutoModelForSequenceClassification: KDNASForSequenceClassification,
    AutoModelForTokenClassification: KDNASForTokenClassification,
    AutoModelForQuestionAnswering: KDNASForQuestionAnswering,
}
INPUT_IDS = torch.tensor([[0, 11, 12, 13, 2], [0, 21, 2, 1, 1]])
pairs = pytest.mark.parametrize(("auto_class", "model_class"), AUTO_CLASSES.items(), ids=lambda value: value.__name__)


def make_model(model_class):
    config = KDNASConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=[2, 4],
        intermediate_size=[16, 24],
        embedding_size=8,
        max_position_embeddings=20,
    )
    assert why_not_native(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return model


def first_output(model):
    with torch.no_grad():
        return model.eval()(INPUT_IDS, attention_mask=INPUT_IDS.ne(1).long())[0]


def names_in(folder):
    return {path.name for path in folder.iterdir()}


# ---- every class, in every way ----


def test_what_a_file_of_the_code_imports_is_fetched_with_it(tmp_path):
    make_model(KDNASModel).save_pretrained(tmp_path)
    for name in CODE:
        relative = [line for line in (tmp_path / name).read_text().splitlines() if line.startswith("from .")]
        assert all(line.startswith("from .configuration_kdnas import") for line in relative)


@pairs
def test_configurations_make_models(auto_class, model_class):
    config = make_model(model_class).config
    for made in (auto_class.from_config(config), model_class._from_config(config)):
        assert type(made) is model_class
        assert made.config == config
        assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
        assert all(parameter.isfinite().all() for parameter in made.parameters())
    half = auto_class.from_config(config, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pairs
def test_weights_are_loaded_in_another_precision_onto_a_device(auto_class, model_class, tmp_path):
    pytest.importorskip("accelerate")  # which device_map needs
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    half = auto_class.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert not half.training
    for name, value in model.state_dict().items():
        assert torch.equal(half.state_dict()[name], value.bfloat16()), name
    assert first_output(half).dtype == torch.bfloat16
    whole = auto_class.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    torch.testing.assert_close(first_output(whole), first_output(model), rtol=0, atol=1e-6)


@pairs
def test_weights_in_many_files_are_put_together_again(auto_class, model_class, tmp_path):
    model = make_model(model_class)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    assert names_in(tmp_path) >= CODE
    loaded, found = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    torch.testing.assert_close(first_output(loaded), first_output(model), rtol=0, atol=1e-6)
    if model_class is KDNASForMaskedLM:  # the tied matrix is in one file, under one name
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert "lm_head.decoder.weight" not in index["weight_map"]
        assert loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight


# ---- a plain Trainer ----

ROWS = {
    KDNASForMaskedLM: {"labels": [-100, 12, 13, -100]},
    KDNASForSequenceClassification: {"labels": 1},
    KDNASForTokenClassification: {"labels": [0, 1, 0, 1]},
    KDNASForQuestionAnswering: {"start_positions": 1, "end_positions": 2},
}


def train(model, folder, steps, resume=None, **arguments):
    rows = [{"input_ids": [0, 11 + i, 12 + i, 2], "attention_mask": [1] * 4, **ROWS[type(model)]} for i in range(8)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        lr_scheduler_type="constant", report_to="none", disable_tqdm=True, logging_strategy="no", **arguments,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return trainer.model


def emptied(model):
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


@pytest.mark.parametrize("model_class", ROWS, ids=lambda model_class: model_class.__name__)
def test_every_checkpoint_of_a_trainer_carries_the_code_and_training_goes_on_from_it(model_class, tmp_path):
    pytest.importorskip("accelerate")
    straight = train(make_model(model_class), tmp_path / "straight", steps=3)
    for step in (1, 2, 3):
        assert names_in(tmp_path / "straight" / f"checkpoint-{step}") >= CODE
    checkpoint = tmp_path / "straight" / "checkpoint-2"
    assert not torch.equal(first_output(model_class.from_pretrained(checkpoint)), first_output(straight))

    # A Trainer seeds itself: only weights that no training can start from show that those of the checkpoint are used.
    resumed = train(emptied(make_model(model_class)), tmp_path / "resumed", steps=3, resume=checkpoint)
    assert names_in(tmp_path / "resumed") == {"checkpoint-3"}
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=1e-6)
    reloaded = model_class.from_pretrained(tmp_path / "resumed" / "checkpoint-3")
    torch.testing.assert_close(first_output(reloaded), first_output(straight), rtol=0, atol=1e-6)


# ---- where kdnas_hf never was ----

WITHOUT_THE_PACKAGE = """
    import importlib.abc
    import sys


    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "kdnas_hf":
                raise ModuleNotFoundError(name)


    sys.meta_path.insert(0, Refuse())
    try:
        import kdnas_hf
        sys.exit("kdnas_hf can be imported here: this would prove nothing")
    except ModuleNotFoundError:
        pass

    from pathlib import Path

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForTokenClassification, Trainer, TrainingArguments

    CODE = {"configuration_kdnas.py", "modeling_kdnas.py"}
    root = Path(sys.argv[1])
    expected = load_file(root / "expected.safetensors")
    ids = expected["input_ids"]

    def load(folder, **keywords):
        model = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True, **keywords)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        return model.eval()

    def logits(model):
        with torch.no_grad():
            return model.eval()(ids, attention_mask=ids.ne(1).long()).logits

    def same(found, wanted):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)

    def train(model, folder, resume=None):
        rows = [{"input_ids": [0, 11 + i, 12 + i, 2], "attention_mask": [1] * 4, "labels": [0, 1, 0, 1]}
                for i in range(8)]
        arguments = TrainingArguments(
            str(folder), max_steps=3, save_steps=1, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
            lr_scheduler_type="constant", report_to="none", disable_tqdm=True, logging_strategy="no",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return trainer.model

    model = load(root / "student")
    same(logits(model), expected["logits"])
    # other ways of loading
    half = load(root / "student", dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    same(logits(load(root / "student", device_map="cpu", dtype=torch.float32)), expected["logits"])
    made = AutoModelForTokenClassification.from_config(model.config, trust_remote_code=True)
    assert type(made).__name__ == "KDNASForTokenClassification"
    made = type(model)._from_config(model.config)
    assert made.config.num_attention_heads == [2, 4]
    # weights in many files
    model.save_pretrained(root / "shards", max_shard_size="8KB")
    assert len(list((root / "shards").glob("model-*.safetensors"))) > 1
    assert CODE <= {path.name for path in (root / "shards").iterdir()}
    same(logits(load(root / "shards")), expected["logits"])
    # fine-tuning
    straight = train(load(root / "student"), root / "straight")
    for step in (1, 2, 3):
        assert CODE <= {path.name for path in (root / "straight" / f"checkpoint-{step}").iterdir()}
    same(logits(load(root / "straight" / "checkpoint-3")), logits(straight))
    empty = load(root / "student")  # what training goes on from is the checkpoint, not this
    for parameter in empty.parameters():
        parameter.data.zero_()
    resumed = train(empty, root / "resumed", resume=root / "straight" / "checkpoint-2")
    same(logits(resumed), logits(straight))
    same(logits(load(root / "resumed" / "checkpoint-3")), logits(straight))
    assert not [module for module in sys.modules if module.startswith("kdnas_hf")]
    print("all the same")
"""


def test_without_the_package_students_are_loaded_and_fine_tuned_in_the_same_ways(tmp_path):
    pytest.importorskip("accelerate")
    model = make_model(KDNASForTokenClassification)
    model.save_pretrained(tmp_path / "student")
    save_file({"input_ids": INPUT_IDS, "logits": first_output(model)}, tmp_path / "expected.safetensors")
    script = tmp_path / "without_the_package.py"
    script.write_text(textwrap.dedent(WITHOUT_THE_PACKAGE))
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert "all the same" in result.stdout, result.stderr[-3000:]
    # what was trained there by the code in the checkpoint is loaded here by the package: the same numbers
    here = train(make_model(KDNASForTokenClassification), tmp_path / "here", steps=3)
    there = AutoModelForTokenClassification.from_pretrained(tmp_path / "resumed" / "checkpoint-3")
    assert type(there) is KDNASForTokenClassification
    torch.testing.assert_close(first_output(there), first_output(here), rtol=0, atol=1e-5)

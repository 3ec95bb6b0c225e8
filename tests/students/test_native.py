"""Stock checkpoints: the same outputs as the student, loaded where kdnas_hf never was, and back."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, XLMRobertaForQuestionAnswering

from kdnas_hf.students import (
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    from_native,
    to_native,
    why_not_native,
    write_native_checkpoint,
)

CLASSES = [
    KDNASModel,
    KDNASForMaskedLM,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASForQuestionAnswering,
]
SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "silu",
    "max_position_embeddings": 40, "classifier_dropout": 0.2, "layer_norm_eps": 1e-6, "type_vocab_size": 2,
}  # fmt: skip


def make_student(kind, vocabulary=145, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
        model = kind(KDNASConfig(vocab_size=vocabulary, **SHAPE | labels | changes)).eval()
        for parameter in model.parameters():  # biases as well, which start at zero
            parameter.data.normal_(std=0.3)
    return model


def make_batch(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (3, 12), generator=generator)
    ids[1, 8:] = model.config.pad_token_id
    ids[2, 3:] = model.config.pad_token_id
    return {"input_ids": ids, "attention_mask": ids.ne(model.config.pad_token_id).long()}


def outputs(model, **more):
    batch = make_batch(model)
    found = model(**batch, output_hidden_states=True, **more)
    kept = batch["attention_mask"].bool()
    values = {f"layer {i}": states[kept] for i, states in enumerate(found.hidden_states)}
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if name in found:
            values[name] = found[name][kept] if found[name].shape[:2] == kept.shape else found[name]
    if more:
        values["loss"] = found.loss
    return values


def labels_for(model):
    ids = make_batch(model)["input_ids"]
    if isinstance(model, KDNASForMaskedLM):
        return {"labels": ids}
    if isinstance(model, KDNASForSequenceClassification):
        return {"labels": torch.tensor([0, 2, 1])}
    if isinstance(model, KDNASForTokenClassification):
        return {"labels": ids % 3}
    if isinstance(model, KDNASForQuestionAnswering):
        return {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([3, 4, 2])}
    return {}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_stock_model_computes_what_the_student_does(kind, tied):
    student = make_student(kind, tie_word_embeddings=tied)
    native = to_native(student)
    assert native.config.model_type == "xlm-roberta"
    mine, theirs = (outputs(model, **labels_for(student)) for model in (student, native))
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        assert values.abs().max() > 1e-3, name
        torch.testing.assert_close(theirs[name], values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_way_back_gives_the_same_student(kind):
    student = make_student(kind)
    again = from_native(to_native(student))
    assert type(again) is kind
    assert again.config.attention_heads_per_layer == student.config.attention_heads_per_layer
    if kind is not KDNASForQuestionAnswering:  # whose labels are start and end in XLM-RoBERTa
        assert again.config == student.config
    for (name, one), (other_name, other) in zip(student.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


def test_the_student_stays_as_it_is_and_shares_nothing():
    student = make_student(KDNASForMaskedLM)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    native = to_native(student)
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_dtype_and_mode_are_kept():
    student = make_student(KDNASModel).to(torch.bfloat16).train()
    native = to_native(student)
    assert native.dtype == torch.bfloat16
    assert native.training


def test_no_random_numbers_are_drawn():
    student = make_student(KDNASModel)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    to_native(student)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": [2, 4]}, r"num_attention_heads=\[2, 4\] differs between layers"),
        ({"intermediate_size": [16, 32]}, r"intermediate_size=\[16, 32\] differs"),
        ({"hidden_act": ["gelu", "relu"]}, "hidden_act="),
        ({"embedding_size": 8}, "embedding_size=8 is not hidden_size=16"),
        ({"pad_token_id": 7, "position_padding_idx": 1}, "position_padding_idx=1 is not pad_token_id=7"),
    ],
)
def test_shapes_without_a_counterpart_are_refused_with_the_reason(changes, message, tmp_path):
    student = make_student(KDNASModel, **changes)
    with pytest.raises(ValueError, match=message):
        to_native(student)
    student.save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match=f"{message}.*Publish it with its code"):
        write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    assert not (tmp_path / "native").exists()
    assert why_not_native(student.config)


def test_padding_that_is_not_the_second_token_is_no_obstacle():
    student = make_student(KDNASModel, pad_token_id=0)
    assert why_not_native(student.config) is None
    native = to_native(student)
    torch.testing.assert_close(outputs(native)["layer 2"], outputs(student)["layer 2"], rtol=0, atol=1e-5)


def test_other_models_are_refused(teacher_path, tmp_path):
    with pytest.raises(ValueError, match="'xlm-roberta', no student"):
        write_native_checkpoint(teacher_path, tmp_path / "native")
    with pytest.raises(ValueError, match="no counterpart"):
        to_native(type("KDNASForNothing", (KDNASModel,), {})(KDNASConfig(vocab_size=50, **SHAPE)))
    with pytest.raises(ValueError, match="none of XLMRobertaModel"):
        from_native(make_student(KDNASModel))


LOAD = """
import json, sys
try:
    import kdnas_hf
    sys.exit("kdnas_hf can be imported here: this would prove nothing")
except ImportError:
    pass
import torch, transformers
from transformers import AutoTokenizer, pipeline
folder, auto, text = sys.argv[1:]
model = getattr(transformers, auto).from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
found = model(**tokenizer(text, return_tensors="pt"))[0]
task = {"AutoModel": "feature-extraction", "AutoModelForMaskedLM": "fill-mask",
        "AutoModelForTokenClassification": "token-classification"}[auto]
run = pipeline(task, model=folder)(text)
print(json.dumps({"class": type(model).__name__, "first": found[0].tolist(), "pipeline": bool(run)}))
"""


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        (KDNASModel, "AutoModel"),
        (KDNASForMaskedLM, "AutoModelForMaskedLM"),
        (KDNASForTokenClassification, "AutoModelForTokenClassification"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stock_checkpoint_loads_where_kdnas_hf_never_was(kind, auto, tokenizer, tmp_path):
    student = make_student(kind, vocabulary=len(tokenizer))
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "training_args.bin").write_bytes(b"private")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    names = {path.name for path in (tmp_path / "native").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin"))]
    config = (tmp_path / "native" / "config.json").read_text()
    assert "auto_map" not in config
    assert "kdnas" not in config.lower()

    text = "bap <mask> dat" if kind is KDNASForMaskedLM else "bap dat gup"
    blocked = "import sys; sys.modules['kdnas_hf'] = None\n"  # an installed package cannot be imported either
    result = subprocess.run(
        [sys.executable, "-c", blocked + LOAD, str(tmp_path / "native"), auto, text],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = student(**AutoTokenizer.from_pretrained(tmp_path / "student")(text, return_tensors="pt"))[0][0]
    assert found["class"].startswith("XLMRoberta")
    assert found["pipeline"]
    torch.testing.assert_close(torch.tensor(found["first"]), expected, rtol=0, atol=1e-5)


def test_a_question_answering_head_survives_the_files(tokenizer, tmp_path):
    student = make_student(KDNASForQuestionAnswering, vocabulary=len(tokenizer))
    student.save_pretrained(tmp_path / "student")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    native = XLMRobertaForQuestionAnswering.from_pretrained(tmp_path / "native").eval()
    torch.testing.assert_close(outputs(native)["start_logits"], outputs(student)["start_logits"], rtol=0, atol=1e-5)

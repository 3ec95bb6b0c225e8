"""Stock checkpoints: the same outputs as the student, loaded where kdnas_hf never was, and back."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
    XLMRobertaModel,
)

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
from kdnas_hf.students.native import TOKENIZER_FILES

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


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_both_ways_lead_through_files_to_an_equal_configuration(kind, tmp_path):
    two = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    make_student(kind, **two if kind is KDNASForQuestionAnswering else {}).save_pretrained(tmp_path / "student")
    student = kind.from_pretrained(tmp_path / "student")
    again = from_native(write_native_checkpoint(tmp_path / "student", tmp_path / "native"))
    assert again.config == student.config
    mine, theirs = outputs(student), outputs(again)
    assert all(torch.equal(values, theirs[name]) for name, values in mine.items())


def test_every_field_is_carried_over(tmp_path):
    fields = {
        "hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.12, "initializer_range": 0.03,
        "bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 4, "tie_word_embeddings": False,
        "problem_type": "multi_label_classification",
    }  # fmt: skip
    student = make_student(KDNASForSequenceClassification, **fields).to(torch.bfloat16)
    student.save_pretrained(tmp_path / "student")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    config = XLMRobertaConfig.from_pretrained(tmp_path / "native")
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    for name, value in {"vocab_size": 145, **SHAPE, **labels, **fields}.items():
        assert getattr(config, name) == value, name
    assert config.num_labels == 3
    assert config.architectures == ["XLMRobertaForSequenceClassification"]
    assert config.dtype == torch.bfloat16


def test_configurations_share_nothing():
    student = make_student(KDNASForTokenClassification)
    native = to_native(student)
    native.config.label2id["d"] = 3
    native.config.id2label[3] = "d"
    assert student.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert student.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_is_computed_in_the_same_way(implementation):
    student = make_student(KDNASForTokenClassification)
    student.set_attn_implementation(implementation)
    native = to_native(student)
    assert native.config._attn_implementation == implementation
    assert from_native(native).config._attn_implementation == implementation
    torch.testing.assert_close(outputs(native)["logits"], outputs(student)["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_language_model_has_one_bias(tied):
    native = to_native(make_student(KDNASForMaskedLM, tie_word_embeddings=tied))
    words = native.get_input_embeddings().weight
    assert (native.lm_head.decoder.weight is words) == tied
    assert torch.equal(native.lm_head.decoder.bias, native.lm_head.bias)
    if tied:
        assert native.lm_head.decoder.bias is native.lm_head.bias


def test_an_untied_bias_is_saved_under_the_names_of_both_lines(tmp_path):
    # transformers 4 reads the one and drops the other where it saves, 5 reads the other
    student = make_student(KDNASForMaskedLM, tie_word_embeddings=False)
    student.save_pretrained(tmp_path / "student")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    weights = load_file(tmp_path / "native" / "model.safetensors")
    for name in ("lm_head.bias", "lm_head.decoder.bias"):
        assert torch.equal(weights[name], student.lm_head.decoder.bias), name
    loaded = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "native").eval()
    torch.testing.assert_close(outputs(loaded)["logits"], outputs(student)["logits"], rtol=0, atol=1e-5)


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
        ({"pad_token_id": 42, "position_padding_idx": 1}, "position_padding_idx=1 is far from pad_token_id=42"),
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


@pytest.mark.parametrize(("pad", "row", "rows"), [(7, 1, 46), (41, 1, 80), (0, 3, 37), (1, 1, 40)])
def test_positions_that_count_from_another_row_are_moved(pad, row, rows, tmp_path):
    student = make_student(KDNASForTokenClassification, pad_token_id=pad, position_padding_idx=row)
    student.save_pretrained(tmp_path / "student")
    native = write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    assert native.config.max_position_embeddings == rows
    assert native.get_parameter("roberta.embeddings.position_embeddings.weight").shape == (rows, 16)
    longest = torch.full((1, student.config.max_tokens), 50)
    torch.testing.assert_close(native(longest).logits, student(longest).logits, rtol=0, atol=1e-5)
    mine, theirs = outputs(student), outputs(native)
    for name, values in mine.items():
        torch.testing.assert_close(theirs[name], values, rtol=0, atol=1e-5)
    again = from_native(native, position_padding_idx=row)
    assert again.config == student.config
    torch.testing.assert_close(outputs(again)["logits"], mine["logits"], rtol=0, atol=1e-5)
    # the student's own way of counting can be left behind as well
    torch.testing.assert_close(outputs(from_native(native))["logits"], mine["logits"], rtol=0, atol=1e-5)


def test_a_decoder_is_no_student():
    native = XLMRobertaModel(XLMRobertaConfig(vocab_size=145, **SHAPE, is_decoder=True))
    with pytest.raises(ValueError, match="is_decoder=True is nothing that a student can do"):
        from_native(native)


def test_a_pooler_is_left_out():
    native = XLMRobertaModel(XLMRobertaConfig(vocab_size=145, **SHAPE)).eval()
    assert native.pooler is not None
    student = from_native(native)
    torch.testing.assert_close(outputs(student)["layer 2"], outputs(native)["layer 2"], rtol=0, atol=1e-5)


def test_nothing_but_the_pooler_is_missed_by_auto_model(tmp_path):
    make_student(KDNASModel).save_pretrained(tmp_path / "student")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    _, found = AutoModel.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert set(found["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not found["unexpected_keys"]
    _, found = AutoModel.from_pretrained(tmp_path / "native", output_loading_info=True, add_pooling_layer=False)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


def test_a_student_is_not_overwritten(tmp_path):
    make_student(KDNASModel).save_pretrained(tmp_path / "student")
    before = (tmp_path / "student" / "config.json").read_text()
    with pytest.raises(ValueError, match="the student's own directory"):
        write_native_checkpoint(tmp_path / "student", tmp_path / "student" / ".." / "student")
    assert (tmp_path / "student" / "config.json").read_text() == before


def make_bare_tokenizer():
    """A tokenizer of no named class: byte level pieces, its own special tokens."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: number for number, piece in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, additional_special_tokens=["<query>"], model_max_length=30
    )


def test_a_tokenizer_without_a_class_of_its_own_is_written_in_words_that_both_lines_know(tmp_path):
    student = make_student(KDNASModel, vocabulary=270, pad_token_id=0)
    student.save_pretrained(tmp_path / "student")
    tokenizer = make_bare_tokenizer()
    tokenizer.save_pretrained(tmp_path / "student")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    fields = json.loads((tmp_path / "native" / "tokenizer_config.json").read_text())
    # `TokenizersBackend`, and `extra_special_tokens` in a list, are words of transformers 5 alone
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(fields.get("extra_special_tokens"), list)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "native")  # not XLM-RoBERTa's, which the model's type suggests
    text = "Grüße <query> Ж"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.mask_token_id == 3
    assert "<query>" in loaded.all_special_tokens
    assert loaded.model_max_length == 30


@pytest.mark.parametrize(("known", "expected"), [(64, 38), (20, 20)])
def test_a_tokenizer_truncates_to_the_positions_that_there_are(known, expected, tokenizer, tmp_path):
    make_student(KDNASModel, vocabulary=len(tokenizer)).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    path = tmp_path / "student" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": known}))
    native = write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    batch = AutoTokenizer.from_pretrained(tmp_path / "native")("bap " * 100, truncation=True, return_tensors="pt")
    assert native(**batch).last_hidden_state.shape == (1, expected, 16)


def test_a_tokenizer_that_pads_on_the_left_pads_where_a_stock_head_does_not_read(tokenizer, tmp_path):
    student = make_student(KDNASForSequenceClassification, vocabulary=len(tokenizer))
    student.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    on_the_left = AutoTokenizer.from_pretrained(tmp_path / "student", padding_side="left")
    on_the_left.save_pretrained(tmp_path / "student")
    native = write_native_checkpoint(tmp_path / "student", tmp_path / "native").eval()
    texts = ["bap", "bap ber bep bip bop"]
    theirs = native(**AutoTokenizer.from_pretrained(tmp_path / "native")(texts, padding=True, return_tensors="pt"))
    batch = on_the_left(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0
    torch.testing.assert_close(theirs.logits, student(**batch).logits, rtol=0, atol=1e-5)


def test_other_models_are_refused(teacher_path, tmp_path):
    with pytest.raises(ValueError, match="'xlm-roberta', no student"):
        write_native_checkpoint(teacher_path, tmp_path / "native")
    with pytest.raises(ValueError, match="no counterpart"):
        to_native(type("KDNASForNothing", (KDNASModel,), {})(KDNASConfig(vocab_size=50, **SHAPE)))
    with pytest.raises(ValueError, match="none of XLMRobertaModel"):
        from_native(make_student(KDNASModel))
    student = make_student(KDNASModel)
    student.save_pretrained(tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(json.dumps({**config, "architectures": ["KDNASForNothing"]}))
    with pytest.raises(ValueError, match="holds a KDNASForNothing"):
        write_native_checkpoint(tmp_path / "student", tmp_path / "native")


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
    import transformers
    from safetensors.torch import load_file

    PIPELINES = {"Model": "feature-extraction", "ForMaskedLM": "fill-mask",
                 "ForTokenClassification": "token-classification", "ForSequenceClassification": "text-classification"}
    root, text = Path(sys.argv[1]), sys.argv[2]
    for name in sys.argv[3:]:
        folder = root / name / "native"
        model = getattr(transformers, f"Auto{name if name == 'Model' else 'Model' + name}").from_pretrained(folder)
        assert type(model).__module__ == "transformers.models.xlm_roberta.modeling_xlm_roberta", type(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        expected = load_file(root / name / "expected.safetensors")
        batch = {key: expected[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            found = model.eval()(**batch, output_hidden_states=True)
        kept = batch["attention_mask"].bool()
        for layer, states in enumerate(found.hidden_states):
            torch.testing.assert_close(states[kept], expected[f"layer {layer}"][kept], rtol=0, atol=1e-5)
        whole = found[0].shape[:2] != kept.shape  # a row for each text, not one for each token
        torch.testing.assert_close(*(value if whole else value[kept] for value in (found[0], expected["first"])),
                                   rtol=0, atol=1e-5)
        assert tokenizer(text)["input_ids"] == expected["text"].tolist()
        if name in PIPELINES:
            ran = transformers.pipeline(PIPELINES[name], model=str(folder))(text)
            with torch.no_grad():
                alone = model(**tokenizer(text, return_tensors="pt"))[0][0]
            if name == "Model":
                torch.testing.assert_close(torch.tensor(ran[0]), alone, rtol=0, atol=1e-5)
            elif name == "ForMaskedLM":
                place = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)
                assert ran[0]["token"] == int(alone[place].argmax())
            elif name == "ForSequenceClassification":
                assert ran[0]["label"] == "abc"[int(alone.argmax())]
            else:
                assert {row["entity"] for row in ran} <= set("abc") and ran
    assert not [module for module in sys.modules if module.startswith(("kdnas_hf", "transformers_modules"))]
    print("all the same")
"""


def test_stock_checkpoints_load_where_kdnas_hf_never_was(tokenizer, tmp_path):
    text = "bap <mask> dat gup"
    for kind in CLASSES:
        folder = tmp_path / kind.__name__.removeprefix("KDNAS")
        student = make_student(kind, vocabulary=len(tokenizer))
        student.save_pretrained(folder / "student")
        tokenizer.save_pretrained(folder / "student")
        (folder / "student" / "checkpoint-1").mkdir()
        for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "distillation.json"):
            (folder / "student" / name).write_bytes(b"private")
        write_native_checkpoint(folder / "student", folder / "native")
        names = {path.name for path in (folder / "native").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
        assert names <= {"config.json", "model.safetensors", *TOKENIZER_FILES}
        config = (folder / "native" / "config.json").read_text()
        assert "auto_map" not in config
        assert "kdnas" not in config.lower()

        batch = make_batch(student)
        with torch.no_grad():
            found = student(**batch, output_hidden_states=True)
        states = {f"layer {layer}": states for layer, states in enumerate(found.hidden_states)}
        ids = AutoTokenizer.from_pretrained(folder / "student")(text)["input_ids"]
        expected = {"first": found[0].clone(), "text": torch.tensor(ids), **batch, **states}
        save_file(expected, folder / "expected.safetensors")

    script = tmp_path / "without_the_package.py"
    script.write_text(textwrap.dedent(WITHOUT_THE_PACKAGE))
    names = [kind.__name__.removeprefix("KDNAS") for kind in CLASSES]
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path), text, *names],
        capture_output=True, text=True, timeout=240, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "all the same" in result.stdout, result.stderr[-3000:]
    assert "trust_remote_code" not in result.stderr


def test_a_question_answering_head_survives_the_files(tokenizer, tmp_path):
    student = make_student(KDNASForQuestionAnswering, vocabulary=len(tokenizer))
    student.save_pretrained(tmp_path / "student")
    write_native_checkpoint(tmp_path / "student", tmp_path / "native")
    native = XLMRobertaForQuestionAnswering.from_pretrained(tmp_path / "native").eval()
    torch.testing.assert_close(outputs(native)["start_logits"], outputs(student)["start_logits"], rtol=0, atol=1e-5)

"""Every tokenizer of the package pads on the right, however it was saved."""

import ast
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizer

import kdnas_hf
from kdnas_hf import DataArguments, KDNASConfig, KDNASForMaskedLM, load_teacher
from kdnas_hf.evaluation import ModelSource
from kdnas_hf.hub import CompressionArguments, compress_student
from kdnas_hf.utils import tokenizers
from kdnas_hf.utils.tokenizers import load_tokenizer
from tiny_teacher import make_teacher_model, make_texts

TEXTS = ["bap ber", " ".join(make_texts(8, seed=3))]


def save_model(folder, tokenizer, **changes):
    """A teacher, and its tokenizer with settings that somebody else chose."""
    make_teacher_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture(params=["configuration", "tokenizer.json"])
def left(request, tokenizer, tmp_path):
    """A checkpoint whose tokenizer pads on the left, by either of the files that can say so."""
    folder = save_model(tmp_path / "left", tokenizer)
    if request.param == "configuration":
        return save_model(folder, tokenizer, padding_side="left")
    path = folder / "tokenizer.json"
    padding = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1}
    content = json.loads(path.read_text()) | {"padding": {**padding, "pad_type_id": 0, "pad_token": "<pad>"}}
    path.write_text(json.dumps(content))
    return folder


def of_a_smaller_student(folder):
    """What compression saves beside the student that it makes."""
    torch.manual_seed(0)
    config = KDNASConfig(
        vocab_size=145, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=1
    )
    KDNASForMaskedLM(config).save_pretrained(folder)
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("\n".join(make_texts(300, seed=4)))
    target = folder.parent / "smaller"
    args = CompressionArguments(student=str(folder), output_dir=str(target), trim_to=[str(corpus)])
    compress_student(args, DataArguments(dataset=[str(corpus)], heldout_sentences=20))
    return AutoTokenizer.from_pretrained(target)


LOADERS = {
    "load_tokenizer": load_tokenizer,
    "load_teacher": lambda folder: load_teacher(str(folder)).tokenizer,
    "ModelSource": lambda folder: ModelSource(str(folder)).load_tokenizer(),
    "compress_student": of_a_smaller_student,
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_tokenizer_saved_with_padding_on_the_left_pads_on_the_right(load, left, tmp_path):
    loaded = load(left)
    assert loaded.padding_side == "right"
    batch = loaded(TEXTS, padding=True, return_tensors="pt")
    for number, text in enumerate(TEXTS):
        alone = loaded(text)["input_ids"]
        assert batch["input_ids"][number, : len(alone)].tolist() == alone
        assert batch["attention_mask"][number].tolist() == [1] * len(alone) + [0] * (
            batch["input_ids"].shape[1] - len(alone)
        )
    loaded.save_pretrained(tmp_path / "copy")  # as beside a student
    make_teacher_model().config.save_pretrained(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").padding_side == "right"


def test_padding_on_the_left_gives_the_batches_of_padding_on_the_right(left, teacher_path):
    found, expected = (load_tokenizer(path)(TEXTS, padding=True)["input_ids"] for path in (left, teacher_path))
    assert found == expected


def test_no_other_module_loads_tokenizers():
    """A loader that is added elsewhere takes the padding side as it comes; trimming compares with what was saved."""
    package = Path(kdnas_hf.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        and any(name.name.endswith(("AutoTokenizer", "AutoProcessor")) for name in node.names)
    }
    assert found == {"utils/tokenizers.py", "students/vocabulary_trimming.py"}


@pytest.mark.parametrize("missing", ["files", "content"])
def test_a_model_without_tokenizer_is_refused_with_the_field_and_the_remedy(tokenizer, tmp_path, missing):
    folder = save_model(tmp_path / "model", tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink() if missing == "files" else (folder / name).write_text("{")
    for require_fast in (True, False):
        with pytest.raises(ValueError, match=r"^student='.*' has no .*tokenizer.*save a fast tokenizer") as caught:
            load_tokenizer(folder, field="student", require_fast=require_fast)
        assert "\n" not in str(caught.value)


class WordTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python."""

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, **kwargs):
        self.words = {"<pad>": 0, "<unk>": 1, **{word: i for i, word in enumerate("abcdefgh", start=2)}}
        super().__init__(pad_token="<pad>", unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return dict(self.words)

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.words.get(token, 1)

    def _convert_id_to_token(self, index):
        return list(self.words)[index]


def test_a_slow_tokenizer_is_refused_only_where_a_fast_one_is_required(monkeypatch):
    class Auto:
        @staticmethod
        def from_pretrained(name, **keywords):
            return WordTokenizer(padding_side=keywords["padding_side"])

    monkeypatch.setattr(tokenizers, "AutoTokenizer", Auto)
    with pytest.raises(ValueError, match="teacher='slow' has no fast tokenizer; save a fast"):
        load_tokenizer("slow")
    loaded = load_tokenizer("slow", require_fast=False)
    assert loaded(["a b c", "a"], padding=True)["input_ids"] == [[2, 3, 4], [2, 0, 0]]

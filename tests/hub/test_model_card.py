"""The card: its whole text, what is missing in it, its metadata, and cards that somebody edited."""

import dataclasses
import os
from pathlib import Path

import pytest
import yaml
from example_evidence import (
    example_evaluation,
    example_evidence,
    example_latency,
    example_search,
    example_training,
    example_vectors,
    save_example_student,
)
from huggingface_hub import ModelCard

from kdnas_hf import KDNASConfig, StudentEvidence, write_model_card, write_scores_into_card
from kdnas_hf.hub import KDNASModelCardData, render_card
from kdnas_hf.hub.model_card import Sibling

GOLDEN = Path(__file__).parent / "golden_card.md"


@pytest.fixture
def student(tmp_path, tokenizer):
    return save_example_student(tmp_path / "student", tokenizer)


@pytest.fixture
def config():
    config = KDNASConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    config.architectures = ["KDNASModel"]
    return config


def sections(card):
    """The text of a card by heading."""
    found = {}
    for part in card.split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        found[heading] = text.strip()
    return found


def test_the_whole_text_of_a_card(student):
    card = write_model_card(student, repo_id="someone/kdnas-1x16").read_text()
    if os.environ.get("KDNAS_WRITE_GOLDEN"):
        GOLDEN.write_text(card)
    assert card == GOLDEN.read_text()


def test_every_plot_and_file_that_a_card_names_is_there(student):
    card = write_model_card(student).read_text()
    for name in ("evidence/distillation.png", "evidence/scores.png"):
        assert f"({name})" in card
        assert (student / name).stat().st_size > 1000
    (student / "evidence" / "pareto.png").write_bytes(b"plot")
    assert "(evidence/pareto.png)" in write_model_card(student).read_text()


def test_what_was_not_measured_is_said_to_be_missing(config):
    bare = render_card(StudentEvidence(config))
    assert not any(character.isdigit() for character in sections(bare)["Latency"])
    assert sections(bare)["Latency"] == "Latency was not measured."
    assert "Scores on downstream tasks were not measured." in sections(bare)["Scores on downstream tasks"]
    assert sections(bare)["Distillation"] == "How it was distilled is not recorded."
    assert sections(bare)["How it was made"] == "The command that made it is not recorded."
    assert "Its shape was chosen by hand: no search is recorded." in bare
    assert "distilled from a teacher that is not recorded" in bare
    assert bare.count("not measured |") == 3  # speed-up, score, R²
    assert "licence of its teacher" in sections(bare)["Limits"]
    assert "downstream tasks was not measured" in sections(bare)["Limits"]
    data = yaml.safe_load(bare.split("---")[1])
    assert not {"base_model", "license", "language", "model-index", "datasets", "metrics"} & set(data)


def test_a_training_without_a_curve_or_seconds_says_so(config):
    training = example_training(curve=[], seconds=None, r2=None, r2_per_layer={})
    text = sections(render_card(StudentEvidence(config, training)))["Distillation"]
    assert "The training curve was not recorded." in text
    assert "| wall-clock time | not recorded, on" in text
    assert "| R² on held-out text | not measured |" in text


def test_metadata_follow_from_the_evidence(config):
    data = KDNASModelCardData.of(example_evidence(config)).to_dict()
    assert data["base_model"] == "someone/tiny-teacher"
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["de", "en", "zh"]  # primary subtags, each once
    assert data["datasets"] == ["someone/texts"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "feature-extraction"
    assert "arxiv:2303.09639" in data["tags"]
    assert KDNASModelCardData.of(example_evidence(config), license="mit").license == "mit"


def test_metadata_hold_each_score_once_and_survive_a_round_trip(config):
    text = render_card(example_evidence(config))
    found = ModelCard(text).data.eval_results
    values = {result.dataset_config: result.metric_value for result in found}
    assert values == {"3 languages": 71.67, "all languages but en": 63.5, "de": 75.0, "en": 88.0, "sw": 52.0}
    assert {result.task_type for result in found} == {"text-classification"}
    assert {result.metric_type for result in found} == {"accuracy"}


@pytest.mark.parametrize(
    ("head", "tag", "loader"),
    [
        ("KDNASForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
        ("KDNASForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
        ("KDNASForTokenClassification", "token-classification", "AutoModelForTokenClassification"),
        ("KDNASForQuestionAnswering", "question-answering", "AutoModelForQuestionAnswering"),
    ],
)
def test_a_student_with_a_head_is_shown_with_its_auto_class(config, head, tag, loader):
    config.architectures = [head]
    card = render_card(example_evidence(config))
    assert f"pipeline_tag: {tag}\n" in card
    assert f"model = {loader}.from_pretrained(" in sections(card)["How to use"]
    assert "without a head" not in sections(card)["Limits"]


def test_only_a_stock_checkpoint_is_shown_without_remote_code(config):
    custom = sections(render_card(example_evidence(config)))["How to use"]
    native = sections(render_card(example_evidence(config), native=True))["How to use"]
    assert "trust_remote_code=True" in custom
    assert "trust_remote_code" not in native
    assert "ordinary XLM-RoBERTa checkpoint" in native


def test_artefacts_are_named_if_there_are_any(config):
    text = render_card(example_evidence(config), artefacts=["onnx/model.onnx"])
    assert "this repository holds `onnx/model.onnx`." in text


def test_shapes_that_differ_by_layer_are_shown_layer_by_layer(config):
    config = KDNASConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=[2, 4], intermediate_size=[32, 16],
        hidden_act=["gelu", "relu"], embedding_size=8,
    )  # fmt: skip
    text = sections(render_card(example_evidence(config)))["Architecture"]
    for row in ("heads | 2 / 4", "FFN size | 32 / 16", "activation | gelu / relu", "embedding size | 8"):
        assert row in text


def test_a_student_off_the_front_is_shown_beside_it(config):
    search = example_search()
    worse = dataclasses.replace(search, architecture=search.trials[3].architecture, rank=2)
    text = sections(render_card(example_evidence(config, search=worse)))["Architecture"]
    assert "number 2 by reward" in text
    assert "and this student, which is not on it" in text
    assert "| **1x16 heads 2 ffn 32 relu** | **0.310** |" in text
    assert text.count("**0.") == 1


def test_a_shape_is_shown_with_the_figures_of_its_confirmation(config):
    text = sections(render_card(example_evidence(config)))["Architecture"]
    assert "R² 0.3520 ± 0.0020 (standard deviation over seeds), 10.10 ms, 7.92x." in text
    assert "| **1x16 heads 2 ffn 32 gelu** | **0.352** | **10.10** | **7.92x** |" in text
    assert "0.360" not in text  # the search's luckiest reading
    assert "(teacher's width, 1 layer), at equal latency: a tie." in text
    assert "1 too slow" in text
    assert "The controller did not choose it" not in text


def test_a_shape_that_was_not_measured_again_is_said_to_be_lucky(config):
    text = sections(render_card(example_evidence(config, search=example_search(confirmations=[]))))["Architecture"]
    assert "is partly luck: it was not measured again." in text
    assert "It was not compared with rules of thumb." in text
    assert "±" not in text
    one = [dataclasses.replace(found, qualities=found.qualities[:1]) for found in example_search().confirmations]
    text = sections(render_card(example_evidence(config, search=example_search(confirmations=one))))["Architecture"]
    assert "each of 1 further seed(s)" in text
    assert "at equal latency: one seed decides nothing." in text
    assert "standard deviation" not in text


@pytest.mark.parametrize(("number", "what"), [(1, "a rule of thumb, teacher's width, 1 layer"), (2, "a random shape")])
def test_a_shape_that_the_controller_did_not_choose_is_not_said_to_be_chosen(config, number, what):
    search = example_search()
    search = dataclasses.replace(search, architecture=search.confirmations[number].architecture)
    text = sections(render_card(example_evidence(config, search=search)))["Architecture"]
    assert f"The controller did not choose it: it is {what}, which was measured beside the best candidates." in text
    assert "The best shape of the search" not in text


def test_quality_that_is_not_r2_is_not_called_so_and_without_a_budget_none_is_named(config):
    search = example_search(label="quality", budget={})
    text = sections(render_card(example_evidence(config, search=search)))["Architecture"]
    assert "R²" not in text
    assert "could win" not in text
    assert "| architecture | quality |" in text


def test_siblings_are_pointed_to(config):
    sibling = Sibling("me/kdnas-4x", "at least 4x faster", example_evidence(config))
    text = sections(render_card(example_evidence(config), siblings=[sibling]))["Architecture"]
    assert "[me/kdnas-4x](https://huggingface.co/me/kdnas-4x) | at least 4x faster | 7.28x | 0.613 |" in text


def test_latency_of_several_backends_is_a_line_each(config):
    rows = [example_latency(), example_latency(backend="OpenVINO, int8", student_ms=2.0)]
    text = sections(render_card(example_evidence(config, latency=rows)))["Latency"]
    assert "| OpenVINO, int8 | 1 x 128 | 1 | 74.13 (IQR 0.61) | 2.00 (IQR 0.14) | 37.06x |" in text
    assert "PyTorch eager, float32" in text


def test_scores_of_several_evaluations_are_averaged_over_tasks(config):
    evaluations = [example_evaluation(), example_evaluation(name="other")]
    card = render_card(example_evidence(config, evaluations=evaluations))
    assert "| kept of the teacher's score | **92.3 %** (topic 92.3 %, other 92.3 %) |" in card
    scores = sections(card)["Scores on downstream tasks"]
    assert "(evidence/scores.png)" in scores
    assert "(evidence/scores_2.png)" in scores
    assert len(ModelCard(card).data.eval_results) == 10


def test_scores_come_into_a_card_when_they_are_there(tmp_path, tokenizer):
    student = save_example_student(tmp_path / "student", tokenizer, evaluation=False)
    assert "model-index" not in write_model_card(student).read_text()
    path = write_scores_into_card(example_evaluation(), student)
    assert path == student / "README.md"
    assert "| topic (accuracy, 3 languages) | student | 71.7 ± 1.4 |" in path.read_text()
    assert "model-index" in path.read_text()


def test_scores_of_sentence_vectors_are_evidence_like_others(student):
    (student / "evidence" / "evaluations.json").unlink()
    assert write_scores_into_card(example_vectors(), student) == student / "README.md"
    text = (student / "README.md").read_text()
    assert "| tatoeba (accuracy, 2 languages) | student | 32 | 52.5 [42.5, 62.5] | 75.0 [50.0, 100.0] | none |" in text
    assert "| kept of the teacher's score | **75.0 %** (tatoeba) |" in text
    assert "not measured" not in text.split("## Scores")[1].split("## Distillation")[0]
    assert StudentEvidence.load(student).vectors == example_vectors()
    # beside others, and of each task the last
    write_scores_into_card(example_evaluation(), student)
    other = dataclasses.replace(example_vectors(), tasks={"stsb": example_vectors().tasks["tatoeba"]})
    write_scores_into_card(other, student)
    text = (student / "README.md").read_text()
    assert all(f"| {task}" in text for task in ("tatoeba (", "stsb (", "topic ("))


def test_words_that_somebody_wrote_stay(student, caplog):
    path = write_model_card(student)
    mine = path.read_text().replace("## Limits\n", "## Limits\n\nNot for poems.\n")
    path.write_text(mine)
    (student / "evidence" / "evaluations.json").unlink()
    assert write_model_card(student) == path
    assert "Not for poems." in path.read_text()
    assert "Scores on downstream tasks were not measured." in path.read_text()  # what is measured is brought up to date
    assert "edited by hand" in caplog.text


def test_a_card_without_a_place_for_scores_stays(student, caplog):
    (student / "README.md").write_text("# Mine\n")
    assert write_scores_into_card(example_evaluation(), student) is None
    assert (student / "README.md").read_text() == "# Mine\n"
    assert "has no place for scores" in caplog.text
    assert (student / "evidence" / "evaluations.json").is_file()  # kept for the day when it has


def test_scores_of_a_student_on_the_hub_are_written_into_no_card(tmp_path, caplog):
    assert write_scores_into_card(example_evaluation(), tmp_path / "someone" / "student") is None
    assert "no local student" in caplog.text

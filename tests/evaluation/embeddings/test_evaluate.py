"""Encoders on tasks: prompts, vectors that are made once, the teacher's index, resuming, and bad input."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_embedders import HashEncoder, TableEncoder, number_of, write_bitext, write_retrieval, write_rows

from kdnas_hf import KDNASConfig
from kdnas_hf.evaluation.embeddings import (
    EmbeddingArguments,
    EmbeddingResults,
    EncoderVectors,
    cut_baseline,
    evaluate_embedders,
    load_embedding_data,
    load_encoder,
    static_baseline,
)
from kdnas_hf.evaluation.embeddings.encoder import SAMPLE
from kdnas_hf.students import SentenceEncoder
from kdnas_hf.utils.sentence_head import SentenceHead
from tiny_teacher import make_teacher_model

NOISES = {"teacher": 0.0, "student": 1.0}
PROMPTS = {"query": "query: ", "passage": "passage: "}


class Killed(BaseException):
    pass


def texts_asked(encoder):
    """What an encoder was asked for, without the few texts that tell it from others."""
    return [(texts, given) for texts, given in encoder.asked if len(texts) > SAMPLE]


@pytest.fixture
def bitext(tmp_path):
    for language in ("de", "sw"):
        write_bitext(tmp_path / "data", language)
    return load_embedding_data("tatoeba", tmp_path / "data")


@pytest.fixture
def retrieval(tmp_path):
    write_retrieval(tmp_path / "data", "de", passages=10)
    return load_embedding_data("xquadr", tmp_path / "data")


def good(**options):
    return HashEncoder(
        meaning=lambda text: number_of(text) if text.split()[0] in ("de", "sw", "en", "p") else text, **options
    )


def test_scores_shares_averages_and_languages_that_fall_behind(bitext, tmp_path):
    encoders = {"student": good(noise=1.2), "teacher": good(noise=0.2)}
    results = evaluate_embedders(encoders, [bitext], tmp_path / "out", min_share=0.99)
    task = results.tasks["tatoeba"]
    assert list(task.encoders) == ["teacher", "student"]
    teacher, student = task.encoders["teacher"], task.encoders["student"]
    assert teacher.average.value == 1
    for language in ("de", "sw"):
        score, share = student.languages[language], student.shares[language]
        assert score.low <= score.value <= score.high
        assert share.value == pytest.approx(score.value / teacher.languages[language].value)
        details = student.details[language]
        both = (details["source_to_target"] + details["target_to_source"]) / 2
        assert both == pytest.approx(score.value)
    mean = np.mean([student.languages[language].value for language in ("de", "sw")])
    assert student.average.value == pytest.approx(mean)
    assert student.average_share.value == pytest.approx(mean)
    assert student.below == [language for language in ("de", "sw") if student.shares[language].value < 0.99]
    assert student.below
    saved = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert saved["tasks"]["tatoeba"]["encoders"]["student"]["average"]["value"] == pytest.approx(mean)
    report = (tmp_path / "out" / "embeddings.md").read_text()
    assert f"{100 * mean:.1f} [" in report
    assert "tatoeba-de-dev.jsonl.gz" in report


def test_only_prompts_that_an_encoder_has_are_passed(bitext, retrieval, tmp_path):
    with_passage, with_document, without = good(prompts=PROMPTS), good(prompts={"query": "", "document": ""}), good()
    encoders = {"teacher": with_passage, "b": with_document, "c": without}
    evaluate_embedders(encoders, [bitext, retrieval], tmp_path / "out", resamples=5)
    for encoder, query, passage in (
        (with_passage, {"prompt_name": "query"}, {"prompt_name": "passage"}),
        (with_document, {"prompt_name": "query"}, {"prompt_name": "document"}),
        (without, {}, {}),
    ):
        given = {texts[0].split()[0]: given for texts, given in texts_asked(encoder)}
        assert given == {"de": query, "sw": query, "en": query, "p": passage}


def test_a_text_is_encoded_once_for_each_prompt(bitext, tmp_path):
    encoder = good(prompts=PROMPTS)
    evaluate_embedders({"teacher": encoder}, [bitext], tmp_path / "out", resamples=5)
    texts = [text for texts, _ in texts_asked(encoder) for text in texts]
    assert len(texts) == len(set(texts)) == 90  # the English side of both languages is the same


def test_queries_of_a_student_are_looked_up_among_the_teachers_vectors(retrieval, bitext, tmp_path):
    teacher, student = good(), good(noise=0.3)
    turned = TableEncoder({})
    turned.vector = lambda text: -student.vector(text)  # good in itself, useless in the teacher's index
    results = evaluate_embedders(
        {"teacher": teacher, "student": student, "turned": turned}, [retrieval, bitext], tmp_path / "out",
        teacher_index=["student", "turned"], resamples=20,
    )  # fmt: skip
    found = results.tasks["xquadr"].encoders
    assert found["turned"].average.value == pytest.approx(found["student"].average.value)
    assert found["student in the teacher's index"].average.value > 0.9
    assert found["turned in the teacher's index"].average.value < 0.5
    assert "student in the teacher's index" not in results.tasks["tatoeba"].encoders


def test_a_killed_evaluation_is_resumed_and_measures_nothing_twice(bitext, retrieval, tmp_path):
    whole = evaluate_embedders({"teacher": good(), "student": good(noise=1)}, [bitext, retrieval], tmp_path / "whole")

    class Mortal(HashEncoder):
        calls = 0

        def encode(self, sentences, **given):
            self.calls += len(sentences) > SAMPLE
            if self.calls == 3:  # both sides of the first language are done
                raise Killed
            return super().encode(sentences, **given)

    mortal = Mortal(noise=1, meaning=good().meaning)
    with pytest.raises(Killed):
        evaluate_embedders({"teacher": good(), "student": mortal}, [bitext, retrieval], tmp_path / "out")
    ledger = tmp_path / "out" / "embeddings.jsonl"
    before = ledger.read_text().splitlines()
    assert [(r["encoder"], r["language"]) for r in map(json.loads, before)][:2] == [
        ("teacher", "de"),
        ("student", "de"),
    ]
    with ledger.open("a") as file:
        file.write('{"encoder": "teacher", "torn')  # what a kill leaves of a line
    teacher, student = good(), good(noise=1)
    again = evaluate_embedders({"teacher": teacher, "student": student}, [bitext, retrieval], tmp_path / "out")
    assert again == whole
    assert ledger.read_text().splitlines()[: len(before)] == before
    assert not any("de 0" in texts for texts, _ in texts_asked(teacher) + texts_asked(student))
    idle = good()
    evaluate_embedders({"teacher": idle, "student": student}, [bitext, retrieval], tmp_path / "out")
    assert texts_asked(idle) == []


def test_what_was_measured_of_other_vectors_or_other_data_does_not_count(bitext, tmp_path):
    folder = tmp_path / "out"
    evaluate_embedders({"teacher": good()}, [bitext], folder, resamples=5)
    other = HashEncoder()
    results = evaluate_embedders({"teacher": other}, [bitext], folder, resamples=5)
    assert results.tasks["tatoeba"].encoders["teacher"].average.value < 0.5
    assert texts_asked(other)
    write_bitext(tmp_path / "data", "de", count=20)
    changed, back = load_embedding_data("tatoeba", tmp_path / "data"), good()
    results = evaluate_embedders({"teacher": back}, [changed], folder, resamples=5)
    assert results.tasks["tatoeba"].data["de"]["rows"] == 20
    assert [texts[0] for texts, _ in texts_asked(back)] == ["de 0", "en 0"]  # Swahili is as it was


def test_bad_arguments_are_refused_before_anything_is_encoded(bitext, tmp_path):
    encoder = good()
    for arguments, message in (
        ({"teacher": "large"}, "teacher='large' is none of the encoders teacher, student"),
        ({"teacher_index": ["nobody"]}, "'nobody' is no encoder beside the teacher; choose from student"),
        ({"min_share": 0}, "min_share=0 must be positive"),
        ({"resamples": 0}, "resamples=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_embedders({"teacher": encoder, "student": encoder}, [bitext], tmp_path / "out", **arguments)
    for tasks in ([], [bitext, bitext]):
        with pytest.raises(ValueError, match="must be one or several different ones"):
            evaluate_embedders({"teacher": encoder}, tasks, tmp_path / "out")
    assert encoder.asked == []


def test_vectors_of_another_width_cannot_be_looked_up_in_the_teachers_index(retrieval, tmp_path):
    narrow, teacher = good(width=8), good()
    with pytest.raises(ValueError, match="vectors of student have 8 dimensions, those of teacher 16"):
        evaluate_embedders(
            {"teacher": teacher, "student": narrow}, [retrieval], tmp_path / "out", teacher_index=["student"]
        )
    assert texts_asked(narrow) == texts_asked(teacher) == []
    results = evaluate_embedders({"teacher": teacher, "student": narrow}, [retrieval], tmp_path / "out", resamples=5)
    assert results.widths == {"teacher": 16, "student": 8}


def test_vectors_that_are_none_are_refused_with_the_text(bitext, tmp_path):
    class Broken(HashEncoder):
        def vector(self, text):
            return super().vector(text) * (np.nan if text == "de 3" else 1)

    with pytest.raises(ValueError, match=r"encoder student: the vector of 'de 3' \(tatoeba, de\) holds NaN.*1 of 30"):
        evaluate_embedders({"teacher": good(), "student": Broken()}, [bitext], tmp_path / "out")
    flat = good()
    flat.encode = lambda sentences, **given: np.zeros(len(sentences))
    with pytest.raises(ValueError, match=r"shape \(2,\) for 2 sentences; it must be \(sentences, dimension\)"):
        EncoderVectors("flat", flat)


def test_vectors_are_normalised_and_zeros_stay_zeros():
    encoder = TableEncoder({"a": [3.0, 4.0], "b": [0.0, 0.0]})
    vectors = EncoderVectors("table", encoder).of(["a", "b", "a"], "query", "here")
    assert vectors == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0.6, 0.8]]))


def test_a_task_of_ones_own_of_clusters(tmp_path):
    (tmp_path / "mine.yaml").write_text("{name: mine, kind: clustering, local: topics}")
    rows = [{"text": f"t {number % 3} {number}", "label": "xyz"[number % 3]} for number in range(30)]
    write_rows(tmp_path / "data", "topics-de-test", rows)
    data = load_embedding_data(str(tmp_path / "mine.yaml"), tmp_path / "data")
    teacher, student = HashEncoder(0.1, meaning=number), HashEncoder()
    results = evaluate_embedders({"teacher": teacher, "student": student}, [data], tmp_path / "out", resamples=20)
    found = results.tasks["mine"].encoders
    assert found["teacher"].average.value == pytest.approx(1)
    assert found["student"].average.value < 0.7


def number(text):
    return number_of(text) if text.startswith("t ") else text


@pytest.fixture
def embedder(tokenizer, tmp_path):
    make_teacher_model().save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    SentenceHead("mean").save(tmp_path / "teacher")
    return tmp_path / "teacher"


def student_of(folder, layers, kept=None):
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 150}
    KDNASConfig(num_hidden_layers=layers, teacher_layers=kept, **shape).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("layers", "kept", "expected"), [
    (2, [1, 4], [1, 4]),
    (2, None, [2, 4]),  # those that a student of two starts from
    (4, [1, 2, 3, 4], [1, 2, 3, 4]),
])  # fmt: skip
def test_the_cut_baseline_is_the_teacher_with_the_layers_that_the_student_started_from(
    embedder, tmp_path, layers, kept, expected
):
    whole = SentenceEncoder.from_pretrained(embedder)
    cut = cut_baseline(str(embedder), student_of(tmp_path / "student", layers, kept))
    states = whole.tokenizer(["bap dit"], return_tensors="pt")
    hidden = whole.model.embeddings(states["input_ids"])
    for layer in expected:
        output = whole.model.encoder.layer[layer - 1](hidden)
        hidden = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5
    expected_vector = whole.head(hidden, states["attention_mask"]).detach().numpy()
    np.testing.assert_allclose(cut.encode(["bap dit"]), expected_vector, atol=1e-5)
    assert len(whole.model.encoder.layer) == 4


def test_a_cut_that_cannot_be_made_is_one_line(embedder, tmp_path):
    with pytest.raises(ValueError, match=r"^vector_baselines=cut: student=.* keeps layers \[1, 9\] of a teacher of 4"):
        cut_baseline(str(embedder), student_of(tmp_path / "student", 2, [1, 9]))
    with pytest.raises(ValueError, match=r"^vector_baselines='kut' is unknown; did you mean 'cut'\?"):
        EmbeddingArguments(vector_baselines=["kut"])


def test_results_are_read_as_they_were_saved(tmp_path):
    write_bitext(tmp_path, "de")
    data = [load_embedding_data("tatoeba", tmp_path)]
    encoders = {name: HashEncoder(noise, meaning=lambda text: text.split()[-1]) for name, noise in NOISES.items()}
    results = evaluate_embedders(encoders, data, tmp_path / "out", resamples=20)
    saved = json.loads((tmp_path / "out" / "embeddings.json").read_text(encoding="utf-8"))
    assert EmbeddingResults.from_dict(saved) == results


def test_the_static_baseline_is_made_once_and_found_again(teacher_path, tmp_path, monkeypatch):
    made = []

    class StaticModel(TableEncoder):
        def save_pretrained(self, path):
            (path / "table.json").write_text(json.dumps(self.table))

        @classmethod
        def from_pretrained(cls, path):
            return cls(json.loads((path / "table.json").read_text()))

    def distill(path, pca_dims):
        made.append((path, pca_dims))
        return StaticModel({"a": [3.0, 4.0]})

    monkeypatch.setitem(sys.modules, "model2vec", SimpleNamespace(StaticModel=StaticModel))
    monkeypatch.setitem(sys.modules, "model2vec.distill", SimpleNamespace(distill=distill))
    for _ in range(2):
        found = static_baseline(str(teacher_path), 2, cache_dir=tmp_path)
        assert found.encode(["a"]).tolist() == [[3.0, 4.0]]
    assert made == [(str(teacher_path), 2)]


def test_without_model2vec_the_extra_is_named(teacher_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "model2vec.distill", None)
    with pytest.raises(ImportError, match=r"pip install 'kdnas_hf\[embedders\]', or leave it out"):
        static_baseline(str(teacher_path))


def test_encoders_are_loaded_by_path_and_the_embedded_teacher_by_name(tmp_path, monkeypatch, tokenizer):
    make_teacher_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^teacher=.* has no modules\.json"):
        load_encoder(str(tmp_path), "teacher")
    SentenceHead("mean").save(tmp_path)
    monkeypatch.setattr("kdnas_hf.evaluation.embeddings.encoder.embedded_teacher", lambda: tmp_path)
    ours, embedded = load_encoder(str(tmp_path)), load_encoder("embedded")
    np.testing.assert_array_equal(ours.encode(["bap"]), embedded.encode(["bap"]))
    with pytest.raises(ValueError, match="^student='runs/nowhere' cannot be loaded") as error:
        load_encoder("runs/nowhere")
    assert "\n" not in str(error.value)

"""What is measured of vectors, against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import v_measure_score

from kdnas_hf.evaluation.embeddings import KINDS, Rows


def unit(vectors):
    vectors = np.array(vectors, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(kind, columns, vectors, chosen=None):
    rows = Rows(columns, "here")
    KINDS[kind].check(rows)
    contributions = KINDS[kind].contributions(rows, {name: unit(v) for name, v in vectors.items()})
    chosen = np.arange(KINDS[kind].size(rows)) if chosen is None else np.array(chosen)
    return KINDS[kind].scores(rows, contributions, chosen), contributions


def test_every_kind_names_its_metric_its_columns_and_what_is_encoded():
    assert sorted(KINDS) == ["bitext", "clustering", "retrieval", "similarity"]
    for name, kind in KINDS.items():
        assert kind.name == name
        assert set(kind.texts) <= {*kind.columns, *kind.corpus}


def test_similarity_is_spearmans_correlation_ties_included():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 40, 5))
    scores = [float(score) for score in rng.integers(0, 6, size=40)]
    columns = {"sentence1": ["a"] * 40, "sentence2": ["b"] * 40, "score": scores}
    found, cosines = measure("similarity", columns, {"sentence1": first, "sentence2": second})
    expected = [
        sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
        for x, y in zip(first, second, strict=True)
    ]
    assert cosines == pytest.approx(expected, abs=1e-6)
    assert found["spearman"] == pytest.approx(spearmanr(expected, scores).statistic)


def test_an_encoder_for_which_all_pairs_are_alike_says_nothing_of_similarity():
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0.0, 5.0]}
    alike = [[1.0, 0.0]] * 2
    assert measure("similarity", columns, {"sentence1": alike, "sentence2": alike})[0] == {"spearman": 0.0}


def test_bitext_counts_translations_found_in_both_directions():
    columns = {"source": ["eins", "zwei", "drei"], "target": ["one", "two", "three"]}
    # angles in degrees: "zwei" lies nearer to "one" than to "two"; no target is nearer to a wrong source
    source, target = [0, 20, 90], [12, 40, 100]
    points = [[[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles] for angles in (source, target)]
    found, _ = measure("bitext", columns, {"source": points[0], "target": points[1]})
    # to English: 0 finds 12, 20 finds 12 (wrong), 90 finds 100; back: 12 finds 20 (wrong), 40 finds 20, 100 finds 90
    assert found == pytest.approx({"accuracy": 2 / 3, "source_to_target": 2 / 3, "target_to_source": 2 / 3})


def test_vectors_that_are_all_the_same_find_nothing_and_equal_texts_are_one_target():
    alike = {"source": [[1.0, 0.0]] * 3, "target": [[1.0, 0.0]] * 3}
    columns = {"source": ["a", "b", "c"], "target": ["x", "y", "z"]}
    assert measure("bitext", columns, alike)[0]["accuracy"] == 0
    columns = {"source": ["a", "b", "c"], "target": ["x", "x", "x"]}
    found, _ = measure("bitext", columns, alike)
    assert found["source_to_target"] == 1
    assert found["target_to_source"] == 0


def test_retrieval_is_the_discounted_gain_of_the_one_right_passage():
    # twelve passages at angles 0, 5, …, 55 degrees; each query at an angle finds them by distance
    angles = [5 * number for number in range(12)]
    passages = [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]
    queries = [passages[0]] * 4
    columns = {
        "query": ["a", "b", "c", "d"],
        "positive": [0, 2, 9, 10],
        "text": [f"passage {number}" for number in range(12)],
    }
    found, gains = measure("retrieval", columns, {"query": queries, "text": passages})
    assert gains == pytest.approx([1.0, 1 / math.log2(4), 1 / math.log2(11), 0.0])
    assert found["ndcg_at_10"] == pytest.approx((1 + 0.5 + 1 / math.log2(11)) / 4)


def test_ranks_do_not_depend_on_the_blocks_they_are_computed_in(monkeypatch):
    from kdnas_hf.evaluation.embeddings.kinds import base

    rng = np.random.default_rng(1)
    queries, targets = unit(rng.standard_normal((30, 6))), unit(rng.standard_normal((20, 6)))
    right = rng.integers(20, size=30)
    texts = [f"text {number}" for number in range(20)]
    whole = base.ranks(queries, targets, texts, right)
    monkeypatch.setattr(base, "_BLOCK", 64)
    assert base.ranks(queries, targets, texts, right).tolist() == whole.tolist()
    slow = [1 + sum(float(q @ t) > float(q @ targets[r]) for t in targets) for q, r in zip(queries, right, strict=True)]
    assert whole.tolist() == slow


def test_clusters_are_compared_with_labels():
    rng = np.random.default_rng(2)
    centers = np.eye(3) * 5
    labels = [number % 3 for number in range(30)]
    apart = np.array([centers[label] for label in labels]) + 0.1 * rng.standard_normal((30, 3))
    columns = {"text": [f"text {number}" for number in range(30)], "label": labels}
    found, clusters = measure("clustering", columns, {"text": apart})
    assert found["v_measure"] == pytest.approx(1.0)
    mixed, clusters = measure("clustering", columns, {"text": rng.standard_normal((30, 3))}, chosen=range(20))
    assert mixed["v_measure"] == pytest.approx(v_measure_score(labels[:20], clusters[:20]))


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("similarity", {"sentence1": [], "sentence2": [], "score": []}, "here is empty"),
        ("similarity", {"sentence1": ["a", " "], "sentence2": ["b", "c"], "score": [1, 2]}, "record 2: sentence1=' '"),
        ("similarity", {"sentence1": ["a"], "sentence2": [None], "score": [1]}, "record 1: sentence2=None is no text"),
        ("similarity", {"sentence1": ["a"], "sentence2": ["b"], "score": ["4"]}, "score='4' is no number"),
        ("similarity", {"sentence1": ["a"], "sentence2": ["b"], "score": [math.nan]}, "score=nan is no number"),
        ("similarity", {"sentence1": ["a"] * 2, "sentence2": ["b"] * 2, "score": [3, 3]}, "every score is 3"),
        ("retrieval", {"query": ["a"], "positive": [2], "text": ["x", "y"]}, "positive=2 is no row .* from 0 to 1"),
        ("retrieval", {"query": ["a"], "positive": [-1], "text": ["x", "y"]}, "positive=-1 is no row"),
        ("retrieval", {"query": ["a"], "positive": ["0"], "text": ["x"]}, "positive='0' is no row"),
        ("retrieval", {"query": ["a"], "positive": [0], "text": []}, "here is empty"),
        ("clustering", {"text": ["a", "b", "c"], "label": [1, 1, 1]}, r"1 label\(s\) for 3 texts"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(kind, columns, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind].check(Rows(columns, "here"))

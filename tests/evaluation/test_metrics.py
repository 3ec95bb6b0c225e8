"""Metrics against values worked out by hand."""

import subprocess
import sys

import pytest

from kdnas_hf.evaluation import METRICS
from kdnas_hf.evaluation.metrics import UNREAD


def test_accuracy():
    computed = METRICS["accuracy"]().compute(predictions=["a", "b", "b"], references=["a", "b", "a"])
    assert computed == {"accuracy": pytest.approx(2 / 3)}


def test_macro_f1_counts_every_class_alike():
    # a: precision 1/1, recall 1/3, F1 1/2; b: precision 1/3, recall 1, F1 1/2; c never occurs
    computed = METRICS["macro_f1"]().compute(predictions=["a", "b", "b", "b"], references=["a", "a", "a", "b"])
    assert computed["macro_f1"] == pytest.approx(0.5)
    assert computed["accuracy"] == pytest.approx(0.5)


def test_entities_count_whole():
    # of two entities one is found whole, the other with a wrong border; precision and recall are 1/2
    computed = METRICS["seqeval_f1"]().compute(
        predictions=[["B-PER", "I-PER", "O", "B-LOC", "O"]], references=[["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]]
    )
    assert computed == {"f1": pytest.approx(0.5), "precision": pytest.approx(0.5), "recall": pytest.approx(0.5)}


def test_no_entity_predicted_scores_zero_without_a_warning(recwarn):
    computed = METRICS["seqeval_f1"]().compute(predictions=[["O", UNREAD]], references=[["B-PER", "I-PER"]])
    assert computed["f1"] == 0
    assert not recwarn.list


def test_words_that_were_not_read_are_wrong():
    computed = METRICS["token_accuracy"]().compute(
        predictions=[["NOUN", UNREAD], ["VERB"]], references=[["NOUN", "NOUN"], ["VERB"]]
    )
    assert computed == {"accuracy": pytest.approx(2 / 3)}


def test_a_script_called_evaluate_does_not_hide_the_library(tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text("from kdnas_hf.evaluation.metrics import METRICS\nprint(METRICS['accuracy']().name)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

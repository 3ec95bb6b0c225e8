"""Scores as the Hub reads them."""

import yaml
from example_evidence import example_evaluation
from huggingface_hub import ModelCardData

from kdnas_hf.hub.eval_results import MAX_LANGUAGES, model_index, write_eval_results

HUB = {"dataset": "someone/topics", "split": "test", "configs": {"de": "German", "en": "English", "sw": "Swahili"}}


def test_scores_on_a_dataset_of_the_hub_are_entries_of_it(tmp_path):
    (path,) = write_eval_results(example_evaluation(hub=HUB), tmp_path)
    assert path == tmp_path / ".eval_results" / "topic.yaml"
    entries = yaml.safe_load(path.read_text())
    assert [entry["dataset"] for entry in entries] == [
        {"id": "someone/topics", "task_id": name} for name in ("German", "English", "Swahili")
    ]
    assert [entry["value"] for entry in entries] == [75.0, 88.0, 52.0]  # the student's, in percent, mean over seeds
    assert "fine-tuned on en; mean of 2 seed(s); 50 examples" in entries[0]["notes"]


def test_the_client_of_the_hub_reads_the_entries(tmp_path):
    try:
        from huggingface_hub import parse_eval_result_entries
    except ImportError:  # huggingface_hub 0 knows nothing of them
        return
    (path,) = write_eval_results(example_evaluation(hub=HUB), tmp_path)
    first, *_ = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (first.dataset_id, first.task_id, first.value) == ("someone/topics", "German", 75.0)


def test_scores_on_other_data_claim_no_dataset_of_the_hub(tmp_path):
    write_eval_results(example_evaluation(hub=HUB), tmp_path)
    assert write_eval_results(example_evaluation(hub=None), tmp_path) == []
    assert not list((tmp_path / ".eval_results").iterdir())  # and what was claimed before is gone


def test_the_model_index_names_the_dataset_and_its_configurations():
    found = model_index(example_evaluation(hub=HUB))
    assert {result.dataset_type for result in found} == {"someone/topics"}
    assert [result.dataset_config for result in found] == [
        "3 languages", "all languages but en", "German", "English", "Swahili",
    ]  # fmt: skip
    data = ModelCardData(model_name="x", eval_results=found).to_dict()
    assert len(data["model-index"][0]["results"]) == 5  # none is merged into another


def test_of_many_languages_the_model_index_holds_the_averages():
    results = example_evaluation()
    model = results.tasks["topic"].models["student"]
    model.languages.update({f"x{i}": model.languages["de"] for i in range(MAX_LANGUAGES)})
    assert [result.dataset_config for result in model_index(results)] == ["23 languages", "all languages but en"]


def test_a_task_without_the_student_gives_nothing(tmp_path):
    results = example_evaluation(hub=HUB)
    del results.tasks["topic"].models["student"]
    assert model_index(results) == []
    assert write_eval_results(results, tmp_path) == []

"""Fine-tuning: what trains, what is kept, and that labels come back in the order of the examples."""

import pytest
import torch
from tiny_tasks import ENTITY_TASK, TOPIC_TASK, entity_rows, save_tiny_student, write_rows, write_topics
from transformers import AutoModelForTokenClassification

from kdnas_hf import FineTuningArguments, Task, load_task_data
from kdnas_hf.evaluation import (
    Example,
    ModelSource,
    best_labels,
    encode_examples,
    fine_tune,
    score_languages,
    task_collator,
)
from kdnas_hf.evaluation.finetuning import KeepBestCallback, LengthGroupingTrainer, predict_labels, training_arguments
from kdnas_hf.students import OccurringWordEmbeddings


@pytest.fixture(scope="module")
def student(tmp_path_factory, tokenizer):
    return str(save_tiny_student(tmp_path_factory.mktemp("student"), tokenizer))


@pytest.fixture
def topics(tmp_path):
    (tmp_path / "topic.yaml").write_text(TOPIC_TASK)
    write_topics(tmp_path / "data")
    return load_task_data(Task.load(str(tmp_path / "topic.yaml")), tmp_path / "data")


@pytest.fixture
def entities(tmp_path):
    (tmp_path / "entity.yaml").write_text(ENTITY_TASK)
    write_rows(tmp_path / "data", "entity-en-train", entity_rows(200, 0))
    for seed, language in enumerate(("en", "de"), start=1):
        write_rows(tmp_path / "data", f"entity-{language}-test", entity_rows(30, seed))
    return load_task_data(Task.load(str(tmp_path / "entity.yaml")), tmp_path / "data")


def arguments(**changes):
    quick = {"learning_rates": [3e-2], "num_train_epochs": 8, "patience": 8, "train_batch_size": 16, "max_length": 32}
    return FineTuningArguments(**quick | {"auto_bf16": False, "train_word_embeddings": True} | changes)


def test_a_student_learns_a_task_of_texts_and_is_scored_in_every_language(student, topics):
    tuned = fine_tune(ModelSource(student), topics, arguments())
    scores, truncated = score_languages(tuned.trainer, tuned.tokenizer, topics, 32)
    assert sorted(scores) == ["de", "en", "sw"]
    assert min(values["accuracy"] for values in scores.values()) > 0.6  # a third by chance
    assert tuned.model.config.id2label == {0: "b", 1: "d", 2: "g"}
    assert truncated == {}


def test_a_teacher_learns_a_task_of_words(teacher_path, entities):
    tuned = fine_tune(ModelSource(str(teacher_path)), entities, arguments(learning_rates=[3e-3], num_train_epochs=8))
    scores, truncated = score_languages(tuned.trainer, tuned.tokenizer, entities, 32)
    assert scores["de"]["f1"] > 0.8
    # with six tokens only four words are read: the rest of the entities are missed and not left out
    short, truncated = score_languages(tuned.trainer, tuned.tokenizer, entities, 6)
    assert truncated["de"]["unread_words"] > 50
    assert short["de"]["recall"] < scores["de"]["recall"] - 0.2


def test_frozen_word_embeddings_stay_and_the_rest_learns(student, topics):
    before = ModelSource(student).load_encoder()
    tuned = fine_tune(ModelSource(student), topics, arguments(train_word_embeddings=False, num_train_epochs=1))
    after = tuned.model.base_model
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert len(changed) == len(list(before.parameters())) - 1


def test_training_only_the_words_that_occur_is_training_them_all(student, topics):
    every = fine_tune(ModelSource(student), topics, arguments(num_train_epochs=2))
    # the smallest weight decay that is one sends the whole table to the optimizer
    whole = fine_tune(ModelSource(student), topics, arguments(num_train_epochs=2, weight_decay=1e-30))
    assert isinstance(every.model.base_model.get_input_embeddings(), OccurringWordEmbeddings)
    assert not isinstance(whole.model.base_model.get_input_embeddings(), OccurringWordEmbeddings)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(every.model.state_dict()[name], value, msg=name)


def test_random_weights_start_at_random_and_differ_by_seed(student, topics):
    source = ModelSource(student, random_weights=True)
    torch.manual_seed(1)
    first = source.load_model(topics.task, topics.labels)
    pretrained = ModelSource(student).load_encoder()
    assert not torch.equal(first.base_model.get_input_embeddings().weight, pretrained.get_input_embeddings().weight)
    assert source.fingerprint() != ModelSource(student).fingerprint()


def test_a_fingerprint_is_of_the_weights(student, tmp_path, tokenizer):
    same = save_tiny_student(tmp_path / "same", tokenizer)
    assert ModelSource(str(same)).fingerprint() == ModelSource(student).fingerprint()
    model = ModelSource(str(same)).load_encoder()
    model.get_input_embeddings().weight.data.add_(1)
    model.save_pretrained(same)
    assert ModelSource(str(same)).fingerprint() != ModelSource(student).fingerprint()


def test_the_best_weights_are_restored_and_the_training_stops(student):
    model = ModelSource(student).load_encoder()
    callback = KeepBestCallback(patience=2)
    control = type("Control", (), {"should_training_stop": False})()
    weight = next(iter(model.parameters()))
    for value, score in enumerate([0.5, 0.7, 0.6, 0.65], start=1):
        weight.data.fill_(value)
        callback.on_evaluate(None, None, control, model=model, metrics={"eval_score": score})
        assert control.should_training_stop == (value == 4)
    callback.restore(model)
    assert bool((weight == 2).all())


def test_labels_are_predicted_in_the_order_of_the_examples(student, tokenizer, tmp_path, entities):
    """Texts of very different lengths: batches are sorted by length, and what comes back must not be."""
    source = ModelSource(student)
    model = source.load_model(entities.task, entities.labels).eval()
    examples = [Example(words["tokens"] * (1 + n % 3), [0] * len(words["tokens"]) * (1 + n % 3)) for n, words in
                enumerate(entity_rows(20, 9))]  # fmt: skip
    encoded = encode_examples(examples, tokenizer, 64)
    args = training_arguments(tmp_path, arguments(), 0, None, 20)
    collate = task_collator(entities.task, tokenizer)
    trainer = LengthGroupingTrainer(
        model, args, eval_dataset=encoded.dataset, data_collator=collate, preprocess_logits_for_metrics=best_labels
    )
    found = predict_labels(trainer, encoded, entities.labels)
    for number, example in enumerate(examples):
        alone = tokenizer(example.text, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**{k: alone[k] for k in ("input_ids", "attention_mask")}).logits[0].argmax(-1).tolist()
        words = alone.word_ids()
        expected = [entities.labels[best[words.index(word)]] for word in range(len(example.text))]
        assert found[number] == expected


def test_a_model_that_cannot_be_loaded_is_named(topics, tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded as a model"):
        ModelSource(str(tmp_path)).fingerprint()
    with pytest.raises(ValueError, match="has no tokenizer"):
        ModelSource(str(tmp_path)).load_tokenizer()


def test_a_head_of_another_task_is_replaced(student, topics, tmp_path):
    AutoModelForTokenClassification.from_pretrained(student, num_labels=7).save_pretrained(tmp_path / "tagger")
    model = ModelSource(str(tmp_path / "tagger")).load_model(topics.task, topics.labels)
    assert model.config.num_labels == 3
    assert torch.equal(
        model.base_model.get_input_embeddings().weight,
        ModelSource(student).load_encoder().get_input_embeddings().weight,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rates": []}, "learning_rates"),
        ({"learning_rates": [0.0]}, "positive"),
        ({"num_train_epochs": 0}, "num_train_epochs=0"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FineTuningArguments(**change)

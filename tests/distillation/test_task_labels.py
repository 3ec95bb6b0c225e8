"""Distillation on a task's data: soft labels and labels, alone and beside hidden states."""

import math

import datasets
import numpy as np
import pytest
import torch
from test_trainer import arguments, make
from test_trainer import config_of as config_of_shape
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)

from kdnas_hf import (
    DistillationTrainer,
    KDNASConfig,
    KDNASForSequenceClassification,
    KDNASModel,
    StudentPool,
    Teacher,
    load_teacher,
)
from kdnas_hf.distillation import Required
from kdnas_hf.distillation.losses import label_loss, parse_losses, soft_label_loss
from tiny_teacher import make_teacher_model, make_texts

LABELS = ["one", "two", "three"]
CLASSES = {"num_labels": 3, "id2label": dict(enumerate(LABELS)), "label2id": {v: n for n, v in enumerate(LABELS)}}


def task_teacher(tokenizer, kind):
    """A tiny teacher with a head that has opinions."""
    encoder = make_teacher_model()
    for name, value in CLASSES.items():
        setattr(encoder.config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = XLMRobertaForSequenceClassification if kind == "texts" else XLMRobertaForTokenClassification
        model = head(encoder.config)
        model.roberta = encoder
        for parameter in model.classifier.parameters():
            parameter.data.normal_(std=0.7)
    # opinions that depend on the text: every class is the likeliest of some
    batch = tokenizer(make_texts(64, seed=9), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**batch).logits
    logits = found if kind == "texts" else found[batch["attention_mask"].bool()]
    last = model.classifier.out_proj if kind == "texts" else model.classifier
    scale = logits.std(0)
    last.bias.data = (last.bias.data - logits.mean(0)) / scale * 2
    last.weight.data = last.weight.data / scale[:, None] * 2
    return Teacher(model.base_model, tokenizer, name="tiny teacher", task_model=model)


@pytest.fixture
def teacher_of_texts(tokenizer):
    return task_teacher(tokenizer, "texts")


@pytest.fixture
def teacher_of_words(tokenizer):
    return task_teacher(tokenizer, "words")


def config_of(teacher):
    return config_of_shape("deep", teacher)


def make_with(model, teacher, folder, texts, **changes):
    return DistillationTrainer(model, teacher, arguments(folder, **changes), train_dataset=texts)


def labelled(teacher, count, seed, kind="texts"):
    """Texts with the labels that the teacher would give; of words, those of first and last tokens are ignored."""
    ids = teacher.tokenizer(make_texts(count, seed), truncation=True, max_length=32)["input_ids"]
    batch = teacher.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        best = teacher.task_model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1).tolist()
    labels = best if kind == "texts" else [[-100, *b[1 : len(row) - 1], -100] for b, row in zip(best, ids, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "length": [len(row) for row in ids]})


def blanked(texts, every):
    """The texts with some of their labels left out, so that no two batches hold equally many."""

    def blank(row, number):
        if isinstance(row["labels"], int):
            return {"labels": -100 if number % every == 0 else row["labels"]}
        return {"labels": [-100 if (number + i) % every == 0 else label for i, label in enumerate(row["labels"])]}

    return texts.map(blank, with_indices=True)


def head_of(teacher, path):
    """A student with a head of its own for the teacher's classes."""
    KDNASForSequenceClassification(KDNASConfig(**config_of(teacher).to_dict() | CLASSES)).save_pretrained(path)
    return KDNASForSequenceClassification.from_pretrained(path)


def test_soft_labels_are_the_divergence_of_softened_distributions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    temperature = 2.5
    slow = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [float(v) for v in (t / temperature).exp() / (t / temperature).exp().sum()]
        q = [float(v) for v in (s / temperature).exp() / (s / temperature).exp().sum()]
        slow += sum(a * torch.tensor(a / b).log().item() for a, b in zip(p, q, strict=True)) * temperature**2
    assert soft_label_loss(student, teacher, temperature, torch.tensor(7.0)).item() == pytest.approx(slow / 7, rel=1e-5)


def test_labels_are_the_cross_entropy():
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    expected = -(torch.log_softmax(logits[0], 0)[1] + torch.log_softmax(logits[1], 0)[0]) / 4
    assert label_loss(logits, torch.tensor([1, 0]), torch.tensor(4.0)).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("kind", "losses"),
    [
        ("texts", "labels"),
        ("words", "soft_labels"),
        ("texts", "soft_labels:1 hidden_states:1 relations:0.5 labels:0.5"),
    ],
)
def test_a_student_learns_the_task(kind, losses, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    # texts enough that hardly one is read often: learnt by heart, labels make the loss of other texts rise
    texts, heldout = labelled(teacher, 2048, 1, kind), labelled(teacher, 256, 2, kind)
    trainer = make(teacher, tmp_path, texts, heldout, losses=[losses], max_steps=480, learning_rate=3e-3)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > max(before["eval_accuracy"], 0.34) + 0.08  # a third by chance
    for name in ("soft_labels", "labels"):
        if name in losses.split(":")[0].split() or f" {name}" in losses:
            assert after[f"eval_{name}_loss"] < before[f"eval_{name}_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    auto = AutoModelForSequenceClassification if kind == "texts" else AutoModelForTokenClassification
    saved = auto.from_pretrained(tmp_path / "saved").eval()
    assert saved.config.id2label == dict(enumerate(LABELS))
    # what was measured is what is saved
    right = total = 0
    for row in heldout:
        with torch.no_grad():
            best = saved(torch.tensor([row["input_ids"]])).logits[0].argmax(-1)
        expected = torch.tensor(row["labels"])
        right += int(((best == expected) & (expected != -100)).sum())
        total += int((expected != -100).sum())
    assert abs(right / total - after["eval_accuracy"]) < 2.5 / total  # near ties fall otherwise in another batch


@pytest.mark.parametrize("kind", ["texts", "words"])
def test_accumulated_micro_batches_equal_one_big_batch(kind, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    texts = blanked(labelled(teacher, 32, 1, kind), every=3)

    def trained(**changes):
        trainer = make(
            teacher, tmp_path, texts, losses=["soft_labels labels"], max_steps=2, group_texts_by_length=False, **changes
        )
        for module in trainer.pool.modules():  # drops other values where the batch is cut
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
        return {n: p.detach() for n, p in trainer.pool.named_parameters() if p.requires_grad}

    whole = trained(per_device_train_batch_size=16)
    parts = trained(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for name, value in whole.items():
        torch.testing.assert_close(
            parts[name], value, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["texts", "words"])
def test_evaluation_is_the_mean_over_all_that_is_labelled(kind, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    texts = labelled(teacher, 32, 1, kind)
    heldout = blanked(labelled(teacher, 25, 2, kind), every=4)
    trainer = make(
        teacher, tmp_path, texts, heldout, students=("small", "deep"), losses=["soft_labels:2 labels"], temperature=3.0,
        per_device_eval_batch_size=7,
    )  # fmt: skip
    metrics = trainer.evaluate()
    for name, student in trainer.pool.models.items():
        soft, hard, right = [], [], []
        for row in heldout:
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                own, other = (model.eval()(ids).logits.view(-1, 3) for model in (student, teacher.task_model))
            for s, t, label in zip(own, other, torch.tensor(row["labels"]).view(-1).tolist(), strict=True):
                if label != -100:
                    p, q = (t / 3).softmax(0), (s / 3).softmax(0)
                    soft.append(9 * float((p * (p / q).log()).sum()))
                    hard.append(-float(s.log_softmax(0)[label]))
                    right.append(int(s.argmax()) == label)
        found = {key: metrics[f"eval_{name}_{key}"] for key in ("soft_labels_loss", "labels_loss", "accuracy", "loss")}
        expected = {"soft_labels_loss": np.mean(soft), "labels_loss": np.mean(hard), "accuracy": np.mean(right)}
        assert abs(found.pop("accuracy") - expected.pop("accuracy")) < 2.5 / len(right)  # near ties
        assert found == pytest.approx(expected | {"loss": 2 * np.mean(soft) + np.mean(hard)}, rel=1e-4)


@pytest.mark.parametrize("kind", ["texts", "words"])
def test_a_stream_teaches_its_labels_as_well(kind, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    texts = blanked(labelled(teacher, 20, 1, kind), every=4)
    options = {"losses": ["soft_labels labels"], "max_steps": 2, "group_texts_by_length": False}
    trainer = make(teacher, tmp_path, texts, texts.to_iterable_dataset(), **options)
    assert make(teacher, tmp_path, texts, texts, **options).evaluate()["eval_loss"] == pytest.approx(
        trainer.evaluate()["eval_loss"], rel=1e-5
    )
    streamed = make(teacher, tmp_path, texts.to_iterable_dataset(), **options)
    assert math.isfinite(streamed.train().training_loss)


def test_students_of_a_pool_are_saved_with_their_heads(teacher_of_words, tmp_path):
    texts = labelled(teacher_of_words, 32, 1, "words")
    trainer = make(
        teacher_of_words, tmp_path, texts, students=("small", "deep"), losses=["soft_labels cosine"], max_steps=2
    )
    trainer.train()
    trainer.save_students(tmp_path / "saved")
    ids = torch.tensor([[0, 5, 6, 2]])
    for name, student in trainer.pool.models.items():
        saved = AutoModelForTokenClassification.from_pretrained(tmp_path / "saved" / name)
        with torch.no_grad():
            torch.testing.assert_close(saved(ids).logits, student.eval()(ids).logits)


def test_labels_in_the_data_do_not_matter_to_losses_on_states(teacher, teacher_of_words, tmp_path):
    texts = labelled(teacher_of_words, 32, 1, "words")
    for losses in ("hidden_states", "masked_lm"):
        trained = []
        for part in (texts, texts.remove_columns("labels")):
            trainer = make(teacher, tmp_path, part, part, losses=[losses], max_steps=2)
            trained.append((trainer.train().training_loss, trainer.evaluate()["eval_loss"]))
        assert trained[0] == trained[1]


def test_one_pass_of_the_teacher_gives_states_and_classes(teacher_of_texts, heldout_texts):
    batch = teacher_of_texts.tokenizer.pad({"input_ids": heldout_texts["input_ids"][:4]}, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    states = Required(hidden_states=frozenset({4}), queries_keys_values=frozenset({4}))
    found, alone = (teacher_of_texts(ids, mask, asked) for asked in (states | Required(task_logits=True), states))
    with torch.no_grad():
        logits = teacher_of_texts.task_model(ids, mask).logits
    torch.testing.assert_close(found.task_logits, logits)
    torch.testing.assert_close(found.hidden_states, alone.hidden_states)
    torch.testing.assert_close(found.queries_keys_values, alone.queries_keys_values)


def test_an_encoder_that_was_distilled_before_gets_a_head_and_goes_on(teacher_of_texts, tmp_path):
    texts = labelled(teacher_of_texts, 64, 1)
    make(teacher_of_texts, tmp_path, texts, max_steps=2).save_model(str(tmp_path / "encoder"))
    encoder = KDNASModel.from_pretrained(tmp_path / "encoder")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    trainer = make_with(encoder, teacher_of_texts, tmp_path, texts, losses=["soft_labels"], max_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = KDNASForSequenceClassification.from_pretrained(tmp_path / "saved").kdnas.state_dict()
    assert saved.keys() == before.keys()
    changed = [name for name, value in saved.items() if not torch.equal(value, before[name])]
    assert len(changed) > len(before) / 2
    # words that do not occur stay as they were
    absent = sorted(set(range(len(teacher_of_texts.tokenizer))) - {t for row in texts["input_ids"] for t in row})
    words = "embeddings.word_embeddings.weight"
    torch.testing.assert_close(saved[words][absent], before[words][absent])


def test_a_given_table_trains_in_the_rows_that_occur_and_that_is_exact(teacher_of_texts, tmp_path):
    texts = labelled(teacher_of_texts, 16, 1)
    trained, sizes = [], []
    head_of(teacher_of_texts, tmp_path / "given")
    for occurring in (True, False):
        given = KDNASForSequenceClassification.from_pretrained(tmp_path / "given")
        trainer = make_with(
            given, teacher_of_texts, tmp_path, texts, losses=["soft_labels"], occurring_embeddings=occurring
        )
        sizes.append(sum(p.numel() for p in trainer.pool.parameters() if p.requires_grad))
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        trained.append(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").state_dict())
    assert sizes[0] < sizes[1]
    torch.testing.assert_close(trained[0], trained[1], atol=1e-6, rtol=1e-5)


def test_layers_of_a_given_student_are_not_replaced_by_the_teachers(teacher_of_texts, tmp_path):
    texts = labelled(teacher_of_texts, 64, 1)
    given = head_of(teacher_of_texts, tmp_path / "given")
    before = {name: value.clone() for name, value in given.state_dict().items()}
    trainer = make_with(given, teacher_of_texts, tmp_path, texts, losses=["soft_labels hidden_states"])
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").state_dict()
    torch.testing.assert_close(saved, before)


def test_a_student_with_a_head_learns_labels_without_a_fine_tuned_teacher(teacher, teacher_of_texts, tmp_path):
    texts = labelled(teacher_of_texts, 32, 1)
    given = head_of(teacher_of_texts, tmp_path / "given")
    trainer = make_with(given, teacher, tmp_path, texts, losses=["labels"], max_steps=60, learning_rate=1e-2)
    before = trainer.evaluate(texts)["eval_labels_loss"]
    trainer.train()
    assert trainer.evaluate(texts)["eval_labels_loss"] < before - 0.05
    with pytest.raises(ValueError, match="load a teacher that was fine-tuned on the task"):
        make(teacher, tmp_path, texts, losses=["labels"])


def test_a_teacher_computes_in_bf16_with_its_head(teacher_of_words, tmp_path):
    texts = labelled(teacher_of_words, 16, 1, "words")
    ids = torch.tensor([texts[0]["input_ids"]])
    rounded, exact = (
        teacher_of_words(ids, torch.ones_like(ids), Required(task_logits=True), dtype).task_logits
        for dtype in (torch.bfloat16, None)
    )
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()
    trainer = make(
        teacher_of_words, tmp_path, texts, texts, losses=["soft_labels hidden_states"], max_steps=2,
        teacher_dtype="bfloat16",
    )  # fmt: skip
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_soft_labels_loss"])


def test_a_model_with_a_head_is_a_teacher_with_its_encoder(tokenizer, teacher_of_texts, teacher, tmp_path):
    tuned = teacher_of_texts.task_model
    made = Teacher(tuned, tokenizer)
    assert made.task_model is tuned
    assert made.model is tuned.base_model
    args = arguments(tmp_path, losses=["soft_labels"], max_steps=1)
    texts = labelled(teacher_of_texts, 16, 1)
    trainer = DistillationTrainer(config_of(made), tuned, args, texts, processing_class=tokenizer)
    assert math.isfinite(trainer.train().training_loss)
    with pytest.raises(ValueError, match="model is not the encoder of task_model"):
        Teacher(teacher.model, tokenizer, task_model=tuned)
    with pytest.raises(ValueError, match="task_model is a XLMRobertaModel"):
        Teacher(teacher.model, tokenizer, task_model=teacher.model)


@pytest.mark.parametrize("trained", ["sequence_classification", "token_classification"])
def test_a_head_of_another_kind_is_refused_though_its_weights_fit(trained, tokenizer, tmp_path):
    kinds = {
        "sequence_classification": BertForSequenceClassification,
        "token_classification": BertForTokenClassification,
    }
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = kinds[trained](BertConfig(vocab_size=len(tokenizer), pad_token_id=1, num_labels=3, **size))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert type(load_teacher(str(tmp_path), head=trained).task_model) is kinds[trained]
    assert type(load_teacher(str(tmp_path), head="task").task_model) is kinds[trained]
    (other,) = set(kinds) - {trained}
    with pytest.raises(ValueError, match=rf"no head for {other}, it is a Bert.*choose head='{trained}'"):
        load_teacher(str(tmp_path), head=other)


def test_a_fine_tuned_teacher_is_loaded_with_its_head(teacher_of_words, teacher_path, tokenizer, tmp_path):
    teacher_of_words.task_model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    loaded = load_teacher(str(tmp_path / "tuned"), head="token_classification")
    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.task_model(ids).logits, teacher_of_words.task_model(ids).logits)
    with pytest.raises(ValueError, match=r"no head for sequence_classification .*fine-tune it on the task first"):
        load_teacher(str(teacher_path), head="sequence_classification")
    with pytest.raises(
        ValueError, match=r"no head for a task \(it is a XLMRobertaModel\); fine-tune it on the task first"
    ):
        load_teacher(str(teacher_path), head="task")
    with pytest.raises(ValueError, match="head='regression' is unknown"):
        load_teacher(str(tmp_path / "tuned"), head="regression")


def test_what_does_not_fit_is_refused_before_anything_slow(
    teacher, teacher_of_texts, teacher_of_words, train_texts, tmp_path
):
    with pytest.raises(ValueError, match="'logits' masks tokens, whose text 'labels' must read whole"):
        parse_losses("labels logits")
    with pytest.raises(ValueError, match="load a teacher that was fine-tuned on the task"):
        make(teacher, tmp_path, train_texts, losses=["soft_labels"])
    with pytest.raises(ValueError, match="train_dataset has no column 'labels'"):
        make(teacher_of_texts, tmp_path, train_texts, losses=["soft_labels"])
    texts = labelled(teacher_of_texts, 8, 1)
    config = config_of(teacher_of_texts)
    other = KDNASForSequenceClassification(type(config)(**config.to_dict() | {"num_labels": 2, "id2label": None}))
    with pytest.raises(ValueError, match="the student has 2 labels, the teacher 3"):
        make_with(other, teacher_of_texts, tmp_path, texts, losses=["soft_labels"])
    unnamed = KDNASForSequenceClassification(type(config)(**config.to_dict() | {"id2label": None, "num_labels": 3}))
    with pytest.raises(ValueError, match="label 0 is 'LABEL_0' of the student and 'one' of the teacher"):
        make_with(unnamed, teacher_of_texts, tmp_path, texts, losses=["soft_labels"])
    named = KDNASForSequenceClassification(type(config)(**config.to_dict() | CLASSES))
    with pytest.raises(ValueError, match="both must classify texts, or both tokens"):
        make_with(named, teacher_of_words, tmp_path, texts, losses=["soft_labels"])
    with pytest.raises(ValueError, match=r"none of losses=hidden_states trains its head; give its encoder \(\.kdnas\)"):
        make_with(named, teacher_of_texts, tmp_path, texts)
    with pytest.raises(ValueError, match="none of losses=hidden_states trains its head"):
        StudentPool.create({"a": config, "b": named}, teacher_of_texts, arguments(tmp_path))
    streamed = make(
        teacher_of_texts, tmp_path, texts.to_iterable_dataset(), losses=["soft_labels"], cache_teacher_states="true"
    )
    with pytest.raises(ValueError, match="cache_teacher_states=true: .*a data set is a stream"):
        streamed.train()


@pytest.mark.parametrize(
    ("changes", "problem_type"), [({"num_labels": 1}, None), ({}, "regression"), ({}, "multi_label_classification")]
)
def test_teachers_that_do_not_choose_one_class_are_refused(changes, problem_type, teacher_of_texts, tmp_path):
    texts = labelled(teacher_of_texts, 8, 1)
    config = teacher_of_texts.task_model.config
    config.problem_type = problem_type
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match="one class out of several, and the teacher has num_labels"):
        make(teacher_of_texts, tmp_path, texts, losses=["soft_labels"])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("kind", "number", "labels", "message"),
    [
        ("texts", None, [1, 2], r"labels of the first text are \[1, 2\]; give it one whole number\."),
        ("texts", None, 0.5, "labels of the first text are 0.5; give it one whole number"),
        ("words", None, [1], "give it one whole number for each of its"),
        ("words", None, 1, "give it one whole number for each of its"),
        ("texts", 3, 3, "train_dataset has the label 3; choose from 0 to 2, or -100 for none"),
        ("words", 3, [0, -1], "train_dataset has the label -1; choose from 0 to 2"),
    ],
)
def test_labels_that_are_not_the_classes_are_refused(plain, kind, number, labels, message, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    rows = labelled(teacher, 8, 1, kind).to_list()
    for row in rows if number is None else [rows[number]]:
        row["labels"] = labels
    with pytest.raises(ValueError, match=message):
        make(teacher, tmp_path, rows if plain else datasets.Dataset.from_list(rows), losses=["labels"])


def test_each_of_several_heldout_sets_needs_labels(teacher_of_texts, tmp_path):
    texts = labelled(teacher_of_texts, 8, 1)
    with pytest.raises(ValueError, match=r"eval_dataset\['fr'\] has no column 'labels'"):
        make(teacher_of_texts, tmp_path, texts, {"de": texts, "fr": texts.remove_columns("labels")}, losses=["labels"])

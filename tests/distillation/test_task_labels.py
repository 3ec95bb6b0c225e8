"""Distillation on a task's data: soft labels and labels, alone and beside hidden states."""

import datasets
import pytest
import torch
from test_trainer import arguments, make
from test_trainer import config_of as config_of_shape
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)

from kdnas_hf import DistillationTrainer, KDNASForSequenceClassification, KDNASModel, Teacher, load_teacher
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
    logits = []
    with torch.no_grad():
        for ids in tokenizer(make_texts(64, seed=9))["input_ids"]:
            logits.append(model.eval()(torch.tensor([ids])).logits.reshape(-1, 3).mean(0))
    last = model.classifier.out_proj if kind == "texts" else model.classifier
    scale = torch.stack(logits).std(0)
    last.bias.data = (last.bias.data - torch.stack(logits).mean(0)) / scale * 2
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
    labels = []
    for row in ids:
        with torch.no_grad():
            best = teacher.task_model(torch.tensor([row])).logits[0].argmax(-1)
        labels.append(int(best) if kind == "texts" else [-100, *best[1:-1].tolist(), -100])
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, "length": [len(row) for row in ids]})


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


@pytest.mark.parametrize("kind", ["texts", "words"])
@pytest.mark.parametrize("losses", ["soft_labels", "labels", "soft_labels:1 hidden_states:1 relations:0.5 labels:0.5"])
def test_a_student_learns_the_task(kind, losses, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    texts, heldout = labelled(teacher, 256, 1, kind), labelled(teacher, 64, 2, kind)
    trainer = make(teacher, tmp_path, texts, heldout, losses=[losses], max_steps=240, learning_rate=1e-2)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > max(before["eval_accuracy"], 0.4) + 0.1
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
    assert right / total == pytest.approx(after["eval_accuracy"])


@pytest.mark.parametrize("kind", ["texts", "words"])
def test_accumulated_micro_batches_equal_one_big_batch(kind, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, kind)
    texts = labelled(teacher, 32, 1, kind)

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
            parts[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_one_pass_of_the_teacher_gives_states_and_classes(teacher_of_texts, heldout_texts):
    batch = teacher_of_texts.tokenizer.pad({"input_ids": heldout_texts["input_ids"][:4]}, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = teacher_of_texts.features(ids, mask, ["task_logits", "hidden_states.4", "attention_input.4"])
    alone = teacher_of_texts.features(ids, mask, ["hidden_states.4", "attention_input.4"])
    with torch.no_grad():
        logits = teacher_of_texts.task_model(ids, mask).logits
    torch.testing.assert_close(found["task_logits"], logits)
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value)


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


def test_a_fine_tuned_teacher_is_loaded_with_its_head(teacher_of_words, teacher_path, tokenizer, tmp_path):
    teacher_of_words.task_model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    loaded = load_teacher(str(tmp_path / "tuned"), task_head="token_classification")
    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.task_model(ids).logits, teacher_of_words.task_model(ids).logits)
    with pytest.raises(ValueError, match=r"no head for sequence_classification .*fine-tune it on the task first"):
        load_teacher(str(teacher_path), task_head="sequence_classification")
    with pytest.raises(ValueError, match="task_head='regression' is unknown"):
        load_teacher(str(tmp_path / "tuned"), task_head="regression")


def test_what_does_not_fit_is_refused_before_anything_slow(
    teacher, teacher_of_texts, teacher_of_words, train_texts, tmp_path
):
    with pytest.raises(ValueError, match="'logits' masks tokens, whose text 'labels' must read whole"):
        parse_losses("labels logits")
    with pytest.raises(ValueError, match="need a teacher that was fine-tuned"):
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
    with pytest.raises(ValueError, match="with the losses soft_labels or labels also a student with a head"):
        make_with(named, teacher_of_texts, tmp_path, texts)
    with pytest.raises(ValueError, match=r"cache_teacher_states=true: the logits of a task's classes are not kept"):
        make(
            teacher_of_texts, tmp_path, texts, losses=["soft_labels hidden_states"], cache_teacher_states="true"
        ).train()

"""Targets that are kept on disk: what is found there, what an interruption leaves, when they are stored at all."""

import json
import math
import shutil

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import run_arguments, student_shape, teacher_with_head, trained_parameters
from torch.utils.data import DataLoader

from kdnas_hf import DistillationTrainer, Teacher
from kdnas_hf.distillation import Required, stored_targets
from kdnas_hf.distillation.labelled_texts import padding_collator
from kdnas_hf.distillation.stored_targets import (
    DECISION_NAME,
    Layout,
    StoredTargets,
    StoredTargetsCollator,
    store_if_it_pays,
    store_targets,
)
from kdnas_hf.distillation.targets import STORED
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

STATES = Required(hidden_states=frozenset({1, 4}), queries_keys_values=frozenset({2}))
LAST = Required(hidden_states=frozenset({4}))
SIZE = 32


@pytest.fixture(scope="module")
def texts(tokenizer):
    return tokenized(tokenizer, make_texts(40, seed=3))


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(stored_targets, "_FEWEST_TOKENS", 64)


@pytest.fixture
def passes(monkeypatch):
    """How many texts each pass of any teacher read; passes of a single token, to learn sizes, are left out."""
    read = []
    call = Teacher.__call__

    def counted(self, input_ids, *args, **kwargs):
        if input_ids.numel() > 1:
            read.append(len(input_ids))
        return call(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(Teacher, "__call__", counted)
    return read


def store(folder, teacher, texts, required=STATES, **kwargs):
    return store_targets(teacher, texts, required, folder, **{"dtype": torch.float32, "batch_size": 8} | kwargs)


def own_outputs(teacher, row, required=STATES):
    """What the teacher says about a text alone, side by side: ``(tokens, sizes)``."""
    ids = torch.tensor([list(row["input_ids"])])
    return torch.cat(teacher(ids, torch.ones_like(ids), required).tensors(), dim=-1)[0]


def by_token(row):
    layout, stored = row[STORED]
    return torch.from_numpy(stored.copy()).view(torch.float32).view(-1, sum(layout.sizes(3)) or sum(layout.sizes(2)))


# ---- what is found ----


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    tokens_in_a_file=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    data=st.data(),
)
def test_texts_of_any_length_in_files_of_any_size(lengths, tokens_in_a_file, batch_size, data, tmp_path_factory):
    rows = [{"input_ids": [5 + (7 * i + j) % 60 for j in range(length)]} for i, length in enumerate(lengths)]
    teacher = Teacher(make_teacher_model(layers=2), make_tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_targets, "_FEWEST_TOKENS", tokens_in_a_file)
        stored = store(tmp_path_factory.mktemp("stored"), teacher, rows, required=SMALL, batch_size=batch_size)
    assert len(stored) == len(lengths)
    assert list(stored.lengths) == lengths
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    batch = stored.layout.unpack([stored[i][STORED].stored for i in indices], 13)
    found = torch.cat(batch.tensors(), dim=-1)
    assert found.shape == (len(indices), 13, 4 * SIZE)
    for index, values in zip(indices, found, strict=True):
        assert stored[index]["input_ids"] == rows[index]["input_ids"]
        assert (values[lengths[index] :] == 0).all()
        if lengths[index]:
            expected = own_outputs(teacher, rows[index], SMALL)
            torch.testing.assert_close(values[: lengths[index]], expected, atol=1e-4, rtol=1e-4)


SMALL = Required(hidden_states=frozenset({1}), queries_keys_values=frozenset({2}))


def test_a_text_without_tokens_has_targets_of_its_class_too(tokenizer, tmp_path):
    teacher = teacher_with_head("texts", tokenizer)
    stored = store(tmp_path, teacher, [{"input_ids": [0, 9, 2]}, {"input_ids": []}], Required(task_logits=True))
    batch = stored.layout.unpack([row[STORED].stored for row in stored.__getitems__([1, 0])], 3)
    assert batch.task_logits.shape == (2, 3)
    assert (batch.task_logits[0] == 0).all()
    assert (batch.task_logits[1] != 0).all()


HOLDERS = {
    "rows": lambda rows: rows,
    "rows of tensors": lambda rows: [row | {"input_ids": torch.tensor(row["input_ids"])} for row in rows],
    "Dataset": datasets.Dataset.from_list,
    "Dataset of tensors": lambda rows: datasets.Dataset.from_list(rows).with_format("torch"),
    "shuffled": lambda rows: datasets.Dataset.from_list(rows[::-1]).select(range(len(rows) - 1, -1, -1)),
    "transformed": lambda rows: datasets.Dataset.from_list(
        [row | {"input_ids": row["input_ids"][::-1]} for row in rows]
    ).with_transform(lambda batch: batch | {"input_ids": [ids[::-1] for ids in batch["input_ids"]]}),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_rows_keep_what_else_is_known_of_a_text_whatever_holds_it(holder, teacher, texts, tmp_path, passes):
    rows = [{"input_ids": ids, "labels": number % 3} for number, ids in enumerate(texts["input_ids"])]
    store(tmp_path, teacher, texts)
    passes.clear()
    stored = store(tmp_path, teacher, HOLDERS[holder](rows))
    assert not passes  # the same texts have the same targets
    for index in (0, 17, 39):
        row = stored[index]
        assert list(row["input_ids"]) == rows[index]["input_ids"]
        assert row["labels"] == rows[index]["labels"]
        torch.testing.assert_close(by_token(row), own_outputs(teacher, rows[index]), atol=1e-4, rtol=1e-4)


def test_labels_are_those_of_the_texts_that_are_given_not_of_an_earlier_run(teacher, texts, tmp_path):
    ids = texts["input_ids"][:]
    for label in (0, 1):
        stored = store(tmp_path, teacher, datasets.Dataset.from_dict({"input_ids": ids, "labels": [label] * len(ids)}))
        assert stored[3]["labels"] == label


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_gives_each_text_its_own_targets(workers, teacher, texts, tmp_path, small_files):
    stored = store(tmp_path, teacher, texts)
    loader = DataLoader(
        stored, batch_size=8, shuffle=True, num_workers=workers,
        collate_fn=StoredTargetsCollator(padding_collator(teacher.tokenizer, tags=False)),
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    seen = set()
    for batch in loader:
        found = torch.cat(batch[STORED].tensors(), dim=-1)
        for ids, mask, values in zip(batch["input_ids"], batch["attention_mask"], found, strict=True):
            real = ids[mask.bool()].tolist()
            seen.add(tuple(real))
            expected = own_outputs(teacher, {"input_ids": real})
            torch.testing.assert_close(values[: len(real)], expected, atol=1e-4, rtol=1e-4)
            assert (values[len(real) :] == 0).all()
    assert seen == {tuple(ids) for ids in texts["input_ids"]}


def test_size_is_known_before(teacher, texts, tmp_path):
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        layout = Layout.of(teacher, STATES, dtype)
        expected = layout.bytes_of(len(texts), sum(texts["length"]))
        assert expected == sum(texts["length"]) * (2 + 3) * SIZE * width
        stored = store(tmp_path, teacher, texts, dtype=dtype)
        on_disk = sum(path.stat().st_size for path in stored.path.iterdir())
        assert 0 < on_disk - expected < 4000 + 32 * len(texts)


# ---- the key ----


def test_what_changes_targets_changes_where_they_are_kept(teacher, tokenizer, texts, tmp_path):
    heavier, reconfigured, buffered = (make_teacher_model() for _ in range(3))
    heavier.encoder.layer[3].output.dense.bias.data[5] += 1e-6
    reconfigured.config.layer_norm_eps *= 2
    buffered.embeddings.position_ids[0, 3] = 4
    ids = texts["input_ids"][:]
    paths = {
        "itself": store(tmp_path, teacher, texts).path,
        "a weight": store(tmp_path, Teacher(heavier, tokenizer), texts).path,
        "its configuration": store(tmp_path, Teacher(reconfigured, tokenizer), texts).path,
        "a buffer": store(tmp_path, Teacher(buffered, tokenizer), texts).path,
        "layers": store(tmp_path, teacher, texts, LAST).path,
        "dtype": store(tmp_path, teacher, texts, dtype=torch.bfloat16).path,
        "a text less": store(tmp_path, teacher, texts.select(range(39))).path,
        "order": store(tmp_path, teacher, texts.select([1, 0, *range(2, 40)])).path,
        "a token": store(tmp_path, teacher, [{"input_ids": row} for row in [[*ids[0][:-1], 7], *ids[1:]]]).path,
    }
    assert len(set(paths.values())) == len(paths), paths
    again = {
        "itself": store(tmp_path, Teacher(make_teacher_model(), tokenizer, name="another name"), texts),
        "more columns": store(tmp_path, teacher, texts.add_column("x", ["y"] * len(texts))),
    }
    assert {stored.path for stored in again.values()} == {paths["itself"]}


def test_a_head_whose_classes_are_swapped_is_another_teacher(tokenizer, texts, tmp_path):
    teacher = teacher_with_head("texts", tokenizer)
    required = Required(task_logits=True)
    first = store(tmp_path, teacher, texts, required)
    head = teacher.task_model.classifier.out_proj
    head.weight.data = head.weight.data.flip(0)
    second = store(tmp_path, teacher, texts, required)
    assert first.path != second.path
    assert by_token(second[0])[0].tolist() == pytest.approx(by_token(first[0])[0].flip(0).tolist(), abs=1e-6)


# ---- interruptions ----


def test_only_what_is_missing_is_computed(teacher, texts, tmp_path, small_files, passes):
    stored = store(tmp_path, teacher, texts, batch_size=1)
    files = sorted(stored.path.iterdir())
    assert len(files) >= 4
    assert sum(passes) == len(texts)
    expected = by_token(stored[20])
    passes.clear()
    store(tmp_path, teacher, texts, batch_size=1)
    assert not passes
    part = len(datasets.Dataset.from_file(str(files[1])))
    files[1].unlink()
    untouched = {path: path.stat().st_mtime_ns for path in stored.path.iterdir()}
    again = store(tmp_path, teacher, texts, batch_size=1)
    assert sum(passes) == part
    assert sorted(again.path.iterdir()) == files
    assert all(path.stat().st_mtime_ns == time for path, time in untouched.items())
    assert torch.equal(by_token(again[20]), expected)


def test_a_file_is_whole_or_absent(teacher, texts, tmp_path, small_files, monkeypatch):
    call, calls = Teacher.__call__, []

    def interrupted(self, input_ids, *args, **kwargs):
        calls.append(input_ids.numel())
        if len(calls) == 20:  # within the second file or one behind it
            raise KeyboardInterrupt
        return call(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(Teacher, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, teacher, texts, batch_size=1)
    (folder,) = tmp_path.iterdir()
    left = sorted(folder.iterdir())
    assert left
    assert all(path.name[:2] == f"{number:02d}" for number, path in enumerate(left))  # nothing half-written
    lengths = [len(datasets.Dataset.from_file(str(path))) for path in left]
    monkeypatch.setattr(Teacher, "__call__", call)
    stored = store(tmp_path, teacher, texts, batch_size=1)
    assert 0 < sum(lengths) < len(stored) == len(texts)
    assert sum(lengths) < 19  # of the file that was written last, some passes were in vain
    for index in range(len(texts)):
        assert torch.equal(by_token(stored[index]), own_outputs(teacher, texts[index])), index


def test_processes_share_the_files_and_miss_those_of_others(teacher, texts, tmp_path, small_files, passes):
    with pytest.raises(FileNotFoundError, match=r"was not written; all processes must see the same cache_dir"):
        store(tmp_path, teacher, texts, process_index=0, num_processes=2)
    first = sum(passes)
    assert 0 < first < len(texts)
    stored = store(tmp_path, teacher, texts, process_index=1, num_processes=2)
    assert sum(passes) == len(texts)
    torch.testing.assert_close(by_token(stored[13]), own_outputs(teacher, texts[13]), atol=1e-4, rtol=1e-4)


# ---- whether targets are stored ----


def decide(teacher, texts, folder, passes=2.0, storable=True, required=LAST, **kwargs):
    return store_if_it_pays(teacher, [texts], required, storable, run_arguments(folder, **kwargs), passes)


REASONS = {
    "false": ({}, {"cache_teacher_states": "false"}, "cache_teacher_states=false."),
    "one pass": ({"passes": 1.0}, {}, "each text is read once."),
    "masked": ({"storable": False}, {}, "no loss has targets that depend on the text alone, or another has not"),
    "too large": ({}, {"cache_max_gb": 1e-5}, "they would take 0.0 GB, more than cache_max_gb=1e-05."),
}


@pytest.mark.parametrize("case", REASONS)
def test_targets_are_computed_when_they_are_needed_and_a_reason_is_kept(case, teacher, texts, tmp_path):
    given_, arguments, reason = REASONS[case]
    assert decide(teacher, texts, tmp_path, **given_, **arguments) is None
    if case != "false":
        assert json.loads((tmp_path / DECISION_NAME).read_text())["computed_because"].startswith(reason)
        assert [path.name for path in tmp_path.iterdir()] == [DECISION_NAME]


def test_targets_of_a_stream_are_not_stored(teacher, texts, tmp_path):
    stream = texts.to_iterable_dataset()
    assert decide(teacher, stream, tmp_path) is None
    with pytest.raises(ValueError, match=r"^cache_teacher_states=true: a data set is a stream; load it as a whole"):
        decide(teacher, stream, tmp_path, cache_teacher_states="true")


def test_a_teacher_on_an_accelerator_is_asked_again(teacher, texts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "device", torch.device("cuda"))
        assert decide(teacher, texts, tmp_path) is None
    assert "a teacher on cuda is faster than the disk." in (tmp_path / DECISION_NAME).read_text()


def test_targets_are_stored_on_a_cpu_from_the_second_pass_on(teacher, texts, tmp_path):
    (stored,) = decide(teacher, texts, tmp_path, passes=1.5)
    assert isinstance(stored, StoredTargets)
    assert stored.path.parent == tmp_path / "teacher_states"
    assert json.loads((tmp_path / DECISION_NAME).read_text()) == {"computed_because": None}
    (elsewhere,) = decide(teacher, texts, tmp_path / "b", cache_dir=str(tmp_path / "shared"))
    assert elsewhere.path.parent == tmp_path / "shared"
    (unasked,) = decide(teacher, texts, tmp_path / "c", passes=0.5, cache_teacher_states="true")
    assert len(unasked) == len(texts)


@pytest.mark.parametrize(("first", "second"), [(1.0, 2.0), (2.0, 1.0)])
def test_a_resumed_run_decides_as_before(first, second, teacher, texts, tmp_path):
    before = decide(teacher, texts, tmp_path, passes=first)
    after = decide(teacher, texts, tmp_path, passes=second)
    assert (before is None) == (after is None) == (first == 1.0)
    assert (decide(teacher, texts, tmp_path / "fresh", passes=second) is None) != (after is None)


@pytest.mark.parametrize("case", ["masked", "too large"])
def test_who_asks_for_stored_targets_is_told_why_not_before_anything_is_written(case, teacher, texts, tmp_path):
    given_, arguments, reason = REASONS[case]
    with pytest.raises(ValueError, match="cache_teacher_states=true") as error:
        decide(teacher, texts, tmp_path, cache_teacher_states="true", **given_, **arguments)
    assert str(error.value).startswith(f"cache_teacher_states=true: {reason}")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_count_its_own_targets_against_the_disk(teacher, texts, tmp_path, monkeypatch):
    (stored,) = decide(teacher, texts, tmp_path)
    (tmp_path / DECISION_NAME).unlink()
    size = sum(path.stat().st_size for path in stored.path.iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(1.5 * size)))
    assert decide(teacher, texts, tmp_path) is not None
    assert decide(teacher, texts, tmp_path / "other") is None
    assert "are free on the disk." in (tmp_path / "other" / DECISION_NAME).read_text()


def test_yaml_booleans_are_understood(tmp_path):
    assert run_arguments(tmp_path, cache_teacher_states=True).cache_teacher_states == "true"
    with pytest.raises(ValueError, match="cache_teacher_states='maybe'"):
        run_arguments(tmp_path, cache_teacher_states="maybe")
    with pytest.raises(ValueError, match=r"cache_max_gb=0 must be positive"):
        run_arguments(tmp_path, cache_max_gb=0)


# ---- training on stored targets ----


def trainer_of(teacher, folder, train, heldout=None, statistics=None, **kwargs):
    defaults = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "statistics_sentences": 16,
        "losses": ["hidden_states", "relations"],
    }
    args = run_arguments(folder, **defaults | kwargs)
    return DistillationTrainer(student_shape(teacher), teacher, args, train, heldout, statistics=statistics)


def test_students_learn_the_same_from_stored_targets(teacher, texts, heldout_texts, tmp_path):
    weights, losses = [], []
    for cached in ("false", "true"):
        trainer = trainer_of(teacher, tmp_path, texts, heldout_texts, cache_teacher_states=cached)
        trainer.train()
        weights.append(trained_parameters(trainer))
        losses.append(trainer.evaluate()["eval_loss"])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_each_text_passes_the_teacher_once(teacher, texts, heldout_texts, tmp_path, passes):
    trainer = trainer_of(teacher, tmp_path, texts, heldout_texts, num_train_epochs=3, eval_strategy="epoch")
    passes.clear()  # of the statistics
    trainer.train()
    assert sum(passes) == len(texts) + len(heldout_texts)
    assert trainer.train_dataset is texts
    assert not (tmp_path / "teacher_states").exists()


def test_a_trainer_that_is_given_stored_targets_asks_the_teacher_for_nothing(teacher, texts, tmp_path, passes):
    direct = trainer_of(teacher, tmp_path, texts, cache_teacher_states="false")
    stored = store(tmp_path, teacher, texts, direct.pool.required)
    passes.clear()
    trainer = trainer_of(teacher, tmp_path, stored, stored)
    trainer.train()
    trainer.evaluate()
    assert not passes
    for layer, mean in direct.statistics.mean.items():
        torch.testing.assert_close(trainer.statistics.mean[layer], mean, rtol=1e-4, atol=1e-5)
    # also the start, fitted to a sample, is the same
    direct.train()
    for name, value in trained_parameters(direct).items():
        torch.testing.assert_close(trained_parameters(trainer)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_targets_serve_another_run(teacher, texts, tmp_path, passes):
    shared = {"cache_dir": str(tmp_path / "shared"), "statistics_sentences": 8}
    first = trainer_of(teacher, tmp_path / "a", texts, **shared)
    first.train()
    passes.clear()
    second = trainer_of(teacher, tmp_path / "b", texts, statistics=first.statistics, **shared)
    second.train()
    assert sum(passes) == 8  # the sample to which projections are fitted
    for name, value in trained_parameters(first).items():
        assert torch.equal(trained_parameters(second)[name], value), name


def test_a_resumed_run_learns_the_same_from_stored_targets(teacher, texts, tmp_path):
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(teacher, tmp_path, texts, **arguments)
    trainer.train()
    resumed = trainer_of(teacher, tmp_path, texts, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, value in trained_parameters(trainer).items():
        assert torch.equal(trained_parameters(resumed)[name], value), name


def test_stored_targets_that_a_student_cannot_learn_from_are_refused(teacher, texts, tmp_path):
    stored = store(tmp_path, teacher, texts, LAST)
    with pytest.raises(ValueError, match="train_dataset holds stored targets that lack some that students learn from"):
        trainer_of(teacher, tmp_path, stored)
    with pytest.raises(ValueError, match="eval_dataset holds stored targets of whole texts, and a loss masks tokens"):
        trainer_of(teacher, tmp_path, texts, stored, losses=["masked_lm"])


def test_several_evaluation_sets_train_too(teacher, texts, heldout_texts, tmp_path):
    heldout = {"a": heldout_texts.select(range(9)), "b": heldout_texts.select(range(5))}
    trainer = trainer_of(teacher, tmp_path, texts, heldout, eval_strategy="epoch")
    trainer.train()
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    assert all(math.isfinite(logged[key]) for key in ("eval_a_loss", "eval_b_loss"))

"""The cache of the teacher's states: what it gives, what it refuses, and what it survives."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnas_hf.distillation import Teacher, state_cache_files
from kdnas_hf.distillation.state_cache import TeacherStateCache, cache_bytes
from kdnas_hf.distillation.state_cache_key import cache_key
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

FEATURES = ["hidden_states.1", "hidden_states.4", "attention_input.2"]
ORDER = [17, 3, 39, 0, 3, 21]


@pytest.fixture(scope="module")
def texts(tokenizer):
    return tokenized(tokenizer, make_texts(40, seed=3))


def compute(folder, teacher, texts, features=FEATURES, **kwargs):
    kwargs = {"batch_size": 8, "tokens_per_shard": 100, **kwargs}
    return TeacherStateCache.compute(folder, teacher, texts, features, **kwargs)


def own_features(teacher, texts, indices, features=FEATURES):
    """Each text alone, without padding."""
    rows = []
    for index in indices:
        ids = torch.tensor([texts[index]["input_ids"]])
        rows.append(teacher.features(ids, torch.ones_like(ids), features))
    return {name: torch.cat([row[name][0] for row in rows]) for name in features}


def in_batches_of_the_cache(teacher, texts, features, batch_size, tokens_per_shard):
    """What the teacher says of each text when its batches are those of the cache."""
    shards, tokens = {}, 0
    for index, row in enumerate(texts):
        shards.setdefault(tokens // tokens_per_shard, []).append(index)
        tokens += len(row["input_ids"])
    by_text = {}
    for shard in shards.values():
        ordered = sorted(shard, key=lambda index: len(texts[index]["input_ids"]))
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            inputs = teacher.tokenizer.pad([{"input_ids": texts[i]["input_ids"]} for i in batch], return_tensors="pt")
            values = teacher.features(inputs["input_ids"], inputs["attention_mask"], features)
            for row, index in enumerate(batch):
                length = len(texts[index]["input_ids"])
                by_text[index] = {name: value[row, :length] for name, value in values.items()}
    return by_text


def shard_files(folder):
    return sorted(path for path in Path(folder).rglob("*.bin") if path.name != "lengths.bin")


@pytest.fixture
def passes(monkeypatch):
    """The features asked for in each pass of any teacher."""
    asked = []
    features = Teacher.features

    def counted(self, input_ids, attention_mask, names):
        names = list(names)
        asked.append(names)
        return features(self, input_ids, attention_mask, names)

    monkeypatch.setattr(Teacher, "features", counted)
    return asked


# ---- what it gives ----


def test_states_are_the_teachers_own_in_any_order(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts, precision="float32")
    states = cache.states(ORDER)
    assert set(states) == set(FEATURES)
    for name, expected in own_features(teacher, texts, ORDER).items():
        assert states[name].dtype == torch.float32
        torch.testing.assert_close(states[name], expected, atol=1e-4, rtol=1e-4)
    assert len(shard_files(tmp_path)) >= 3 * 3  # else this tests a single shard
    torch.testing.assert_close(cache.states(torch.tensor(ORDER)), states, atol=0, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_but_the_precision_changes_a_vector(tokenizer, texts, tmp_path, dtype, precision):
    """Bit by bit; a bf16 teacher's states are unharmed in either."""
    teacher = Teacher(make_teacher_model(), tokenizer, dtype=dtype)
    cache = compute(tmp_path, teacher, texts, precision=precision)
    expected = in_batches_of_the_cache(teacher, texts, FEATURES, 8, 100)
    states = cache.states(ORDER)
    for name in FEATURES:
        exact = torch.cat([expected[index][name] for index in ORDER])
        assert exact.dtype == dtype
        assert states[name].dtype == getattr(torch, precision)
        assert torch.equal(states[name], exact.to(states[name].dtype))
        assert (cache.errors[name] == 0) == (dtype == torch.bfloat16 or precision == "float32")


def test_a_tokenizer_that_pads_on_the_left_is_no_harm(teacher, texts, tmp_path):
    left = make_tokenizer()
    left.padding_side = "left"
    states = compute(tmp_path, Teacher(teacher.model, left), texts, precision="float32").states(ORDER)
    for name, expected in own_features(teacher, texts, ORDER).items():
        torch.testing.assert_close(states[name], expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_texts_of_any_length_in_shards_of_any_size(data, tmp_path_factory):
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=12))
    rows = [{"input_ids": [5 + (7 * i + j) % 60 for j in range(length)]} for i, length in enumerate(lengths)]
    teacher = Teacher(make_teacher_model(layers=1), make_tokenizer())
    name = "hidden_states.1"
    cache = compute(
        tmp_path_factory.mktemp("cache"),
        teacher,
        rows,
        [name],
        precision="float32",
        tokens_per_shard=data.draw(st.integers(1, 40)),
        batch_size=data.draw(st.integers(1, 5)),
    )
    assert cache.lengths.tolist() == lengths
    assert (cache.num_texts, cache.num_tokens) == (len(lengths), sum(lengths))
    indices = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8))
    states = cache.states(indices)[name]
    assert states.shape == (sum(lengths[i] for i in indices), 32)
    real = [i for i in indices if lengths[i]]
    if real:
        torch.testing.assert_close(states, own_features(teacher, rows, real, [name])[name], atol=1e-4, rtol=1e-4)


def test_a_text_that_is_not_there_is_refused(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts)
    for indices in ([40], [0, -1]):
        with pytest.raises(IndexError, match="of 40 texts"):
            cache.states(indices)


def test_states_outlive_the_folder_and_are_the_callers_own(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts)
    one = cache.states([5])
    before = {name: values.clone() for name, values in one.items()}
    for values in one.values():
        values.zero_()
    again = cache.states([5])
    assert all(torch.equal(again[name], before[name]) for name in FEATURES)
    for path in shard_files(tmp_path):  # where a view would look, there are now other bytes
        with path.open("r+b") as file:
            file.write(b"\1" * (path.stat().st_size))
    assert all(torch.equal(again[name], before[name]) for name in FEATURES)
    TeacherStateCache.remove(tmp_path, cache.key)
    assert not cache.path.exists()
    assert all(torch.equal(again[name], before[name]) for name in FEATURES)


def test_size_is_known_before(teacher, texts, tmp_path):
    for precision, bytes_of_a_token in {"bfloat16": 64, "float32": 128, "int8": 36}.items():
        cache = compute(tmp_path, teacher, texts, precision=precision)
        estimate = cache_bytes(cache.num_tokens, len(FEATURES), 32, precision)
        assert estimate == cache.num_tokens * 3 * bytes_of_a_token
        files = shard_files(cache.path)
        assert cache.num_bytes == sum(path.stat().st_size for path in files)
        assert 0 < cache.num_bytes - estimate < 1000 * len(files)


# ---- int8 ----


def test_error_of_int8_is_what_it_seems(teacher, texts, tmp_path, caplog):
    logging.getLogger("kdnas_hf").setLevel(logging.INFO)
    logging.getLogger("kdnas_hf").propagate = True
    with caplog.at_level(logging.INFO, logger="kdnas_hf"):
        coarse = compute(tmp_path, teacher, texts, precision="int8")
    everything = range(len(texts))
    exact = compute(tmp_path, teacher, texts, precision="float32").states(everything)
    manifest = json.loads((coarse.path / "manifest.json").read_text())
    for name, states in coarse.states(everything).items():
        squared = (states - exact[name]).double().square()
        variance = exact[name].double().var(0, correction=0)
        assert 1e-6 < coarse.errors[name] < 1e-3
        assert coarse.errors[name] == pytest.approx(float(squared.mean() / variance.mean()), rel=1e-3)
        expected = float((squared.mean(0) / variance).mean())
        assert coarse.standardized_errors[name] == pytest.approx(expected, rel=1e-3)
        assert manifest["features"][name]["relative"] == coarse.errors[name]
        assert f"{name} in int8: relative error {coarse.errors[name]:.2e}" in caplog.text
    reopened = TeacherStateCache.open(tmp_path, coarse.key, FEATURES)
    assert reopened.errors == coarse.errors


# ---- one cache for many needs ----


def test_a_superset_serves_a_subset_and_a_feature_is_added_alone(teacher, texts, tmp_path, passes):
    first = compute(tmp_path, teacher, texts, FEATURES[:2])
    assert {tuple(names) for names in passes} == {tuple(FEATURES[:2])}
    passes.clear()
    subset = compute(tmp_path, teacher, texts, FEATURES[1:2])
    assert passes == []
    assert list(subset.states([0])) == FEATURES[1:2]
    untouched = {path: path.stat().st_mtime_ns for path in shard_files(tmp_path)}
    added = compute(tmp_path, teacher, texts, [FEATURES[2], FEATURES[0]])
    assert {tuple(names) for names in passes} == {(FEATURES[2],)}
    assert all(path.stat().st_mtime_ns == time for path, time in untouched.items())
    assert added.key == first.key
    everything = TeacherStateCache.open(tmp_path, added.key, FEATURES)
    torch.testing.assert_close(everything.states(ORDER)[FEATURES[1]], first.states(ORDER)[FEATURES[1]], atol=0, rtol=0)
    passes.clear()
    compute(tmp_path, teacher, texts, FEATURES)
    assert passes == []


def test_a_complete_cache_is_not_written_to(teacher, texts, tmp_path, monkeypatch):
    """It may be another user's."""
    compute(tmp_path, teacher, texts)
    (lock,) = tmp_path.rglob(".lock")
    lock.unlink()
    monkeypatch.setattr(state_cache_files, "_write_atomically", lambda *_: pytest.fail("it writes"))
    compute(tmp_path, teacher, texts)
    assert not lock.exists()


def test_texts_are_counted_whatever_their_column_says(teacher, texts, tmp_path):
    wrong = texts.remove_columns("length").add_column("length", [1] * 40)
    assert compute(tmp_path, teacher, wrong).lengths.tolist() == list(texts["length"])


# ---- interruptions and damage ----


def test_an_interrupted_computation_goes_on(teacher, texts, tmp_path, monkeypatch, passes):
    write = state_cache_files._write_atomically
    written = []

    def interrupted(path, chunks):
        if path.suffix == ".bin" and len(written) == 5:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, chunks)

    monkeypatch.setattr(state_cache_files, "_write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, teacher, texts, batch_size=1000)
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        TeacherStateCache.open(tmp_path, cache_key(teacher, texts, tokens_per_shard=100), FEATURES)
    monkeypatch.setattr(state_cache_files, "_write_atomically", write)
    passes.clear()
    resumed = compute(tmp_path, teacher, texts, batch_size=1000)
    # lengths and one whole shard were written, and one feature of the second
    shards = resumed._files.layout.num_shards
    assert shards >= 3
    assert passes == [FEATURES[1:], *[FEATURES] * (shards - 2)]
    undisturbed = compute(tmp_path / "other", teacher, texts, batch_size=1000)
    for name, states in undisturbed.states(ORDER).items():
        assert torch.equal(resumed.states(ORDER)[name], states)


def test_an_interrupted_write_leaves_nothing(teacher, texts, tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path, teacher, texts)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("damage", ["torn", "longer", "missing", "a bit", "of another shard"])
def test_a_damaged_shard_is_refused_and_redone_alone(teacher, texts, tmp_path, passes, damage):
    cache = compute(tmp_path, teacher, texts, batch_size=1000)
    expected = cache.states(range(40))
    path, other = cache.path / "hidden_states.4.00001.bin", cache.path / "hidden_states.1.00001.bin"
    content = bytearray(path.read_bytes())
    if damage == "torn":
        path.write_bytes(content[:-1])
    elif damage == "longer":
        path.write_bytes(content + b"x")
    elif damage == "missing":
        path.unlink()
    elif damage == "a bit":
        content[100] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(other.read_bytes())
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error, match=r"hidden_states\.4\.00001\.bin"):
        TeacherStateCache.open(tmp_path, cache.key, FEATURES)
    TeacherStateCache.open(tmp_path, cache.key, FEATURES[:1])
    passes.clear()
    repaired = compute(tmp_path, teacher, texts, batch_size=1000)
    assert passes == [["hidden_states.4"]]
    assert all(torch.equal(repaired.states(range(40))[name], expected[name]) for name in FEATURES)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": 1}'])
def test_a_damaged_manifest_is_refused_and_redone(teacher, texts, tmp_path, passes, content):
    cache = compute(tmp_path, teacher, texts)
    manifest = cache.path / "manifest.json"
    before = manifest.read_bytes()
    manifest.write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        TeacherStateCache.open(tmp_path, cache.key, FEATURES)
    passes.clear()
    compute(tmp_path, teacher, texts)
    assert passes == []  # the shards vouch for themselves
    assert manifest.read_bytes() == before


def test_damaged_lengths_are_refused_and_redone(teacher, texts, tmp_path, passes):
    cache = compute(tmp_path, teacher, texts)
    lengths = cache.path / "lengths.bin"
    content = bytearray(lengths.read_bytes())
    content[0] ^= 1
    lengths.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum of lengths\.bin"):
        TeacherStateCache.open(tmp_path, cache.key, FEATURES)
    passes.clear()
    assert compute(tmp_path, teacher, texts).lengths.tolist() == list(texts["length"])
    assert passes == []


def test_files_of_another_key_are_never_used(teacher, tokenizer, texts, tmp_path, passes):
    other_model = make_teacher_model()
    other_model.encoder.layer[0].output.dense.bias.data += 1
    other = compute(tmp_path, Teacher(other_model, tokenizer), texts)
    key = cache_key(teacher, texts, tokens_per_shard=100)
    other.path.rename(tmp_path / key)  # the very same sizes
    with pytest.raises(ValueError, match=f"belongs to another key, {other.key}"):
        TeacherStateCache.open(tmp_path, key, FEATURES)
    passes.clear()
    cache = compute(tmp_path, teacher, texts, precision="bfloat16", verify=False)
    assert cache.key == key
    assert passes
    clean = compute(tmp_path / "clean", teacher, texts)
    assert all(torch.equal(cache.states(ORDER)[name], clean.states(ORDER)[name]) for name in FEATURES)


def test_a_manifest_whose_key_was_edited_is_refused(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts)
    manifest = cache.path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["keyed_by"]["precision"] = "float32"
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another key"):
        TeacherStateCache.open(tmp_path, cache.key, FEATURES)


def test_open_names_what_is_missing(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts, FEATURES[:1])
    with pytest.raises(ValueError, match=r"lacks hidden_states\.4; it holds hidden_states\.1"):
        TeacherStateCache.open(tmp_path, cache.key, FEATURES[:2])
    with pytest.raises(FileNotFoundError, match="no complete cache"):
        TeacherStateCache.open(tmp_path, "0" * 64, FEATURES[:1])
    with pytest.raises(ValueError, match="is no key"):
        TeacherStateCache.open(tmp_path, "..", FEATURES[:1])


def test_manifest_tells_a_person_what_this_is(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts, precision="int8")
    content = json.loads((cache.path / "manifest.json").read_text())
    assert content["key"] == cache.path.name == cache.key
    assert content["teacher"] == "tiny teacher"
    assert content["precision"] == "int8"
    assert (content["num_texts"], content["num_tokens"]) == (40, sum(texts["length"]))
    assert len(shard_files(tmp_path)) == content["num_shards"] * 3
    assert sorted(content["features"]) == sorted(FEATURES)


def test_temporaries_of_the_dead_go_and_of_the_living_stay(teacher, texts, tmp_path):
    cache = compute(tmp_path, teacher, texts)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    machine = state_cache_files._machine_name()
    own, token = os.getpid(), state_cache_files._PROCESS_TOKEN
    stay = [
        f".x.bin.0.{machine}.{own}.{token}.tmp",  # another thread of this process
        f".x.bin.0.{machine}.{os.getppid()}.abcdefgh.tmp",
        f".x.bin.0.elsewhere.{ended.pid}.abcdefgh.tmp",
        ".of_someone_else.tmp",
    ]
    go = [
        f".x.bin.0.{machine}.{ended.pid}.abcdefgh.tmp",
        f".x.bin.0.{machine}.{own}.abcdefgh.tmp",  # an earlier process of the same number
        f".x.bin.1.elsewhere.{ended.pid}.abcdefgh.tmp",  # long ago
    ]
    for name in stay + go:
        (cache.path / name).write_bytes(b"x")
    os.utime(cache.path / go[2], (0, 0))
    compute(tmp_path, teacher, texts)
    assert sorted(path.name for path in cache.path.glob("*.tmp")) == sorted(stay)


# ---- the disk ----


def test_a_full_disk_is_named_and_leaves_no_temporaries(teacher, texts, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="cache_max_gb, or pass --cache_teacher_states false") as error:
        compute(tmp_path, teacher, texts)
    assert str(tmp_path) in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_errors_of_the_disk_are_not_called_full(teacher, texts, tmp_path, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        compute(tmp_path, teacher, texts)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_disk_that_is_too_small_is_found_out_before_the_teacher_starts(teacher, texts, tmp_path, monkeypatch, passes):
    cache = compute(tmp_path, teacher, texts, FEATURES[:1])
    usage = shutil.disk_usage(tmp_path)
    needed = cache.num_bytes  # hidden_states.1 is there, hidden_states.4 is as large
    passes.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match="the disk is too small"):
        compute(tmp_path, teacher, texts, FEATURES[:2])
    assert passes == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    compute(tmp_path, teacher, texts, FEATURES[:2])
    assert passes


# ---- several processes ----


def in_threads(*functions):
    results, threads = [None] * len(functions), []
    for index, function in enumerate(functions):
        threads.append(threading.Thread(target=lambda i=index, f=function: results.__setitem__(i, f())))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_processes_share_the_work_and_wait_for_each_other(tokenizer, texts, tmp_path, monkeypatch):
    barrier = threading.Barrier(2, timeout=60)
    write_shard = state_cache_files.CacheFiles.write_shard
    written = []

    def recorded(self, shard, features, teacher, *args):
        written.append((teacher.name, shard))
        write_shard(self, shard, features, teacher, *args)

    monkeypatch.setattr(state_cache_files.CacheFiles, "write_shard", recorded)

    # made here: threads would draw their weights from one generator
    teachers = [Teacher(make_teacher_model(), tokenizer, name=f"rank {rank}") for rank in range(2)]

    def process(rank):
        return compute(tmp_path, teachers[rank], texts, process_index=rank, num_processes=2, wait=barrier.wait)

    caches = in_threads(lambda: process(0), lambda: process(1))
    shards = caches[0]._files.layout.num_shards
    assert sorted(written) == sorted((f"rank {shard % 2}", shard) for shard in range(shards))
    alone = compute(tmp_path / "alone", teachers[0], texts)
    for cache in caches:
        assert cache.errors == alone.errors
        assert all(torch.equal(cache.states(ORDER)[name], alone.states(ORDER)[name]) for name in FEATURES)


def test_the_share_of_one_process_is_no_complete_cache(teacher, texts, tmp_path):
    with pytest.raises(FileNotFoundError):
        compute(tmp_path, teacher, texts, process_index=0, num_processes=2)
    assert list(tmp_path.rglob("manifest.json")) == []
    second = compute(tmp_path, teacher, texts, process_index=1, num_processes=2)
    assert second.states([0])


def test_strangers_at_the_same_cache_do_not_disturb_each_other(tokenizer, texts, tmp_path):
    first, second = (Teacher(make_teacher_model(), tokenizer) for _ in range(2))
    caches = in_threads(
        lambda: compute(tmp_path, first, texts, FEATURES[:2], batch_size=3),
        lambda: compute(tmp_path, second, texts, FEATURES[1:], batch_size=8),
    )
    assert [cache.features for cache in caches] == [tuple(FEATURES[:2]), tuple(FEATURES[1:])]
    # neither entry in the manifest was lost, and every file is whole
    TeacherStateCache.open(tmp_path, caches[0].key, FEATURES, verify=True)


# ---- refusals ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "float16"}, "precision='float16' is unknown"),
        ({"features": []}, "names nothing"),
        ({"features": ["hidden_states.5"]}, "layers 1 to 4"),
        ({"features": ["hidden_states.0"]}, "layers 1 to 4"),
        ({"features": ["queries.1"]}, "queries.1' is unknown"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"tokens_per_shard": 0}, "tokens_per_shard=0 must be at least 1"),
        ({"process_index": 2, "num_processes": 2}, "process_index=2"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(teacher, texts, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        compute(tmp_path, teacher, texts, **change)
    assert list(tmp_path.iterdir()) == []


def test_streams_and_nothing_are_refused(teacher, texts, tmp_path):
    with pytest.raises(ValueError, match="teacher states of a stream cannot be cached"):
        compute(tmp_path, teacher, texts.to_iterable_dataset())
    with pytest.raises(ValueError, match="dataset has no texts"):
        compute(tmp_path, teacher, texts.select([]))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_teacher_that_overflows_is_not_stored(tokenizer, texts, tmp_path, precision):
    model = make_teacher_model()
    model.embeddings.word_embeddings.weight.data[texts[20]["input_ids"][1]] = float("inf")
    with pytest.raises(ValueError, match=r"hidden_states\.1 is not finite in texts"):
        compute(tmp_path, Teacher(model, tokenizer), texts, precision=precision)


def test_remove_deletes_that_cache_alone(teacher, texts, tmp_path):
    first, second = (compute(tmp_path, teacher, texts, precision=precision) for precision in ("int8", "float32"))
    TeacherStateCache.remove(tmp_path, first.key)
    TeacherStateCache.remove(tmp_path, first.key)  # not there: nothing to do
    assert [path.name for path in tmp_path.iterdir()] == [second.key]
    for key in ("", ".", "..", str(tmp_path), second.key[:10]):
        with pytest.raises(ValueError, match="is no key"):
            TeacherStateCache.remove(tmp_path, key)
    assert second.path.is_dir()

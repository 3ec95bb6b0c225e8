"""The key of a cache: it changes with what changes the teacher's states, and with nothing else."""

import shutil

import datasets
import pytest
import torch
from transformers import BertConfig, BertModel

from kdnas_hf.distillation import Teacher, load_teacher
from kdnas_hf.distillation.state_cache_key import cache_key
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized


@pytest.fixture(scope="module")
def texts(tokenizer):
    return tokenized(tokenizer, make_texts(40, seed=3))


def test_key_tells_what_changes_the_states(teacher, tokenizer, texts, tmp_path):
    key = cache_key(teacher, texts)
    others = {
        "precision": cache_key(teacher, texts, "int8"),
        "shards": cache_key(teacher, texts, tokens_per_shard=7),
        "a text less": cache_key(teacher, texts.select(range(39))),
        "order": cache_key(teacher, texts.select([1, 0, *range(2, 40)])),
        "dtype": cache_key(Teacher(make_teacher_model(), tokenizer, dtype=torch.bfloat16), texts),
    }
    ids = [row["input_ids"] for row in texts]
    moved = [[*ids[0], ids[1][0]], ids[1][1:], *ids[2:]]
    others["a boundary"] = cache_key(teacher, datasets.Dataset.from_dict({"input_ids": moved}))
    other_token = [[*ids[0][:-1], 7], *ids[1:]]
    others["a token"] = cache_key(teacher, datasets.Dataset.from_dict({"input_ids": other_token}))
    heavier = make_teacher_model()
    heavier.encoder.layer[3].output.dense.bias.data[5] += 1e-6
    others["a weight"] = cache_key(Teacher(heavier, tokenizer), texts)
    reconfigured = make_teacher_model()
    reconfigured.config.layer_norm_eps *= 2
    others["configuration"] = cache_key(Teacher(reconfigured, tokenizer), texts)
    more_words = make_tokenizer()
    more_words.add_tokens(["gloop"])
    others["tokenizer"] = cache_key(Teacher(make_teacher_model(), more_words), texts)
    assert len({key, *others.values()}) == 1 + len(others), others


def test_key_of_a_buffer(texts, tokenizer):
    def key(change):
        model = BertModel(
            BertConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, pad_token_id=1
            ),
            add_pooling_layer=False,
        )
        for parameter in model.parameters():
            parameter.data.fill_(0.5)
        model.embeddings.token_type_ids += change
        return cache_key(Teacher(model, tokenizer), texts)

    assert key(0) == key(0) != key(1)


def test_key_does_not_know_where_the_teacher_is_from(texts, teacher_path, tmp_path):
    loaded = load_teacher(str(teacher_path))
    copied = load_teacher(shutil.copytree(teacher_path, tmp_path / "copy"))
    in_memory = Teacher(make_teacher_model(), loaded.tokenizer, name="another name")
    assert len({cache_key(teacher, texts) for teacher in (loaded, copied, in_memory)}) == 1


def test_key_is_the_same_for_what_shows_the_same(teacher, texts):
    key = cache_key(teacher, texts)
    rows = [{"input_ids": row["input_ids"]} for row in texts]
    backwards = datasets.Dataset.from_list(rows[::-1])
    same = {
        "select": backwards.select(range(39, -1, -1)),
        "slices": datasets.concatenate_datasets([texts.select(range(9)), texts.select(range(9, 40))]),
        "shown by another format": texts.with_format("torch"),
        "rows": rows,
        "rows of tensors": [{"input_ids": torch.tensor(row["input_ids"])} for row in rows],
        "int32": datasets.Dataset.from_list(rows).cast_column("input_ids", datasets.Sequence(datasets.Value("int32"))),
        "more columns, and a wrong length": datasets.Dataset.from_list(
            [{**row, "length": 3, "x": "y"} for row in rows]
        ),
        "transformed": backwards.with_transform(
            lambda batch: {"input_ids": [[*ids[:1], *ids[1:]] for ids in batch["input_ids"]]}
        ).select(range(39, -1, -1)),
    }
    assert {name: cache_key(teacher, dataset) for name, dataset in same.items()} == dict.fromkeys(same, key)
    cut = texts.with_transform(lambda batch: {"input_ids": [ids[:2] for ids in batch["input_ids"]]})
    assert cache_key(teacher, cut) != key


def test_key_does_not_know_what_the_tokenizer_did_last(texts):
    teacher = Teacher(make_teacher_model(), make_tokenizer())
    key = cache_key(teacher, texts)
    teacher.tokenizer(["bap", "bap dep"], padding=True, truncation=True, max_length=3)
    assert teacher.tokenizer.backend_tokenizer.truncation is not None
    assert cache_key(teacher, texts) == key
    assert teacher.tokenizer.backend_tokenizer.truncation is not None  # nor does it meddle with it

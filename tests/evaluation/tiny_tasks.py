"""Tiny tasks in files, in the tiny teacher's vocabulary: what a model of a few thousand weights can learn."""

import gzip
import json

import torch

from kdnas_hf import KDNASConfig, KDNASModel
from tiny_teacher import WORDS, make_texts

TOPICS = {"b": 0, "d": 1, "g": 2}
TINY_STUDENT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def topic_rows(count, seed):
    """Rows of a topic task: the label is the letter that all words of the text begin with."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        letter = "bdg"[number % 3]
        words = [word for word in WORDS if word[0] == letter]
        chosen = torch.randint(len(words), (4,), generator=generator).tolist()
        rows.append({"text": " ".join(words[i] for i in chosen), "label": TOPICS[letter]})
    return rows


def entity_rows(count, seed):
    """Rows of an entity task: words that begin with b are persons, two in a row one person."""
    rows = []
    for text in make_texts(count, seed):
        words = text.split()
        tags = []
        for number, word in enumerate(words):
            inside = number > 0 and words[number - 1][0] == "b"
            tags.append(("I-PER" if inside else "B-PER") if word[0] == "b" else "O")
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def write_rows(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_topics(folder, languages=("de", "sw")):
    write_rows(folder, "topic-en-train", topic_rows(120, 0))
    write_rows(folder, "topic-en-dev", topic_rows(30, 1))
    for seed, language in enumerate(languages, start=2):
        write_rows(folder, f"topic-{language}-test", topic_rows(24, seed))


def save_tiny_student(folder, tokenizer, **shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KDNASModel(KDNASConfig(vocab_size=len(tokenizer), **TINY_STUDENT | shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TOPIC_TASK = """
name: topic
kind: sequence_classification
metric: accuracy
text: text
label: label
labels: [b, d, g]
local: {train: topic, test: topic}
"""
ENTITY_TASK = """
name: entity
kind: token_classification
metric: seqeval_f1
text: tokens
label: ner_tags
labels: [O, B-PER, I-PER]
local: {train: entity, test: entity}
"""

"""Tiny embedding tasks in files, and encoders whose vectors can be worked out by hand."""

import gzip
import hashlib
import json

import numpy as np


class TableEncoder:
    """Gives each text the vector that a table has for it, and keeps what it was asked for."""

    def __init__(self, table, prompts=None):
        self.table = table
        self.asked = []
        if prompts is not None:
            self.prompts = prompts

    def encode(self, sentences, **given):
        self.asked.append((list(sentences), given))
        return np.array([self.vector(text) for text in sentences], dtype=np.float32)

    def vector(self, text):
        return self.table.get(text, [1.0] + [0.0] * (len(next(iter(self.table.values()))) - 1))


class HashEncoder(TableEncoder):
    """Gives every text a random direction of its own, plus noise that is this encoder's."""

    def __init__(self, noise=0.0, width=16, prompts=None, meaning=str):
        super().__init__({}, prompts)
        self.noise, self.width, self.meaning = noise, width, meaning

    def vector(self, text):
        return draw(self.meaning(text), self.width) + self.noise * draw(f"{self.noise}/{text}", self.width)


def draw(key, width):
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(width)


def write_rows(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_bitext(folder, language, count=30):
    write_rows(
        folder, f"tatoeba-{language}-dev",
        [{"source": f"{language} {number}", "target": f"en {number}"} for number in range(count)],
    )  # fmt: skip


def write_retrieval(folder, language, queries=40, passages=8):
    write_rows(folder, f"xquadr-{language}-dev-corpus", [{"text": f"p {n}"} for n in range(passages)])
    rows = [{"query": f"{language} {n % passages} {n}", "positive": n % passages} for n in range(queries)]
    write_rows(folder, f"xquadr-{language}-dev-queries", rows)


def number_of(text):
    """What `write_bitext` and `write_retrieval` mean by a text: its first number."""
    return text.split()[1]

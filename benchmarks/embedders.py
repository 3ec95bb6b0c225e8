"""Which losses, prompts and kept layers give a student the sentence vectors of its teacher, at equal tokens?

    python benchmarks/embedders.py --preset short     # the embedded text, scored on its translations; minutes
    python benchmarks/embedders.py --preset long --dataset FILE [FILE …] --max_length 128 --threads 1 \
        --data_dir FOLDER --arms vectors both --layers "3 7 11" "1 6 12"

Every combination of an arm, kept layers, prompts and a learning rate is distilled with each seed on the same texts, and
scored without further training beside the teacher: the share of its score that the student keeps, with the interval of
a bootstrap over rows. Rows are kept in ``--output_dir``; started again, it goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distillation_setting import (
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    training_arguments,
)
from kdnas_hf import Architecture, student_config
from kdnas_hf.distillation.pool import required_by
from kdnas_hf.distillation.stored_targets import StoredTargets, store_targets
from kdnas_hf.evaluation.embeddings import EmbeddingData, evaluate_embedders, load_embedding_data
from kdnas_hf.students import SentenceEncoder
from kdnas_hf.utils.markdown_table import markdown_table

SIMILARITY = ["squared_error", "similarity"]
ARMS: dict[str, dict[str, Any]] = {
    "states": {"losses": ["hidden_states"]},
    "vectors": {"losses": ["sentence_vectors"]},
    "similarity": {"losses": ["sentence_vectors"], "sentence_terms": SIMILARITY},
    "both": {"losses": ["hidden_states", "sentence_vectors"]},
    "both, similarity": {"losses": ["hidden_states", "sentence_vectors"], "sentence_terms": SIMILARITY},
    "mostly vectors": {"losses": ["hidden_states:0.2", "sentence_vectors"]},
}
PRESETS: dict[str, dict[str, Any]] = {
    "short": {"texts": 6400, "epochs": 1.0, "tasks": ["intent_translations"], "max_rows": 50},
    "long": {"texts": 60_000, "epochs": 2.0, "tasks": ["stsb", "tatoeba", "xquadr"], "max_rows": 300},
}


def distil(
    setting: Setting, texts: Sequence[StoredTargets], architecture: Architecture, seed: int, recipe: Mapping[str, Any]
) -> tuple[SentenceEncoder, dict[str, Any]]:
    """A student as an encoder of sentences, with what its training measured."""
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(folder, seed, recipe)
        config, started = student_config(setting.teacher, architecture), time.monotonic()
        trainer = make_trainer(setting, {"student": config}, training, train_dataset=texts[0], eval_dataset=texts[1])
        trainer.train()
        metrics = trainer.evaluate()
        seconds = time.monotonic() - started
    measured = {name: metrics.get(f"eval_{name}") for name in ("r2", "vector_r2", "cosine", "trained_tokens")}
    return trainer.sentence_encoder(), measured | {"seconds": round(seconds)}


def score(
    setting: Setting, encoder: SentenceEncoder, tasks: Sequence[EmbeddingData], folder: Path
) -> dict[str, dict[str, Any]]:
    """By task, the score and the share of the teacher's, with intervals, and the languages below 80 % of it."""
    head = setting.teacher.sentence_head
    assert head is not None
    teacher = SentenceEncoder(setting.teacher.model, setting.teacher.tokenizer, head)
    results = evaluate_embedders(
        {"teacher": teacher, "student": encoder}, tasks, folder, teacher_index=["student"], min_share=0.8
    )
    found = {}
    for task, scores in results.tasks.items():
        for name, one in scores.encoders.items():
            if name != "teacher":
                share = one.average_share
                found[task if name == "student" else f"{task}, teacher's index"] = {
                    "score": one.average.value,
                    "share": None if share is None else [share.value, share.low, share.high],
                    "below": one.below,
                }
    return found


def main() -> None:
    """Distil, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["states", "vectors", "both"])
    parser.add_argument("--layers", nargs="+", default=["3 7 11"], help="kept layers of the teacher, a set each")
    parser.add_argument("--intermediate_size", type=int, default=384)
    parser.add_argument(
        "--prompts", nargs="+", default=["query:1 passage:1"], help="shares as of --prompts, a set each"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--languages", nargs="+", default=None)
    parser.add_argument("--data_dir", default=None)
    for name, kind in (("texts", int), ("epochs", float), ("max_rows", int)):
        parser.add_argument(f"--{name}", type=kind, default=None)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/embedders"))
    args = parser.parse_args()
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    tasks = [load_embedding_data(name, args.data_dir, args.languages, args.max_rows) for name in args.tasks]
    print(describe_machine(), flush=True)
    path, rows = args.output_dir / "rows.jsonl", list[dict[str, Any]]()
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for prompts in args.prompts:
        setting, texts = None, list[StoredTargets]()
        for layers, arm, rate, number in itertools.product(args.layers, args.arms, args.rates, range(args.seeds)):
            kept = tuple(map(int, layers.split()))
            key = {"arm": arm, "layers": layers, "ffn": args.intermediate_size, "prompts": prompts, "rate": rate}
            key |= {"seed": args.seed + number, "texts": args.texts, "epochs": args.epochs}
            if any(key.items() <= row.items() for row in rows):
                continue
            if setting is None:
                setting = load_setting(args, sentences=args.texts, heldout=1000, prompts=prompts)
                texts = stored(setting, args)
            width, heads = setting.teacher.dimensions.hidden_size, setting.teacher.dimensions.num_attention_heads
            shape = Architecture(len(kept), heads, width, args.intermediate_size, "gelu", teacher_layers=kept)
            recipe = {"num_train_epochs": args.epochs, "learning_rate": rate, **ARMS[arm]}
            encoder, measured = distil(setting, texts, shape, args.seed + number, recipe)
            row = key | measured | {"scores": score(setting, encoder, tasks, args.output_dir / "scores")}
            rows.append(row)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k != "scores"}), flush=True)
            del encoder
            gc.collect()
    print(table(rows))
    print(json.dumps(summary(rows)))


def stored(setting: Setting, args: argparse.Namespace) -> list[StoredTargets]:
    """Both texts with what any of the arms learns."""
    training = training_arguments(args.output_dir, args.seed, {"losses": ["hidden_states", "sentence_vectors"]})
    required = required_by(training, setting.teacher, sorted({len(layers.split()) for layers in args.layers}))
    dtype = training.teacher_torch_dtype or torch.float32
    where = args.output_dir / "targets"
    return [
        store_targets(setting.teacher, one, required, where, dtype=dtype, batch_size=64)
        for one in (setting.train, setting.heldout)
    ]


def _alike(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in ("arm", "layers", "ffn", "prompts", "rate", "texts")), []).append(
            row
        )
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each combination: shares of the teacher's scores, means over seeds, with the widest interval."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["scores"]))
    lines = []
    for key, own in _alike(rows).items():
        cells = [str(value) for value in key]
        for task in tasks:
            shares = [row["scores"][task]["share"] for row in own if task in row["scores"]]
            mean, low, high = (statistics.fmean(share[i] for share in shares) for i in range(3))
            cells.append(f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append([*cells, str(len(own))])
    return markdown_table(["arm", "layers", "FFN", "prompts", "rate", "texts", *tasks, "seeds"], lines)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Shares by combination and task."""
    return {
        ", ".join(map(str, key)): {
            task: round(statistics.fmean(row["scores"][task]["share"][0] for row in own), 4)
            for task in own[0]["scores"]
        }
        for key, own in _alike(rows).items()
    }


if __name__ == "__main__":
    main()

"""What students learn from the same tokens: the published recipe against the default one.

    python benchmarks/distillation_quality.py --preset short

The same architecture, texts, order of texts, batches and seeds; R² of each mapped layer on held-out text, the share of
held-out sentences whose nearest neighbour (mean of the last states, cosine) is the teacher's, the time of the training
and the memory that weights, gradients and optimizer take. The last line is one JSON object; `r2_published` is the
published recipe with standardised targets, without which it learns next to nothing at this budget.

`--preset long` trains 20 times as long: on the embedded text three times over, or on other text given with --dataset.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from typing import Any, cast

import numpy as np
import torch

from distillation_setting import (
    PUBLISHED,
    PUBLISHED_STANDARDIZED,
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    shape,
    training_arguments,
)
from kdnas_hf import DistillationTrainer
from kdnas_hf.evaluation.task_probe import read_texts
from kdnas_hf.students.sentence_dimension import neighbours_kept

STEPS = {"short": 200, "long": 4000}


def mean_states(model: Any, setting: Setting) -> np.ndarray:
    """The mean of the last states of each held-out sentence, by a model in eval mode."""
    texts = list(setting.heldout["input_ids"])
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for number, states in read_texts(model, setting.teacher.tokenizer, texts):
        vectors[number] = states.mean(0).numpy()
    return vectors


def training_state_bytes(trainer: DistillationTrainer) -> int:
    """Weights that train, their gradients and what the optimizer keeps of them."""
    weights = sum(p.numel() * p.element_size() for p in trainer.pool.parameters() if p.requires_grad)
    assert trainer.optimizer is not None
    state = sum(
        value.numel() * value.element_size()
        for entry in cast(dict[Any, dict[str, Any]], trainer.optimizer.state).values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    return 2 * weights + state


def main() -> None:
    """Compare the recipes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of 32 texts; by default the preset's")
    parser.add_argument("--sentences", type=int, default=None, help="texts to train on; by default one for each use")
    parser.add_argument("--student", type=int, nargs=4, default=(3, 288, 6, 1024), help="layers, hidden, heads, FFN")
    parser.add_argument("--recipe", nargs="*", default=[], help="further recipes, as name:field=value,field=value")
    parser.add_argument("--alone", action="store_true", help="train only the recipes that --recipe gives")
    args = parser.parse_args()
    steps = args.steps or STEPS[args.preset]
    short = args.preset == "short"
    setting = load_setting(args, sentences=min(steps * 32, args.sentences or steps * 32), heldout=1000)
    tokens = sum(setting.train["length"])
    layers, hidden, heads, ffn = args.student
    print(
        f"{describe_machine()}\n{steps} steps of 32 texts, {tokens:,} tokens in {len(setting.train):,} texts; student "
        f"of {layers} layers x {hidden}, {heads} heads, FFN {ffn}; seed {args.seed}\n"
    )
    recipes: dict[str, dict[str, Any]] = {
        **({"published, raw": PUBLISHED} if short else {}),
        "published, standardised": PUBLISHED_STANDARDIZED,
        # how much of the difference is the learning rate
        **({"the same, learning rate 3e-3": PUBLISHED_STANDARDIZED | {"learning_rate": 3e-3}} if short else {}),
        "ours": {},
    }
    given = dict(parse_recipe(text) for text in args.recipe)
    recipes = given if args.alone else recipes | given
    teacher_vectors = None
    print("| recipe | R² by student layer | last layer | nearest neighbour | minutes | training state |")
    print("| --- | --- | --- | --- | --- | --- |")
    r2 = {}
    for name, recipe in recipes.items():
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(args.seed)
            started = time.monotonic()
            # whichever word embeddings are trained: the students are the same, the time is not
            training = training_arguments(
                folder, args.seed, {"max_steps": steps, **recipe, "occurring_embeddings": True}
            )
            trainer = make_trainer(setting, shape(setting.teacher, *args.student), training)
            trainer.train()
            minutes = (time.monotonic() - started) / 60
            metrics = trainer.evaluate()
        if teacher_vectors is None:
            teacher_vectors = mean_states(setting.teacher.model, setting)
        agreement = neighbours_kept(teacher_vectors, mean_states(trainer.student.eval(), setting))
        per_layer = [metrics[f"eval_r2_layer_{layer}"] for layer in range(1, layers + 1)]
        r2[name] = metrics["eval_r2"]
        shown = " ".join(f"{value:.3f}" for value in per_layer)
        print(
            f"| {name} | {shown} | {metrics['eval_r2']:.3f} | {agreement:.3f} | {minutes:.2f} | "
            f"{training_state_bytes(trainer) / 2**20:,.0f} MiB |",
            flush=True,
        )
        del trainer
        gc.collect()
    if args.alone:
        print(json.dumps({"r2": {name: round(value, 4) for name, value in r2.items()}}))
        return
    published, ours = r2["published, standardised"], r2["ours"]
    result = {"r2_published": round(published, 4), "r2_ours": round(ours, 4), "ratio": round(ours / published, 2)}
    print(json.dumps(result))


def parse_recipe(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``name:field=value,field=value``."""
    name, _, rest = text.partition(":")
    recipe: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        field, _, value = item.partition("=")
        try:
            recipe[field] = json.loads(value)
        except ValueError:
            recipe[field] = value.split("+") if field == "losses" else value
    return name, recipe


if __name__ == "__main__":
    main()

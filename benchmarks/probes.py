"""How well probes without labels predict what a student is worth on a task.

    python benchmarks/probes.py

Students of several shapes, distilled for several budgets on the embedded text, are probed on the text of the task and
then fine-tuned on it (the intents: trained in English, tested in 64 other languages). Printed is the correlation
(Spearman) of each probe with the score, over all students and over those of the largest budget alone, and as the last
line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from scipy.stats import spearmanr

from distillation_setting import add_arguments, describe_machine, load_setting, make_trainer, shape, training_arguments
from kdnas_hf import FineTuningArguments, Task, load_task_data
from kdnas_hf.evaluation import ModelSource, fine_tune, probe_models, probe_texts, score_languages

SHAPES = {"short": [(1, 384, 6, 768), (2, 288, 6, 576), (3, 192, 6, 768)], "long": [
    (1, 384, 6, 768), (2, 192, 6, 768), (2, 288, 6, 576), (2, 384, 6, 1024), (3, 192, 6, 768), (4, 288, 6, 1024)
]}  # fmt: skip
BUDGETS = {"short": (25, 100, 400), "long": (25, 100, 400, 1600)}


def main() -> None:
    """Distil, probe, fine-tune, correlate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=2, help="fine-tunings of each student")
    parser.add_argument("--max_test_examples", type=int, default=50)
    args = parser.parse_args()
    shapes, budgets = SHAPES[args.preset], BUDGETS[args.preset]
    setting = load_setting(args, sentences=min(32 * max(budgets), 36_000), heldout=1000)
    data = load_task_data(Task.load("intents"), max_test_examples=args.max_test_examples)
    texts = probe_texts([data])
    tuning = FineTuningArguments(learning_rates=[5e-4], num_train_epochs=8, patience=3, max_length=args.max_length)
    print(
        f"{describe_machine()}\n{len(shapes)} shapes, budgets of {', '.join(map(str, budgets))} steps; "
        f"{len(data.test)} languages, {args.seeds} fine-tunings of each student; seed {args.seed}\n"
    )
    print("| student | steps | R² of the states | neighbours shared | score | between seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    found: dict[str, list[float]] = {"steps": [], "r2": [], "nearest_neighbour_overlap": [], "score": []}
    with tempfile.TemporaryDirectory() as folder:
        for steps in budgets:
            for layers, hidden, heads, ffn in shapes:
                path = Path(folder) / f"{layers}-{hidden}-{steps}"
                torch.manual_seed(args.seed)
                training = training_arguments(path / "training", args.seed, {"max_steps": steps})
                student = shape(setting.teacher, layers, hidden, heads, ffn)
                trainer = make_trainer(setting, student, training, eval_dataset=None)
                trainer.train()
                trainer.save_students(path)
                source = ModelSource(str(path))
                probe = probe_models({"student": source}, ModelSource(args.teacher), texts, args.max_length)["student"]
                scores = []
                for seed in range(args.seeds):
                    tuned = fine_tune(source, data, tuning, seed)
                    by_language, _ = score_languages(tuned.trainer, tuned.tokenizer, data, args.max_length)
                    scores.append(statistics.fmean(values["accuracy"] for values in by_language.values()))
                assert probe.r2 is not None
                for name, value in (
                    ("steps", float(steps)),
                    ("r2", probe.r2),
                    ("nearest_neighbour_overlap", probe.nearest_neighbour_overlap),
                    ("score", statistics.fmean(scores)),
                ):
                    found[name].append(value)
                print(
                    f"| {layers} x {hidden}, FFN {ffn} | {steps} | {probe.r2:.3f} | "
                    f"{probe.nearest_neighbour_overlap:.3f} | {100 * statistics.fmean(scores):.1f} | "
                    f"{100 * (max(scores) - min(scores)):.1f} |",
                    flush=True,
                )
    result: dict[str, dict[str, float]] = {}
    for name, chosen in {"all": list(budgets), "same_budget": [max(budgets)]}.items():
        rows = [number for number, steps in enumerate(found["steps"]) if steps in chosen]
        result[name] = {
            probe: round(float(spearmanr([found[probe][n] for n in rows], [found["score"][n] for n in rows])[0]), 3)
            for probe in ("r2", "nearest_neighbour_overlap")
        }
    print(json.dumps({"spearman": result, "students": len(found["score"])}))


if __name__ == "__main__":
    main()

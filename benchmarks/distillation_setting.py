"""What the benchmarks of the distillation share: the teacher, the text, and the two recipes that are compared."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback

from kdnas_hf import (
    Architecture,
    DataArguments,
    DistillationTrainer,
    DistillationTrainingArguments,
    StudentPool,
    Teacher,
    bf16_pays_off,
    load_corpus,
    load_teacher,
    share_cpu_threads,
    split_corpus,
    student_config,
    tokenize_corpus,
)
from kdnas_hf.data import parse_prompts
from kdnas_hf.students import KDNASConfig

# KD-NAS as published (arXiv 2303.09639), its learning rate as in DistilBERT and MiniLM
PUBLISHED: dict[str, Any] = {
    "layer_mapping": "uniform+last",
    "projection": "shared",
    "projection_init": "random",
    "hidden_state_normalization": "none",
    "student_init": "random",
    "learning_rate": 5e-4,
    "cache_teacher_states": "false",
    "occurring_embeddings": False,
}
PUBLISHED_STANDARDIZED = PUBLISHED | {"hidden_state_normalization": "standardize"}


@dataclass
class Setting:
    """A teacher and its text.

    Attributes:
        teacher: The teacher, in the precision that it trains with.
        train: Tokenised training texts.
        heldout: Tokenised texts that no student is trained on.
    """

    teacher: Teacher
    train: datasets.Dataset
    heldout: datasets.Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark of the distillation."""
    parser.add_argument("--preset", choices=("short", "long"), default="short")
    parser.add_argument("--teacher", default="embedded", help="Hub id or path; by default the embedded one")
    parser.add_argument("--dataset", nargs="+", default=["embedded"], help="as --dataset of recipes/search.py")
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=42)


def load_setting(args: argparse.Namespace, sentences: int, heldout: int, prompts: str | None = None) -> Setting:
    """Load the teacher and as many sentences as asked for, behind its prompts in these shares, if any."""
    share_cpu_threads(args.threads)
    teacher = load_teacher(args.teacher)
    sample = sentences + heldout
    # the embedded text is read whole: a balanced sample of it would be mostly small languages
    corpus = load_corpus(DataArguments(dataset=args.dataset, max_sentences=sample, max_length=args.max_length))
    splits = split_corpus(corpus, heldout, 1.0, seed=args.seed)
    shares = parse_prompts(prompts, teacher.prompts)
    train = tokenize_corpus(splits.train, teacher.tokenizer, args.max_length, shares)
    return Setting(
        teacher,
        train.select(range(min(sentences, len(train)))),
        tokenize_corpus(splits.heldout, teacher.tokenizer, args.max_length, shares),
    )


def training_arguments(folder: str | Path, seed: int, recipe: Mapping[str, Any]) -> DistillationTrainingArguments:
    """Arguments of a training that takes what ``recipe`` says, and the same precision and batches for every recipe."""
    use_cpu = not torch.accelerator.is_available()
    return DistillationTrainingArguments(
        output_dir=str(folder),
        **{
            "global_train_batch_size": 32,
            "per_device_eval_batch_size": 64,
            "bf16": bf16_pays_off(),
            "use_cpu": use_cpu,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": seed,
            **recipe,
        },
    )


def make_trainer(
    setting: Setting, model: Any, args: DistillationTrainingArguments, **kwargs: Any
) -> DistillationTrainer:
    """A trainer on a setting's texts, unless others are given, that prints nothing between the lines of a table.

    ``model`` is what a `DistillationTrainer` takes, or several students by name, which become a pool.
    """
    if isinstance(model, Mapping):
        model = StudentPool.create(model, setting.teacher, args)
    texts = {"train_dataset": setting.train, "eval_dataset": setting.heldout}
    trainer = DistillationTrainer(model=model, teacher=setting.teacher, args=args, **texts | kwargs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def shape(teacher: Teacher, layers: int, hidden: int, heads: int, ffn: int, act: str = "gelu") -> KDNASConfig:
    """Configuration of a student."""
    return student_config(
        teacher,
        Architecture(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_size=hidden,
            intermediate_size=ffn,
            hidden_act=act,
        ),
    )


def describe_machine() -> str:
    """CPU, threads, accelerator and precision, for the reader of a table."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = lines[0] if lines else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"{cpu}, {device}, {'bf16' if bf16_pays_off() else 'float32'}, torch {torch.__version__}"

"""What `benchmarks/chaos.py` disturbs: a search, or a distillation in stages; seconds long, the same numbers each time.

A random XLM-R of 4 layers x 32 teaches, on random words. Latency is a function of the shape, not of the clock.

    python benchmarks/chaos_search.py OUTPUT_DIR EVENTS [--diverges TRIAL] [--too_large TRIAL] [--stop_at N]
    python benchmarks/chaos_search.py OUTPUT_DIR EVENTS --staged [--stop_at N] [--stop_at_step N]

What happens is appended to the file EVENTS, a line for each event: `begin`, `step FOLDER STEP` (of a pool or a stage),
`whole FOLDER` (its last checkpoint is written), `stopped …`, `operations N`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (  # type: ignore[attr-defined]
    TrainerCallback,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizerFast,
)

from kdnas_hf import (
    Architecture,
    ArchitectureSearch,
    DistillationTrainingArguments,
    LatencyBenchmark,
    SearchArguments,
    SearchError,
    SearchSpace,
    Teacher,
    set_up_logging,
    student_config,
)
from kdnas_hf.distillation import distill
from kdnas_hf.latency import DeviceFingerprint, LatencyMeasurement, LatencyReport

SPACE = {
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [2],
    "hidden_size": [8, 16],
    "intermediate_size": [16, 32],
    "hidden_act": ["gelu", "relu"],
}
# three stages that learn other things, train other parts and follow other schedules
STAGES: list[dict[str, Any]] = [
    {"losses": "hidden_states", "trains": "embedding_projection layers", "num_train_epochs": 2},
    {"losses": "hidden_states relations:0.5", "num_train_epochs": 1, "lr_scheduler_type": "cosine"},
    {"losses": "hidden_states masked_lm:0.1", "trains": "head layers:1", "max_steps": 15, "learning_rate": 1e-3},
]
STUDENTS = {"narrow": Architecture(2, 2, 8, 32, "gelu"), "wide": Architecture(3, 2, 16, 32, "relu")}
WORDS = [f"{a}{b}{c}" for a in "bdgklmn" for b in "aeiou" for c in "prst"]
FILE_OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "sqlite3.connect")
MORE_THAN_THERE_IS = 1 << 50  # bytes


class ShapeLatency(LatencyBenchmark):
    """A latency that depends on the shape alone: parameters of the layers, in thousands."""

    def measure(self, models: Any) -> LatencyReport:
        """Count, do not time."""
        counted = {name: sum(p.numel() for p in model.encoder.parameters()) for name, model in models.items()}
        measurements = {name: LatencyMeasurement(count / 1000, 0.0, 1) for name, count in counted.items()}
        return LatencyReport(measurements, 1, 8, 1, DeviceFingerprint.of("cpu"))


class Events:
    """The file that tells `chaos.py` what happens; only the main process writes it."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, *words: object) -> None:
        """Append one line; it is there even if the process is killed in the next moment."""
        if self._file is not None:
            os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class FileOperations:
    """Counts what this process does to files of a folder, and halts it for ever just before the ``stop_at``-th."""

    def __init__(self, folder: Path, stop_at: int | None, events: Events) -> None:
        self.folder, self.stop_at, self.events = str(folder), stop_at, events
        self.count = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Python calls this as an audit hook."""
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes:
                return
        elif event not in FILE_OPERATIONS:
            return
        path = args[0] if isinstance(args[0], str) else os.fspath(args[0]) if isinstance(args[0], Path) else ""
        inside_a_tree_that_is_removed = event in ("os.remove", "os.rmdir") and args[1] != -1
        if not (self.folder in path or inside_a_tree_that_is_removed):
            return
        self.count += 1
        if self.count == self.stop_at:
            halt(self.events, event, path.replace(self.folder, "").lstrip("/") or "file")


def halt(events: Events, *where: object) -> None:
    """Say where, and do nothing more until killed."""
    events.add("stopped", *where)
    while True:
        time.sleep(60)


class Observer(TrainerCallback):
    """Writes down every step and every last checkpoint, and makes candidates fail as asked for.

    Args:
        events: Where to write.
        diverges: The trial whose weights become NaN after three steps.
        too_large: The trial that does not fit into memory after three steps.
        stop_at_step: Halt after so many steps of this start.
    """

    def __init__(
        self,
        events: Events,
        diverges: int | None = None,
        too_large: int | None = None,
        stop_at_step: int | None = None,
    ) -> None:
        self.events, self.diverges, self.too_large, self.stop_at_step = events, diverges, too_large, stop_at_step
        self.steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Let weights become NaN, or let the forward pass ask for more memory than any machine has."""
        if state.global_step != 3:
            return
        pool: dict[str, Any] = dict(model.members)
        if f"trial_{self.diverges}" in pool:
            next(pool[f"trial_{self.diverges}"].student.encoder.parameters()).data.fill_(float("nan"))
        if f"trial_{self.too_large}" in pool:
            pool[f"trial_{self.too_large}"].student.register_forward_pre_hook(_allocate_too_much)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write down the step."""
        folder = Path(args.output_dir).name
        self.events.add("step", folder, state.global_step)
        self.steps += 1
        if self.steps == self.stop_at_step and state.is_world_process_zero:
            halt(self.events, "step", state.global_step, "of", folder)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write down that nothing is left to train."""
        if state.global_step >= state.max_steps:
            self.events.add("whole", Path(args.output_dir).name)


def _allocate_too_much(module: torch.nn.Module, inputs: Any) -> None:
    torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)


def make_teacher() -> Teacher:
    """A random teacher and its tokenizer."""
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(f"▁{word}", -5.0) for word in WORDS] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    config = XLMRobertaConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
    )
    torch.manual_seed(0)
    model = XLMRobertaModel(config, add_pooling_layer=False)
    for parameter in model.parameters():  # initial weights are so small that layers hardly differ
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return Teacher(
        model, XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=64), name="random teacher"
    )


def make_texts(tokenizer: Any, count: int, seed: int) -> datasets.Dataset:
    """Random words, tokenised."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 14, (count,), generator=generator).tolist()
    words = [torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    ids = tokenizer([" ".join(WORDS[i] for i in text) for text in words])["input_ids"]
    return datasets.Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})


def make_search(folder: Path, callback: TrainerCallback) -> ArchitectureSearch:
    """Four episodes of three candidates, twenty steps each, and as many for the best."""
    teacher = make_teacher()
    train = make_texts(teacher.tokenizer, 320, seed=1)
    return ArchitectureSearch(
        teacher=teacher,
        space=SearchSpace.from_dict(SPACE),
        train_dataset=train,
        proxy_dataset=train.select(range(160)),
        heldout_dataset=make_texts(teacher.tokenizer, 80, seed=2),
        args=SearchArguments(
            controller="lstm",
            num_episodes=4,
            candidates_per_episode=3,
            mini_kd_epochs=2,
            epsilon_decay=0.5,
            latency_sequence_length=8,
        ),
        training_args=training_arguments(folder),
        latency_benchmark=ShapeLatency(sequence_length=8),
        callbacks=[callback],
    )


def training_arguments(folder: Path, **more: Any) -> DistillationTrainingArguments:
    """One pass over the text, with a checkpoint every fourth step."""
    return DistillationTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        global_train_batch_size=16,
        learning_rate=5e-3,
        statistics_sentences=32,
        save_steps=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **more,
    )


def distil_in_stages(folder: Path, callback: TrainerCallback) -> None:
    """Distil two students in three stages, and save them."""
    teacher = make_teacher()
    trainer = distill(
        {name: student_config(teacher, architecture) for name, architecture in STUDENTS.items()},
        teacher,
        training_arguments(folder / "distillation", stages=STAGES, save_total_limit=2),
        make_texts(teacher.tokenizer, 160, seed=1),
        callbacks=[callback],
    )
    trainer.save_students(folder / "student")
    trainer.accelerator.wait_for_everyone()


def main() -> None:
    """Search, or distil in stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("events", type=Path)
    parser.add_argument("--staged", action="store_true", help="distil in stages instead of a search")
    parser.add_argument("--stop_at", type=int, help="halt before this file operation")
    parser.add_argument("--stop_at_step", type=int, help="halt after so many steps")
    parser.add_argument("--diverges", type=int, help="the trial whose weights become NaN")
    parser.add_argument("--too_large", type=int, help="the trial that does not fit into memory")
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_main = int(os.environ.get("RANK", "0")) == 0
    set_up_logging(is_main_process=is_main)
    events = Events(args.events if is_main else None)
    operations = FileOperations(args.output_dir.resolve(), args.stop_at, events)
    folder = args.output_dir.resolve()
    observer = Observer(events, args.diverges, args.too_large, args.stop_at_step)
    search = None if args.staged else make_search(folder, observer)
    if is_main:
        sys.addaudithook(operations)
    events.add("begin")
    if search is None:
        distil_in_stages(folder, observer)
    else:
        search.run()
    events.add("operations", operations.count)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, SearchError) as error:  # as recipes/search.py does
        sys.exit(f"error: {error}")

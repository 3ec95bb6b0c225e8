"""A small distillation as a script, to be started in several processes or killed; writes what came of it.

    python tiny_distillation.py FOLDER map|plain|stream4|… deep,small,… anew|resume --max_steps 8 … [then FOLDER …]

Each process leaves ``process_<n>.json`` and the weights of its students, ``process_<n>.safetensors``, in the folder.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
from safetensors.torch import save_file
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding, HfArgumentParser, TrainerCallback

from kdnas_hf import (
    DistillationTrainer,
    DistillationTrainingArguments,
    KDNASConfig,
    StudentPool,
    Teacher,
    end_processes,
)
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

TEXTS = 256
SHAPES = {
    "small": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "deep": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24},
    "wide": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32},
    "poisoned": {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


class Recorder(DataCollatorWithPadding):
    """Keeps the texts that go through it, batch by batch."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.batches = []

    def __call__(self, features):
        self.batches.append([list(feature["input_ids"]) for feature in features])
        return super().__call__(features)


class Poison(TrainerCallback):
    """Spoils the weights of the student ``poisoned`` after the second step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2 and "poisoned" in model.members:
            for parameter in model.members["poisoned"].student.encoder.parameters():
                parameter.detach().fill_(float("nan"))


class PlainStream(IterableDataset):
    """A stream that is not one of `datasets`."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def make_dataset(kind, tokenizer):
    texts = tokenized(tokenizer, make_texts(TEXTS, seed=1))
    if kind == "map":
        return texts
    if kind == "plain":
        return PlainStream([{"input_ids": row["input_ids"]} for row in texts])
    stream = texts.to_iterable_dataset(num_shards=int(kind.removeprefix("shuffled").removeprefix("stream")))
    return stream.shuffle(seed=3, buffer_size=32) if kind.startswith("shuffled") else stream


def make_trainer(folder, kind="map", students=("deep",), callbacks=(), **kwargs):
    defaults = {"max_steps": 24, "per_device_train_batch_size": 8, "statistics_sentences": 32, "learning_rate": 5e-3}
    args = DistillationTrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **defaults | kwargs
    )
    teacher = Teacher(make_teacher_model(), make_tokenizer())
    configs = {
        name: KDNASConfig(**SHAPES[name], max_position_embeddings=66, vocab_size=teacher.dimensions.vocab_size)
        for name in students
    }
    return DistillationTrainer(
        model=StudentPool.create(configs, teacher, args),
        teacher=teacher,
        args=args,
        train_dataset=make_dataset(kind, teacher.tokenizer),
        eval_dataset=make_dataset("stream1", teacher.tokenizer).take(9),
        data_collator=Recorder(teacher.tokenizer),
        callbacks=[Poison(), *callbacks],
    )


def read_texts(trainer):
    """The texts that a trainer has read, batch by batch."""
    return trainer.data_collator.collator.batches


def measured(trainer):
    """The metrics of an evaluation, but for how fast it was."""
    endings = ("_runtime", "_per_second")
    return {key: value for key, value in trainer.evaluate().items() if not key.endswith(endings)}


def weights(trainer):
    return {k: v.detach().contiguous() for k, v in trainer.pool.named_parameters() if v.requires_grad}


def run(folder, kind, students, resume, *arguments):
    """Train, evaluate, and write what came of it."""
    (given,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", folder, "--use_cpu", "--report_to", "none", *arguments]
    )
    named = [argument.removeprefix("--") for argument in arguments if argument.startswith("--")]
    trainer = make_trainer(folder, kind, students.split(","), **{name: getattr(given, name) for name in named})
    trainer.train(resume_from_checkpoint=resume == "resume")
    read = read_texts(trainer)[:]
    record = {
        "read": read,
        "metrics": measured(trainer),
        "tokens": trainer.trained_tokens,
        "students": sorted(trainer.pool.members),
        "dropped": trainer.pool.dropped,
    }
    process = trainer.args.process_index
    Path(folder, f"process_{process}.json").write_text(json.dumps(record))
    save_file(weights(trainer), str(Path(folder, f"process_{process}.safetensors")))


def main():
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    jobs = " ".join(sys.argv[1:]).split(" then ")
    for job in jobs:
        run(*job.split())


if __name__ == "__main__":
    try:
        main()
    finally:
        end_processes()

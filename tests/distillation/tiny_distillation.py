"""A small distillation as a script, to be started in several processes or killed; writes which texts it read."""

import gc
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
from safetensors.torch import save_file
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding, HfArgumentParser

from kdnas_hf import DistillationTrainer, DistillationTrainingArguments, KDNASConfig, StudentPool, Teacher
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

TEXTS = 256


class Recorder(DataCollatorWithPadding):
    """Keeps the texts that go through it, batch by batch."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.batches = []

    def __call__(self, features):
        self.batches.append([list(feature["input_ids"]) for feature in features])
        return super().__call__(features)


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


def make_trainer(folder, kind="map", callbacks=None, **kwargs):
    defaults = {"max_steps": 24, "per_device_train_batch_size": 8, "statistics_sentences": 32, "learning_rate": 5e-3}
    args = DistillationTrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **defaults | kwargs
    )
    teacher = Teacher(make_teacher_model(), make_tokenizer())
    config = KDNASConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, max_position_embeddings=66,
        vocab_size=teacher.dimensions.vocab_size,
    )  # fmt: skip
    return DistillationTrainer(
        model=StudentPool.create({"student": config}, teacher, args),
        teacher=teacher,
        args=args,
        train_dataset=make_dataset(kind, teacher.tokenizer),
        eval_dataset=make_dataset("stream1", teacher.tokenizer).take(9),
        data_collator=Recorder(teacher.tokenizer),
        callbacks=callbacks,
    )


def weights(trainer):
    return {k: v.detach().contiguous() for k, v in trainer.pool.named_parameters() if v.requires_grad}


def main():
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    folder, kind, resume, *arguments = sys.argv[1:]
    (given,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", folder, "--use_cpu", "--report_to", "none", *arguments]
    )
    names = ("max_steps", "save_steps", "save_strategy", "gradient_accumulation_steps", "per_device_train_batch_size")
    trainer = make_trainer(folder, kind, **{name: getattr(given, name) for name in names})
    trainer.train(resume_from_checkpoint=resume == "resume")
    read = trainer.data_collator.batches[:]
    metrics = trainer.evaluate()
    record = {"read": read, "heldout": metrics["eval_loss"], "tokens": trainer.trained_tokens}
    Path(folder, f"process_{trainer.args.process_index}.json").write_text(json.dumps(record))
    if trainer.args.process_index == 0:
        save_file(weights(trainer), str(Path(folder, "weights.safetensors")))
    if torch.distributed.is_initialized():
        # what holds the group last frees it: DistributedDataParallel would wait for gloo's threads, which wait for it
        del trainer
        gc.collect()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""One process of a distillation with a sharded teacher; the main one writes what came out."""

import gc
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from kdnas_hf import DistillationTrainer, DistillationTrainingArguments, KDNASConfig, StudentPool, Teacher
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

SHAPES = {
    "small": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "deep": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24},
}


class Losses(TrainerCallback):
    """Keeps what is logged."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.values.append(logs["loss"])


def held(parameter):
    """How many numbers of a parameter this process holds."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    return parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else parameter.numel()


def whole(parameter):
    return getattr(parameter, "ds_numel", parameter.numel())


def main(folder, *arguments):
    torch.set_num_threads(1)
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(
        [
            "--output_dir", str(folder), "--max_steps", "6", "--logging_steps", "1", "--save_steps", "3", "--use_cpu",
            "--report_to", "none", "--disable_tqdm", "true", "--statistics_sentences", "64", "--learning_rate", "5e-3",
            "--global_train_batch_size", "16", "--per_device_eval_batch_size", "4", *arguments,
        ]
    )  # fmt: skip
    teacher = Teacher(make_teacher_model(), make_tokenizer())
    students = {
        name: KDNASConfig(
            **shape, vocab_size=teacher.dimensions.vocab_size, max_position_embeddings=66, hidden_dropout_prob=0.0
        )
        for name, shape in SHAPES.items()
    }
    losses = Losses()
    trainer = DistillationTrainer(
        model=StudentPool.create(students, teacher, args),
        teacher=teacher,
        args=args,
        train_dataset=tokenized(teacher.tokenizer, make_texts(256, seed=1)),
        eval_dataset=tokenized(teacher.tokenizer, make_texts(9, seed=2)),  # processes have two batches and one
        callbacks=[losses],
    )
    trainer.train()
    metrics = trainer.evaluate()
    word_embeddings = set(teacher.model.get_input_embeddings().parameters())
    layers = [p for p in teacher.model.parameters() if p not in word_embeddings]
    result = {
        "sharding": args.shard_teacher,
        "is_sharded": teacher.is_sharded,
        "processes": args.world_size,
        "distributed_type": str(trainer.accelerator.distributed_type),
        "losses": losses.values,
        "metrics": {key: value for key, value in metrics.items() if "loss" in key or "r2" in key},
        "held": sum(held(p) for p in layers),
        "whole": sum(whole(p) for p in layers),
        "table_is_shared": teacher.embeddings.table.data_ptr()
        == teacher.model.get_input_embeddings().weight.data_ptr(),
        "trainable": any(p.requires_grad for p in teacher.model.parameters()),
    }
    Path(folder, f"process_{args.process_index}.json").write_text(json.dumps(result))
    if args.process_index == 0:
        weights = {k: v.detach().contiguous() for k, v in trainer.pool.named_parameters() if v.requires_grad}
        save_file(weights, str(Path(folder, "weights.safetensors")))
    if torch.distributed.is_initialized():
        # what holds the group last frees it: DistributedDataParallel would wait for gloo's threads, which wait for it
        del trainer
        gc.collect()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

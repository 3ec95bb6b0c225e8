"""A whole search on the tiny teacher, as a script: killed and resumed by the tests.

Latency is replaced by a function of the shape, so that two runs can be compared number by number.

    python tests/search/tiny_search.py OUTPUT_DIR [controller] [seconds to sleep at each training step] [per_layer]
    python tests/search/tiny_search.py OUTPUT_DIR controller seconds STORAGE
"""

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from transformers import TrainerCallback

from kdnas_hf import (
    ArchitectureSearch,
    DistillationTrainingArguments,
    LatencyBenchmark,
    SearchArguments,
    SearchSpace,
    Teacher,
    set_up_logging,
)
from kdnas_hf.latency import DeviceFingerprint, LatencyMeasurement, LatencyReport
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized

SPACE = {
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [2],
    "hidden_size": [8, 16],
    "intermediate_size": [16, 32],
    "hidden_act": ["gelu", "relu"],
}

# more than anyone goes through
PER_LAYER_SPACE = SPACE | {
    "per_layer": True,
    "num_hidden_layers": [1, 2, 3, 4],
    "num_attention_heads": [2, 4],
    "hidden_size": [8, 12, 16],
    "intermediate_size": [16, 24, 32],
    "embedding_size": [None, 4],
}


class ShapeLatency(LatencyBenchmark):
    """A latency that depends on the shape alone: parameters of the layers, in thousands."""

    def measure(self, models):
        measurements = {}
        for name, model in models.items():
            parameters = sum(p.numel() for p in model.encoder.parameters())
            measurements[name] = LatencyMeasurement(parameters / 1000, 0.0, 1)
        return LatencyReport(measurements, 1, 8, 1, DeviceFingerprint.of("cpu"))


class Slow(TrainerCallback):
    """Leaves time to be killed in."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(self.seconds)


class Trained(TrainerCallback):
    """Writes down which candidates a worker trains, as it begins."""

    def __init__(self, path):
        self.path = Path(path)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        with self.path.open("a") as file:
            file.write("".join(f"{name}\n" for name in model.members))


def tiny_search(folder, controller="lstm", pause=0.0, callbacks=(), sentence_head=None, **kwargs):
    tokenizer = make_tokenizer()
    train = tokenized(tokenizer, make_texts(160, seed=1))
    search_args = {
        "num_episodes": 3,
        "candidates_per_episode": 3,
        "mini_kd_epochs": 2,
        "controller": controller,
        **({"epsilon_decay": 0.5} if controller == "lstm" else {}),
        "latency_sequence_length": 8,
        "confirm": 0,
    }
    training_args = {
        "num_train_epochs": 2,
        "global_train_batch_size": 16,
        "learning_rate": 5e-3,
        "statistics_sentences": 32,
        "save_steps": 3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
    }
    space = kwargs.pop("space", SearchSpace.from_dict(SPACE))
    search_args |= {k: kwargs.pop(k) for k in list(kwargs) if k in SearchArguments.__dataclass_fields__}
    return ArchitectureSearch(
        teacher=Teacher(make_teacher_model(), tokenizer, name="tiny teacher", sentence_head=sentence_head),
        space=space,
        train_dataset=train,
        proxy_dataset=train.select(range(80)),
        heldout_dataset=tokenized(tokenizer, make_texts(40, seed=2)),
        args=SearchArguments(**search_args),
        training_args=DistillationTrainingArguments(output_dir=str(folder), **training_args | kwargs),
        latency_benchmark=ShapeLatency(sequence_length=8),
        callbacks=[*([Slow(pause)] if pause else []), *callbacks],
    )


def of_words(words):
    """What a fourth word asks for: a space whose layers differ, or a worker of the study in a storage."""
    if not words:
        return {}
    if words == ["per_layer"]:
        return {"space": SearchSpace.from_dict(PER_LAYER_SPACE), "num_episodes": 2}
    trained = Trained(Path(sys.argv[1]).with_suffix(".trained"))
    return {"storage": words[0], "worker_timeout": 8.0, "num_episodes": 2, "callbacks": [trained]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    set_up_logging()
    tiny_search(
        sys.argv[1],
        controller=sys.argv[2] if len(sys.argv) > 2 else "lstm",
        pause=float(sys.argv[3]) if len(sys.argv) > 3 else 0.0,
        **of_words(sys.argv[4:]),
    ).run()

"""What `Trainer` promises and a distillation does not keep: refused by name, in one line, before anything slow starts.

Everything that is not listed here is honored; docs/distillation.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from ..utils.training_arguments import changed_from_default

_NO_PREDICTIONS = (
    "an evaluation measures losses and R² and makes no predictions; score a student with kdnas_hf.Comparison"
)
_NO_WRAPPER = "students are not wrapped in DistributedDataParallel; their gradients are added up once a step"
_NO_SHARDING = (
    "students are small, and the teacher is whole on each device; launch data-parallel (recipes/accelerate/ddp.yaml)"
)
_NO_TPU = "students step one by one, for which XLA would compile each of them; use CPUs or GPUs"
_NO_APEX = "mixed precision is PyTorch's own, with a scaler for each student; choose bf16"
_NO_COMPILATION = "students of many shapes compile for longer than they train; leave it out"

# arguments of TrainingArguments, by what is said of any value but the default; some are of one line of transformers
_REFUSED: tuple[tuple[str, str], ...] = (
    ("label_smoothing_factor", "losses on labels are plain cross-entropy; add soft_labels for softer targets"),
    ("neftune_noise_alpha", "the teacher and its students read the same embeddings; leave it out"),
    ("torch_compile torch_compile_backend torch_compile_mode torchdynamo jit_mode_eval", _NO_COMPILATION),
    ("use_liger_kernel liger_kernel_config", "there are no Liger kernels for KDNAS students; leave it out"),
    (
        "auto_find_batch_size",
        "a student that does not fit is dropped, and no other; choose per_device_train_batch_size",
    ),
    ("optim_target_modules", "optimizers by module are not supported; choose optim=adamw_torch_fused"),
    (
        "group_by_length train_sampling_strategy",
        "use group_texts_by_length, whose order any number of processes and a resumed run share",
    ),
    ("accelerator_config", "any number of processes takes the same steps, however batches are dealt out; leave it out"),
    ("average_tokens_across_devices", "a step has the tokens of all processes, so that any number takes the same"),
    ("remove_unused_columns", "columns that no loss reads are always removed; leave it out"),
    ("length_column_name", "lengths are in the column length"),
    ("label_names", "labels are in the column labels"),
    (
        "prediction_loss_only eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
        "include_for_metrics include_inputs_for_metrics batch_eval_metrics use_legacy_prediction_loop "
        "past_index",
        _NO_PREDICTIONS,
    ),
    ("use_cache", "an encoder reads a text at once and has no cache; leave it out"),
    ("bf16_full_eval fp16_full_eval", "students are evaluated as they train; choose bf16"),
    ("debug", "the hooks of transformers' debugging take outputs of another kind; use torch.autograd.detect_anomaly"),
    ("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph", _NO_WRAPPER),
    (
        "fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap deepspeed parallelism_config "
        "mp_parameters",
        _NO_SHARDING,
    ),
    ("tpu_num_cores tpu_metrics_debug", _NO_TPU),
    ("fp16_backend fp16_opt_level half_precision_backend", _NO_APEX),
    ("save_safetensors", "students are saved as safetensors, which hold no code; leave it out"),
    ("ray_scope", "a shape is searched by kdnas_hf.ArchitectureSearch; other tuners call the trainer"),
)
REFUSED_TRAINING_ARGUMENTS = {name: reason for names, reason in _REFUSED for name in names.split()}

# arguments of Trainer's constructor, by what is said if they are given
REFUSED_TRAINER_ARGUMENTS: dict[str, str] = {
    "model_init": "give a KDNASConfig, from which the student starts anew in each trainer",
    "compute_loss_func": "register a loss instead (kdnas_hf.distillation.register_loss)",
    "compute_metrics": _NO_PREDICTIONS,
    "preprocess_logits_for_metrics": _NO_PREDICTIONS,
}

_REFUSED_OPTIMIZERS = ("lomo", "adalomo", "galore", "apollo")
_REFUSED_HUB_STRATEGIES = ("checkpoint", "all_checkpoints")


def check_training_arguments(args: TrainingArguments) -> None:
    """Refuse training arguments that a distillation does not honor.

    Raises:
        ValueError: If one is set to another value than its default.
    """
    for name in changed_from_default(args, REFUSED_TRAINING_ARGUMENTS):
        reason = REFUSED_TRAINING_ARGUMENTS[name]
        raise ValueError(f"{name}={getattr(args, name)!r} is not supported in a distillation: {reason}.")
    optimizer, strategy = (str(getattr(value, "value", value)) for value in (args.optim, args.hub_strategy))
    if optimizer.startswith(_REFUSED_OPTIMIZERS):
        raise ValueError(
            f"optim={optimizer!r} is not supported in a distillation: it steps within the backward pass, or by module; "
            "choose adamw_torch_fused."
        )
    if strategy in _REFUSED_HUB_STRATEGIES:
        raise ValueError(
            f"hub_strategy={strategy!r} is not supported in a distillation: checkpoints name folders of this machine; "
            "choose every_save or end."
        )
    for flag, name in {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}.items():
        if parse_flag_from_env(flag):
            raise ValueError(f"accelerate launch with {name} is not supported in a distillation: {_NO_SHARDING}.")


def check_trainer_arguments(given: Mapping[str, Any]) -> None:
    """Refuse arguments of `Trainer` that a distillation does not honor.

    Raises:
        ValueError: If one is given.
    """
    for name, reason in REFUSED_TRAINER_ARGUMENTS.items():
        if given.get(name) is not None:
            raise ValueError(f"{name} is not supported by DistillationTrainer: {reason}.")

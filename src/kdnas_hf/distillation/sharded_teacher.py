"""A teacher that does not fit on one device: each process holds a share of it, and all of them compute together.

Students are small and stay whole in every process, trained data-parallel: clipping, dropping and checkpoints work on
whole tensors. What a launch with FSDP or DeepSpeed shards is therefore the teacher alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers.utils import logging

if TYPE_CHECKING:
    from .arguments import DistillationTrainingArguments
    from .teacher import Teacher

logger = logging.get_logger(__name__)

SHARDINGS = ("auto", "no", "fsdp", "zero3")
LAUNCHED_SHARDING = "KDNAS_SHARD_TEACHER"


def settle_sharding(args: DistillationTrainingArguments) -> str:
    """How the teacher is sharded, after which nothing else is: to be called before ``args`` reach Trainer's code.

    Accelerate and Trainer would wrap the students by FSDP or DeepSpeed, which hides their gradients from clipping them
    one by one. So what the Accelerate configuration (or ``--fsdp``, ``--deepspeed``) asks for is taken from where they
    look, and they train data-parallel. It is kept in an environment variable for arguments that are made later.

    Returns:
        One of `SHARDINGS` other than "auto".

    Raises:
        ValueError: If DeepSpeed is asked for with another stage than ZeRO-3, which would leave the teacher whole.
        ImportError: If ZeRO-3 is asked for and DeepSpeed is not installed.
    """
    launched = None
    if parse_flag_from_env("ACCELERATE_USE_FSDP") or args.fsdp:
        launched = "fsdp"
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") or args.deepspeed:
        _check_zero_stage(args.deepspeed)
        launched = "zero3"
    if launched is not None:
        os.environ[LAUNCHED_SHARDING] = launched
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    args.fsdp = None
    args.deepspeed = None
    sharding = os.environ.get(LAUNCHED_SHARDING, "no") if args.shard_teacher == "auto" else args.shard_teacher
    if sharding == "zero3":
        _import_deepspeed()
    return sharding


def _check_zero_stage(config: str | dict[str, Any] | None) -> None:
    """Refuse stages that do not shard parameters."""
    config = config or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE") or {}
    if isinstance(config, str):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    stage = config.get("zero_optimization", {}).get("stage", os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"))
    if str(stage) != "3":
        raise ValueError(
            f"DeepSpeed with zero_stage={stage} leaves the teacher whole; choose zero_stage 3 to shard it, or launch "
            "without DeepSpeed (recipes/accelerate/ddp.yaml)."
        )


def _import_deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError(
            "shard_teacher='zero3' needs DeepSpeed: pip install deepspeed; or choose fsdp, which comes with torch."
        ) from error
    return deepspeed


def place_teacher(teacher: Teacher, args: DistillationTrainingArguments) -> None:
    """Move the teacher to where it computes: whole, or this process's share of it. All processes call it together.

    A sharded teacher keeps its word embeddings whole: students inherit the same table, and to gather the largest matrix
    of a multilingual encoder for each batch, to look up a few of its rows, would be slow. From then on all processes
    must call the teacher equally often (see `in_lockstep`).

    Raises:
        ImportError: If ZeRO-3 is asked for and DeepSpeed is not installed.
    """
    if teacher.is_sharded:
        return
    if args.shard_teacher == "no" or args.world_size == 1:
        teacher.to(args.device)
        return
    _move_word_embeddings(teacher, args.device)
    with _without_word_embeddings(teacher):
        shard = {"fsdp": _shard_with_fsdp, "zero3": _shard_with_zero3}[args.shard_teacher]
        teacher.sharded = shard(teacher, args)
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    logger.info(
        f"the teacher is sharded by {args.shard_teacher}, but for its word embeddings; students train data-parallel"
    )


def _move_word_embeddings(teacher: Teacher, device: torch.device) -> None:
    """Move the table, and take what students inherit while the teacher is still whole."""
    table = teacher.embeddings.table
    table.data = table.data.to(device)
    word_embeddings = teacher.model.get_input_embeddings()
    weight = word_embeddings.weight
    assert isinstance(weight, torch.Tensor)
    # one copy for the teacher and its students, where they are of the same precision
    weight.data = table.data if weight.dtype == table.dtype else weight.data.to(device)


@contextmanager
def _without_word_embeddings(teacher: Teacher) -> Iterator[None]:
    """Hide the word embeddings from what shards the model inside."""
    word_embeddings = teacher.model.get_input_embeddings()
    teacher.model.set_input_embeddings(nn.Identity())
    try:
        yield
    finally:
        teacher.model.set_input_embeddings(word_embeddings)


class FSDPRoot(nn.Module):
    """What FSDP2 wraps in place of the model: transformers looks up what a model records by the name of its class.

    Args:
        model: The encoder, whose class FSDP2 would replace.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, its parameters gathered."""
        return self.model(*args, **kwargs)


def _shard_with_fsdp(teacher: Teacher, args: DistillationTrainingArguments) -> nn.Module:
    """Shard by FSDP2: at any time one layer is whole.

    Within a node if it has several processes, so that nothing of the teacher travels between nodes: there are no
    gradients, and the nodes' copies need nothing of each other.
    """
    # not every build of torch has them
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    processes, local = args.world_size, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 1 < local < processes and processes % local == 0:
        names = ("nodes", "shares")
        mesh = init_device_mesh(args.device.type, (processes // local, local), mesh_dim_names=names)["shares"]
    else:
        mesh = init_device_mesh(args.device.type, (processes,))
    attention_maps = _attention_maps(teacher)
    for layer in _layers(teacher):
        # losses on attention relations call these outside of their layer: they gather on their own, all three at once
        maps = [module for module in layer.modules() if module in attention_maps]
        if maps:
            fully_shard(maps, mesh=mesh, reshard_after_forward=True)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    root = FSDPRoot(teacher.model)
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    return root.eval()


def _shard_with_zero3(teacher: Teacher, args: DistillationTrainingArguments) -> nn.Module:
    """Shard by DeepSpeed's ZeRO-3 for inference, over all processes."""
    deepspeed = _import_deepspeed()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
    config = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for it; nothing is trained
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": teacher.model.dtype == torch.bfloat16},
        "fp16": {"enabled": teacher.model.dtype == torch.float16},
    }
    # parameter by parameter: initialize() alone would first move the whole teacher to the device
    deepspeed.zero.Init(module=teacher.model, config_dict_or_path=config)
    for buffer in teacher.model.buffers():
        buffer.data = buffer.data.to(args.device)
    engine, *_ = deepspeed.initialize(model=teacher.model, config=config)
    engine.eval()
    return engine


def _layers(teacher: Teacher) -> list[nn.Module]:
    """The encoder's layers; none where it does not keep them in a list, as when they share parameters."""
    for module in teacher.model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == teacher.dimensions.num_layers:
            return list(module)
    return []


def _attention_maps(teacher: Teacher) -> set[nn.Module]:
    try:
        return {module for projections in teacher.attention_projections for module in projections.maps}
    except ValueError:  # no loss can use them then
        return set()


def in_lockstep(
    batches: Iterable[Mapping[str, torch.Tensor]], teacher: Teacher, accelerator: Accelerator
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Go through batches that call the teacher once each, where processes may have different numbers of them.

    A process without a batch calls a sharded teacher on a single token: the others wait for its share.
    """
    if not teacher.is_sharded:
        yield from batches
        return
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        busy = torch.tensor(int(batch is not None), device=accelerator.device)
        if not int(accelerator.reduce(busy, reduction="sum")):
            return
        if batch is not None:
            yield batch
        else:
            token = torch.zeros((1, 1), dtype=torch.long, device=accelerator.device)
            teacher.hidden_states(token, torch.ones_like(token), [])


__all__ = ["SHARDINGS", "in_lockstep", "place_teacher", "settle_sharding"]

"""Checkpoints of a pool: one file of weights and one of optimizer state for each student."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer

from ..utils.atomic_files import write_atomically
from ..utils.checkpoints import last_whole_checkpoint
from .arguments import DistillationTrainingArguments
from .member import Member
from .pool import StudentPool
from .statistics import HiddenStateStatistics
from .targets import Targets

MEMBERS_FOLDER = "members"
POOL_STATE_NAME = "distillation.json"
SCHEDULER_NAME = "scheduler.pt"
STATISTICS_NAME = "teacher_statistics.safetensors"


class PoolCheckpoints(Trainer):
    """The part of `DistillationTrainer` that saves a training and resumes it, in any number of processes.

    Each process writes its own students; they and their losses are written without the table that all share.
    """

    args: DistillationTrainingArguments
    pool: StudentPool
    targets: Targets
    _trained_tokens: torch.Tensor

    def _members_to_write(self) -> Iterator[tuple[str, Member]]:
        return self.pool.items() if self.pool.divided or self.args.should_save else iter(())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a lone student with its tokenizer; in a checkpoint, also what resuming needs of all students.

        The students of a larger pool are written by `save_students`: a checkpoint in mid-search must be cheap.
        """
        folder = Path(output_dir or self.args.output_dir or ".")
        if _internal_call:
            self._share_dropped()
            (folder / MEMBERS_FOLDER).mkdir(parents=True, exist_ok=True)
            for name, member in self._members_to_write():
                weights = {
                    key: p.detach().contiguous().cpu() for key, p in member.named_parameters() if p.requires_grad
                }
                save_file(weights, str(folder / MEMBERS_FOLDER / f"{name}.safetensors"), metadata={"format": "pt"})
            if self.args.should_save:
                state = {"dropped": self.pool.dropped, "trained_tokens": int(self._trained_tokens)}
                write_atomically(folder / POOL_STATE_NAME, json.dumps(state))
                if self.targets.statistics is not None:
                    self.targets.statistics.save(folder / STATISTICS_NAME)
            self.accelerator.wait_for_everyone()  # the state of the training, which makes it whole, is written last
        super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        for name, member in self._members_to_write():
            state = {key: self.optimizer.state[p] for key, p in member.named_parameters() if p in self.optimizer.state}
            scaler = None if member.scaler is None else member.scaler.state_dict()
            file = Path(output_dir) / MEMBERS_FOLDER / f"{name}.optimizer.pt"
            torch.save({"optimizer": state, "scaler": scaler}, file)
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (Path(checkpoint) / SCHEDULER_NAME).is_file():
            return
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        optimizer = self.optimizer
        assert optimizer is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        places = {id(p): place for place, p in enumerate(parameters)}
        whole = optimizer.state_dict()
        for name, member in self.pool.items():
            file = Path(checkpoint) / MEMBERS_FOLDER / f"{name}.optimizer.pt"
            kept = torch.load(file, map_location="cpu", weights_only=True)
            own = dict(member.named_parameters())
            whole["state"] |= {places[id(own[key])]: state for key, state in kept["optimizer"].items()}
            if member.scaler is not None and kept["scaler"]:
                member.scaler.load_state_dict(kept["scaler"])
        optimizer.load_state_dict(whole)
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def restore(self, checkpoint: str | Path) -> bool:
        """Load students, losses, statistics and what was dropped from a checkpoint, but no optimizer.

        Returns:
            Whether any student still trains.

        Raises:
            ValueError: If it is not a checkpoint of these students.
        """
        self._load_from_checkpoint(str(checkpoint))
        return len(self.pool.dropped) < len(self.pool.names)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not (folder / POOL_STATE_NAME).is_file():
            raise ValueError(
                f"{folder} holds no {POOL_STATE_NAME}: it is not a checkpoint of a distillation to resume."
            )
        for name, member in self.pool.items():
            _load_member(name, member, folder)
        state = json.loads((folder / POOL_STATE_NAME).read_text(encoding="utf-8"))
        self.pool.dropped = dict(state["dropped"])
        self._trained_tokens = torch.tensor(state["trained_tokens"], device=self.args.device)
        if (folder / STATISTICS_NAME).is_file():
            self.targets.statistics = HiddenStateStatistics.load(folder / STATISTICS_NAME).to(self.args.device)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _last_whole_checkpoint(self) -> str:
        found = None
        if self.args.process_index == 0:
            found = last_whole_checkpoint(self.args.output_dir or ".", self.args.world_size)
        if self.args.world_size > 1:
            found = broadcast_object_list([found])[0]
        if found is None:
            raise ValueError(f"output_dir={self.args.output_dir!r} holds no whole checkpoint to resume from.")
        return str(found)

    def _share_dropped(self) -> None:
        """Let all processes know who was dropped in any of them."""
        if self.pool.divided and self.args.world_size > 1:
            for dropped in gather_object([self.pool.dropped]):
                self.pool.dropped |= dropped


@torch.no_grad()
def _load_member(name: str, member: Member, folder: Path) -> None:
    file = folder / MEMBERS_FOLDER / f"{name}.safetensors"
    own = {key: p for key, p in member.named_parameters() if p.requires_grad}
    if not file.is_file():
        raise ValueError(f"{folder} was written by another pool of students; it has no {file.name}.")
    with safe_open(str(file), framework="pt") as stored:
        odd = sorted(set(stored.keys()).symmetric_difference(own))[:3]
        if odd:
            raise ValueError(f"{folder} was written by another pool of students; {name} differs in {', '.join(odd)}.")
        for key, parameter in own.items():
            parameter.copy_(stored.get_tensor(key))
    member.started = True

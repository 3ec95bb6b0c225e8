"""`DistillationTrainer`: a Trainer whose model learns the hidden states of a frozen teacher."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from ..students import KDNASConfig, KDNASModel
from .arguments import DistillationTrainingArguments
from .checkpoints import last_whole_checkpoint
from .length_grouping import LengthGroupedSampler, text_lengths
from .pool import PooledStudent, StudentPool
from .sharded_teacher import in_lockstep, place_teacher
from .streaming import StreamShare, is_stream
from .teacher import HiddenStateStatistics, Teacher

logger = logging.get_logger(__name__)

TRAINABLE_WEIGHTS_NAME = "distillation.safetensors"
POOL_STATE_NAME = "distillation.json"
STATISTICS_NAME = "teacher_statistics.safetensors"


class StepProgressCallback(ProgressCallback):
    """Trainer's progress bar without its dump of every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss beside the bar."""
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")


class SamplerEpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins.

    Accelerate does so as well, but does not reach it in an epoch that is resumed with several processes.
    """

    sampler: LengthGroupedSampler | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch of the sampler."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))


class DistillationTrainer(Trainer):
    """Distils a teacher's hidden states into a student, or into a whole pool of students at once.

    Used as any Trainer: gradient accumulation, bf16, DDP, resuming and evaluation work as they do there. Evaluation
    reports, on held-out text, ``eval_loss`` (all mapped layers), ``eval_last_layer_loss``, ``eval_r2`` (the last mapped
    layer, see `ExplainedVariance`) and ``eval_r2_layer_<student layer>``; for a pool of several, the same for each as
    ``eval_<name>_…``.

    Gradients are clipped for each student alone. A student whose gradient is not finite is dropped (see
    `StudentPool.dropped`), and the others go on.

    Args:
        model: A configuration (the student starts as ``args.student_init`` says), a student, or a pool.
        teacher: The frozen teacher; a bare encoder is accepted together with ``processing_class``.
        args: What to learn and how.
        train_dataset: Texts as ``input_ids``; an ``attention_mask`` is added by the collator.
        eval_dataset: Held-out texts.
        processing_class: The tokenizer, by default the teacher's; saved with the student.
        statistics: Mean and variance of the teacher's states, by default estimated from the training texts.
        **kwargs: What else `Trainer` takes.

    Raises:
        ValueError: If the student does not fit the teacher.
    """

    args: DistillationTrainingArguments

    def __init__(
        self,
        model: KDNASConfig | KDNASModel | StudentPool,
        teacher: Teacher | PreTrainedModel,
        args: DistillationTrainingArguments,
        train_dataset: Dataset | datasets.Dataset | None = None,
        eval_dataset: Dataset | datasets.Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        statistics: HiddenStateStatistics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(teacher, Teacher):
            if processing_class is None:
                raise ValueError("a bare teacher model needs processing_class=<its tokenizer>.")
            teacher = Teacher(teacher, processing_class)
        if isinstance(model, PreTrainedModel) and not isinstance(model, KDNASModel):
            raise ValueError(
                f"model is a {type(model).__name__}; hidden-state distillation takes the encoder (KDNASModel), "
                "a KDNASConfig or a StudentPool."
            )
        if args.teacher_in_bf16:
            teacher.to_dtype(torch.bfloat16)
        self.teacher = teacher
        pool = model if isinstance(model, StudentPool) else StudentPool.create({"student": model}, teacher, args)
        self.student_max_grad_norm = args.max_grad_norm
        args = copy.copy(args)
        args.max_grad_norm = 0.0  # clipping is ours: for each student alone, in `training_step`
        # one process drives one device: DataParallel would scatter token positions that belong to the whole batch
        _ = args.device
        args._n_gpu = min(args.n_gpu, 1)
        processing_class = processing_class or teacher.tokenizer
        kwargs.setdefault("data_collator", DataCollatorWithPadding(processing_class))
        super().__init__(
            model=pool,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self.add_callback(SamplerEpochCallback())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(StepProgressCallback)
        # compute_loss normalises by the tokens of all micro-batches and processes
        self.model_accepts_loss_kwargs = True
        self.trained_tokens = 0
        self._grad_norm: torch.Tensor | None = None
        self._losses: torch.Tensor | None = None
        place_teacher(self.teacher, self.args)
        if statistics is None and args.hidden_state_normalization == "standardize":
            statistics = self.estimate_statistics()
        self.statistics = statistics.to(self.args.device) if statistics is not None else None

    @property
    def pool(self) -> StudentPool:
        """The students that train."""
        pool = self.accelerator.unwrap_model(self.model)
        assert isinstance(pool, StudentPool)
        return pool

    @property
    def student(self) -> KDNASModel:
        """The student, of a pool of one."""
        students = list(self.pool.students.values())
        if len(students) != 1:
            raise ValueError(f"the pool holds {len(students)} students; take one of pool.students.")
        return students[0]

    def estimate_statistics(self) -> HiddenStateStatistics:
        """Estimate the teacher's statistics from a sample of ``args.statistics_sentences`` training texts.

        Raises:
            ValueError: If there is no training text.
        """
        if self.train_dataset is None:
            raise ValueError(
                "hidden_state_normalization='standardize' estimates the teacher's statistics from train_dataset; "
                "pass it, or statistics=…, or choose hidden_state_normalization='none'."
            )
        return HiddenStateStatistics.from_texts(
            self.teacher,
            cast(Iterable[Mapping[str, Any]], self.train_dataset),
            self.pool.teacher_layers,
            count=self.args.statistics_sentences,
            batch_size=self.args.eval_batch_size,
            seed=self.args.seed,
        )

    # ---- the loss ----

    def _targets(self, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """The teacher's states at the real tokens, standardised if asked, and where those tokens are."""
        mask = inputs["attention_mask"]
        real_tokens = mask.flatten().nonzero().squeeze(1)
        states = self.teacher.hidden_states(inputs["input_ids"], mask, self.pool.teacher_layers)
        targets = {}
        for layer, values in states.items():
            real = values.flatten(0, 1).index_select(0, real_tokens)
            targets[layer] = real.float() if self.statistics is None else self.statistics.standardize(layer, real)
        return targets, real_tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the students' losses on one micro-batch.

        Args:
            model: The (wrapped) pool.
            inputs: ``input_ids`` and ``attention_mask``, both ``(batch, sequence)``.
            return_outputs: Whether to return the loss of each student as well.
            num_items_in_batch: Real tokens of the whole accumulated batch in all processes.
        """
        targets, real_tokens = self._targets(inputs)
        # DDP averages gradients over processes, while the loss is a sum over tokens divided by the tokens of them all
        processes = self.accelerator.num_processes if num_items_in_batch is not None else 1
        tokens = num_items_in_batch if num_items_in_batch is not None else real_tokens.numel()
        num_tokens = torch.as_tensor(tokens, device=real_tokens.device, dtype=torch.float32) / processes
        losses = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            targets=targets,
            real_tokens=real_tokens,
            num_tokens=num_tokens,
        )
        self._losses = losses.detach()
        loss = losses.sum()
        return (loss, {"losses": losses}) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Collect the micro-batches of one step and count their real tokens in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        tokens = torch.stack([batch["attention_mask"].sum() for batch in batches]).sum().to(device)
        tokens = self.accelerator.reduce(tokens, reduction="sum")
        self.trained_tokens += int(tokens)
        return batches, tokens

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One micro-batch; before an optimizer step, each student's gradient is clipped alone."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._clip_each_student()
        return loss

    def _clip_each_student(self) -> None:
        """Clip each student's gradient by its own norm; drop those whose norm is not finite.

        Gradients are already averaged over processes here, so that all processes drop the same students.
        """
        self.accelerator.unscale_gradients()
        fp16 = self.accelerator.mixed_precision == "fp16"
        diverged_by_loss = self._diverged_by_loss() if fp16 else set()
        norms = []
        for name, member in self.pool.active.items():
            parameters = [p for p in member.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            # under fp16 a gradient may overflow while the loss is fine: the scaler then skips the step
            diverged = name in diverged_by_loss if fp16 else not torch.isfinite(norm)
            if diverged:
                for parameter in parameters:
                    parameter.grad = None
                self.pool.drop(name, f"its gradient was not finite at step {self.state.global_step + 1}")
                continue
            norms.append(norm)
            if self.student_max_grad_norm and norm > self.student_max_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, self.student_max_grad_norm, norm)
        self._grad_norm = torch.stack(norms).square().sum().sqrt() if norms else None
        if not self.pool.active:
            self.control.should_training_stop = True

    def _diverged_by_loss(self) -> set[str]:
        """The students whose loss is not finite in some process."""
        assert self._losses is not None
        not_finite = self._sum_over_processes((~self._losses.isfinite()).long())
        return {name for name, count in zip(self.pool.members, not_finite.tolist(), strict=True) if count}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the whole pool's gradient before clipping, which transformers 5 logs."""
        return self._grad_norm

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `Trainer.train` does; ``resume_from_checkpoint=True`` is the last checkpoint that is whole.

        Students attend by the eager implementation where torch's fused attention is slow: its backward pass in bf16 on
        a CPU takes several times as long. Numbers are the same to rounding, and students get theirs back afterwards.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_whole_checkpoint()
        if not (self.args.bf16 and self.args.device.type == "cpu"):
            return super().train(resume_from_checkpoint, *args, **kwargs)
        before = {name: student.config._attn_implementation for name, student in self.pool.students.items()}
        try:
            for student in self.pool.students.values():
                student.set_attn_implementation("eager")
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for name, student in self.pool.students.items():
                student.set_attn_implementation(before[name])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; the training loss of a pool is given as the mean over its students."""
        for key in ("loss", "train_loss"):
            if key in logs:
                logs[key] /= max(len(self.pool.active), 1)
        super().log(logs, *args, **kwargs)

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_texts_by_length or dataset is None or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        # of `self.train_dataset`: unused columns, of which the length is one, are gone from `train_dataset`
        lengths = text_lengths(self.train_dataset)
        texts_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        sampler = LengthGroupedSampler(lengths, texts_per_step, seed)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SamplerEpochCallback):
                callback.sampler = sampler
        return sampler

    def get_train_dataloader(self) -> DataLoader:
        """Training texts; of a stream each process reads a share of its own, over and over."""
        if not is_stream(self.train_dataset):
            return super().get_train_dataloader()
        return self._stream(self.train_dataset, self._train_batch_size, endless=True)

    def _stream(self, stream: Any, batch_size: int, endless: bool) -> DataLoader:
        share = StreamShare(stream, self.accelerator.process_index, self.accelerator.num_processes, endless)
        return DataLoader(
            share,
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Held-out texts in order of length; each process gets its own share, no text twice."""
        if isinstance(eval_dataset, str):
            dataset: Any = cast(dict[str, Any], self.eval_dataset)[eval_dataset]
        else:
            dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if is_stream(dataset):
            return self._stream(dataset, self.args.eval_batch_size, endless=False)
        if dataset is None or not has_length(dataset):
            return super().get_eval_dataloader(eval_dataset)
        rows = [{"input_ids": row["input_ids"]} for row in cast(Iterable[Mapping[str, Any]], dataset)]
        rows.sort(key=lambda row: len(row["input_ids"]))
        share: Any = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return DataLoader(share, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)

    # ---- evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and R² of each student on held-out text, exact over all processes."""
        pool = self.pool
        active = pool.active
        metrics: dict[str, float] = {}
        if not active:
            return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=0)
        was_training = pool.training
        pool.eval()
        variance = pool.explained_variance(self.teacher.dimensions.hidden_size)
        samples = 0
        for batch in in_lockstep(dataloader, self.teacher, self.accelerator):
            inputs = self._prepare_inputs(dict(batch))
            targets, real_tokens = self._targets(inputs)
            variance.add_targets(targets)
            samples += inputs["input_ids"].shape[0]
            with self.accelerator.autocast():
                for name, member in active.items():
                    predictions = member.predict(inputs["input_ids"], inputs["attention_mask"], real_tokens)
                    for index, prediction in enumerate(predictions):
                        variance.add_prediction((name, index), prediction, targets[member.pairs[index][1]])
        samples = int(self._sum_over_processes(torch.tensor([samples])))
        variance.sums = self._sum_over_processes(variance.sums)
        variance.tokens = self._sum_over_processes(variance.tokens)
        pool.train(was_training)

        losses = []
        for name, member in active.items():
            prefix = metric_key_prefix if len(pool.members) == 1 else f"{metric_key_prefix}_{name}"
            losses.append(self._member_metrics(name, member, variance, prefix, metrics))
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        metrics[f"{metric_key_prefix}_trained_tokens"] = self.trained_tokens
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)

    def _sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum").cpu()

    def _member_metrics(
        self, name: str, member: PooledStudent, variance: Any, prefix: str, metrics: dict[str, float]
    ) -> float:
        """Add one student's metrics to ``metrics`` and return its loss."""
        errors = [variance.mean_squared_error((name, index)) for index in range(len(member.pairs))]
        metrics[f"{prefix}_loss"] = sum(errors) / len(errors)
        for index, (student_layer, teacher_layer) in enumerate(member.pairs):
            r2 = variance.r2((name, index))
            # a layer that learns from several teacher layers is judged by the last of them
            metrics[f"{prefix}_r2_layer_{student_layer}"] = r2
            if (student_layer, teacher_layer) == max(member.pairs):
                metrics[f"{prefix}_r2"] = r2
                metrics[f"{prefix}_last_layer_loss"] = errors[index]
        return metrics[f"{prefix}_loss"]

    # ---- saving and resuming ----

    def _trainable(self) -> dict[str, torch.Tensor]:
        """Everything that training changes: not the teacher's table that the students share."""
        return {name: p.detach() for name, p in self.pool.named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write what resuming needs, and a lone student as a checkpoint of its own with its tokenizer.

        The students of a larger pool are written by `save_students`: a checkpoint in mid-search must be cheap.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        trainable = {name: value.contiguous().cpu() for name, value in self._trainable().items()}
        save_file(trainable, str(folder / TRAINABLE_WEIGHTS_NAME), metadata={"format": "pt"})
        (folder / POOL_STATE_NAME).write_text(
            json.dumps({"dropped": self.pool.dropped, "trained_tokens": self.trained_tokens}), encoding="utf-8"
        )
        if self.statistics is not None:
            self.statistics.save(folder / STATISTICS_NAME)
        torch.save(self.args, folder / "training_args.bin")
        if len(self.pool.members) == 1:
            self.save_students(folder)

    def save_students(self, output_dir: str | Path) -> None:
        """Write each student and the tokenizer: into ``output_dir`` if it is alone, else into a folder by its name.

        Embeddings that are inherited from the teacher are folded into an ordinary table in the file.
        """
        for name, student in self.pool.students.items():
            folder = Path(output_dir) if len(self.pool.members) == 1 else Path(output_dir) / name
            student.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def restore(self, checkpoint: str | Path) -> bool:
        """Load students, projections, statistics and what was dropped from a checkpoint, but no optimizer.

        Returns:
            Whether any student still trains.
        """
        self._load_from_checkpoint(str(checkpoint))
        return bool(self.pool.active)

    def _last_whole_checkpoint(self) -> str:
        found = None
        if self.args.process_index == 0:
            found = last_whole_checkpoint(self.args.output_dir or ".", self.args.world_size)
        if self.args.world_size > 1:
            found = broadcast_object_list([found])[0]
        if found is None:
            raise ValueError(f"output_dir={self.args.output_dir!r} holds no whole checkpoint to resume from.")
        return str(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = folder / TRAINABLE_WEIGHTS_NAME
        if not weights.is_file():
            raise ValueError(
                f"{folder} holds no {TRAINABLE_WEIGHTS_NAME}: it is no checkpoint of a distillation to resume."
            )
        own = self._trainable()
        with safe_open(str(weights), framework="pt") as file:
            stored = set(file.keys())
            if stored != set(own):
                odd = sorted(stored.symmetric_difference(own))[:3]
                raise ValueError(f"{folder} was written by another pool of students; they differ in {', '.join(odd)}.")
            for name, parameter in own.items():
                parameter.copy_(file.get_tensor(name))
        state = json.loads((folder / POOL_STATE_NAME).read_text(encoding="utf-8"))
        self.pool.dropped.update(state["dropped"])
        self.trained_tokens = state["trained_tokens"]
        if (folder / STATISTICS_NAME).is_file():
            self.statistics = HiddenStateStatistics.load(folder / STATISTICS_NAME).to(self.args.device)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)

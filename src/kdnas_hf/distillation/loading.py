"""How a distillation's texts become batches in each process."""

from __future__ import annotations

from typing import Any, cast

from torch.utils.data import DataLoader, Sampler, Subset
from transformers import Trainer
from transformers.trainer_utils import has_length

from ..data.batching import LengthGroupedSampler, SamplerEpochCallback, text_lengths
from ..data.streaming import StreamShare, is_stream
from .arguments import DistillationTrainingArguments
from .labelled_texts import text_columns
from .pool import StudentPool
from .targets import STORED
from .teacher_outputs import TeacherOutputs


class TextLoading(Trainer):
    """The part of `DistillationTrainer` that loads texts.

    Where several students are divided among processes each of them reads every text, else a share.
    """

    args: DistillationTrainingArguments
    pool: StudentPool

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["attention_mask", STORED, *text_columns(self.pool)]

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, TeacherOutputs) else super()._prepare_input(data)

    def get_train_dataloader(self) -> DataLoader:
        """Training texts; of a stream over and over."""
        # transformers 4 takes that of the checkpoint, which another number of processes may have written
        self._train_batch_size = self.args.train_batch_size
        if is_stream(self.train_dataset):
            return self._stream(self.train_dataset, self._train_batch_size, endless=True)
        if not self.pool.divided or self.args.world_size == 1:
            return super().get_train_dataloader()
        collator = self._get_collator_with_removed_columns(self.data_collator, description="training")
        return self._loader(
            self.train_dataset,
            self._train_batch_size * self.args.world_size,
            collator,
            sampler=self._get_train_sampler(),
            drop_last=self.args.dataloader_drop_last,
        )

    def _loader(self, dataset: Any, batch_size: int, collator: Any, **kwargs: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=getattr(self.args, "dataloader_multiprocessing_context", None),
            in_order=getattr(self.args, "dataloader_in_order", True),
            **kwargs,
        )

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

    def _stream(self, stream: Any, batch_size: int, endless: bool) -> DataLoader:
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        if self.pool.divided:
            batch_size, process, processes = batch_size * processes, 0, 1
        share = StreamShare(stream, process, processes, endless, text_columns(self.pool))
        return self._loader(share, batch_size, self.data_collator)

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
        lengths = text_lengths(dataset)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        if not self.pool.divided:
            order = order[self.accelerator.process_index :: self.accelerator.num_processes]
        collator = self._get_collator_with_removed_columns(self.data_collator, description="evaluation")
        return self._loader(Subset(cast(Any, dataset), order), self.args.eval_batch_size, collator)

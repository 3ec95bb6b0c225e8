"""How distilled students leave a trainer: as directories, and to the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from ..students import KDNASModel, SentenceEncoder
from ..utils.sentence_head import SentenceHead
from .arguments import DistillationTrainingArguments
from .member import Member
from .pool import StudentPool
from .targets import Targets
from .teacher import Teacher

ONE_STUDENT = "push_to_hub sends one student; save those of a pool (save_students) and push each."


class StudentPublishing(Trainer):
    """The part of `DistillationTrainer` that saves students and pushes them."""

    args: DistillationTrainingArguments
    pool: StudentPool
    teacher: Teacher
    targets: Targets

    def save_students(self, output_dir: str | Path) -> None:
        """Write each student of this process: a lone one into ``output_dir``, others by name."""
        for name in self.pool.models:
            self.save_student(name, Path(output_dir) if len(self.pool.names) == 1 else Path(output_dir) / name)

    def save_student(self, name: str, folder: str | Path) -> None:
        """Write a student of this process with the tokenizer.

        Embeddings that are inherited from the teacher are folded into an ordinary table in the file. The student of a
        teacher of sentence vectors gets a head that makes comparable ones, in the files of sentence-transformers.
        """
        member = dict(self.pool.items())[name]
        member.model.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        if isinstance(member.model, KDNASModel) and (head := self.sentence_head_of(member)):
            head.save(folder)

    def sentence_head_of(self, member: Member) -> SentenceHead | None:
        """What makes sentence vectors of a student's states that are comparable to its teacher's, if its losses say."""
        if self.teacher.sentence_head is None:
            return None
        # a head that was learned for the vectors goes before one that follows from states
        losses = sorted(member.all_losses(), key=lambda loss: not loss.required.sentence_vectors)
        heads = (loss.sentence_head(self.teacher.sentence_head, self.targets.statistics) for loss in losses)
        return next((head for head in heads if head is not None), None)

    def sentence_encoder(self, name: str = "student") -> SentenceEncoder:
        """A student of this process as it is now, for texts; see `sentence_head_of`.

        Raises:
            ValueError: If it makes no sentence vectors.
        """
        member = dict(self.pool.items())[name]
        if (head := self.sentence_head_of(member)) is None:
            raise ValueError(f"{name} makes no sentence vectors; its teacher, or what it learns by, has none.")
        return SentenceEncoder(member.student, self.teacher.tokenizer, head)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.args, folder / "training_args.bin")
        if len(self.pool.names) == 1:
            self.save_students(folder)

    def create_model_card(self, *args: Any, student: str | Path | None = None, **kwargs: Any) -> None:
        """Let a callback that knows how to (`kdnas_hf.ModelCardCallback`) write the card of ``student``, a directory.

        Without one there is no card: it would hold nothing that was measured. Other arguments are ignored.
        """
        for callback in self.callback_handler.callbacks if self.is_world_process_zero() else ():
            if hasattr(callback, "write_card"):
                callback.write_card(student or self.args.output_dir)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the student, its tokenizer and its card to ``args.hub_model_id``, and nothing of the training's own.

        ``blocking`` is ignored: it returns the commit when all is sent, and None in processes but the main one.

        Raises:
            ValueError: If a pool of several students is trained: push each by itself.
        """
        if len(self.pool.names) != 1:
            raise ValueError(ONE_STUDENT)
        if hasattr(self.callback_handler, "on_push_begin"):  # transformers 5
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not self.is_world_process_zero():
            return None
        api = HfApi(token=self.args.hub_token if token is None else token)
        name = self.args.hub_model_id or Path(self.args.output_dir or ".").absolute().name
        private = self.args.hub_private_repo if private is None else private
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_students(folder)
            self.create_model_card(student=folder, **kwargs)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "End of training",
                revision=revision or getattr(self.args, "hub_revision", None),
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """In the course of the training; at its end `push_to_hub` is called anyway."""
        if self.args.hub_strategy != HubStrategy.END:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")

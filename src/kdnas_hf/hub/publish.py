"""Publishes staged students: one commit each, so that nothing is half-published, and a collection of them."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from transformers.utils import logging

from ..export.budgets import Budget
from ..search.result import RESULTS_FILE, DistilledStudent
from .arguments import PublishArguments
from .evidence import StudentEvidence
from .model_card import CARD_FILE, TAGS, Sibling, is_edited, repository_name
from .staging import PublicationError, StagedStudent, check_student, stage_student

logger = logging.get_logger(__name__)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the client raises where the Hub cannot be reached: its lines use different HTTP libraries."""
    found: list[type[Exception]] = [HfHubHTTPError, ConnectionError, TimeoutError]
    for name, error in (("requests", "RequestException"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        try:
            found.append(getattr(importlib.import_module(name), error))
        except ImportError:
            continue
    return tuple(found)


NETWORK_ERRORS = _network_errors()
# the client wraps what goes wrong with a large file
UPLOAD_ERRORS: tuple[type[Exception], ...] = (*NETWORK_ERRORS, RuntimeError)


@dataclass(frozen=True)
class Publication:
    """What was, or would be, published.

    Attributes:
        repo_id: The repository.
        description: What is sent, a line for each file.
        card: The text of the card.
        url: Of the commit; None if nothing was sent.
        folder: Where it was left as well, if it was.
    """

    repo_id: str
    description: str
    card: str
    url: str | None
    folder: Path | None


@dataclass(frozen=True)
class BudgetStudent:
    """A student of a search and the budget that it is the best for.

    Attributes:
        budget: What a student may cost.
        path: The student's directory.
        student: What was measured of it.
    """

    budget: Budget
    path: Path
    student: DistilledStudent


class HubRepositories:
    """The repositories of a user, as far as publishing needs them.

    Args:
        api: A client; by default one of the stored token, or of ``HF_TOKEN``.

    Raises:
        PublicationError: If there is no token, or one that is not valid.
    """

    def __init__(self, api: HfApi | None = None) -> None:
        self.api = api or HfApi()
        try:
            who = self.api.whoami()
        except LocalTokenNotFoundError as error:
            raise PublicationError(
                "no access token: make one that may write at https://huggingface.co/settings/tokens, then run "
                "`hf auth login` or set HF_TOKEN."
            ) from error
        except NETWORK_ERRORS as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code in (401, 403):
                raise PublicationError(
                    "the access token is not valid; run `hf auth login`, or set HF_TOKEN."
                ) from error
            raise _network_error(error) from error
        self.user: str = who["name"]
        self.owners = {self.user, *(organisation["name"] for organisation in who.get("orgs", []))}

    def check(self, repo_id: str, overwrite: bool = False) -> None:
        """Check that a student may be put into a repository, before anything is sent.

        Raises:
            PublicationError: If it belongs to somebody else, or holds something else.
        """
        owner = repo_id.split("/")[0]
        if owner not in self.owners:
            mine = ", ".join(sorted(self.owners))
            raise PublicationError(
                f"repo_id={repo_id!r}: {owner} is neither you nor an organisation of yours ({mine})."
            )
        try:
            info = self.api.model_info(repo_id)
        except RepositoryNotFoundError:
            return
        except NETWORK_ERRORS as error:
            raise _network_error(error) from error
        files = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
        if files and TAGS[0] not in (info.tags or []) and not overwrite:
            raise PublicationError(
                f"repo_id={repo_id!r} exists and holds something else ({', '.join(sorted(files)[:3])}, …); choose "
                "another name, or replace it with --overwrite true."
            )

    def send(self, staged: StagedStudent, repo_id: str, private: bool, revision: str | None, message: str) -> str:
        """Send a staged student in one commit, and return the commit's address.

        What was there and is not part of it is removed in the same commit. A repository that is made is private until
        the commit is there; one that is public stays so. After an interruption, what was received is not sent again.

        Raises:
            PublicationError: If the network or the Hub fails; nothing of the student is visible then.
        """
        try:
            self.api.create_repo(repo_id, private=True, exist_ok=True)
            if revision is not None:
                self.api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = self.api.create_commit(  # always one commit, which upload_folder is not
                repo_id, self._operations(staged, repo_id, revision), commit_message=message, revision=revision
            )
            if not private and self.api.model_info(repo_id).private:  # new, or left so by an interruption
                self.api.update_repo_settings(repo_id, private=False)
        except UPLOAD_ERRORS as error:
            raise _network_error(error) from error
        return str(commit.commit_url)

    def _operations(
        self, staged: StagedStudent, repo_id: str, revision: str | None
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        """Add every file, and delete what was there before; the client leaves out what has not changed."""
        there = set(self.api.list_repo_files(repo_id, revision=revision)) - {".gitattributes", *staged.files}
        return [
            *(CommitOperationAdd(name, staged.folder / name) for name in staged.files),
            *(CommitOperationDelete(name) for name in sorted(there)),
        ]


def publish(
    args: PublishArguments, api: HfApi | None = None, show: Callable[[Publication], None] = lambda found: None
) -> list[Publication]:
    """Publish a student, or with ``all_budgets`` one for each budget and a collection of them.

    Everything is checked before anything is sent. Without ``repo_id`` nothing is sent: what would be is left in a
    directory.

    Args:
        args: What is published, and where.
        api: A client; by default one of the stored token.
        show: Called with each publication while what was staged is still there.

    Raises:
        FileNotFoundError: If there is no student.
        PublicationError: If it cannot be published; the message says what to do.
    """
    students: list[tuple[Budget | None, Path]] = [(None, Path(args.student))]
    if args.all_budgets:
        found = students_by_budget(args.student, args.budgets)
        students = [(student.budget, student.path) for student in found]
    evidence = [check_student(path, args.without_scores) for _, path in students]
    repo_ids = [_repo_id(args, known, budget) for (budget, _), known in zip(students, evidence, strict=True)]
    repositories = None
    if args.repo_id is not None and not args.dry_run:
        repositories = HubRepositories(api)
        for repo_id in repo_ids:
            repositories.check(repo_id, args.overwrite)
    siblings = [
        Sibling(repo_id, "" if budget is None else str(budget), known)
        for repo_id, (budget, _), known in zip(repo_ids, students, evidence, strict=True)
    ]
    published = []
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        if args.output_dir is not None:
            root = Path(args.output_dir)
        elif args.repo_id is None and not args.dry_run:
            root = _beside(Path(args.student))
        staged = []
        for number, ((_, path), repo_id) in enumerate(zip(students, repo_ids, strict=True)):
            folder = root / repo_id.split("/")[-1] if args.all_budgets else root
            others = [sibling for i, sibling in enumerate(siblings) if i != number]
            native = True if args.native else False if args.custom_code else None
            staged.append(stage_student(path, folder, repo_id, native, args.license, args.without_scores, others))
        for student, repo_id in zip(staged, repo_ids, strict=True):
            url = None
            if repositories is not None:
                url = repositories.send(student, repo_id, args.private, args.revision, args.commit_message)
            folder_left = None if root == Path(temporary) else student.folder
            publication = Publication(repo_id, student.describe(), student.card, url, folder_left)
            show(publication)
            published.append(publication)
    if repositories is not None and args.all_budgets:
        _collect(repositories, repo_ids, siblings, args)
    return published


def students_by_budget(run: str | Path, budgets: Sequence[Budget]) -> list[BudgetStudent]:
    """For each budget the student of the highest quality that meets it; the best for several counts for the last.

    Args:
        run: Directory of a search.
        budgets: The widest first.

    Raises:
        FileNotFoundError: If there is no finished search.
        PublicationError: If no student meets any budget.
    """
    path = Path(run) / RESULTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: all_budgets needs the directory of a finished search.")
    values = json.loads(path.read_text(encoding="utf-8"))
    students = [DistilledStudent.from_dict(one) for one in values]
    best: dict[str, BudgetStudent] = {}
    for budget in budgets:
        able = [student for student in students if budget.met_by(student)]
        if able:
            student = max(able, key=lambda student: student.quality)
            best.pop(student.path, None)  # it moves to the end
            best[student.path] = BudgetStudent(budget, Path(run) / student.path, student)
    if not best:
        raise PublicationError(
            f"no student of {run} is {budgets[0]}; give smaller speedup_budgets or larger latency_budgets."
        )
    return list(best.values())


def _repo_id(args: PublishArguments, evidence: StudentEvidence, budget: Budget | None) -> str:
    name = args.repo_id or f"<owner>/{repository_name(evidence.config)}"
    return name if budget is None else f"{name}-{budget.slug}"


def _beside(student: Path) -> Path:
    """An empty directory beside a student; what an earlier call left there is removed."""
    folder = student.with_name(f"{student.name}-published")
    left = [folder] if (folder / CARD_FILE).is_file() else [path for path in folder.glob("*") if path.is_dir()]
    if left and all((path / CARD_FILE).is_file() and not is_edited(path / CARD_FILE) for path in left):
        shutil.rmtree(folder)
    return folder


def _collect(
    repositories: HubRepositories, repo_ids: Sequence[str], siblings: Sequence[Sibling], args: PublishArguments
) -> None:
    owner = repo_ids[0].split("/")[0]
    teacher = siblings[0].evidence.training
    of = f" of {teacher.teacher_id or teacher.teacher}" if teacher is not None else ""
    try:
        collection = repositories.api.create_collection(
            f"KDNAS students{of}"[:60],
            namespace=owner,
            description="Students of one architecture search, for several budgets.",
            private=args.private,
            exists_ok=True,
        )
        for repo_id, sibling in zip(repo_ids, siblings, strict=True):
            repositories.api.add_collection_item(
                collection.slug, item_id=repo_id, item_type="model", note=sibling.budget, exists_ok=True
            )
    except NETWORK_ERRORS as error:
        raise _network_error(error, "the students are published, but not collected") from error
    logger.info(f"collection: {collection.url}")


def _network_error(error: BaseException, state: str = "nothing was published") -> PublicationError:
    shown = " ".join(str(error).split())[:300]
    return PublicationError(
        f"the Hub could not be reached, or refused ({type(error).__name__}: {shown}); {state}. Started again, what was "
        "already received is not sent again."
    )

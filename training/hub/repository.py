"""One repository on the Hub, and what a push does to it. What the Hub refuses is told in one line.

All of a model goes up in one commit: a reader sees it whole or not at all. A connection that breaks before that leaves
the repository as it was; the next run uploads what is still missing.

`HfApi.upload_folder` would choose, delete and commit in one call. But its patterns cannot tell a stale file at the top
from a person's file in a folder, and it does not say whether an error came before the commit or after it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, RepoCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.errors import InputError
from lstmpool.training.hub.folder import PUBLISHED, read_json
from lstmpool.training.hub.scratch import scratch


# HTTPError is that of the http library, which differs by release of huggingface_hub. OSError is left out: a full disk
# is no matter of the connection.
CONNECTION = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)
PICKLES = tuple(".bin .ckpt .joblib .npy .npz .pickle .pkl .pt .pth".split())
LAST = "last-checkpoint"  # the folder in which a run is resumed from the Hub, as the library calls it
KEPT = {"README.md", "LICENSE"}  # may have been written on the Hub itself


class PushError(Exception):
    """A commit that was not shown to be right was pushed, or may have been. The message names it."""


@dataclass
class Hub:
    """A repository, and the token that writes to it. `head` is the newest commit of `branch`."""

    api: HfApi
    repo_id: str
    branch: str
    token: str
    private: bool = False
    head: str = ""
    files: tuple[str, ...] = ()
    so_far: str = "Nothing was pushed."
    # What such a repository holds: in words, the file that shows it, and the names that pushes put there.
    kind: ClassVar[str] = "an lstmpool model"
    mark: ClassVar[str] = "config.json"
    published: ClassVar[set[str]] = PUBLISHED
    repo_type: ClassVar[str] = "model"
    card_type: ClassVar[type[RepoCard]] = ModelCard
    space_sdk: ClassVar[str | None] = None  # of a Space: what runs its page

    @staticmethod
    def is_of_kind(marked: dict[str, Any]) -> bool:
        """Whether a `mark` with this content shows it."""
        return marked.get("model_type") == LstmPoolConfig.model_type

    @classmethod
    def connect(cls, repo_id: str | None, branch: str, token: str | None = None) -> "Hub":
        """Asks the Hub whether it knows the token (unset: that of HF_TOKEN or `hf auth login`).

        Raises:
            InputError: if it does not, if there is no token, or if `repo_id` is not OWNER/NAME.
        """
        try:
            validate_repo_id(repo_id or "")
        except HFValidationError as error:
            found = "none" if repo_id is None else f"{repo_id!r}: {error}"
            raise InputError(
                f"expected a repository OWNER/NAME, found {found}. Name one, or check the folder alone with --check."
            ) from None
        if "/" not in repo_id:
            raise InputError(f"expected a repository OWNER/NAME, found {repo_id!r}, which names no owner.")
        token = token or get_token()
        if not token:
            raise InputError(f"no token found. Log in with `hf auth login`, or set HF_TOKEN. {cls.so_far}")
        hub = cls(HfApi(token=token), repo_id, branch, token)
        with hub._told():
            hub.api.whoami()
        return hub

    def check_card(self, card: str) -> None:
        """Asks the Hub whether it takes the header of the model card."""
        with self._told():
            try:
                self.card_type(card).validate()
            except ValueError as error:
                raise InputError(f"the Hub refuses the header of README.md: {error}") from None

    def open(self, private: bool, tag: str | None = None) -> None:
        """Finds the repository, or makes it; then the branch.

        Raises:
            InputError: if the token may not write to it, if it holds another kind of model, if it is public and
                `private` was asked for, or if it has the tag already.
        """
        with self._told():
            if not self.api.repo_exists(self.repo_id, repo_type=self.repo_type):
                self.api.create_repo(
                    self.repo_id,
                    private=private or None,  # None: the owner's default
                    repo_type=self.repo_type,
                    space_sdk=self.space_sdk,
                )
                self.so_far = f"The new repository {self.repo_id} is there, and empty."
            tags = self._look()
            self._check_is_ours()
            if private and not self.private:
                raise InputError(f"{self.repo_id} exists and is public. Choose another name, or change its settings.")
            if tag in tags:
                raise InputError(f"{self.repo_id} has a tag {tag} already. Choose another. {self.so_far}")
            self.api.create_branch(self.repo_id, branch=self.branch, repo_type=self.repo_type, exist_ok=True)

    def push(self, files: dict[str, Path], message: str = "Upload model") -> str:
        """Makes one commit, which adds these files, by their names on the Hub, and deletes what an earlier push left.

        Nothing that is pickled goes up to a public repository, nor what a run resumes from: it names folders of the
        machine. Whether the repository is public is asked anew for each push.

        Returns:
            The id of the commit. If nothing has changed, there is none, and this is the id of the newest one.
        """
        with self._told():
            self._look()
        if not self.private:
            files = {name: path for name, path in files.items() if not _is_private(name)}
        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
        operations += [
            CommitOperationDelete(name) for name in self.files if name not in files and self._is_stale(name)
        ]
        commit = self._commit(operations, message)
        self.so_far = f"Commit {commit} was pushed."
        return commit

    def push_card(self, card: str, commit: str) -> None:
        """Makes a second commit, which changes README.md alone: the Hub refuses it on top of any but `commit`."""
        self.head = commit
        try:
            self._commit([CommitOperationAdd("README.md", card.encode())], f"Pin the snippet to {commit[:7]}")
        except InputError as error:
            raise PushError(
                f"{self.repo_id} at commit {commit} is right, but its card could not be pinned: {error}"
            ) from None

    def tag(self, tag: str) -> None:
        """Names the newest commit."""
        try:
            self.api.create_tag(self.repo_id, tag=tag, revision=self.head, repo_type=self.repo_type)
        except CONNECTION as error:
            raise PushError(f"{self.repo_id} at commit {self.head} is right, but got no tag {tag}: {error}") from None

    def _look(self) -> set[str]:
        """Asks for the newest commit of the branch, or of the one that it will start from. Returns the tags."""
        info = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        self.private = bool(info.private)
        self.head = heads.get(self.branch, info.sha)
        self.files = tuple(self.api.list_repo_files(self.repo_id, revision=self.head, repo_type=self.repo_type))
        return {ref.name for ref in refs.tags}

    def _check_is_ours(self) -> None:
        """Raises InputError if another kind of model has taken the name."""
        others = [name for name in self.files if name not in {*KEPT, ".gitattributes", ".gitignore"}]
        if not others:
            return
        marked = None
        if self.mark in others:
            with scratch() as cache:
                path = self.api.hf_hub_download(
                    self.repo_id, self.mark, repo_type=self.repo_type, revision=self.head, cache_dir=cache
                )
                marked = read_json(Path(path))
        if not self.is_of_kind(marked or {}):
            raise InputError(
                f"the name {self.repo_id} is taken by something that is not {self.kind} ({others[0]}). Choose "
                f"another name. {self.so_far}"
            )

    def _is_stale(self, name: str) -> bool:
        """Whether this must not stand beside a new model: a file of an older one, a pickle, or a checkpoint."""
        of_model = (
            name in self.published - KEPT or re.fullmatch(r"[^/]+\.safetensors(\.index\.json)?", name) is not None
        )
        return of_model or _is_private(name)

    def _commit(self, operations: list[Any], message: str) -> str:
        """Makes a commit on top of `head`, and of nothing else; returns its id.

        The upload is a step of its own: an error in it cannot have made a commit, an error after it can.
        """
        with self._told():
            additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
            self.api.preupload_lfs_files(self.repo_id, additions, revision=self.branch, repo_type=self.repo_type)
        try:
            with self._told():
                info = self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    revision=self.branch,
                    parent_commit=self.head,
                    repo_type=self.repo_type,
                )
        except InputError as error:
            # The answer was lost, or somebody else was faster: the client's second attempt makes both look the same.
            newest = self._newest()
            if newest != self.head:
                named = f"the new commit {newest}" if newest else "a new commit, which it cannot be asked for now"
                reason = str(error).removesuffix(self.so_far)
                raise PushError(f"{self.repo_id} may have {named}, by this push or another's: {reason}") from None
            raise
        self.head = info.oid
        return info.oid

    def _newest(self) -> str | None:
        """The newest commit, or None if nobody can tell."""
        try:
            return self.api.repo_info(self.repo_id, revision=self.branch, repo_type=self.repo_type).sha
        except CONNECTION:
            return None

    @property
    def address(self) -> str:
        """Its page."""
        place = "spaces/" if self.repo_type == "space" else ""
        return f"{self.api.endpoint}/{place}{self.repo_id}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what the Hub's client raises into one line that says what to do."""
        at = self.api.endpoint
        so_far = self.so_far
        try:
            yield
        except OfflineModeIsEnabled:
            raise InputError(f"HF_HUB_OFFLINE is set, so that {at} cannot be asked. Unset it. {so_far}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            reason = error.server_message or str(error)
            remedy = {
                401: "The token is wrong or has expired: log in again with `hf auth login`, or set HF_TOKEN.",
                403: f"This token may not write to {self.repo_id}: use one that may, or a name of your own.",
                409: "Choose another name.",
                412: "Somebody pushed at the same time: run the command again.",
            }.get(status, "Run the command again.")
            raise InputError(f"{at} answered {status}: {reason.rstrip('.')}. {remedy} {so_far}") from None
        except (RuntimeError, OSError, *CONNECTION) as error:
            reason = error.__cause__ or error  # a failed upload is a RuntimeError
            here = isinstance(reason, OSError) and not any(isinstance(it, CONNECTION) for it in (error, reason))
            what = "this machine cannot read or write a file" if here else f"no whole answer from {at}"
            raise InputError(f"{what}: {reason}. Run the command again. {so_far}") from None


def _is_private(name: str) -> bool:
    """Whether a file is pickled, or is one that a run resumes from."""
    return name.endswith(PICKLES) or name.startswith(("checkpoint", LAST))

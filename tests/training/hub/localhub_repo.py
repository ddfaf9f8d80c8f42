"""What the tests' Hub stores: repositories whose commits, branches and tags mean what they mean on the Hub.

A blob's id is git's, since clients compare it with that of their own file to skip what has not changed. A commit is a
snapshot that is never changed, so pinning one means something. A file kept in LFS is stored here as its pointer.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any


POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
LFS_ENDINGS = "7z bin ckpt gz h5 npz onnx parquet pickle pkl pt pth safetensors tar zip".split()
GIT_ATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_ENDINGS).encode()
REGULAR_MAX = 10 * 1024 * 1024  # bytes; what is larger must be in LFS


class HubError(Exception):
    """An answer other than 200. `code` tells the client's library which of its errors to raise."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.headers, self.body = status, message, code, headers or {}, body


@dataclass(frozen=True)
class Commit:
    """All files after one push: contents or LFS pointers by path."""

    id: str
    parent: "Commit | None"
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """One repository. `heads` and `tags` name commit ids; `large` holds the contents of LFS by their SHA-256."""

    private: bool
    large: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not self.commits:
            self.commit("main", {".gitattributes": GIT_ATTRIBUTES}, "initial commit")

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit id names."""
        name = self.heads.get(revision) or self.tags.get(revision) or revision
        if name not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[name]

    def file(self, commit: Commit, path: str) -> bytes:
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.id})
        return commit.files[path]

    def commit(self, branch: str, changes: dict[str, bytes | None], title: str, parent: str | None = None) -> Commit:
        """Adds to a branch: new contents by path, None for a file that goes."""
        head = self.resolve(branch) if self.commits else None
        if parent and parent != head.id:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = {path: data for path, data in {**(head.files if head else {}), **changes}.items() if data is not None}
        if head and files == head.files:
            return head
        content = {"parent": head and head.id, "title": title, "when": time.time_ns()}
        content["files"] = {path: blob_id(data) for path, data in sorted(files.items())}
        commit = Commit(hashlib.sha1(json.dumps(content).encode()).hexdigest(), head, title, files)
        self.commits[commit.id], self.heads[branch] = commit, commit.id
        return commit

    def wants_lfs(self, path: str, sample: bytes, size: int) -> bool:
        return size > REGULAR_MAX or b"\0" in sample or path.rsplit(".", 1)[-1] in LFS_ENDINGS

    def ignored(self, commit: Commit, path: str, rules: str | None) -> bool:
        """What the client's .gitignore, or else the one in the repository, keeps out. Rules from the root alone."""
        text = commit.files.get(".gitignore", b"").decode() if rules is None else rules
        return f"/{path}" in text.split()

    def copy(self, private: bool) -> "Repo":
        """Another repository with the same contents."""
        return Repo(private, dict(self.large), dict(self.commits), dict(self.heads), dict(self.tags))

    def pushed(self) -> list[Commit]:
        """Every commit that a client sent, oldest first: all but the one that came with the repository."""
        return [commit for commit in self.commits.values() if commit.parent]


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def row(path: str, data: bytes) -> dict[str, Any]:
    """A file as the listing of a repository shows it."""
    shown = {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}
    if match := POINTER.fullmatch(data):
        sha256, size = match[1].decode(), int(match[2])
        shown |= {"size": size, "lfs": {"oid": sha256, "size": size, "pointerSize": len(data)}}
    return shown

"""A Hub for the tests: what the clients of huggingface_hub 2.4 ask for, over HTTP on 127.0.0.1, in this process.

It knows users by their tokens, public and private repositories, LFS with checked sha256, branches and tags. `fault`
breaks it on purpose, and `requests` keeps what it was asked. What it does not know, it answers with 501.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .localhub_repo import POINTER, REGULAR_MAX, HubError, Repo, pointer, row


NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")
PRIVATE_BY_DEFAULT = {"firm"}  # owners whose new repositories are private unless one says otherwise
ROUTES = []


class LocalHub:
    """The server: `with LocalHub({token: {"name": ..., "orgs": [...], "role": "write" or "read"}}) as hub`."""

    def __init__(self, users: dict[str, dict[str, Any]]):
        self.users, self.repos = users, {}
        self.requests: list[tuple[str, str, int]] = []  # method, path, status
        # what happens to a request: "lost" on the way, "unanswered", so that only the server knows it was done, or
        # "refused" for a reason of the server's own
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.lock, self.secret = threading.RLock(), secrets.token_hex(8)
        # large files come from another origin, as on the Hub: clients tell the two apart
        handler = type("Bound", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.ports = [server.server_address[1] for server in self.servers]
        self.url, self.storage = (f"http://127.0.0.1:{port}" for port in self.ports)

    def __enter__(self) -> "LocalHub":
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


def route(methods: str, pattern: str) -> Callable:
    """Registers a function for requests whose whole path matches; {id} is owner/name, {rev} a revision.

    The `id` of a Space is spaces/owner/name.
    """
    pattern = pattern.replace("/api/models/", "/api/(?:models/|(?=spaces/))")
    pattern = pattern.replace("{id}", "(?P<id>(?:spaces/)?[^/]+/[^/]+)").replace("{rev}", "(?P<rev>[^/]+)")

    def add(function: Callable) -> Callable:
        ROUTES.append((methods.split(), re.compile(pattern), function))
        return function

    return add


class Handler(BaseHTTPRequestHandler):
    """One request: finds its route, says who asks, and turns a HubError into an answer."""

    protocol_version, timeout = "HTTP/1.1", 60
    hub: LocalHub

    def log_message(self, *args: Any) -> None:
        pass

    def do(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        self.cut = self.hub.fault(self.command, split.path)
        if self.cut == "lost":
            self.rfile.read(min(100, int(self.headers.get("content-length") or 100)))
            self.hub.requests.append((self.command, split.path, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.read_body()
        try:
            if self.cut == "refused":
                raise HubError(400, "Quota exceeded")
            self.user = self.authenticate()
            for methods, pattern, function in ROUTES:
                if self.command in methods and (match := pattern.fullmatch(split.path)):
                    with self.hub.lock:
                        function(self, **{key: value and unquote(value) for key, value in match.groupdict().items()})
                    return
            raise HubError(501, f"not implemented here: {self.command} {split.path}")
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            headers = {"X-Error-Message": error.message, **code, **error.headers}
            self.send(error.status, {"error": error.message, **error.body}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int = 200, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        self.hub.requests.append((self.command, urlsplit(self.path).path, status))
        if self.cut == "unanswered":
            self.close_connection = True
            return self.connection.close()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def authenticate(self) -> dict[str, Any] | None:
        given = self.headers.get("authorization")
        if given and given.removeprefix("Bearer ") not in self.hub.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.users[given.removeprefix("Bearer ")] if given else None

    def may_write(self, owner: str) -> None:
        if not self.user:
            raise HubError(401, "Invalid username or password.")
        if self.user.get("role", "write") != "write" or owner not in (self.user["name"], *self.user.get("orgs", [])):
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def open(self, id: str, write: bool = False) -> Repo:
        """The repository, if whoever asks may see it (or change it). One that may not be seen is as if missing."""
        repo, owner = self.hub.repos.get(id), id.split("/")[-2]
        seen = self.user and owner in (self.user["name"], *self.user.get("orgs", []))
        if repo is None or (repo.private and not seen):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(owner)
        return repo


# Account and card


@route("GET", "/api/whoami-v2")
def whoami(h: Handler) -> None:
    if not h.user:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"name": name, "type": "org"} for name in h.user.get("orgs", [])]
    token = {"displayName": "test", "role": h.user.get("role", "write")}
    h.send(body={"type": "user", "name": h.user["name"], "orgs": orgs, "auth": {"accessToken": token}})


@route("GET", "/api/agent-harnesses")
def harnesses(h: Handler) -> None:
    h.send(body={"standardEnvVars": [], "harnesses": {}})


@route("HEAD", "/api/telemetry/.*")
def telemetry(h: Handler) -> None:
    h.send()


@route("POST", "/api/validate-yaml")
def validate_yaml(h: Handler) -> None:
    match = re.match(r"---\n(.*?)\n---", json.loads(h.body)["content"], re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else {}
        wrong = [
            f'"{key}" must be a string' for key in ("license", "pipeline_tag") if type(card.get(key, "")) is not str
        ]
        wrong += [line for model in card.get("model-index", []) for line in wrong_in_index(model)]
    except (yaml.YAMLError, AttributeError) as error:
        wrong = [str(error)]
    h.send(400 if wrong else 200, {"errors": [{"message": text} for text in wrong], "warnings": []})


def wrong_in_index(model: dict[str, Any]) -> list[str]:
    """What the Hub demands of a model's results."""
    wrong = [f'"model-index.{key}" is required' for key in ("name", "results") if model.get(key) is None]
    for result in model.get("results") or []:  # a card of the library's `Trainer` has an empty list
        wanted = {"task": ("type",), "dataset": ("type", "name")}
        for key, names in wanted.items():
            wrong += [f'"{key}.{name}" is required' for name in names if not result.get(key, {}).get(name)]
        for metric in result.get("metrics", [{}]):
            wrong += [f'"metrics.{name}" is required' for name in ("type", "value") if metric.get(name) is None]
    return wrong


# Repositories


@route("POST", "/api/repos/create")
def create(h: Handler) -> None:
    body = json.loads(h.body)
    owner = body.get("organization") or (h.user or {}).get("name", "")
    h.may_write(owner)
    id = f"{owner}/{body['name']}"
    if not NAME.fullmatch(id):
        raise HubError(400, f"Invalid repo name {id}")
    if body.get("type") == "space":
        if body.get("sdk") != "gradio":
            raise HubError(400, "a Space needs an sdk")
        id = f"spaces/{id}"
    reply = {"url": f"{h.hub.url}/{id}", "name": id}
    if id in h.hub.repos:
        raise HubError(409, "You already created this model repo", **reply)
    private = body.get("visibility") == "private" if "visibility" in body else body.get("private")
    h.hub.repos[id] = Repo(owner in PRIVATE_BY_DEFAULT if private is None else private)
    h.send(body=reply)


@route("GET", "/api/models/{id}(?:/revision/{rev})?")
def info(h: Handler, id: str, rev: str | None) -> None:
    repo = h.open(id)
    commit = repo.resolve(rev or "main")
    header = re.match(rb"---\n(.*?)\n---", commit.files.get("README.md", b""), re.DOTALL)
    card = yaml.safe_load(header[1]) if header else {}
    shown = {"id": id, "modelId": id, "sha": commit.id, "private": repo.private, "tags": [], "cardData": card}
    shown |= {"siblings": [{"rfilename": path} for path in commit.files]}
    h.send(body=shown | {key: card[key] for key in ("pipeline_tag", "library_name") if key in card})


@route("GET", "/api/models/{id}/tree/{rev}(?:/(?P<path>.+))?")
def tree(h: Handler, id: str, rev: str, path: str | None) -> None:
    commit, prefix = h.open(id).resolve(rev), f"{path}/" if path else ""
    below = {name: data for name, data in commit.files.items() if name.startswith(prefix)}
    if path and not below:
        raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
    deep = h.query.get("recursive", "").lower() == "true"
    h.send(body=[row(name, data) for name, data in below.items() if deep or "/" not in name[len(prefix) :]])


@route("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(h: Handler, id: str, rev: str) -> None:
    commit, wanted = h.open(id).resolve(rev), parse_qs(h.body.decode()).get("paths", [])
    h.send(body=[row(path, commit.files[path]) for path in wanted if path in commit.files])


@route("GET", "/api/models/{id}/refs")
def refs(h: Handler, id: str) -> None:
    repo = h.open(id)
    shown = {"converts": [], "branches": repo.heads, "tags": repo.tags}
    for kind, git in (("branches", "heads"), ("tags", "tags")):
        named = shown[kind].items()
        shown[kind] = [{"name": n, "ref": f"refs/{git}/{n}", "targetCommit": sha} for n, sha in named]
    h.send(body=shown)


@route("POST", "/api/models/{id}/(?P<kind>branch|tag)/{rev}")
def add_ref(h: Handler, id: str, kind: str, rev: str) -> None:
    repo, body = h.open(id, write=True), json.loads(h.body or b"{}")
    names, name = (repo.heads, rev) if kind == "branch" else (repo.tags, body["tag"])
    if name in names:
        raise HubError(409, f"Reference already exists: {name}")
    names[name] = repo.resolve((body.get("startingPoint") or "main") if kind == "branch" else rev).id
    h.send(body={})


# Upload


@route("POST", "/api/models/{id}/preupload/{rev}")
def preupload(h: Handler, id: str, rev: str) -> None:
    repo, body, files = h.open(id, write=True), json.loads(h.body), []
    commit = repo.resolve(rev)
    for file in body["files"]:
        path, held = file["path"], commit.files.get(file["path"])
        lfs = repo.wants_lfs(path, base64.b64decode(file.get("sample", "")), file["size"])
        known = row(path, held) if held is not None else {"oid": None}
        files.append({"path": path, "uploadMode": "lfs" if lfs else "regular"})
        files[-1]["oid"] = known.get("lfs", known)["oid"]
        files[-1]["shouldIgnore"] = repo.ignored(commit, path, body.get("gitIgnore"))
    h.send(body={"files": files})


@route("POST", "/{id}\\.git/info/lfs/objects/batch")
def lfs_batch(h: Handler, id: str) -> None:
    repo = h.open(id, write=True)
    objects = [{key: file[key] for key in ("oid", "size")} for file in json.loads(h.body)["objects"]]
    for file in objects:
        if file["oid"] not in repo.large:  # without actions, the client takes it for stored
            verify = {"href": f"{h.hub.url}/{id}.git/info/lfs/objects/verify", "header": {}}
            upload = {"href": f"{h.hub.storage}/lfs/{id}/{file['oid']}?sig={h.hub.secret}"}
            file["actions"] = {"upload": upload, "verify": verify}
    h.send(body={"transfer": "basic", "objects": objects})


@route("PUT GET HEAD", "/lfs/{id}/(?P<sha256>[0-9a-f]{64})")
def lfs(h: Handler, id: str, sha256: str) -> None:
    if h.query.get("sig") != h.hub.secret:
        raise HubError(403, "SignatureDoesNotMatch")
    large = h.hub.repos[id].large
    if h.command != "PUT":
        return h.send(body=large[sha256], headers={"ETag": f'"{sha256}"'})
    if hashlib.sha256(h.body).hexdigest() != sha256:
        raise HubError(400, "Content does not match its sha256")
    large[sha256] = h.body
    h.send()


@route("POST", "/{id}\\.git/info/lfs/objects/verify")
def lfs_verify(h: Handler, id: str) -> None:
    repo, body = h.open(id, write=True), json.loads(h.body)
    if len(repo.large.get(body["oid"], b"")) != body["size"]:
        raise HubError(404, "Object does not exist")
    h.send(body={"message": "ok"})


@route("POST", "/api/models/{id}/commit/{rev}")
def commit(h: Handler, id: str, rev: str) -> None:
    repo, changes, head = h.open(id, write=True), {}, {}
    files = repo.resolve(rev).files
    if rev not in repo.heads:
        raise HubError(400, f"{rev} is not a branch")
    for line in h.body.splitlines():
        operation = json.loads(line)
        key, value = operation["key"], operation["value"]
        path = value.get("path", "")
        if key == "header":
            head = value
        elif key == "file":
            changes[path] = base64.b64decode(value["content"])
            if len(changes[path]) > REGULAR_MAX:
                raise HubError(413, f"{path} is too big: use LFS")
        elif key == "lfsFile":
            if value["oid"] not in repo.large:
                raise HubError(400, f"an LFS pointer pointed to a file that does not exist: {path}")
            changes[path] = pointer(value["oid"], len(repo.large[value["oid"]]))
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise HubError(404, f"{path} does not exist", "EntryNotFound")
            changes |= dict.fromkeys(gone)
        else:
            raise HubError(400, f"Unknown operation {key}")
    new = repo.commit(rev, changes, head.get("summary") or "Update", head.get("parentCommit"))
    h.send(body={"success": True, "commitOid": new.id, "commitUrl": f"{h.hub.url}/{id}/commit/{new.id}"})


# Download


@route("GET HEAD", "/{id}/resolve/{rev}/(?P<path>.+)")
def resolve(h: Handler, id: str, rev: str, path: str) -> None:
    repo = h.open(id)
    commit = repo.resolve(rev)
    shown = row(path, data := repo.file(commit, path))
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{shown["oid"]}"'}
    if not POINTER.fullmatch(data):
        return h.send(body=data, headers=headers)
    sha256, size = shown["lfs"]["oid"], shown["lfs"]["size"]
    headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
    h.send(302, headers=headers | {"Location": f"{h.hub.storage}/lfs/{id}/{sha256}?sig={h.hub.secret}"})

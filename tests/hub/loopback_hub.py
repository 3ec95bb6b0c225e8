"""A server on loopback that speaks as much of the Hub's API as publishing and loading a model need.

The real client of `huggingface_hub` works against it. Files that are large or binary go through git-lfs' basic
transfer; the client must be told not to use Xet (``HF_HUB_DISABLE_XET=1``), which it does whenever that is installed.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.onnx", "*.png", "*.xz")
LARGE = 10_000_000
LICENSES = ("mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "other")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Commit:
    """A state of a repository: contents by path."""

    oid: str
    title: str
    files: dict[str, bytes]
    lfs: frozenset[str] = frozenset()


@dataclass
class Repository:
    """A model repository.

    Attributes:
        repo_id: Its name.
        private: Who may see it: its owner alone, or everybody.
        commits: From the first, an empty one.
        branches: The last commit of each.
    """

    repo_id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, bytes], lfs: frozenset[str] = frozenset()) -> Commit:
        """Commit a state to a branch."""
        seed = f"{self.repo_id}/{len(self.commits)}/{title}"
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, files, lfs)
        self.commits.append(commit)
        self.branches[branch] = commit
        return commit

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch or of a hash."""
        if revision in self.branches:
            return self.branches[revision]
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Failure:
    """What goes wrong with the next requests of a kind."""

    method: str
    path: str
    status: int | None  # None: the connection is cut
    times: int


class LoopbackHub:
    """The server and what it holds.

    Attributes:
        tokens: Users by access token.
        organisations: Organisations by user.
        repositories: By name.
        objects: Large files that were received, by SHA-256; also those that no commit refers to.
        collections: By slug.
        requests: Method and path of every request.
        received: SHA-256 of every large file that was sent, in order.
    """

    def __init__(self) -> None:
        self.tokens = {"hf_" + "jane" * 8: "jane", "hf_" + "john" * 8: "john"}
        self.organisations = {"jane": ["acme"]}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.received: list[str] = []
        self.failures: list[Failure] = []
        self.lock = threading.Lock()
        hub = self

        class Handler(HubRequest):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def token_of(self, user: str) -> str:
        """A user's access token."""
        return next(token for token, owner in self.tokens.items() if owner == user)

    def fail_next(self, method: str, path: str, status: int | None = None, times: int = 1) -> None:
        """Let the next requests fail whose path contains ``path``: with a status, or by cutting the connection."""
        self.failures.append(Failure(method, path, status, times))

    def may_write(self, user: str | None, repo_id: str) -> bool:
        """Whether a repository is a user's, or one of an organisation of theirs."""
        owner = repo_id.split("/")[0]
        return user is not None and owner in (user, *self.organisations.get(user, []))

    def visible(self, user: str | None, repo_id: str) -> Repository | None:
        """A repository, if there is one and the user may see it."""
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and not self.may_write(user, repo_id)):
            return None
        return repository

    def stop(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


class HubError(Exception):
    """An answer that is an error, as the Hub gives it."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


class HubRequest(BaseHTTPRequestHandler):
    """Answers one request."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.user = self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        with self.hub.lock:
            self.hub.requests.append((method, path))
            for failure in self.hub.failures:
                if failure.times > 0 and failure.method == method and failure.path in path:
                    failure.times -= 1
                    if failure.status is None:
                        self.close_connection = True
                        self.connection.close()
                        return
                    self.send_json({"error": "provoked"}, failure.status)
                    return
            try:
                for wanted, pattern, action in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and wanted == ("GET" if method == "HEAD" else method):
                        action(self, **match.groupdict())
                        return
                raise HubError(404, f"nothing at {method} {path}", "EntryNotFound")
            except HubError as error:
                self.send_json(error.body, error.status, error.code)

    # ---- what answers are made of ----

    def send_json(self, values: Any, status: int = 200, code: str | None = None) -> None:
        self.send(json.dumps(values).encode(), status, {"X-Error-Code": code, "Content-Type": "application/json"})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str | None] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            if value is not None:
                self.send_header(name, value)
        message = "provoked" if status >= 400 else None
        if message is not None:
            self.send_header("X-Error-Message", message)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> Any:
        return json.loads(self.content or b"{}")

    def logged_in(self) -> str:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def repository(self, repo: str, write: bool = False) -> Repository:
        found = self.hub.visible(self.user, repo)
        if found is None:
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not self.hub.may_write(self.logged_in(), repo):
            raise HubError(403, "You don't have the rights to write to it")
        return found

    def commit_at(self, repository: Repository, revision: str) -> Commit:
        found = repository.at(revision)
        if found is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # ---- accounts and repositories ----

    def whoami(self) -> None:
        user = self.logged_in()
        orgs = [{"name": name, "type": "org"} for name in self.hub.organisations.get(user, [])]
        self.send_json({"type": "user", "name": user, "fullname": user, "orgs": orgs, "auth": {}})

    def create_repo(self) -> None:
        user, asked = self.logged_in(), self.body()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if not self.hub.may_write(user, name):
            raise HubError(403, "You don't have the rights to create a model under this namespace")
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repositories:
            raise HubError(409, "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = Repository(name, private)
        repository.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[name] = repository
        self.send_json({"url": url, "name": name, "id": name})

    def settings(self, repo: str) -> None:
        repository, asked = self.repository(repo, write=True), self.body()
        if "visibility" in asked or "private" in asked:
            repository.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.send_json({})

    def delete_repo(self) -> None:
        asked = self.body()
        name = f"{asked.get('organization') or self.logged_in()}/{asked['name']}"
        self.repository(name, write=True)
        del self.hub.repositories[name]
        self.send_json({})

    def model_info(self, repo: str, revision: str = "main") -> None:
        repository = self.repository(repo)
        commit = self.commit_at(repository, revision)
        card = card_data(commit.files.get("README.md", b"").decode())
        self.send_json(
            {
                "_id": "1", "id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": commit.oid,
                "private": repository.private, "disabled": False, "gated": False, "downloads": 0, "likes": 0,
                "tags": list(card.get("tags") or []), "cardData": card, "lastModified": DATE, "createdAt": DATE,
                "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name"),
                "siblings": [{"rfilename": path, "size": len(data)} for path, data in sorted(commit.files.items())],
            }
        )  # fmt: skip

    def refs(self, repo: str) -> None:
        branches = self.repository(repo).branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c.oid} for n, c in branches.items()]
        self.send_json({"branches": listed, "converts": [], "tags": [], "pullRequests": []})

    def create_branch(self, repo: str, branch: str) -> None:
        repository = self.repository(repo, write=True)
        if branch in repository.branches:
            raise HubError(409, "Reference already exists")
        repository.branches[branch] = self.commit_at(repository, self.body().get("startingPoint", "main"))
        self.send_json({})

    def tree(self, repo: str, revision: str, path: str | None = None) -> None:
        commit = self.commit_at(self.repository(repo), revision)
        prefix = f"{path}/" if path else ""
        found = [
            entry(name, data, name in commit.lfs)
            for name, data in sorted(commit.files.items())
            if name.startswith(prefix)
            and ("/" not in name.removeprefix(prefix) or self.query.get("recursive") in ("true", "True"))
        ]
        self.send_json(found)

    def paths_info(self, repo: str, revision: str) -> None:
        commit = self.commit_at(self.repository(repo), revision)
        asked = self.body() if self.content.startswith(b"{") else parse_qs(self.content.decode())
        self.send_json(
            [entry(p, commit.files[p], p in commit.lfs) for p in asked.get("paths", []) if p in commit.files]
        )

    # ---- commits ----

    def validate_yaml(self) -> None:
        data = card_data(self.body().get("content", ""))
        errors = []
        if data.get("license") is not None and data["license"] not in LICENSES:
            errors.append({"message": f'"license" must be one of {", ".join(LICENSES)}'})
        for model in data.get("model-index") or []:
            for result in model.get("results", []):
                if not {"task", "dataset", "metrics"} <= set(result):
                    errors.append({"message": '"model-index" lacks a field'})
        self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        commit = self.commit_at(repository, revision)
        files = []
        for file in self.body()["files"]:
            sample = base64.b64decode(file["sample"])
            binary = b"\0" in sample or any(fnmatch.fnmatch(file["path"], pattern) for pattern in LFS_PATTERNS)
            large = binary or file["size"] > LARGE
            answer: dict[str, Any] = {
                "path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
            }  # fmt: skip
            if file["path"] in commit.files:
                answer["oid"] = blob_id(commit.files[file["path"]], file["path"] in commit.lfs)
            files.append(answer)
        self.send_json({"files": files})

    def lfs_batch(self, repo: str) -> None:
        self.repository(repo, write=True)
        objects = []
        for asked in self.body()["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}/verify"},
                }
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise HubError(400, "the content is not what its hash says")
        self.hub.objects[oid] = self.content
        self.hub.received.append(oid)
        self.send(b"")

    def lfs_verify(self, oid: str) -> None:
        if len(self.hub.objects.get(oid, b"")) != self.body()["size"]:
            raise HubError(400, "the object is not whole")
        self.send_json({})

    def commit(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        parent = self.commit_at(repository, revision)
        if revision not in repository.branches:
            raise HubError(400, "commits go to branches")
        files, lfs, title = dict(parent.files), set(parent.lfs), ""
        for line in self.content.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent.oid):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                lfs.discard(value["path"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise HubError(400, "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = self.hub.objects[value["oid"]]
                lfs.add(value["path"])
            elif kind in ("deletedFile", "deletedFolder"):
                for name in list(files):
                    if name == value["path"] or (kind == "deletedFolder" and name.startswith(value["path"])):
                        del files[name]
                        lfs.discard(name)
        made = repository.add(revision, title, files, frozenset(lfs))
        self.send_json(
            {"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{made.oid}"}
        )

    # ---- downloads ----

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.commit_at(self.repository(repo), revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        large = path in commit.lfs
        etag = hashlib.sha256(content).hexdigest() if large else blob_id(content)
        headers: dict[str, str | None] = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.send(content, 200, headers)
            return
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.send(content[start : end + 1], 206, headers)

    # ---- collections ----

    def create_collection(self) -> None:
        user, asked = self.logged_in(), self.body()
        if not self.hub.may_write(user, f"{asked['namespace']}/x"):
            raise HubError(403, "not yours")
        slug = f"{asked['namespace']}/{re.sub('[^a-z0-9]+', '-', asked['title'].lower()).strip('-')}-1"
        if slug in self.hub.collections:
            raise HubError(409, "This collection already exists", slug=slug)
        self.hub.collections[slug] = {
            "slug": slug, "title": asked["title"], "description": asked.get("description"),
            "owner": {"name": asked["namespace"]}, "items": [], "lastUpdated": DATE, "position": 0,
            "private": asked.get("private", False), "theme": "blue", "upvotes": 0,
        }  # fmt: skip
        self.send_json(self.hub.collections[slug])

    def get_collection(self, slug: str) -> None:
        if slug not in self.hub.collections:
            raise HubError(404, "no such collection")
        self.send_json(self.hub.collections[slug])

    def add_item(self, slug: str) -> None:
        self.logged_in()
        asked, collection = self.body(), self.hub.collections[slug]
        items = collection["items"]
        if any(item["id"] == asked["item"]["id"] for item in items):
            raise HubError(409, "already in it")
        self.repository(asked["item"]["id"])
        note = {"html": asked["note"], "text": asked["note"]} if asked.get("note") else None
        items.append({"_id": str(len(items)), **asked["item"], "position": len(items), "note": note})
        self.send_json(collection)


def card_data(text: str) -> dict[str, Any]:
    """The metadata of a card."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return (yaml.safe_load(match[1]) if match else None) or {}


def blob_id(content: bytes, lfs: bool = False) -> str:
    """What the Hub tells two contents apart by: git's hash, or of a large file the SHA-256."""
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes, lfs: bool) -> dict[str, Any]:
    """A file in a listing."""
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if lfs:
        found["lfs"] = {"oid": blob_id(content, lfs=True), "size": len(content), "pointerSize": 130}
    return found


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", HubRequest.whoami),
    ("POST", r"/api/repos/create", HubRequest.create_repo),
    ("DELETE", r"/api/repos/delete", HubRequest.delete_repo),
    ("POST", r"/api/validate-yaml", HubRequest.validate_yaml),
    ("POST", r"/api/collections", HubRequest.create_collection),
    ("GET", r"/api/collections/(?P<slug>.+)", HubRequest.get_collection),
    ("POST", r"/api/collections/(?P<slug>.+)/items", HubRequest.add_item),
    ("PUT", rf"/api/models/{NAME}/settings", HubRequest.settings),
    ("GET", rf"/api/models/{NAME}/refs", HubRequest.refs),
    ("POST", rf"/api/models/{NAME}/branch/(?P<branch>.+)", HubRequest.create_branch),
    ("GET", rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", HubRequest.tree),
    ("POST", rf"/api/models/{NAME}/paths-info/(?P<revision>[^/]+)", HubRequest.paths_info),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", HubRequest.preupload),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)", HubRequest.commit),
    ("GET", rf"/api/models/{NAME}/revision/(?P<revision>[^/]+)", HubRequest.model_info),
    ("GET", rf"/api/models/{NAME}", HubRequest.model_info),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", HubRequest.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", HubRequest.lfs_put),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", HubRequest.lfs_verify),
    ("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubRequest.resolve),
]

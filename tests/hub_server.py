"""A small stand-in for the server of the Hugging Face Hub: what huggingface_hub asks of it in downloads and uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Repository:
    """Commits by revision, and the files of each commit. gated: files can be listed, not downloaded."""

    revisions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        """Add a commit at a revision; returns its hash."""
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.revisions[revision] = self.revisions[name] = name
        self.files[name] = files
        return name


class Hub:
    """The repositories, and every download that was served: (path, first byte).

    broken: paths of files whose download fails with an error of the server. cut: bytes after which the connection is
    closed, once, by path. token: the one that may write; visibility: of repositories that uploads created; objects:
    uploaded contents of large files by their SHA-256; large: bytes from which a file is one.
    """

    token = "hf_write"
    large = 4096

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.downloads: list[tuple[str, int]] = []
        self.broken: set[str] = set()
        self.cut: dict[str, int] = {}
        self.hold: threading.Event | None = None
        self.visibility: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []

    def add(self, name: str, files: dict[str, bytes]) -> Repository:
        """A repository with one commit on main."""
        repository = self.repositories[name] = Repository()
        repository.commit(files)
        return repository

    def downloaded(self) -> list[str]:
        """The paths of the files that were downloaded, and forget them."""
        paths = sorted(path for path, _ in self.downloads)
        self.downloads.clear()
        return paths


def files_of(directory: Path) -> dict[str, bytes]:
    """The files of a directory as those of a commit."""
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.is_file()}


@contextmanager
def serving(hub: Hub, cache: Path) -> Iterator[None]:
    """Inside, huggingface_hub asks this hub, and its cache is `cache`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        # huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported.
        address = f"http://127.0.0.1:{server.server_port}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.ENDPOINT", address)
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        # Uploads by the protocol of LFS, which the server has.
        patch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        # Between attempts.
        patch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        """Logs nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+))?", path):
            self._answer_api(match[1], match[2], match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._answer_file(match[1], match[2], match[3])
        else:
            self._fail(404, "EntryNotFound")

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._fail(401, "")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= self.hub.large else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send_json({"files": files})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            address = f"http://{self.headers['Host']}/objects/"
            objects = [
                {**entry, "actions": {"upload": {"href": address + entry["oid"]}}}
                for entry in json.loads(body)["objects"]
            ]
            self._send_json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            revisions = self.hub.repositories[match[1]].revisions
            revisions.setdefault(match[2], revisions["main"])
            self._send_json({})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._fail(404, "EntryNotFound")

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(200, b"")

    def _create(self, wanted: dict[str, str]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            address = f"http://{self.headers['Host']}/{name}"
            self._send_json({"error": "You already created this model repo", "url": address}, 409)
            return
        self.hub.add(name, {})
        self.hub.visibility[name] = wanted.get("visibility", "public")
        self._send_json({"url": f"http://{self.headers['Host']}/{name}", "name": name})

    def _commit(self, name: str, branch: str, lines: list[dict[str, dict[str, str]]]) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.files[repository.revisions[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = repository.commit(files, branch)
        address = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        self._send_json({"commitUrl": address, "commitOid": commit, "success": True})

    def _send_json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer_api(self, name: str, kind: str | None, revision: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        if kind == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in files.items()
            ]
            self._send(200, json.dumps(entries).encode())
        else:
            info = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
            self._send(200, json.dumps(info).encode())

    def _answer_file(self, name: str, revision: str, path: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        commit, files = found
        if self.hub.repositories[name].gated:
            self._fail(403, "GatedRepo")
            return
        if path not in files:
            self._fail(404, "EntryNotFound", commit)
            return
        content, start = files[path], 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        if self.command == "GET":
            if path in self.hub.broken:
                self._fail(500, "")
                return
            if self.hub.hold is not None:
                self.hub.hold.wait(20)
            self.hub.downloads.append((path, start))
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut.pop(path, None) if self.command == "GET" else None
        self._send(206 if start else 200, content[start:], headers, cut)

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._fail(404, "RepoNotFound")
            return None
        commit = repository.revisions.get(revision)
        if commit is None:
            self._fail(404, "RevisionNotFound")
            return None
        return commit, repository.files[commit]

    def _fail(self, status: int, code: str, commit: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

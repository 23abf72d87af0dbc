"""A hub on loopback: as much of the Hugging Face hub's protocol as up- and downloads need, and its faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf")


@dataclass
class Faults:
    """What goes wrong. `cut` closes a weight file's connection after half of what is left, that many times."""

    cut: int = 0
    too_many_requests: int = 0
    wrong_bytes: bool = False
    refuse_uploads: bool = False
    uploads: int | None = None
    """So many large files are taken, then the connection is refused; null: all."""
    loses: bytes = b""
    """Goes into every large file of a commit in place of its own bytes."""
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    ignores_ranges: bool = False


@dataclass(frozen=True)
class Hollow:
    """A file of any size of which the first bytes are known, and others by where they begin; zeros lie between."""

    head: bytes
    size: int
    islands: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(self.size)
        known = self.head[begin:end]
        found = bytearray(known + bytes(end - begin - len(known)))
        for start, data in self.islands.items():
            first, last = max(start, begin), min(start + len(data), end)
            if first < last:
                found[first - begin : last - begin] = data[first - start : last - start]
        return bytes(found)


@dataclass
class Hub:
    repositories: dict[str, dict[str, Any]]
    """By name, the files of each: bytes, or `Hollow`."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Uploaded large files by SHA-256, in no repository before a commit names them."""
    faults: Faults = field(default_factory=Faults)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes of each file that went out."""
    url: str = ""

    def add(self, name: str, folder: Path) -> None:
        self.repositories[name] = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(f"{self.command} {path}")
            parts = path.split("/")
            if hub.faults.too_many_requests > 0 and "resolve" in parts and self.command == "GET":
                hub.faults.too_many_requests -= 1
                self._refuse(429, "", {"Retry-After": "0"})
            elif parts[:2] == ["api", "models"]:
                self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            elif len(parts) > 4 and parts[2] == "resolve":
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._refuse(404, "EntryNotFound")

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requests.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if hub.faults.token and self.headers.get("Authorization") != f"Bearer {hub.faults.token}":
                self._refuse(401, "")
                return
            parts = path.split("/")
            if path == "api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif path == "api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                if name not in hub.repositories:
                    hub.repositories[name] = {}
                    hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
                self._answer({"url": f"{hub.url}/{name}", "id": name})
            elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
                files = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._answer({"objects": [self._large(item) for item in json.loads(body)["objects"]]})
            elif parts[:2] == ["api", "models"] and parts[4] == "commit":
                self._commit("/".join(parts[2:4]), body)
            else:
                self._refuse(404, "EntryNotFound")

        def do_PUT(self) -> None:
            oid = self.path.rpartition("/")[2]
            hub.requests.append(f"PUT {oid}")
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if hub.faults.uploads is not None:
                hub.faults.uploads -= 1
            if hub.faults.refuse_uploads or (hub.faults.uploads is not None and hub.faults.uploads < 0):
                self._refuse(403, "")
                return
            if hub.faults.cut > 0:
                hub.faults.cut -= 1
                self._refuse(500, "")
                return
            hub.large[oid] = data
            self._answer({})

        def _large(self, item: dict[str, Any]) -> dict[str, Any]:
            upload = {"actions": {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}}
            return item | ({} if item["oid"] in hub.large else upload)

        def _commit(self, name: str, body: bytes) -> None:
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "file":
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.repositories[name][value["path"]] = hub.faults.loses or hub.large[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del hub.repositories[name][value["path"]]
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{name}/commit/{COMMIT}"})

        def _answer(self, data: dict[str, Any]) -> None:
            body = json.dumps(data).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"X-Error-Code": code, "Content-Length": "0"} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()

        def _allowed(self, name: str, revision: str) -> bool:
            if hub.faults.token and self.headers.get("Authorization") != f"Bearer {hub.faults.token}":
                self._refuse(401, "RepoNotFound")
            elif name in hub.faults.gated:
                self._refuse(403, "GatedRepo")
            elif name not in hub.repositories:
                self._refuse(404, "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self._refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def _info(self, name: str, revision: str) -> None:
            if not self._allowed(name, revision):
                return
            siblings = []
            for file, data in hub.repositories[name].items():
                entry = {"rfilename": file, "size": len(data), "blobId": _git_hash(_known(data))}
                if file.endswith(LARGE):
                    entry["lfs"] = {"sha256": hashlib.sha256(_known(data)).hexdigest(), "size": len(data), "pointerSize": 134}
                siblings.append(entry)
            told = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": name in hub.private}
            if card := re.match(rb"---\n(.*?)\n---\n", _known(hub.repositories[name].get("README.md", b"")), re.DOTALL):
                told["cardData"] = yaml.safe_load(card[1])
            body = json.dumps(told)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def _file(self, name: str, revision: str, file: str) -> None:
            if not self._allowed(name, revision):
                return
            data = hub.repositories[name].get(file)
            if data is None:
                self._refuse(404, "EntryNotFound")
                return
            large = file.endswith(LARGE)
            etag = hashlib.sha256(_known(data)).hexdigest() if large else _git_hash(data)
            if hub.faults.wrong_bytes and large:
                data = data[:-1] + bytes([data[-1] ^ 1])
            asked = "" if hub.faults.ignores_ranges else self.headers.get("Range", "")
            wanted = asked.removeprefix("bytes=").partition("-")
            begin = int(wanted[0] or 0)
            end = min(int(wanted[2]) + 1 if wanted[2] else len(data), len(data))
            self.send_response(206 if wanted[1] else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - begin))
            if wanted[1]:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if large and hub.faults.cut > 0 and end - begin > 8:
                hub.faults.cut -= 1
                self.wfile.write(data[begin : begin + (end - begin) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            for at in range(begin, end, 1 << 16):
                part = data[at : min(at + (1 << 16), end)]
                hub.sent[f"{name}/{file}"] = hub.sent.get(f"{name}/{file}", 0) + len(part)
                try:
                    self.wfile.write(part)
                except ConnectionError:  # who asked has gone
                    self.close_connection = True
                    return

    return Handler


def _known(data: bytes | Hollow) -> bytes:
    return data.head if isinstance(data, Hollow) else data


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A server on loopback that speaks the part of the Hugging Face hub's protocol that medimg uses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class HubState:
    """Repositories, each with its commits, and what was asked."""

    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    token: str = "right"
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubState:
        assert isinstance(self.server, HubServer)
        return self.server.hub

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, {"error": "no"}, X_Error_Message="Invalid credentials in Authorization header")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            status = 409 if name in self.hub.repositories else 200
            self.hub.repositories.setdefault(name, asked)
            self.hub.branches.setdefault(name, {})
            self._answer(status, {"url": f"{self.hub.endpoint}/{name}"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            endpoint = self.hub.endpoint
            objects = [
                {**one, "actions": {"upload": {"href": f"{endpoint}/objects/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/branch/" in path:
            self._answer(200, {})
        elif "/commit/" in path:
            _, _, _, owner, name, _, branch = path.split("/", 6)
            name = f"{owner}/{name}"
            content = dict(self.hub.commits.get(self.hub.branches[name].get(branch, ""), {}))
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    content[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    content[value["path"]] = self.hub.objects[value["oid"]]
            oid = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
            self.hub.commits[oid] = content
            self.hub.branches[name][branch] = oid
            url = f"{self.hub.endpoint}/{name}/commit/{oid}"
            self._answer(200, {"commitUrl": url, "commitOid": oid})
        else:
            self._answer(404, {"error": "not found"})

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.objects[self.path.rpartition("/")[2]] = body
        self._answer(200, {})

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = self.path.strip("/").split("/", 4)
        if len(parts) < 5 or parts[2] != "resolve":
            self._answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
            return
        owner, name, _, revision, file = parts
        commit = self.hub.branches.get(f"{owner}/{name}", {}).get(revision, revision)
        if commit not in self.hub.commits:
            self._answer(404, {}, X_Error_Code="RepoNotFound")
            return
        if file not in self.hub.commits[commit]:
            self._answer(404, {}, X_Error_Code="EntryNotFound")
            return
        content = self.hub.commits[commit][file]
        digest = hashlib.sha256(content).hexdigest()
        self._answer(200, content, X_Repo_Commit=commit, ETag=f'"{digest}"', X_Linked_Etag=f'"{digest}"')

    def do_HEAD(self) -> None:
        self.do_GET()


class HubServer(ThreadingHTTPServer):
    """The server, in a thread of its own while it is a context."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.hub = HubState(endpoint=self.endpoint)

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

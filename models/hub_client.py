"""A process that downloads files of a hub repository with the hub's own client.

Its argument is JSON: '["huggingface", "owner/name", null, "/folder", ["*.json"]]' (hub, repository, revision, where to,
patterns). It ends when the process that began it does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path


def huggingface(repository: str, revision: str | None, folder: str, files: list[str]) -> None:
    """Download from Hugging Face Hub and check what came against the repository's checksums."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=files)
    wrong = api.verify_repo_checksums(repository, revision=revision, local_dir=folder).mismatches
    for mismatch in wrong:
        (Path(folder) / mismatch["path"]).unlink()
    if wrong:
        raise ValueError("checksum differs: " + ", ".join(mismatch["path"] for mismatch in wrong))


def modelscope(repository: str, revision: str | None, folder: str, files: list[str]) -> None:
    """Download from ModelScope; its client compares each file with the repository's checksum."""
    from modelscope_hub import HubApi

    HubApi().download_repo(repository, "model", revision=revision, local_dir=folder, allow_patterns=files)


def end_with_parent() -> None:
    sys.stdin.read()  # returns when the other end is gone, however it went
    os._exit(1)


if __name__ == "__main__":
    hub, *what = json.loads(sys.argv[1])
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        {"huggingface": huggingface, "modelscope": modelscope}[hub](*what)
    except Exception as error:  # whatever the client raises becomes the one line that the parent shows
        sys.exit("ERROR: " + (" ".join(str(error).split()) or type(error).__name__))
    os._exit(0)  # the thread that reads the standard input would hold up a normal exit

"""The registry's mode on a ZeroGPU Space: weights are placed at start, a model's generator runs inside the GPU call.

There each GPU call is a forked child of this process: threads do not survive into it and nothing loaded inside comes
back, so models are kept here, at module level, and requests and events cross as CPU data. Off ZeroGPU none of this is
used; `spaces.GPU` then returns the function as it is, which is how the tests run it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from models.capabilities import Event, Request, SpeechModel

ACTIVE = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
SECONDS = 120  # the longest one answer may hold the GPU

PLACED: dict[str, SpeechModel] = {}


def _stream(model_id: str, request: Request) -> Iterator[Event | None]:
    yield from PLACED[model_id].stream(request)


if ACTIVE:
    import spaces  # replaces torch's CUDA start-up: imported before any model

    stream = spaces.GPU(duration=SECONDS)(_stream)
else:
    stream = _stream

"""Recorded values of a golden case against ours: whole tensors, named slices of them, and plain facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tests.parity.report import Case

SLICE = re.compile(
    r"(?P<whole>.+)_(?:(?P<kind>first|last)(?P<count>\d+)|every(?P<step>\d+)(?:st|nd|rd|th)_\w+)(?P<tail>\.\d+)?"
)


def whole_name(name: str) -> str:
    """The tensor that `name` is all of, or a slice of: "wav_first24576" is of "wav"."""
    found = SLICE.fullmatch(name)
    return found["whole"] + (found["tail"] or "") if found else name


def sliced(name: str, ours: np.ndarray, golden: np.ndarray) -> np.ndarray:
    """The part of `ours` that `name` promises; unchanged where no axis gives golden's shape."""
    found = SLICE.fullmatch(name)
    if found is None or ours.ndim != golden.ndim:
        return ours
    for axis in reversed(range(ours.ndim)):
        index: list[Any] = [slice(None)] * ours.ndim
        if found["step"]:
            index[axis] = slice(None, None, int(found["step"]))
        elif found["kind"] == "first":
            index[axis] = slice(None, int(found["count"]))
        else:
            index[axis] = slice(-int(found["count"]), None)
        if ours[tuple(index)].shape == golden.shape:
            return ours[tuple(index)]
    return ours


def compare(case: Case, golden: Mapping[str, Any], ours: Mapping[str, Any], most: float, prefix: str = "") -> None:
    """Every golden tensor against ours of the same name. One that we have no value for is wrong, never skipped."""
    for name in sorted(golden):
        recorded, whole = np.asarray(golden[name]), whole_name(name)
        if whole not in ours:
            case.wrong.append(f"{prefix}{name}: recorded, but nothing here gives it")
            continue
        made = sliced(name, np.asarray(ours[whole]), recorded)
        if recorded.dtype.kind in "iub":
            if made.shape != recorded.shape:
                case.wrong.append(f"{prefix}{name}: shape {made.shape}, golden {recorded.shape}")
            case.tokens(prefix + name, made.flatten().tolist(), recorded.flatten().tolist())
        else:
            case.floats(prefix + name, made, recorded, most)


def facts(
    case: Case, golden: Mapping[str, Any], ours: Mapping[str, Any], aside: Iterable[str], prefix: str = ""
) -> None:
    """Every golden fact (text, bounds, counts) must be equal; `aside` names the ones that describe the case itself."""
    for name, recorded in golden.items():
        if name in aside:
            continue
        if name not in ours:
            case.wrong.append(f"{prefix}{name}: recorded, but nothing here gives it")
            continue
        case.fact(prefix + name, plain(ours[name]), recorded)


def plain(value: Any) -> Any:
    """`value` as JSON would give it back."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value

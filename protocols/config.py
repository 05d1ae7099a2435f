"""The options of a company, as one frozen value that every actor receives."""

from __future__ import annotations

import enum
import json
import pathlib

import msgspec

from protocols.adapters import Adapter
from protocols.errors import StartError
from protocols.weights import OWN, File, Source


class Policy(enum.StrEnum):
    """Order in which waiting requests are admitted."""

    FCFS = "fcfs"
    LPM = "lpm"
    PRIORITY = "priority"


class Balance(enum.StrEnum):
    """How the balancer chooses a replica."""

    ROUND_ROBIN = "round_robin"
    SHORTEST_QUEUE = "shortest_queue"
    MINIMUM_TOKENS = "minimum_tokens"


class Speculate(enum.StrEnum):
    """How the tokens are guessed that a decode may verify beside its own."""

    OFF = "off"
    NGRAM = "ngram"


class ExecutorKind(enum.StrEnum):
    """What runs the plans: a model, or the hash executor whose token is a function of the request
    (for tests of everything else: exact, fast, no torch)."""

    MODEL = "model"
    HASH = "hash"


class ModelCard(msgspec.Struct, frozen=True):
    """What the torch-free actors need to know of a model directory.

    path: absolute. context: tokens of prompt plus output at most. vocab_size: width of the logits.
    eos: ids that end a sequence. files: those of the directory that are held open while a company lives, so
    that whoever starts later reads what the first ones read.
    """

    name: str
    path: str
    architecture: str
    context: int
    vocab_size: int
    eos: tuple[int, ...]
    files: tuple[File, ...] = ()

    def file(self, name: str) -> pathlib.Path:
        """Where to open a file of the directory."""
        held = (pathlib.Path(file.path) for file in self.files if file.name == name)
        return next(held, pathlib.Path(self.path) / name)

    @property
    def own(self) -> Source:
        """The directory's checkpoint."""
        return Source(OWN, self.path, self.files)


class Keep(enum.StrEnum):
    """What a company keeps of files that it may have to read again: OPEN, so that they outlive their names,
    and their bytes where the system tells in time that somebody will write; COPY, in memory at once."""

    OPEN = "open"
    COPY = "copy"


class KernelChoice(enum.StrEnum):
    """What computes on a CPU: our own kernels where they can be compiled, or torch's operations."""

    AUTO = "auto"
    TORCH = "torch"


class AttentionKind(enum.StrEnum):
    """Whose attention kernels run on a GPU."""

    TORCH = "torch"
    TRITON = "triton"
    FLASH = "flash"
    FLASHINFER = "flashinfer"


def attention_kinds(option: str) -> tuple[AttentionKind, AttentionKind] | None:
    """The kernels for chunks and those for decodes: one name for both, or two with a comma between. None for
    `auto`."""
    names = option.split(",")
    if option == "auto":
        return None
    if len(names) <= 2 and all(name in list(AttentionKind) for name in names):
        prefill, decode = AttentionKind(names[0]), AttentionKind(names[-1])
        if prefill == decode or AttentionKind.TORCH not in (prefill, decode):
            return prefill, decode
    raise StartError(
        f"unknown --attention-backend {option!r}: choose auto, {', '.join(AttentionKind)}, or two of the last"
        " three for prefill and for decodes, as in flash,triton.",
        exit_code=2,
    )


def graph_sizes(option: str, max_running: int) -> tuple[int, ...]:
    """The batch sizes of decodes for which CUDA graphs are recorded, ascending; none for `off`. `auto`: up to
    `max_running`, with smaller steps at small sizes, where one more row costs most.
    """
    if option == "off":
        return ()
    if option == "auto":
        ladder = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_running, 32)]
        return (*(size for size in ladder if size < max_running), max_running)
    parts = option.split(",")
    if all(part.isdecimal() and 0 < int(part) <= max_running for part in parts):
        return tuple(sorted({int(part) for part in parts}))
    raise StartError(
        f"--cuda-graphs {option} is neither off, nor auto, nor batch sizes from 1 to --max-running"
        f" {max_running}, as in 1,8,32.",
        exit_code=2,
    )


class Quantization(enum.StrEnum):
    """How weights are kept: as they are, or as 8-bit integers or floating-point numbers (e4m3) with a scale
    for each row."""

    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"


class KvCacheDtype(enum.StrEnum):
    """How keys and values are kept: as they are computed, or as 8-bit floating-point numbers (e4m3) with a
    scale for each head of each token."""

    AUTO = "auto"
    FP8 = "fp8"


class Config(msgspec.Struct, frozen=True):
    """All options of `actorctl serve`, resolved. Sizes are bytes or tokens as named.

    depth: plans in flight (1 normal, 2 overlap). max_running: sequences in a batch at most.
    chunk_size: tokens of one step at most, prefill and decode together. max_open: open choices in
    the company at most (ledger slots). kv_memory: bytes of the KV pool, 0 = by memory_fraction, 0 = choose:
    of a GPU's memory, for weights and steps too; of what is free on a CPU. pages: fix the number of pages
    instead (tests). threads: of the executor, 0 = choose. step_ms: time that the hash
    executor takes for a step (tests). orphan_seconds: a response whose frontend died ends when its client has
    not come back for so long. linger_seconds: a finished response can be resumed through the ledger for
    so long, unless its slot is needed. burst_ms: how long the tokens of short steps may wait for each other,
    to be sent together; 0: not at all. speculate_tokens: tokens guessed for a sequence in a step at most;
    speculate_rows: for all of them together; speculate_min, speculate_max: how many of the last tokens
    must have occurred before, in this order, for a guess. loras: adapters that are loaded from the start.
    enable_lora: a GPU makes room for adapters before any is there.
    max_loras: adapters in a batch at most; max_lora_rank: of each. keep_weights: see Keep. tool_parser,
    reasoning_parser: the formats of calls and of thoughts that are looked for in answers
    (`actors.answers.formats`), "none" for none.

    attention_backend: see `attention_kinds`; cuda_graphs: see `graph_sizes`.
    trace_sample: share of the requests that are traced where their clients do not say.

    api_keys: SHA-256 digests. origins: of web pages that may use the company, hosts: names under which they
    may find it. max_bodies: bytes of all request bodies together that a frontend holds; max_connections: of
    one frontend. Seconds, and what has to happen within: head, body: arrive; idle: the next request on a
    connection; write: a slow reader takes some; queue: a request's first token (0: any time); template: the
    chat template renders; grammar: what an answer must be is read and checked.
    """

    model: ModelCard
    name: str = "troupe"
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    dtype: str = "auto"
    kv_memory: int = 0
    memory_fraction: float = 0.0
    pages: int = 0
    page_size: int = 16
    max_running: int = 64
    max_open: int = 1024
    chunk_size: int = 512
    depth: int = 2
    policy: Policy = Policy.FCFS
    radix: bool = True
    burst_ms: float = 9.0
    speculate: Speculate = Speculate.OFF
    speculate_tokens: int = 6
    speculate_min: int = 2
    speculate_max: int = 4
    speculate_rows: int = 24
    loras: tuple[Adapter, ...] = ()
    enable_lora: bool = False
    keep_weights: Keep = Keep.OPEN
    max_loras: int = 8
    max_lora_rank: int = 64
    dp: int = 1
    frontends: int = 1
    tokenizers: int = 1
    balance: Balance = Balance.MINIMUM_TOKENS
    executor: ExecutorKind = ExecutorKind.MODEL
    threads: int = 0
    kernels: KernelChoice = KernelChoice.AUTO
    quantization: Quantization = Quantization.NONE
    kv_cache_dtype: KvCacheDtype = KvCacheDtype.AUTO
    attention_backend: str = "auto"
    cuda_graphs: str = "auto"
    api_keys: tuple[str, ...] = ()
    keys_file: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""
    log_level: str = "info"
    log_format: str = "auto"
    trace_sample: float = 0.0
    socket: str = ""
    drain_seconds: float = 30.0
    orphan_seconds: float = 60.0
    linger_seconds: float = 5.0
    max_body: int = 4 * 1024 * 1024
    max_bodies: int = 256 * 1024 * 1024
    max_connections: int = 8192
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0
    queue_seconds: float = 0.0
    template_seconds: float = 5.0
    grammar_seconds: float = 10.0
    ring_bytes: int = 8 * 1024 * 1024
    step_ms: float = 0.0
    tool_parser: str = "none"
    reasoning_parser: str = "none"


MAX_JSON = 16 * 1024 * 1024
"""Bytes of a model's JSON files at most."""


def _read_json(path: pathlib.Path) -> dict[str, object]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise StartError(f"{path} is longer than {MAX_JSON} bytes.")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StartError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise StartError(f"{path} must hold a JSON object.")
    return value


def _ids(value: object) -> tuple[int, ...]:
    match value:
        case bool() | None:
            return ()
        case int():
            return (value,)
        case list():
            return tuple(item for item in value if isinstance(item, int))
        case _:
            return ()


def _positive(config: dict[str, object], path: pathlib.Path, *keys: str) -> int:
    """The first of `keys` that is there: older model families have names of their own."""
    text = config.get("text_config")
    nested = text if isinstance(text, dict) else {}
    value = next((found for key in keys if (found := config.get(key, nested.get(key))) is not None), None)
    if not isinstance(value, int) or value <= 0:
        raise StartError(f"{path} has no positive {keys[0]}.")
    return value


def read_model_card(directory: pathlib.Path, *, name: str = "", max_model_len: int = 0) -> ModelCard:
    """Read `config.json` and `generation_config.json` of a Hugging Face directory.

    max_model_len: shortens the context when > 0. Raises StartError with a sentence when the
    directory is not a model.
    """
    if not directory.is_dir():
        if directory.exists():
            raise StartError(f"{directory} is a file; a model is a directory with a config.json.")
        raise StartError(f"there is no model directory {directory}.")
    path = directory / "config.json"
    if not path.is_file():
        raise StartError(f"{directory} holds no config.json, so it is not a model directory.")
    config = _read_json(path)
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str):
        raise StartError(f"{path} names no architecture.")
    context = _positive(config, path, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
    if max_model_len > context:
        raise StartError(f"--max-model-len {max_model_len} exceeds the model's context of {context} tokens.")
    generation = directory / "generation_config.json"
    eos = _ids(_read_json(generation).get("eos_token_id")) if generation.is_file() else ()
    return ModelCard(
        name=name or directory.name,
        path=str(directory.resolve()),
        architecture=architecture,
        context=max_model_len or context,
        vocab_size=_positive(config, path, "vocab_size"),
        eos=eos or _ids(config.get("eos_token_id")),
    )

"""Requests and states of background work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_type_hints

from pydantic import Field, ValidationError

from mcp_server.errors import BadInput
from mcp_server.schemas.base import Engine, EngineId, Frozen, OutputFormat, Space
from mcp_server.schemas.export import Quant, Target
from mcp_server.schemas.faults import first_fault

JobKind = Literal["merge", "compare", "verify", "evaluate", "sweep", "ask", "prepare", "fetch", "export", "publish"]
Whole = Literal["embeddings", "norms", "biases"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]


class Names(Enum):
    """What a text in a request names. Whoever starts the job checks each by its kind, and the worker again where it opens it."""

    MODEL = "a folder, a hub id, an alias such as demo:…, or BASE+ADAPTER, each perhaps with @REVISION"
    FILE = "a file that is read"
    FOLDER = "a folder that is read and may get a record of what was found"
    OUTPUT = "a folder that is written"
    SUITE = "the name of a suite, or a folder or file that is one"
    SUITES = "a folder of suites"


ModelName = Annotated[str, Names.MODEL]


class JobRequest(Frozen):
    """What one kind of job is asked to do: made by both faces, read by the worker. The fields are the kind's parameters."""

    kind: ClassVar[JobKind]

    @classmethod
    def of(cls, parameters: dict[str, Any]) -> Self:
        """The request that these parameters make. Raises `BadInput` that names the field."""
        try:
            return cls.model_validate(parameters)
        except ValidationError as error:
            raise BadInput(f"{cls.kind}: {first_fault(error, cls)}", f"see `model-merging {cls.kind} --help`") from error

    @classmethod
    @functools.cache
    def roles(cls) -> dict[str, Names]:
        """Field → what its texts name, for the fields that name something; a list's or table's values are named alike."""
        hints = {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if name in cls.model_fields}
        return {name: role for name, hint in hints.items() if (role := _role(hint)) is not None}

    def named(self) -> Iterator[tuple[Names, str]]:
        """Every text that names a model, file or folder, with what it names."""
        for field, role in self.roles().items():
            value = getattr(self, field)
            texts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            yield from ((role, text) for text in texts if text is not None)


def _role(hint: Any) -> Names | None:
    """The role that an annotation holds, at any depth: `list[ModelName] | None` names models."""
    found = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Names)]
    found += [role for part in get_args(hint) if (role := _role(part)) is not None]
    return found[0] if found else None


class MergeRequest(JobRequest):
    """Everything a merge needs; the same names in CLI and MCP."""

    kind: ClassVar[JobKind] = "merge"

    recipe: str = Field(description="recipe text (YAML)")
    recipe_folder: str | None = Field(default=None, description="what relative paths in the recipe start from")
    out: Annotated[str, Names.OUTPUT] = Field(description="output folder, absolute")
    engine: Engine = "auto"
    output: Literal["model", "adapter"] = "model"
    output_format: OutputFormat | None = Field(default=None, description="fp8: as an FP8 model of the recipe; null: its dtype")
    rank: int | None = Field(default=None, ge=1, description="for --output adapter with a method that needs an SVD")
    space: Space = Field(default="weights", description="of an adapter output: merge on the weights, or on the factors' core")
    whole: list[Whole] = Field(default_factory=list, description="what an adapter of full models stores whole where it changed")
    ram_gib: float | None = Field(default=None, gt=0)
    seed: int | None = None
    threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1, description="processes that write output files at once")
    ray: str | None = Field(default=None, description="address of a Ray cluster, where each output file is a task")
    shard_size: int = Field(default=5_000_000_000, gt=0, description="bytes")
    overwrite: bool = False
    allow_nonfinite: bool = False
    hash: Literal["headers", "full"] = "headers"
    keep_partial: bool = False


class CompareRequest(JobRequest):
    """Measure how the task vectors of several fine-tunes of one base relate."""

    kind: ClassVar[JobKind] = "compare"

    base: ModelName
    refs: list[ModelName] = Field(min_length=1, description="full models, base+adapter, or adapters of the base")
    sample: bool = Field(default=False, description="a part of every tensor only")
    threads: int | None = Field(default=None, ge=1)


class VerifyRequest(JobRequest):
    """Check whether a merge is what its recipe says."""

    kind: ClassVar[JobKind] = "verify"

    out: Annotated[str, Names.FOLDER]
    full: bool = Field(default=False, description="read every weight again and trust no provenance")
    recipe: Annotated[str | None, Names.FILE] = Field(default=None, description="a file, when the folder does not hold its own")
    load: bool = Field(default=True, description="also load it and generate")
    base: ModelName | None = Field(default=None, description="where the base is, when recipe and record do not say")
    sources: list[ModelName] = Field(default_factory=list, description="the same for the sources, in the recipe's order")
    threads: int | None = Field(default=None, ge=1)


class EvaluateRequest(JobRequest):
    """Measure base, sources and merge on the same prompts."""

    kind: ClassVar[JobKind] = "evaluate"

    out: Annotated[str | None, Names.FOLDER] = Field(default=None, description="the merged folder; null: sources only")
    suites: list[Annotated[str, Names.SUITE]] = Field(default_factory=list)
    data: list[Annotated[str, Names.FILE]] = Field(default_factory=list, description="files of prompts and expected answers")
    base: ModelName | None = None
    sources: dict[str, ModelName] | None = None
    against: dict[str, ModelName] = Field(
        default_factory=dict, description="name → ref; `base` and sources' names replace what the merge says"
    )
    gguf: list[Annotated[str, Names.FILE]] = Field(
        default_factory=list, max_length=12, description="GGUF exports of the merge, or their folders, measured in llama.cpp"
    )
    cross: bool = False
    limit: int | None = Field(default=None, ge=1)
    quick: bool = False
    split: Literal["dev", "test"] | None = Field(default=None, description="null: dev, and the user's own files whole")
    backend: Literal["hf", "openai"] = "hf"
    endpoint: str | None = None
    served: dict[str, str] = Field(default_factory=dict, description="label → model name at the endpoint")
    tokenizer: ModelName | None = Field(default=None, description="for an endpoint")
    batch_size: int = Field(default=16, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    suite_folders: list[Annotated[str, Names.SUITES]] = Field(default_factory=list)
    offline: bool = True


class AskRequest(JobRequest):
    """One prompt for base, sources and merge."""

    kind: ClassVar[JobKind] = "ask"

    out: Annotated[str, Names.FOLDER]
    text: str = Field(min_length=1, max_length=100_000)
    system: str | None = Field(default=None, max_length=100_000)
    against: dict[str, ModelName] = Field(
        default_factory=dict, description="name → ref; `base` and sources' names replace what the merge says"
    )
    max_tokens: int = Field(default=128, ge=1, le=4096)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(default=None, ge=1)


class SweepRequest(JobRequest):
    """Merge and measure several candidates of one plan. The models are in the plan and in the grid's values."""

    kind: ClassVar[JobKind] = "sweep"

    plan: Annotated[str, Names.FILE] = Field(description="path of a plan")
    out: Annotated[str, Names.OUTPUT]
    suites: list[Annotated[str, Names.SUITE]] = Field(default_factory=list)
    data: list[Annotated[str, Names.FILE]] = Field(default_factory=list, description="files of prompts and expected answers")
    suite_folders: list[Annotated[str, Names.SUITES]] = Field(default_factory=list)
    grid: list[str] = Field(default_factory=list, description="KEY=V1,V2 axes; default: the shortlist")
    tries: list[str] = Field(default_factory=list, description="single candidates: KEY=VALUE KEY=VALUE")
    minutes: float | None = Field(
        default=None, gt=0, le=100_000, description="search for so long, begun with the grid or the shortlist; null: only these"
    )
    limit: int | None = Field(default=None, ge=1, description="prompts per suite for the full measurement")
    quick_limit: int = Field(default=20, ge=1, description="for the first look")
    workers: int = Field(default=1, ge=1)
    ray: str | None = None
    cpus: float = Field(default=1, gt=0)
    memory_gib: float = Field(default=2, gt=0)
    gpus: float = Field(default=0, ge=0)
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    test: bool = Field(default=True, description="measure the winner on the test split")


class PrepareRequest(JobRequest):
    """Make the demo's base model, into the store."""

    kind: ClassVar[JobKind] = "prepare"


class FetchRequest(JobRequest):
    """What to download from a hub; the same names in CLI and MCP."""

    kind: ClassVar[JobKind] = "fetch"

    ref: str = Field(description="hub id: owner/name, or owner/name@revision")
    with_base: bool = Field(default=True, description="also fetch the base that an adapter's config names")
    file: str | None = Field(default=None, description="of several GGUF models, the file or a part of its name, such as Q8_0")


class ExportRequest(JobRequest):
    """What to make of a merge for another program; the same names in CLI and MCP."""

    kind: ClassVar[JobKind] = "export"

    out: Annotated[str, Names.FOLDER] = Field(description="a merged model or adapter, or any other model in safetensors")
    dest: Annotated[str, Names.OUTPUT]
    to: Target
    quant: Quant | None = Field(default=None, description="of a GGUF; null: 16 bits, as the weights are stored")
    base: ModelName | None = Field(default=None, description="of an adapter, when its config does not say")
    check: bool = Field(default=True, description="load the export, and compare its replies with the merge's")
    overwrite: bool = False
    threads: int | None = Field(default=None, ge=1)
    partial: str | None = Field(default=None, description="where the worker writes; set by whoever starts the job")


class PublishRequest(JobRequest):
    """What to upload to a hub; the same names in CLI and MCP."""

    kind: ClassVar[JobKind] = "publish"

    out: Annotated[str, Names.FOLDER] = Field(description="a merged model or adapter")
    repo: str = Field(description="USER/NAME on the hub")
    private: bool = False
    licence: str | None = Field(default=None, description="of the merge, where its sources' leave a choice")
    yes: bool = Field(default=False, description="the user's word, given for this upload")


class Progress(Frozen):
    stage: str
    done: float = 0
    total: float | None = None
    unit: str = ""
    message: str = ""
    left_seconds: float | None = Field(default=None, description="until the job ends")
    leaders: list[str] = Field(default_factory=list, description="best candidates so far")


class JobStatus(Frozen):
    job_id: str
    kind: JobKind
    state: JobState
    created: str = Field(description="UTC, ISO 8601")
    started: str | None = None
    finished: str | None = None
    output: str | None = Field(default=None, description="the folder that it writes, or looks at")
    about: str = Field(default="", description="what it works on: method and sources, suites, base")
    engine: EngineId | None = None
    takes: str = Field(
        default="", description="about how long, how many answers are known, and how models are held where 16 bits do not fit"
    )
    progress: Progress | None = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    log_path: str
    next_step: str = ""
    result: dict[str, Any] | None = None


class JobList(Frozen):
    jobs: list[JobStatus]
    total: int
    next_offset: int | None = None


class LogPage(Frozen):
    job_id: str
    text: str
    next_offset: int | None
    path: str


class MergeResult(Frozen):
    job_id: str
    state: JobState
    output: str
    engine: EngineId
    wall_seconds: float
    peak_anon_bytes: int | None
    seed: int | None = None
    tensors: int | None = None
    bytes: int | None = None
    landed: dict[str, float | None] = Field(default_factory=dict)
    rounding_loss: dict[str, float | None] = Field(default_factory=dict)
    relative_error: float | None = Field(default=None, description="of an adapter made by truncated SVD, Frobenius norm")
    warnings: list[str] = Field(default_factory=list)

"""What a request must be before it becomes a job: what is known without reading weights is refused here and leaves no job."""

from __future__ import annotations

from pathlib import Path

from mcp_server.errors import BadInput, NotAllowed, NotFound
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.folder import classify, require_folder_there, require_merge
from mcp_server.formats.lineage import read_lineage
from mcp_server.formats.recipe import read_recipe
from mcp_server.formats.refs import anchor_ref, id_in_address, is_hub_id, is_revision
from mcp_server.schemas.job import (
    AskRequest,
    CompareRequest,
    EvaluateRequest,
    FetchRequest,
    JobRequest,
    Names,
    PublishRequest,
    VerifyRequest,
)
from mcp_server.steps.evaluate.exports import is_gguf
from mcp_server.steps.evaluate.line_up import models_of, require_models
from mcp_server.steps.publish import publication
from mcp_server.system.policy import Policy
from mcp_server.system.yaml_io import read_text


def require_startable(request: JobRequest, rules: Policy) -> None:
    """Raise `BadInput` and its kin for a request that no worker could serve. Its names have passed the policy already."""
    for role, text in request.named():
        if role is Names.FOLDER and not (isinstance(request, EvaluateRequest) and is_gguf(text)):
            require_folder_there(Path(text))
    match request:
        case VerifyRequest():
            _require_verifiable(request)
        case AskRequest():
            refs = models_of(read_lineage(Path(request.out)), out=request.out, base=None, sources=None, against=request.against)
            require_models(refs)
        case CompareRequest():
            from mcp_server.engine.comparable import comparable  # only comparisons pay for planning one

            comparable(request.base, request.refs)
        case FetchRequest():
            _require_hub_id(request.ref)
            _require_online(rules, f"{request.ref} cannot be fetched")
        case PublishRequest():
            publication(Path(request.out), request.repo, private=request.private, licence=request.licence)
            _require_online(rules, f"{request.repo} cannot be published")


def _require_verifiable(request: VerifyRequest) -> None:
    require_merge(Path(request.out))
    if request.recipe is not None:
        read_recipe(read_text(Path(request.recipe), "the recipe"), "the given recipe")
    for ref in filter(None, (request.base, *request.sources)):
        for part in [ref] if Path(ref).exists() else ref.split("+"):
            found = classify(path := locate(part))
            if found.kind in ("not_a_model", "pickle"):
                raise found.refusal(f"{path} is no model that this merge could be made of", "name a model or adapter")


def _require_online(rules: Policy, what: str) -> None:
    if rules.offline:
        raise NotAllowed(f"{what}: the network is switched off", "unset HF_HUB_OFFLINE, or have the operator set offline = false")


def _require_hub_id(ref: str) -> None:
    """What lies here needs no fetching, and would be taken before the fetched copy wherever its name is used."""
    name, sign, revision = ref.partition("@")
    if Path(there := anchor_ref(name, Path.cwd())).exists():
        raise BadInput(f"{ref} is {there}, which is here already", "use it as it is, or fetch from another folder")
    if not is_hub_id(name):
        raise NotFound(f"{ref!r} is not a hub id", f"give {id_in_address(ref) or 'owner/name, or owner/name@revision'}")
    if sign and not is_revision(revision):
        raise BadInput(f"{revision!r} is no revision of {name}", "give a branch, a tag or a commit behind the @")

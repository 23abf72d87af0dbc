"""Folders that claim to be merges: what verifies them, reads their lineage and reports on them answers, whatever they hold."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import MergingError
from mcp_server.formats.lineage import read_lineage
from mcp_server.steps.report import write_report
from mcp_server.steps.verify import verify
from tests import tiny
from tests.fuzz.test_configs import VALUES

PAPERS = (
    "merge_provenance.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "model.safetensors.index.json", "adapter_config.json", "evaluation.json", "verification.json",
)  # fmt: skip
KEYS = (
    "recipe", "sources", "output", "files", "landed", "rounding_loss", "nonfinite", "seed", "method", "engine", "settings",
    "job_id", "weight_map", "model", "vocab", "added_tokens", "eos_token_id", "vocab_size", "architectures", "capabilities",
    "checks", "verdict",
)  # fmt: skip
TABLES = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), VALUES, max_size=6)
CONTENTS = st.one_of(st.binary(max_size=60), (TABLES | VALUES).map(lambda value: json.dumps(value).encode()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("merged") / "out")


@given(
    st.dictionaries(st.sampled_from(PAPERS), CONTENTS, min_size=1, max_size=3),
    st.none() | st.text(max_size=80) | st.just("merge_method: linear\nmodels: [{model: a}]\n"),
)
def test_any_metadata(folder, metadata, recipe):
    sound = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        for name, data in metadata.items():
            (folder / name).write_bytes(data)
        if recipe is not None:
            (folder / "mergekit_config.yml").write_bytes(recipe.encode("utf-8", errors="surrogatepass"))
        for ask in (verify, read_lineage, write_report):
            try:
                ask(folder)
            except MergingError as refused:
                assert refused.message
    finally:
        for path in folder.iterdir():
            path.write_bytes(sound[path]) if path in sound else path.unlink()

"""The record in an output folder, the identities in it, and the card that the world sees."""

import hashlib
import json

import pytest
import yaml
from blake3 import blake3
from pydantic import ValidationError

from mcp_server.errors import NotAModel, NotFound
from mcp_server.formats.digests import TensorDigest, digest_of, digests_of, piece_digest
from mcp_server.formats.licence import read_licence
from mcp_server.formats.provenance import (
    Provenance,
    SourceRecord,
    identify,
    not_ours,
    read_provenance,
    write_model_card,
    write_provenance,
)
from mcp_server.formats.safetensors import read_header
from tests import tiny


@pytest.fixture
def model(tmp_path):
    return tiny.write_model(tmp_path / "private" / "somebody" / "model")


def record(model, **more):
    sources = [
        SourceRecord(name="model", ref=str(model), role="model", identity=identify(model), licence="apache-2.0"),
        SourceRecord(name="other", ref="owner/other", role="model", licence="mit"),
    ]
    fields = {"created": "2026-01-01T00:00:00Z", "job_id": "j", "product": "model-merging 1", "engine_version": "mergekit 0.1.5"}
    recipe = f"merge_method: linear\nmodels: [{{model: {model}}}]\n"
    return Provenance(
        **fields | {"engine": "mergekit", "method": "linear", "recipe": recipe, "sources": sources, "seed": 3} | more
    )


def test_what_is_written_is_read_back(model, tmp_path):
    written = record(model, landed={"model": 0.5}, warnings=["careful"])
    write_provenance(tmp_path, written)
    assert read_provenance(tmp_path) == written
    assert (tmp_path / "mergekit_config.yml").read_text(encoding="utf-8") == written.recipe


def test_a_folder_without_a_record_has_none(tmp_path):
    assert read_provenance(tmp_path) is None


def test_the_card_shows_lineage_and_licences_and_no_path_of_this_machine(model, tmp_path):
    card = write_model_card(tmp_path, record(model)).read_text(encoding="utf-8")
    assert "private" not in card
    assert "| model | model | model | apache-2.0 |" in card
    assert "| other | model | owner/other | mit |" in card
    assert "different licences (apache-2.0, mit): all of them apply" in card
    assert "seed 3" in card


def test_one_licence_becomes_the_cards_own_and_an_unknown_one_is_pointed_out(model, tmp_path):
    same = [SourceRecord(name=n, ref=n, role="model", licence="mit") for n in "ab"]
    assert "\nlicense: mit\n" in write_model_card(tmp_path, record(model, sources=same)).read_text(encoding="utf-8")
    unknown = [*same, SourceRecord(name="c", ref="c", role="model")]
    card = write_model_card(tmp_path, record(model, sources=unknown)).read_text(encoding="utf-8")
    assert "license:" not in card.split("---")[1]
    assert "At least one source states no licence" in card


def front(card):
    return yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])


def test_a_card_names_base_models_by_their_hub_ids_and_leaves_out_what_has_none(model, tmp_path):
    snapshot = tmp_path / "hub" / "models--acme--big-base" / "snapshots" / ("0" * 40)
    sources = [
        SourceRecord(name="base", ref=str(snapshot), role="base", licence="apache-2.0"),
        SourceRecord(name="persona", ref=f"{snapshot}+acme/persona@v1", role="adapter", licence="apache-2.0", base=str(snapshot)),
        SourceRecord(name="model", ref=str(model), role="model", licence="apache-2.0"),
    ]
    found = front(write_model_card(tmp_path, record(model, sources=sources)))
    assert (found["base_model"], found["base_model_relation"]) == (["acme/big-base", "acme/persona"], "merge")
    adapter = front(write_model_card(tmp_path, record(model, sources=sources), library="peft"))
    assert (adapter["base_model"], adapter["base_model_relation"]) == (["acme/big-base"], "adapter")
    alone = front(write_model_card(tmp_path, record(model, sources=sources[2:])))
    assert alone == {
        "library_name": "transformers",
        "tags": ["merge", "mergekit", "model-merging", "linear"],
        "license": "apache-2.0",
    }


def test_a_licence_that_no_hub_knows_is_named_as_another(model, tmp_path):
    sources = [SourceRecord(name="a", ref="o/a", role="model", licence="acme research terms")]
    found = front(write_model_card(tmp_path, record(model, sources=sources)))
    assert (found["license"], found["license_name"]) == ("other", "acme research terms")


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("apache-2.0", "apache-2.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("'The MIT License'", "mit"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("Llama 3.1 Community License", "llama3.1"),
        ("[apache-2.0]", "apache-2.0"),
        ("[apache-2.0, mit]", None),
        ("acme terms", "acme terms"),
        ("{a: b}", None),
        ("3", None),
        ("''", None),
    ],
)
def test_a_licence_is_read_by_its_spellings_and_an_unclear_one_stays_unknown(tmp_path, stated, found):
    (tmp_path / "README.md").write_text(f"---\nlicense: {stated}\n---\n# card\n", encoding="utf-8")
    assert read_licence(tmp_path) == found


def test_identity_by_headers_ignores_values_and_full_identity_does_not(model):
    before = {how: identify(model, how).sha256 for how in ("headers", "full")}
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after = {how: identify(model, how).sha256 for how in ("headers", "full")}
    assert (before["headers"] == after["headers"], before["full"] == after["full"]) == (True, False)


def test_identity_changes_with_the_config(model):
    before = identify(model).sha256
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}), encoding="utf-8")
    assert identify(model).sha256 != before


def test_identity_needs_weights(tmp_path):
    with pytest.raises(NotFound):
        identify(tmp_path / "nowhere")
    with pytest.raises(NotAModel):
        identify(tmp_path)


def test_a_sentence_encoder_is_a_merge_with_its_module_folders(model):
    (model / "modules.json").write_text('[{"path": "1_Pooling"}]', encoding="utf-8")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    write_provenance(model, record(model, digests=digests_of(model)))
    assert not_ours(model) is None
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}', encoding="utf-8")
    assert not_ours(model) == "holds '1_Pooling/config.json', which is not part of a merge"
    (model / "1_Pooling" / "config.json").unlink()
    assert not_ours(model) == "holds '1_Pooling', which is not part of a merge"


def test_a_file_that_the_merge_took_over_is_its_own_until_somebody_changes_it(model, tmp_path):
    (model / "SOURCE.json").write_text('{"made": "of a package"}', encoding="utf-8")
    write_provenance(model, record(model, digests=digests_of(model)))
    assert not_ours(model) is None
    (model / "SOURCE.json").write_text("my own notes", encoding="utf-8")
    assert not_ours(model) == "holds 'SOURCE.json', which is not part of a merge"


@pytest.mark.parametrize("hashed", ["headers", "full"])
@pytest.mark.parametrize("change", ["other shapes", "a value", "another file", "half a file"])
def test_a_folder_whose_weights_are_not_those_that_were_written_is_no_merge_of_ours(model, hashed, change):
    """As where a fine-tune was saved over the merge that it began with: its record lies there still."""
    file = model / "model.safetensors"
    header = read_header(file)
    data = file.read_bytes()
    stored = {name: data[header.data_start + t.begin : header.data_start + t.end] for name, t in header.tensors.items()}
    tensors = {name: digest_of([piece_digest(raw)], 1 << 20) for name, raw in stored.items()}
    write_provenance(model, record(model, output=identify(model, hashed), digests=digests_of(model, tensors)))
    assert not_ours(model) is None
    if change == "other shapes":
        tiny.write_safetensors(file, {"model.norm.weight": ("BF16", [4], bytes(8))})
    elif change == "a value":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "another file":
        (model / "extra.safetensors").write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    name = "extra.safetensors" if change == "another file" else "model.safetensors"
    assert not_ours(model) == f"holds {name}, whose weights are not those that the merge wrote"


@pytest.mark.parametrize("hasher", ["blake3", "sha256"])
def test_a_tensor_has_its_digest_until_a_byte_of_it_changes(tmp_path, hasher):
    digest = {"blake3": blake3, "sha256": hashlib.sha256}[hasher]
    file, data = tmp_path / "weights", bytes(range(256)) * 5
    file.write_bytes(b"before" + data + b"after")
    pieces = b"".join(digest(data[i : i + 500]).digest() for i in range(0, len(data), 500))
    written = TensorDigest.model_validate({"chunk_bytes": 500, hasher: digest(pieces).hexdigest()})
    assert written.model_dump() == {"chunk_bytes": 500, hasher: digest(pieces).hexdigest()}
    assert written.matches(file, 6, len(data))
    file.write_bytes(b"before" + data[:-1] + b"\0after")
    assert not written.matches(file, 6, len(data))


@pytest.mark.parametrize("digests", [{}, {"blake3": "aa", "sha256": "bb"}])
def test_a_digest_names_one_kind(digests):
    with pytest.raises(ValidationError, match="one digest"):
        TensorDigest.model_validate({"chunk_bytes": 500, **digests})

"""Verification of what mergekit itself writes, run as anybody runs it: no record of ours, only the recipe that it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mcp_server.schemas.evidence import Verification
from mcp_server.steps.verify import verify
from tests import tiny
from tests.engine.synthetic import load, save

pytestmark = pytest.mark.slow
DELTAS = {
    "task_arithmetic": {"lambda": 0.7},
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "breadcrumbs": {},
    "della": {},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        tiny.write_tokenizer(tiny.write_model(folder / name, seed=seed))
    return folder


def mergekit(folder: Path, out: Path, method: str, *sources: str, **top: object) -> Verification:
    """Run mergekit-yaml on two sources and verify its output in full."""
    names = sources or ("one", "two")
    entries = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in names]
    document = {"merge_method": method, "base_model": str(folder / "base"), "models": entries, "dtype": "bfloat16"} | top
    out.mkdir()
    (out.parent / f"{out.name}.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    subprocess.run(
        [str(Path(sys.executable).with_name("mergekit-yaml")), f"{out}.yml", str(out), "--random-seed", "3"],
        check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not (out / "merge_provenance.json").exists()
    return verify(out, full=True)


@pytest.mark.parametrize("method", DELTAS)
def test_a_merge_of_task_vectors_is_verified(models: Path, tmp_path: Path, method: str) -> None:
    found = mergekit(models, tmp_path / "out", method, parameters=DELTAS[method])
    assert (found.verdict, [c for c in found.checks if c.passed is not True]) == ("verified", [])
    assert set(found.landed) == {"one", "two"}
    assert all(share is not None and share > 0.1 for share in found.landed.values())


def test_a_linear_merge_is_verified(models: Path, tmp_path: Path) -> None:
    found = mergekit(models, tmp_path / "out", "linear", base_model=None)
    assert (found.verdict, [c for c in found.checks if c.passed is not True]) == ("verified", [])


def test_a_slerp_is_verified(models: Path, tmp_path: Path) -> None:
    found = mergekit(models, tmp_path / "out", "slerp", base_model=str(models / "one"), parameters={"t": 0.5})
    assert (found.verdict, [c for c in found.checks if c.passed is not True]) == ("verified", [])


def test_every_way_of_breaking_it_is_found(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert mergekit(models, out, "task_arithmetic").verdict == "verified"
    (file,) = out.glob("*.safetensors")
    whole = load(out)
    name = "model.layers.0.mlp.up_proj.weight"

    def failed() -> dict[str, str]:
        return {check.name: check.detail for check in verify(out, full=True).checks if check.passed is False}

    save(file, {k: v for k, v in whole.items() if k != name}, "bfloat16")
    assert name in failed()["tensors"]
    spoilt = dict(whole)
    spoilt[name] = whole[name].copy()
    spoilt[name][3, 3] = float("nan")
    save(file, spoilt, "bfloat16")
    found = failed()
    assert found.keys() == {"finite", "recomputed"}
    assert (
        f"{name} holds 1 values that are infinite or not a number where the recipe makes finite ones, in row 3"
        in found["recomputed"]
    )
    save(file, load(models / "base"), "bfloat16")
    found = failed()
    assert found.keys() == {"recomputed"}
    assert f"{name} equals the base: nothing was merged into it" in found["recomputed"]
    file.write_bytes(file.read_bytes()[:-100])
    assert verify(out, full=True).verdict == "unreadable"

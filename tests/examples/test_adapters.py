"""The two pairs of committed adapters: small, bf16, of the documented ranks, and described by their settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from tests.examples.reading import header, read_json

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DATA = {
    "taskmaster": {"persona": ["persona_train"], "tools": ["tools_train"]},
    "one_prompt": {"persona": ["persona"], "tools": ["tools", "tools_both"]},
}
RANKS = {"persona": 8, "tools": 16}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(params=DATA)
def example(request: pytest.FixtureRequest) -> Path:
    return EXAMPLES / str(request.param)


def test_both_adapters_together_stay_under_20_mb(example: Path) -> None:
    assert sum((example / name / "adapter_model.safetensors").stat().st_size for name in RANKS) <= 20_000_000


@pytest.mark.parametrize("name", RANKS)
def test_every_tensor_is_bf16_and_of_the_rank(example: Path, name: str) -> None:
    tensors = header(example / name)
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}
    ranks = {entry["shape"][0] if "lora_A" in key else entry["shape"][1] for key, entry in tensors.items()}
    assert ranks == {RANKS[name]}
    assert len(tensors) == 30 * len(PROJECTIONS) * 2


@pytest.mark.parametrize("name", RANKS)
def test_the_config_agrees_with_the_weights_and_the_settings(example: Path, name: str) -> None:
    config, record = read_json(example / name / "adapter_config.json"), read_json(example / name / "training.json")
    assert (config["r"], config["lora_alpha"]) == (RANKS[name], 2 * RANKS[name]) == (record["rank"], record["alpha"])
    assert set(config["target_modules"]) == PROJECTIONS
    settings = json.loads((example / "settings" / f"{name}.json").read_text(encoding="utf-8"))
    defaults = {"kl": True, "stop_after": None}
    assert defaults | record == defaults | settings | {key: record[key] for key in ("steps", "wall_seconds", "threads")}


@pytest.mark.parametrize("name", RANKS)
def test_the_loss_curve_has_every_step_and_falls(example: Path, name: str) -> None:
    with (example / name / "loss.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(read_json(example / name / "training.json")["steps"]))
    losses = [float(row["reply_loss"]) for row in rows]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize("name", RANKS)
def test_the_model_card_states_licence_and_base(example: Path, name: str) -> None:
    card = (example / name / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_scenario_names_both_with_their_true_figures(example: Path) -> None:
    scenario = yaml.safe_load((example / "scenario.yaml").read_text(encoding="utf-8"))
    for source in scenario["sources"]:
        name = source["name"]
        files = [example / "data" / f"{file}.jsonl" for file in DATA[example.name][name]]
        data = [row for file in files for row in file.read_text(encoding="utf-8").splitlines()]
        assert source["ref"] == f"./{name}"
        assert (source["rank"], source["training_examples"]) == (RANKS[name], len(data))

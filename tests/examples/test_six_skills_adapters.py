"""The six committed adapters: small, bf16, unequal in rank, and described by their settings and curves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from tests.examples.reading import header, read_json

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "six_skills"
RANKS = {"terse": 4, "verbose": 8, "lights": 2, "home": 20, "notes": 8, "refuse": 4}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_all_six_together_stay_within_40_mb() -> None:
    assert sum(file.stat().st_size for name in RANKS for file in (EXAMPLE / name).iterdir()) <= 40_000_000


@pytest.mark.parametrize("name", RANKS)
def test_every_tensor_is_bf16_and_of_the_rank(name: str) -> None:
    tensors = header(EXAMPLE / name)
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}
    ranks = {entry["shape"][0] if "lora_A" in key else entry["shape"][1] for key, entry in tensors.items()}
    assert ranks == {RANKS[name]} == {read_json(EXAMPLE / name / "adapter_config.json")["r"]}
    assert len(tensors) == 30 * len(PROJECTIONS) * 2


@pytest.mark.parametrize("name", RANKS)
def test_the_record_is_what_the_settings_say(name: str) -> None:
    config, record = read_json(EXAMPLE / name / "adapter_config.json"), read_json(EXAMPLE / name / "training.json")
    settings = json.loads((EXAMPLE / "settings" / f"{name}.json").read_text(encoding="utf-8"))
    assert {key: record[key] for key in settings} == settings
    assert config["base_model_name_or_path"] == settings["base"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert set(config["target_modules"]) == PROJECTIONS
    if name != "home":
        assert (config["r"], config["lora_alpha"]) == (settings["rank"], settings["alpha"])


@pytest.mark.parametrize("name", RANKS)
def test_the_loss_curve_has_every_step_and_falls(name: str) -> None:
    with (EXAMPLE / name / "loss.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(read_json(EXAMPLE / name / "training.json")["steps"]))
    losses = [float(row["reply_loss"]) for row in rows]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("name", RANKS)
def test_the_model_card_states_licence_and_base(name: str) -> None:
    front = yaml.safe_load((EXAMPLE / name / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (front["license"], front["base_model"]) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_each_expert_beats_the_base_clearly_on_its_own_suite() -> None:
    lines = (EXAMPLE / "measured" / "sources.jsonl").read_text(encoding="utf-8").splitlines()
    alone = {row["source"]: row["scores"] for row in map(json.loads, lines) if row["split"] == "dev"}
    assert {name: alone[name][name] - alone["base"][name] > 0.6 for name in RANKS} == dict.fromkeys(RANKS, True)

"""The training script for one's own data: packing changes no figure, replies are transformers' own, and the adapter is PEFT's."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("training")
    script = Path(__file__).with_name("adapter_training.py")
    ran = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def test_examples_packed_behind_one_prompt_have_the_logits_of_each_alone(found: dict[str, Any]) -> None:
    assert found["prefix"] > 10
    assert found["worst"] < 1e-3
    assert found["masked"] < 1e-5  # the one masked call that a GPU makes


def test_replies_behind_a_shared_cache_are_those_of_generate(found: dict[str, Any]) -> None:
    assert found["replies"] == found["generated"]
    assert len(set(found["replies"])) > 1


def test_only_layers_from_the_first_one_on_are_trained_and_saved_in_bf16(found: dict[str, Any]) -> None:
    assert (found["moved"], found["dtypes"], found["active"]) == (["1"], ["torch.bfloat16"], ["default"])


@pytest.mark.parametrize("curve", ["curve", "narrow"], ids=["float32", "bfloat16"])
def test_the_loss_falls_and_the_checks_are_shares_at_their_steps(found: dict[str, Any], curve: str) -> None:
    rows = list(csv.DictReader(io.StringIO(found[curve])))
    losses = [float(row["reply_loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(40))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert [int(row["step"]) for row in rows if row["own_exact"]] == [19, 39]
    assert all(0 <= float(row[key]) <= 1 for row in rows if row["own_exact"] for key in ("own_exact", "foreign_kept"))


def test_a_variant_of_the_experiment_leaves_one_thing_out(found: dict[str, Any]) -> None:
    assert found["variants"] == {
        "full": [], "without replay": ["replay_batch"], "without KL": ["kl"], "without scale jitter": ["scale_jitter"],
        "without the shared prompt": ["replay_system", "system"], "joint": [],
    }  # fmt: skip


def test_the_table_gives_mean_and_worst_seed_and_leaves_out_what_is_not_measured(found: dict[str, Any]) -> None:
    assert found["table"].splitlines()[2:] == [
        "| full (2) | 0.960 (0.960) | 0.800 (0.800) | 0.850 (0.800) | 0.750 (0.500) | 0.750 (0.750) | 1.300 (1.500) |",
        "| joint (1) | 0.900 (0.900) | 1.000 (1.000) | 0.900 (0.900) | 1.000 (1.000) | 0.750 (0.750) | 0.550 (0.550) |",
    ]


def test_training_goes_on_from_an_adapter_and_leaves_the_lower_layers(found: dict[str, Any]) -> None:
    assert found["went_on"] and found["kept_below"]

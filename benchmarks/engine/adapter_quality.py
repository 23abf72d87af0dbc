"""What adapters made of two adapters still do: TIES on the weights, on the core, on a shared subspace, and by PEFT.

    python benchmarks/engine/adapter_quality.py BASE [--limit 24] > benchmarks/engine/adapter_quality.md

The running example's two adapters on BASE (SmolLM2-135M-Instruct) become one adapter in each way; base, sources and each result
answer the same prompts, greedily. Gain recovered = (merged − base) ÷ (source − base), of the source whose skill it is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import torch  # noqa: E402
from adapter_spaces import EXAMPLES, NAMES, by_peft, changes, merged, recipe  # noqa: E402

sys.path.append(str(EXAMPLES))
from score import Deltas, Scorer, mean  # noqa: E402

RANK = 16


def made(base: Path, folder: Path) -> dict[str, Path]:
    """Label → folder of an adapter."""
    adapters = [EXAMPLES / name for name in NAMES]
    ways: list[tuple[str, str, int | None]] = [
        (f"`--space weights`, rank {RANK}", "weights", RANK),
        (f"`--space core`, rank {RANK}", "core", RANK),
        ("`--space core`, whole (rank 24)", "core", None),
        (f"`--space shared`, rank {RANK}", "shared", RANK),
    ]
    found: dict[str, Path] = {}
    for number, (label, space, rank) in enumerate(ways):
        found[label] = folder / str(number)
        merged(recipe(base, adapters), found[label], rank, space)
    by_peft(base, adapters, folder / "peft", RANK)
    return found | {f"PEFT `ties_svd`, rank {RANK}": folder / "peft" / "both"}


def scores(scorer: Scorer, change: Deltas) -> tuple[float, float]:
    """Exact calls, and the share of the coach's markers."""
    scorer.use(change)
    calls, chats = scorer.replies(scorer.tools, 64), scorer.replies(scorer.persona, 72)
    exact = mean(scorer.api.score(row, [text])["exact_match"] for row, text in zip(scorer.tools, calls, strict=True))
    return exact, mean(sum(scorer.coach.markers(text).values()) / 4 for text in chats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--limit", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    scorer = Scorer(given.base, "dev", given.limit)
    with tempfile.TemporaryDirectory() as place:
        sources = {name: EXAMPLES / name for name in NAMES}
        adapters = sources | made(given.base, Path(place))
        deltas = {
            label: {f"{module}.weight": torch.from_numpy(value) for module, value in changes(folder).items()}
            for label, folder in adapters.items()
        }
    deltas["task_arithmetic, exact (rank 24)"] = {name: sum(deltas[each][name] for each in NAMES) for name in deltas[NAMES[0]]}
    found = {label: scores(scorer, change) for label, change in ({"base": {}} | deltas).items()}
    (no_calls, no_voice), tools, persona = found["base"], found["tools"][0], found["persona"][1]
    command = f"python benchmarks/engine/adapter_quality.py BASE --limit {given.limit}"
    print("# What one adapter made of two still does\n")
    print(f"{datetime.now(UTC).date()}, by `{command}`: as many prompts of the dev split for")
    print("each skill, so differences below a tenth mean nothing; one pair of adapters, which disturb each other little.\n")
    print("| adapter | exact calls | coach's voice | gain recovered, tools | gain recovered, persona |\n|---|---|---|---|---|")
    for label, (exact, voice) in found.items():
        gains = (exact - no_calls) / (tools - no_calls), (voice - no_voice) / (persona - no_voice)
        print(f"| {label} | {exact:.3f} | {voice:.3f} | {gains[0]:.2f} | {gains[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()

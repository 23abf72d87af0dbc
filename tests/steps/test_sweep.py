"""Which candidates a sweep tries, which it stops, and which it chooses."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mcp_server.errors import BadInput
from mcp_server.formats.recipe import read_recipe
from mcp_server.schemas.evidence import Capability, Evaluation, Interval, SweepCandidate
from mcp_server.schemas.plan import Plan
from mcp_server.steps.evaluate import Thresholds
from mcp_server.steps.sweep import choose, from_grid, hopeless, pareto_front, shortlist
from mcp_server.steps.sweep.choose import in_words
from tests.tiny import write_adapter, write_model

LIMITS = Thresholds(
    perplexity_adjust=1.1,
    perplexity_failed=2.0,
    retention_adjust=0.9,
    retention_failed=0.5,
    gain_recovered_target=0.9,
    cross_context_leak=0.2,
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    base = write_model(tmp_path / "base")
    sources = [
        {"name": name, "ref": str(write_adapter(tmp_path / name, base, seed=seed)), "kind": "lora"}
        for seed, name in enumerate(("persona", "tools"))
    ]
    return Plan.model_validate(
        {
            "verdict": "merge",
            "strategy": {"id": "ties", "parameters": {"density": 0.5}},
            "weights": {"persona": 0.4, "tools": 0.6},
            "runner_up": [{"strategy": "linear", "why": "baseline"}],
            "dtype": "bfloat16",
            "scenario": {"base_model": str(base), "sources": sources},
        }
    )


def test_the_shortlist_is_the_plan_its_runners_up_and_a_ladder_of_lambda(plan: Plan) -> None:
    found = shortlist(plan)
    names = [candidate.name for candidate in found]
    assert names[:3] == ["ties", "linear", "task_arithmetic lambda=0.3 weights=1.0"]
    assert len({candidate.recipe for candidate in found}) == len(set(names)) == len(found)
    scaled = [read_recipe(c.recipe) for c in found if c.name.startswith("task_arithmetic")]
    assert [recipe.parameters["lambda"] for recipe in scaled] == [0.3, 0.5, 0.7, 0.85, 1.0]
    assert {source.parameters["weight"] for recipe in scaled for source in recipe.models} == {1.0}


def test_a_grid_is_the_product_of_its_axes(plan: Plan) -> None:
    found = from_grid(plan, ["strategy=task_arithmetic,dare_ties", "parameters.lambda=0.5,1"])
    assert [candidate.settings for candidate in found] == [
        {"strategy": "task_arithmetic", "parameters.lambda": "0.5"},
        {"strategy": "task_arithmetic", "parameters.lambda": "1"},
        {"strategy": "dare_ties", "parameters.lambda": "0.5"},
        {"strategy": "dare_ties", "parameters.lambda": "1"},
    ]


def test_commas_in_a_gradient_belong_to_its_value(plan: Plan) -> None:
    found = from_grid(plan, ["strategy=task_arithmetic", "sources.tools.weight=[0.2, 0.8],1"])
    assert [candidate.settings["sources.tools.weight"] for candidate in found] == ["[0.2, 0.8]", "1"]


def test_single_candidates_stand_beside_a_grid_and_alone(plan: Plan) -> None:
    single = "strategy=task_arithmetic sources.tools.weight=1.1 parameters.lambda=0.9"
    settings = {"strategy": "task_arithmetic", "sources.tools.weight": "1.1", "parameters.lambda": "0.9"}
    assert [c.settings for c in from_grid(plan, [], tries=[single])] == [settings]
    both = from_grid(plan, ["strategy=ties,linear"], tries=[single])
    assert [c.settings for c in both] == [{"strategy": "ties"}, {"strategy": "linear"}, settings]


def test_no_axis_means_the_shortlist(plan: Plan) -> None:
    assert from_grid(plan, []) == shortlist(plan)


@pytest.mark.parametrize("axis", ["parameters.lambda", "parameters.lambda=", "=0.5", "parameters.lambda=0.5,"])
def test_a_malformed_axis_is_named(plan: Plan, axis: str) -> None:
    with pytest.raises(BadInput, match="is not KEY=V1,V2"):
        from_grid(plan, [axis])


def test_a_value_that_the_strategy_cannot_take_is_an_error_in_a_grid(plan: Plan) -> None:
    with pytest.raises(BadInput, match="density"):
        from_grid(plan, ["parameters.density=0.5,7"])


def test_a_grid_too_large_to_finish_is_refused(plan: Plan) -> None:
    values = ",".join(str(i / 100) for i in range(1, 16))
    with pytest.raises(BadInput, match="225 combinations"):
        from_grid(plan, [f"parameters.density={values}", f"parameters.lambda={values}"])


def quick(gain: float, high: float, ratio: float = 1.0) -> Evaluation:
    tools = Capability(
        suite="s", metric="exact_match", n=20, gain_recovered=gain, ci={"gain_recovered": Interval(low=0.0, high=high)}
    )
    return Evaluation(capabilities={"tools": tools}, perplexity_ratio=ratio, verdict="adjust")


def test_a_candidate_is_stopped_only_when_its_whole_interval_is_hopeless() -> None:
    assert hopeless(quick(0.3, 0.6), LIMITS) is None
    assert hopeless(quick(0.3, 0.45), LIMITS) == "tools recovers 30% (at most 45%) of its gain on a quick look"
    assert hopeless(quick(1.0, 1.0, ratio=2.5), LIMITS) == "perplexity 2.50 times the best source's on a quick look"


def tried(name: str, persona: float | None, tools: float | None, ratio: float = 1.0, **more: object) -> SweepCandidate:
    gains = {"persona": persona, "tools": tools}
    return SweepCandidate.model_validate({"name": name, "recipe": "", "gains": gains, "perplexity_ratio": ratio} | more)


def test_the_front_holds_what_nothing_else_beats() -> None:
    found = [
        tried("a", 0.9, 0.5),
        tried("b", 0.5, 0.9),
        tried("worse than a", 0.8, 0.5),
        tried("costlier than a", 0.9, 0.5, ratio=1.3),
        tried("stopped", 1.0, 1.0, stopped="hopeless"),
    ]
    assert pareto_front(found) == {"a", "b"}


def test_equal_candidates_share_the_front() -> None:
    assert pareto_front([tried("a", 0.9, 0.9), tried("b", 0.9, 0.9)]) == {"a", "b"}


def test_candidates_that_meet_every_target_come_first() -> None:
    found = [tried("fluent", 0.89, 0.99), tried("balanced", 0.92, 0.91), tried("heavy", 1.0, 1.0, ratio=1.2)]
    winner, why = choose(found, LIMITS)
    assert winner == "balanced"
    assert why.startswith("1 of 3 candidates meet every target")


def test_without_any_the_least_bad_objective_decides_and_it_is_said() -> None:
    winner, why = choose([tried("a", 0.9, 0.4), tried("b", 0.6, 0.6), tried("c", 0.95, 0.95, ratio=3.0)], LIMITS)
    assert winner == "b"
    assert why.startswith("no candidate meets every target")


def test_equal_worst_objectives_are_decided_by_perplexity() -> None:
    assert choose([tried("a", 0.95, 0.92, ratio=1.08), tried("b", 0.92, 0.95, ratio=1.01)], LIMITS)[0] == "b"


def test_nothing_measured_means_no_winner() -> None:
    assert choose([tried("a", 1.0, 1.0, stopped="hopeless")], LIMITS) == (None, "no candidate was measured to the end")


def test_candidates_that_failed_are_told_apart_from_bad_ones() -> None:
    found = [tried("a", 0.1, 0.1, stopped="hopeless"), tried("b", 0.1, 0.1, stopped="failed: out of disk")]
    assert choose(found, LIMITS) == (None, "no candidate was measured to the end; 1 of 2 failed: out of disk")


def at(gain: tuple[float, float, float], weight: str = "1", **parameters: str) -> SweepCandidate:
    """A candidate at these settings → (gain, low, high) of both capabilities."""
    method = parameters.pop("method", "task_arithmetic")
    recipe = (
        f"merge_method: {method}\nbase_model: /m/base\nparameters: {json.dumps(parameters)}\n"
        f"models: [{{model: /m/persona, parameters: {{weight: 1}}}}, {{model: /m/tools, parameters: {{weight: {weight}}}}}]\n"
    )
    spans = {name: {"low": gain[1], "high": gain[2]} for name in ("persona", "tools")}
    name = " ".join([*parameters.values(), *([f"w{weight}"] if weight != "1" else [])])
    found = tried(name, gain[0], gain[0], intervals=spans, prompts={"persona": 24, "tools": 24})
    return found.model_copy(update={"recipe": recipe})


def along_lambda(values: dict[str, tuple[float, float, float]], weight: str = "1") -> list[SweepCandidate]:
    return [at(gain, weight, **{"lambda": factor}) for factor, gain in values.items()]


def test_the_middle_of_a_plateau_is_chosen_not_its_edge() -> None:
    flat = {"0.3": (0.2, 0.1, 0.4), "0.5": (0.75, 0.5, 0.9), "0.7": (0.77, 0.55, 0.9), "0.85": (0.8, 0.6, 0.9)}
    winner, why = choose(along_lambda(flat), LIMITS)
    assert winner == "0.7"
    assert "3 candidates, lambda 0.5 to 0.85, cannot be told apart on 24 prompts, so the middle was taken" in why


def test_a_best_that_stands_out_is_chosen_as_it_is() -> None:
    peak = {"0.5": (0.4, 0.3, 0.5), "0.7": (0.6, 0.5, 0.7), "0.85": (0.8, 0.75, 0.85)}
    assert choose(along_lambda(peak), LIMITS)[0] == "0.85"


def test_a_gap_or_another_difference_ends_a_plateau() -> None:
    gap = {"0.3": (0.79, 0.6, 0.9), "0.5": (0.2, 0.1, 0.4), "0.7": (0.79, 0.6, 0.9), "0.85": (0.8, 0.6, 0.9)}
    assert choose(along_lambda(gap), LIMITS)[0] == "0.85"
    other = along_lambda({"0.3": (0.79, 0.6, 0.9), "0.5": (0.79, 0.6, 0.9)}, weight="2")
    winner, why = choose([*other, *along_lambda({"0.7": (0.8, 0.6, 0.9)})], LIMITS)
    assert winner == "0.7"
    assert why.endswith("; 2 others cannot be told apart from it on 24 prompts")


FLAT = (0.79, 0.6, 0.9)
"""A gain like that of the best one, 0.8."""


def search(
    *points: tuple[float, float, str], edge: tuple[float, float, str], worse: Sequence[tuple[float, float, str]] = ()
) -> str:
    """λ, density and the tools' weight of what a search tried; the best figure is at the `edge`."""

    def candidate(gain: tuple[float, float, float], point: tuple[float, float, str]) -> SweepCandidate:
        return at(gain, point[2], **{"lambda": f"{point[0]:g}", "density": f"{point[1]:g}", "method": "dare_ties"})

    found = [candidate(FLAT, point) for point in points] + [candidate((0.8, 0.6, 0.9), edge)]
    winner, why = choose([*found, *(candidate((0.2, 0.1, 0.3), point) for point in worse)], LIMITS)
    return f"{winner}: {why}"


def test_a_search_takes_the_middle_of_a_plateau_along_all_its_settings() -> None:
    around = [(0.6, 0.4, "0.8"), (0.7, 0.6, "1.1"), (0.8, 0.5, "1"), (0.65, 0.55, "0.9")]
    said = search(*around, edge=(1.0, 0.7, "1.2"), worse=[(1.3, 0.9, "1.4")])
    assert said.startswith("0.8 0.5: ")
    assert (
        "5 candidates, lambda 0.6 to 1, density 0.4 to 0.7, tools.weight 0.8 to 1.2, cannot be told apart on 24 prompts" in said
    )


def test_few_points_in_many_directions_are_no_plateau() -> None:
    said = search((0.6, 0.4, "0.8"), (0.8, 0.5, "1"), edge=(1.0, 0.7, "1.2"))
    assert said.startswith("1 0.7 w1.2: ")
    assert said.endswith("; 2 others cannot be told apart from it on 24 prompts")


def test_a_worse_point_between_parts_a_search_s_plateau() -> None:
    """Two of the five lie behind it as seen from the best."""
    around = [(0.6, 0.4, "0.8"), (0.65, 0.45, "0.85"), (0.9, 0.65, "1.15"), (0.95, 0.6, "1.1")]
    assert search(*around, edge=(1.0, 0.7, "1.2"), worse=[(0.8, 0.5, "1")]).startswith("1 0.7 w1.2: ")


def test_gradients_stand_by_both_ends() -> None:
    flat = ["[0.8, 1.2]", "[0.9, 1.1]", "[1, 1]"]
    found = [at(FLAT, flat[0]), at(FLAT, flat[1]), at((0.8, 0.6, 0.9), flat[2])]
    winner, why = choose(found, LIMITS)
    assert (winner, "tools.weight 0.8 to 1.2" in why) == ("w[0.9, 1.1]", True)


def test_candidates_without_intervals_are_never_called_alike() -> None:
    found = [
        one.model_copy(update={"intervals": {}})
        for one in along_lambda({"0.5": (0.7, 0, 1), "0.7": (0.7, 0, 1), "0.85": (0.8, 0, 1)})
    ]
    assert choose(found, LIMITS)[0] == "0.85"


def test_a_line_of_leaders_counts_the_prompts_of_skills_and_not_passages() -> None:
    found = SweepCandidate(
        name="ties",
        settings={},
        recipe="",
        gains={"tools": 0.9},
        perplexity_ratio=1.02,
        prompts={"general language": 6, "tools": 24},
    )
    assert in_words(found) == "ties: tools 90%, perplexity 1.02 times, 24 prompts"


@pytest.mark.parametrize(("prompts", "stops"), [(6, None), (8, "tools recovers 0% (at most 38%) of its gain on a quick look")])
def test_prompts_that_all_agree_are_held_against_the_rule_of_three(prompts: int, stops: str | None) -> None:
    nothing = Capability(
        suite="t", metric="exact_match", n=prompts, base=0.0, sources={"tools": 1.0}, merged=0.0, gain_recovered=0.0,
        ci={"gain_recovered": Interval(low=0.0, high=0.0)},
    )  # fmt: skip
    assert hopeless(Evaluation(capabilities={"tools": nothing}, verdict="adjust"), LIMITS) == stops

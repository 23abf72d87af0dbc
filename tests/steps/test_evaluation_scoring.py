"""Retention, gain recovered, intervals and verdicts: figures that can be worked out by hand."""

import math

import pytest

from mcp_server.formats.lineage import Tried
from mcp_server.formats.suites import Suite
from mcp_server.schemas.evidence import Capability
from mcp_server.steps.evaluate import Metric, SuiteSamples, Thresholds, judge, load_thresholds, score_capability, suggest_next
from mcp_server.steps.evaluate.assemble import Measured, assemble
from mcp_server.steps.evaluate.capability import expert_gain
from mcp_server.steps.evaluate.cross import cross_context, leaks, wilson
from mcp_server.steps.evaluate.verdict import prompts_needed

LIMITS = Thresholds(
    perplexity_adjust=1.1,
    perplexity_failed=2.0,
    retention_adjust=0.9,
    retention_failed=0.5,
    gain_recovered_target=0.9,
    cross_context_leak=0.2,
)


def shares(*values: float, name: str = "exact_match", better: bool = True, replies: list[str] | None = None) -> SuiteSamples:
    metric = Metric(kind="mean", values=list(values))
    ids = [str(i) for i in range(len(values))]
    return SuiteSamples(
        suite="s", metric=name, higher_is_better=better, metrics={name: metric}, prompt_ids=ids, replies=replies or []
    )


def texts(*pairs: tuple[float, float]) -> SuiteSamples:
    metric = Metric(kind="perplexity", values=[p[0] for p in pairs], weights=[p[1] for p in pairs])
    ids = [str(i) for i in range(len(pairs))]
    return SuiteSamples(suite="p", metric="perplexity", higher_is_better=False, metrics={"perplexity": metric}, prompt_ids=ids)


def times(hits: int, of: int) -> SuiteSamples:
    return shares(*([1.0] * hits + [0.0] * (of - hits)))


def capability(**fields: object) -> Capability:
    return Capability.model_validate({"suite": "s", "metric": "exact_match", "n": 100} | fields)


def test_a_merge_halfway_between_base_and_expert_recovers_half_the_gain_and_retains_three_quarters() -> None:
    found = score_capability({"base": times(40, 80), "tools": times(80, 80), "merged": times(60, 80)}, ["tools"])
    assert (found.base, found.sources, found.expert, found.merged) == (0.5, {"tools": 1.0}, "tools", 0.75)
    assert found.retention == 0.75
    assert found.gain_recovered == 0.5


def test_an_export_is_held_against_the_merge_and_decides_nothing() -> None:
    merged = shares(1, 1, 1, 0, replies=["a", "b", "c", "d"])
    measured = {"base": times(1, 4), "tools": times(4, 4), "merged": merged}
    small = shares(1, 0, 1, 0, replies=["a", "x", "c", "y"])
    found = score_capability(measured | {"Q4_K_M": small}, ["tools"], ["Q4_K_M", "Q8_0"])
    (label, cost), *more = found.exports.items()
    assert (label, cost.figure, cost.change, cost.same_replies, more) == ("Q4_K_M", 0.5, -0.25, 2, [])
    assert cost.ci is not None
    assert cost.ci.low < cost.change < cost.ci.high <= 0
    without = score_capability(measured, ["tools"])
    assert (found.retention, found.gain_recovered) == (without.retention, without.gain_recovered)


def test_the_expert_is_the_best_source_in_the_metrics_direction() -> None:
    up = score_capability({"a": times(3, 10), "b": times(7, 10)}, ["a", "b"])
    down = score_capability({"a": shares(3, 3, better=False), "b": shares(7, 7, better=False)}, ["a", "b"])
    assert (up.expert, down.expert) == ("b", "a")


def test_no_gain_is_reported_when_the_expert_is_within_two_standard_errors_of_the_base() -> None:
    one_of_sixty = score_capability({"base": times(30, 60), "x": times(31, 60), "merged": times(31, 60)}, ["x"])
    nine_of_sixty = score_capability({"base": times(30, 60), "x": times(39, 60), "merged": times(39, 60)}, ["x"])
    assert one_of_sixty.gain_recovered is None
    assert nine_of_sixty.gain_recovered == 1.0


def test_no_gain_is_reported_when_the_best_source_is_worse_than_the_base() -> None:
    found = score_capability({"base": times(50, 60), "x": times(5, 60), "merged": times(30, 60)}, ["x"])
    assert found.gain_recovered is None
    assert found.retention == 6.0


def test_perplexity_is_the_exponential_of_the_mean_loss_per_token_over_all_documents() -> None:
    found = score_capability({"a": texts((-10.0, 10), (-60.0, 20))}, ["a"])
    assert found.sources == {"a": pytest.approx(math.exp(70 / 30))}


def test_retention_of_a_metric_where_less_is_better_is_turned_round() -> None:
    found = score_capability({"a": texts((-10.0, 10), (-20.0, 20)), "merged": texts((-20.0, 10), (-40.0, 20))}, ["a"])
    assert found.retention == pytest.approx(math.e / math.e**2)


def test_pairing_makes_the_interval_of_a_ratio_narrower_than_the_figures_own() -> None:
    expert = [1.0] * 50 + [0.0] * 50
    merged = [1.0] * 45 + [0.0] * 55
    found = score_capability({"x": shares(*expert), "merged": shares(*merged)}, ["x"])
    own = found.ci["merged"].high - found.ci["merged"].low
    ratio = found.ci["retention"].high - found.ci["retention"].low
    assert 0.15 < own < 0.25
    assert ratio < own
    assert found.ci["retention"].low < 0.9 < found.ci["retention"].high


def test_intervals_repeat() -> None:
    measured = {"base": times(10, 40), "x": times(30, 40), "merged": times(25, 40)}
    assert score_capability(measured, ["x"]) == score_capability(measured, ["x"])


def test_a_metric_that_is_only_an_aggregate_has_no_interval() -> None:
    point = SuiteSamples(
        suite="s", metric="f", higher_is_better=True, metrics={"f": Metric(kind="point", value=0.4)}, prompt_ids=["0"]
    )
    assert score_capability({"x": point, "merged": point}, ["x"]).ci == {}


def test_models_that_were_asked_different_prompts_are_not_compared() -> None:
    other = times(1, 3).model_copy(update={"prompt_ids": ["7", "8", "9"]})
    with pytest.raises(ValueError, match="was asked other prompts"):
        score_capability({"base": times(1, 3), "merged": other}, [])


def test_nothing_measured_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no model"):
        score_capability({}, [])


def test_expert_gain_is_signed_by_the_metrics_direction() -> None:
    assert expert_gain({"base": times(0, 40), "x": times(20, 40)}, "x") == 0.5
    assert expert_gain({"base": texts((-40.0, 10), (-44.0, 11)), "x": texts((-10.0, 10), (-11.0, 11))}, "x") == pytest.approx(
        math.e**4 - math.e
    )


def test_the_shipped_thresholds_hold_every_figure_that_a_verdict_reads() -> None:
    assert load_thresholds() == LIMITS


@pytest.mark.parametrize(
    ("merged", "verdict"), [(10.0, "passed"), (11.0, "passed"), (11.01, "adjust"), (20.0, "adjust"), (20.1, "failed")]
)
def test_perplexity_beyond_a_tenth_asks_for_adjustment_and_beyond_double_fails(merged: float, verdict: str) -> None:
    found = capability(metric="perplexity", higher_is_better=False, sources={"a": 10.0, "b": 15.0}, merged=merged)
    assert judge({"perplexity": found}, LIMITS)[0] == verdict


@pytest.mark.parametrize(
    ("merged", "retention", "gain", "verdict"),
    [(0.9, 0.9, 0.9, "passed"), (0.89, 0.89, 0.95, "adjust"), (0.95, 0.95, 0.8, "adjust"), (0.49, 0.49, 0.49, "failed")],
)
def test_a_capability_is_judged_by_retention_and_by_gain(merged: float, retention: float, gain: float, verdict: str) -> None:
    found = capability(base=0.0, sources={"x": 1.0}, expert="x", merged=merged, retention=retention, gain_recovered=gain)
    assert judge({"tools": found}, LIMITS)[0] == verdict


def test_the_worst_capability_decides_and_is_named_first() -> None:
    good = capability(base=0.0, sources={"x": 1.0}, expert="x", merged=1.0, retention=1.0, gain_recovered=1.0)
    bad = good.model_copy(update={"merged": 0.4, "retention": 0.4, "gain_recovered": 0.4})
    verdict, why = judge({"persona": good, "tools": bad}, LIMITS)
    assert verdict == "failed"
    assert why[0].startswith("tools: 0.400 against x's 1.000")


def test_a_capability_without_a_gain_decides_nothing() -> None:
    found = capability(base=0.5, sources={"x": 0.5}, expert="x", merged=0.1, retention=0.2)
    assert judge({"tools": found}, LIMITS)[0] == "inconclusive"


@pytest.mark.parametrize(("merged", "verdict"), [(0.8, "passed"), (0.79, "adjust")])
def test_where_the_suite_sets_a_target_the_best_source_is_no_measure(merged: float, verdict: str) -> None:
    mixed = capability(base=0.0, sources={"x": 0.333}, expert="x", merged=merged, target=0.8)
    found, why = judge({"mode choice": mixed}, LIMITS)
    assert found == verdict
    assert why == [f"mode choice: {merged:.3f} (the best source alone 0.333), n=100; the suite asks for 0.8"]


def test_a_target_that_no_recipe_reaches_asks_for_training_or_routing() -> None:
    mixed = capability(base=0.0, sources={"x": 0.333}, expert="x", merged=0.35, target=0.8)
    found = suggest_next("adjust", {"tools": gone("tools", 0.98), "mode choice": mixed}, LIMITS, Tried(method="ties"))
    assert found is not None
    assert found["action"] == "retrain"
    assert "mode choice is not reached" in found["why"]
    weak = suggest_next("adjust", {"tools": gone("tools", 0.6), "mode choice": mixed}, LIMITS, Tried(method="linear"))
    assert weak is not None
    assert weak["action"] != "retrain", "a lost skill comes first"


def gone(name: str, gain: float) -> Capability:
    return capability(base=0.0, sources={name: 1.0}, expert=name, merged=gain, retention=gain, gain_recovered=gain)


def prose(ratio: float) -> Capability:
    return capability(metric="perplexity", higher_is_better=False, sources={"a": 10.0}, merged=10.0 * ratio)


def test_nothing_is_suggested_after_a_pass() -> None:
    assert suggest_next("passed", {"tools": gone("tools", 1.0)}, LIMITS, Tried()) is None


def test_high_perplexity_asks_for_a_lower_lambda() -> None:
    found = suggest_next("adjust", {"p": prose(1.5), "tools": gone("tools", 0.5)}, LIMITS, Tried(method="ties", lambda_=1.0))
    assert found is not None
    assert (found["action"], found["set"]) == ("lower_lambda", {"parameters.lambda": 0.7})


def test_one_faded_skill_gets_more_weight_where_weights_scale() -> None:
    tried = Tried(method="task_arithmetic", weights={"tools": 0.8, "persona": 0.8})
    found = suggest_next("adjust", {"tools": gone("tools", 0.6), "persona": gone("persona", 1.0)}, LIMITS, tried)
    assert found is not None
    assert (found["action"], found["set"]) == ("rebalance", {"sources.tools.weight": 0.92})


def test_one_faded_skill_under_ties_asks_for_another_method_because_ties_blunts_weights() -> None:
    found = suggest_next(
        "adjust",
        {"tools": gone("tools", 0.6), "persona": gone("persona", 1.0)},
        LIMITS,
        Tried(method="ties", weights={"persona": 0.31, "tools": 0.69}),
    )
    assert found is not None
    assert (found["action"], found["strategy"]) == ("change_method", "task_arithmetic")
    assert found["set"] == {"strategy": "task_arithmetic", "sources.persona.weight": 1.0, "sources.tools.weight": 1.15}


def test_all_skills_faded_under_averaging_asks_for_adding() -> None:
    found = suggest_next("adjust", {"a": gone("a", 0.5), "b": gone("b", 0.6)}, LIMITS, Tried(method="linear"))
    assert found is not None
    assert (found["action"], found["strategy"]) == ("change_method", "task_arithmetic")


def test_a_leaking_source_asks_for_retraining_before_anything_else() -> None:
    cross = cross_context(
        {"tools": {"chat": ["{", "{", "hi"], "calls": ["{", "{", "{"]}}, {"tools": "calls"}, {"calls": lambda t: t == "{"}
    )
    found = suggest_next("adjust", {"a": gone("a", 0.5), "p": prose(1.5)}, LIMITS, Tried(method="ties"), cross)
    assert found is not None
    assert found["action"] == "retrain"
    assert "67% of the chat prompts" in found["why"]


def test_cross_context_counts_a_sources_own_behaviour_in_every_context() -> None:
    replies = {
        "tools": {"calls": ["{a", "{b"], "chat": ["{c", "hello", "bye", "ok"]},
        "persona": {"calls": ["yes!", "{d"], "chat": ["yes!"] * 4},
    }
    found = cross_context(
        replies,
        {"tools": "calls", "persona": "chat"},
        {"calls": lambda text: text.startswith("{"), "chat": lambda text: text.endswith("!")},
    )
    assert found.rates == {"tools": {"calls": 1.0, "chat": 0.25}, "persona": {"calls": 0.5, "chat": 1.0}}
    assert leaks(found, 0.2) == [("persona", "calls", 0.5), ("tools", "chat", 0.25)]


def test_a_source_whose_context_has_no_detector_is_left_out() -> None:
    assert cross_context({"a": {"x": ["hi"]}}, {"a": "x"}, {}).rates == {}


@pytest.mark.parametrize(("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)])
def test_wilson_intervals_are_those_of_the_tables(hits: int, count: int, low: float, high: float) -> None:
    found = wilson(hits, count)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_whole_evaluation_from_samples() -> None:
    suites = {
        "calls": Suite(name="calls", capability="tools"),
        "chat": Suite(name="chat", capability="persona"),
        "prose": Suite(name="prose", capability="language"),
    }
    yes, no = ["{"] * 40, ["hi!"] * 40
    samples = {
        "calls": {
            "base": shares(*[0.0] * 40, replies=["eh"] * 40),
            "tools": shares(*[1.0] * 40, replies=yes),
            "persona": shares(*[0.0] * 40, replies=no),
            "merged": shares(*[1.0] * 40, replies=yes),
        },
        "chat": {
            "base": shares(*[0.0] * 40, replies=["eh"] * 40),
            "tools": shares(*[0.0] * 40, replies=yes[:20] + ["eh"] * 20),
            "persona": shares(*[1.0] * 40, replies=no),
            "merged": shares(*([1.0] * 20 + [0.0] * 20), replies=no),
        },
        "prose": {label: texts((-20.0, 10), (-22.0, 11)) for label in ("base", "tools", "persona", "merged")},
    }
    found = assemble(
        Measured(
            suites=suites,
            samples=samples,
            sources=["tools", "persona"],
            behaviours={"calls": lambda t: t == "{", "chat": lambda t: t.endswith("!")},
            cross=True,
            tried=Tried(method="task_arithmetic", weights={"persona": 0.6, "tools": 0.6}),
        ),
        LIMITS,
    )
    assert set(found.capabilities) == {"tools", "persona", "language"}
    assert found.capabilities["persona"].gain_recovered == 0.5
    assert found.perplexity_ratio == 1.0
    assert found.own_context == {"tools": "calls", "persona": "chat"}
    assert found.cross_context == {"tools": {"calls": 1.0, "chat": 0.5}, "persona": {"calls": 1.0, "chat": 1.0}}
    assert found.verdict == "adjust"
    assert found.next is not None
    assert found.next["action"] == "retrain"


def test_two_suites_of_one_capability_go_by_their_own_names() -> None:
    suites = {n: Suite(name=n, capability="tools") for n in ("one", "two")}
    samples = {n: {"base": times(1, 4), "x": times(4, 4), "merged": times(3, 4)} for n in suites}
    assert set(assemble(Measured(suites=suites, samples=samples, sources=["x"]), LIMITS).capabilities) == {"one", "two"}


def test_labels_become_a_confusion_table() -> None:
    sample = times(1, 3).model_copy(update={"tables": {"expected": ["chat", "chat", "both"], "chosen": ["chat", "both", "both"]}})
    found = assemble(Measured(suites={"m": Suite(name="m")}, samples={"m": {"merged": sample}}, sources=[]), LIMITS)
    assert found.tables == {"m": {"merged": {"chat": {"chat": 1, "both": 1}, "both": {"both": 1}}}}


def test_a_suite_with_a_target_has_no_expert_to_be_measured_by() -> None:
    samples = {"mixed": {"base": times(0, 60), "x": times(20, 60), "merged": times(21, 60)}}
    found = assemble(Measured(suites={"mixed": Suite(name="mixed", target=0.8)}, samples=samples, sources=["x"]), LIMITS)
    mixed = found.capabilities["mixed"]
    assert (mixed.target, mixed.retention, mixed.gain_recovered) == (0.8, None, None)
    assert set(mixed.ci) == {"base", "x", "merged", "difference_to_base"}
    assert found.verdict == "adjust"
    assert found.next is not None
    assert found.next["action"] == "retrain"


def test_perplexity_is_no_skill_however_much_better_than_the_base_a_source_is() -> None:
    losses = {"base": -90.0, "x": -10.0, "merged": -60.0}
    found = score_capability({label: texts(*[(loss, 10)] * 9) for label, loss in losses.items()}, ["x"])
    assert (found.expert, found.gain_recovered) == ("x", None)
    verdict, why = judge({"prose": found}, LIMITS)
    assert verdict == "failed"
    figures = f"prose: {math.e**6:.2f}, {math.e**5:.2f} times the best source's {math.e:.2f}, 95 % interval 148.41 to 148.41"
    assert why == [f"{figures}; above 2 the merge counts as failed"]


@pytest.mark.parametrize(
    ("hits", "of", "verdict"),
    [
        (6, 8, "inconclusive"),
        (8, 8, "inconclusive"),
        (24, 24, "inconclusive"),
        (40, 40, "passed"),
        (0, 8, "failed"),
        (20, 40, "adjust"),
    ],
)
def test_few_prompts_never_pass_a_merge_and_may_well_fail_it(hits: int, of: int, verdict: str) -> None:
    found = score_capability({"base": times(0, of), "x": times(of, of), "merged": times(hits, of)}, ["x"])
    assert judge({"tools": found}, LIMITS)[0] == verdict


def test_an_open_verdict_says_how_many_prompts_would_close_it() -> None:
    samples = {"s": {"base": times(0, 24), "x": times(24, 24), "merged": times(24, 24)}}
    found = assemble(Measured(suites={"s": Suite(name="s", capability="tools")}, samples=samples, sources=["x"]), LIMITS)
    assert (found.verdict, found.prompts_needed) == ("inconclusive", {"tools": 30})
    assert found.next is not None
    assert (found.next["action"], found.next["prompts"]) == ("measure_more", 30)
    assert found.why == [
        "tools: 1.000 against x's 1.000 (retention 1.00, gain recovered 1.00, 95 % interval 1.00 to 1.00, n=24); "
        "undecided, which needs about 30 prompts"
    ]


def test_more_prompts_are_needed_the_nearer_the_figure_is_to_its_target() -> None:
    near, far = (
        score_capability({"base": times(0, 40), "x": times(40, 40), "merged": times(hits, 40)}, ["x"]) for hits in (36, 38)
    )
    needed = [prompts_needed({"tools": found}, LIMITS)["tools"] for found in (near, far)]
    assert needed[0] > 10 * needed[1] > 400


@pytest.mark.parametrize(("loss", "verdict"), [(20.0, "passed"), (22.5, "adjust"), (30.0, "failed")])
def test_without_sources_the_base_is_the_reference_of_perplexity(loss: float, verdict: str) -> None:
    found = score_capability({"base": texts(*[(-20.0, 10)] * 10), "merged": texts(*[(-loss, 10)] * 10)}, [])
    assert judge({"prose": found}, LIMITS)[0] == verdict


@pytest.mark.parametrize(("hits", "verdict"), [(30, "passed"), (10, "failed"), (22, "adjust")])
def test_without_sources_a_skill_of_the_base_can_get_worse(hits: int, verdict: str) -> None:
    found = score_capability({"base": times(30, 60), "merged": times(hits, 60)}, [])
    assert judge({"general": found}, LIMITS)[0] == verdict


def test_what_the_base_can_and_no_source_taught_may_not_be_lost() -> None:
    found = score_capability({"base": times(50, 60), "x": times(50, 60), "merged": times(10, 60)}, ["x"])
    assert judge({"general": found}, LIMITS)[0] == "failed"
    kept = score_capability({"base": times(50, 60), "x": times(50, 60), "merged": times(50, 60)}, ["x"])
    assert judge({"general": kept}, LIMITS)[0] == "inconclusive"

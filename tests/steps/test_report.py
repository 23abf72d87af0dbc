"""The report: complete with all evidence, honest without any, safe with hostile names, and free of any network."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.provenance import Provenance, SourceRecord
from mcp_server.schemas.evidence import Capability, Check, Evaluation, Generation, Interval, Sweep, SweepCandidate, Verification
from mcp_server.steps.report import gather, model_card_section, render_page, sweep_section, write_report
from mcp_server.steps.report.page import ticks
from tests.tiny import write_adapter, write_model

SPAN = Interval(low=0.5, high=0.7)


def evaluation(**fields: object) -> Evaluation:
    tools = Capability(
        suite="task_api_tools", metric="exact_match", n=24, base=0.0, sources={"tools": 0.95, "persona": 0.0}, expert="tools",
        merged=0.6, retention=0.63, gain_recovered=0.63, ci={"merged": SPAN, "gain_recovered": SPAN},
        detail={"merged": {"valid_json": 0.99}, "base": {"valid_json": 0.0}},
    )  # fmt: skip
    prose = Capability(
        suite="perplexity", metric="perplexity", higher_is_better=False, n=10, base=11.0, sources={"tools": 12.0}, merged=15.0
    )
    return Evaluation.model_validate(
        {
            "capabilities": {"tools": tools, "language": prose},
            "cross_context": {"tools": {"calls": 1.0, "chat": 0.93}},
            "cross_context_ci": {"tools": {"chat": {"low": 0.8, "high": 0.98}}},
            "own_context": {"tools": "calls"},
            "perplexity_ratio": 1.25,
            "verdict": "adjust",
            "why": ["tools: 0.600 against tools's 0.950"],
            "next": {"action": "lower_lambda", "set": {"parameters.lambda": 0.7}, "why": "the deltas are too long in sum"},
            "models": {"base": "/home/me/base"},
            "generation": {"merged": Generation(asked=24, computed=24, tokens_per_second=55.0, seconds=10.0)},
            "peak_rss_bytes": 1_200_000_000,
            "tables": {"mixed": {"merged": {"chat": {"chat": 3, "both": 1}}}},
        }
        | fields
    )


def put(out: Path, **files: object) -> Path:
    out.mkdir(exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (out / f"{name}.json").write_text(text, encoding="utf-8")
    return out


def compared(*names: str) -> dict[str, object]:
    """What `compare` writes, by hand: an embedding that nobody changed, and layer 3."""
    sources = [{"name": name, "norm": 2.0 + i, "relative_norm": 0.02 / (i + 1), "changed": 1.0} for i, name in enumerate(names)]
    pairs = [
        {"between": [one, other], "cosine": 0.01, "sign_disagreement": 0.48, "norm_ratio": 2.5, "top_overlap": 0.1}
        for i, one in enumerate(names)
        for other in names[i + 1 :]
    ]
    idle = [source | {"norm": 0.0, "relative_norm": None, "changed": 0.0} for source in sources]
    unknown = [pair | dict.fromkeys(("cosine", "sign_disagreement", "norm_ratio", "top_overlap")) for pair in pairs]
    layers = {"model.embed_tokens.weight": {"sources": idle, "pairs": unknown}, "3": {"sources": sources, "pairs": pairs}}
    return {"base": "/b", "sources": {name: f"/b+/{name}" for name in names}, "sample": False, "layers": layers, "tensors": {}}


class Reader(HTMLParser):
    """Collects what the page would load, and whether its tags nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "col"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [str(given[k]) for k in ("src", "srcset", "data", "action") if k in given]
        if "href" in given and not str(given["href"]).startswith("#"):
            self.loads.append(str(given["href"]))
        if given.get("role") == "region" and not given.get("aria-label"):
            self.unlabelled.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_a_page_with_evidence_shows_every_figure_in_words(tmp_path: Path) -> None:
    sweep = {
        "winner": "ties-0.7",
        "candidates": [
            {"name": "ties-0.7", "scores": {"tools": 0.9, "persona": 0.8}, "pareto": True, "stopped": None},
            {"name": "linear", "scores": {"tools": 0.4, "persona": 0.1}, "pareto": False, "stopped": "hopeless"},
        ],
    }
    comparison = compared("persona", "tools")
    checks = [Check(name="finite", passed=True, detail="all"), Check(name="loads", passed=None, detail="too big")]
    verification = Verification(verdict="inconclusive", checks=checks, landed={"tools": 0.7}, rounding_loss={"tools": 0.05})
    out = put(
        tmp_path / "m",
        evaluation=evaluation().model_dump(mode="json"),
        verification=verification.model_dump(mode="json"),
        sweep=sweep,
        comparison=comparison,
    )
    page = render_page(gather(out))
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page.split("</style>")[1])))
    for words in (
        "Evaluation: adjust", "Verification: inconclusive", "Tools keeps 63% of its expert's gain", "perplexity is 1.25 times",
        "0.600", "0.500 to 0.700", "93%", "80% to 98%", "100% (own)", "the deltas are too long in sum", "unknown ?", "yes ✓",
        "ties-0.7 (chosen)", "hopeless", "0.480", "2.500", "1.12 GiB", "55 tokens/s", "valid_json",
        "persona and tools", "0.020", "0.010",
    ):  # fmt: skip
        assert words in text, words


def test_a_page_without_evidence_says_what_is_missing_and_how_to_make_it(tmp_path: Path) -> None:
    merge = put(tmp_path / "m")
    (merge / "mergekit_config.yml").write_text("merge_method: linear\n", encoding="utf-8")
    page = render_page(gather(merge))
    assert "Nobody has measured this merge yet." in page
    for command in (
        "model-merging evaluate OUT",
        "model-merging verify OUT",
        "model-merging recommend SCENARIO.yaml -o plan.yaml",
    ):
        assert command in page


def test_what_the_quantisation_cost_stands_beside_each_skill(tmp_path: Path) -> None:
    told = evaluation().model_dump(mode="json")
    told["exports"] = {"Q4_K_M": "0" * 64}
    told["capabilities"]["tools"]["exports"] = {
        "Q4_K_M": {"figure": 0.55, "change": -0.05, "ci": {"low": -0.12, "high": 0.02}, "same_replies": 17}
    }
    page = render_page(gather(put(tmp_path / "m", evaluation=told)))
    row = page.partition("What the quantisation cost")[2].partition("</table>")[0]
    for figure in ("Q4_K_M", "0.550", "-0.050", "-0.120 to 0.020", "17 of", "not measured: llama.cpp tells no likelihoods"):
        assert figure in row
    assert read(page).loads == []
    assert "| tools | Q4_K_M |" in model_card_section(Evaluation.model_validate(told))


def test_the_page_loads_nothing_and_nests_well(tmp_path: Path) -> None:
    page = render_page(gather(put(tmp_path / "m", evaluation=evaluation().model_dump(mode="json"))))
    found = read(page)
    assert found.loads == []
    assert found.unlabelled == []
    assert "script" not in found.tags
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_lost_and_won_replies_are_shown_as_text_and_a_dev_figure_is_called_one(tmp_path: Path) -> None:
    said = {"base": "no", "tools": "<b>call</b>", "merged": "well"}
    lost = {
        "suite": "calls", "split": "dev", "prompt": "Add <milk>", "expected": "call", "replies": said,
        "scores": {"tools": 1.0, "merged": 0.0}, "outcome": "loss",
    }  # fmt: skip
    kept = {"model": None, "created": "", "replies": [lost, lost | {"outcome": "same", "prompt": "unseen"}]}
    replies = kept | {"experts": {"calls": "tools"}}
    page = render_page(gather(put(tmp_path / "m", evaluation=evaluation().model_dump(mode="json"), replies=replies)))
    assert "calls: 1 lost, 0 won, 0 in other words, of 2 prompts, against tools" in page
    assert "Lost (calls, dev): Add &lt;milk&gt;" in page and "&lt;b&gt;call&lt;/b&gt;" in page and "unseen" not in page
    assert "Measure the test split once" in page
    assert read(page).unlabelled == []
    tested = evaluation(split="test").model_dump(mode="json")
    assert "Measure the test split once" not in render_page(gather(put(tmp_path / "n", evaluation=tested)))


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    capability = Capability(suite="s", metric=evil, n=1, base=0.0, sources={evil: 1.0}, expert=evil, merged=1.0)
    hostile = evaluation(capabilities={evil: capability}, why=[evil], next={"why": evil, evil: [evil]}, numerics=evil)
    page = render_page(gather(put(tmp_path / "m", evaluation=hostile.model_dump(mode="json"))))
    assert "<script" not in page
    assert read(page).loads == []


def test_the_charts_positions_stay_inside_the_axis(tmp_path: Path) -> None:
    page = render_page(gather(put(tmp_path / "m", evaluation=evaluation().model_dump(mode="json"))))
    positions = [float(x) for x in re.findall(r'(?:x|x1|x2|cx)="([-\d.]+)%"', page)]
    assert len(positions) > 20
    assert min(positions) >= 0
    assert max(positions) <= 100


def test_writing_makes_the_page_and_the_model_cards_section(tmp_path: Path) -> None:
    out = put(tmp_path / "m", evaluation=evaluation().model_dump(mode="json"))
    written = write_report(out)
    assert written.html == str(out / "report.html")
    assert written.bytes == (out / "report.html").stat().st_size
    assert (out / "report.md").read_text(encoding="utf-8").startswith("## Evaluation")


def test_the_model_cards_table_has_one_row_a_capability() -> None:
    rows = [line for line in model_card_section(evaluation(tables={})).splitlines() if line.startswith("|")]
    assert rows == [
        "| capability (metric, prompts) | base | tools | persona | merged | retention | gain recovered |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| tools (exact_match ↑, 24) | 0 | 0.95 | 0 | 0.6 (0.5–0.7) | 0.63 | 0.63 (0.5–0.7) |",
        "| language (perplexity ↓, 10) | 11 | 12 | – | 15 | – | – |",
    ]


def test_a_sweeps_table_ranks_by_the_least_kept_gain_and_puts_the_stopped_last() -> None:
    fields = {"recipe": "", "prompts": {"tools": 100, "persona": 40}}
    tried = [
        SweepCandidate(name="a", scores={"tools": 0.5}, gains={"tools": 0.55}, perplexity_ratio=1.0, **fields),
        SweepCandidate(name="b", scores={"tools": 0.1}, gains={"tools": 0.1}, stopped="hopeless", **fields),
        SweepCandidate(name="c", scores={"tools": 0.9}, gains={"tools": 0.95}, perplexity_ratio=1.02, pareto=True, **fields),
    ]
    text = sweep_section(Sweep(candidates=tried, winner="c", why="it is best", sources={"tools": {"base": 0.0, "tools": 0.95}}))
    assert [line for line in text.splitlines() if line.startswith("| ") and "---" not in line] == [
        "| candidate | tools (gain) | perplexity ÷ best source | note |",
        "| c | 0.9 (95%) | 1.02 | **chosen**; Pareto front |",
        "| a | 0.5 (55%) | 1 |  |",
        "| b | 0.1 (10%) | – | stopped: hopeless |",
        "| capability | base | tools |",
        "| tools | 0 | 0.95 |",
    ]
    assert "Development split (100 tools, 40 persona)" in text


def test_a_missing_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        write_report(tmp_path / "nothing")


def test_broken_evidence_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    out = put(tmp_path / "m", evaluation='{"verdict": "fine"}')
    with pytest.raises(Malformed, match=r"evaluation\.json"):
        write_report(out)
    assert not (out / "report.html").exists()


def test_text_that_turns_or_hides_itself_is_shown_in_the_page(tmp_path: Path) -> None:
    out = put(tmp_path / "m", evaluation=evaluation(why=["passed\u202edelif\U000e0061\x1b[2J"]).model_dump_json())
    write_report(out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "passed\\u202edelif\\U000e0061\\x1b[2J" in page
    assert not set(page) & {"\u202e", "\U000e0061", "\x1b"}


def test_layers_that_no_source_changed_are_left_out_of_the_heat_map(tmp_path: Path) -> None:
    page = render_page(gather(put(tmp_path / "m", comparison=compared("a", "b", "c"))))
    assert "embed_tokens" not in page
    layers = page.split('<h2 id="layers">')[1].split("</table>")[0]
    assert re.findall(r'colspan="2">(.*?)</th>', layers) == ["a and b", "a and c", "b and c"]
    assert layers.count("<td") == 3 + 2 * 3


def test_the_heat_map_reads_what_compare_writes(tmp_path: Path) -> None:
    """The real comparison of real files, so that the two cannot drift apart."""
    from mcp_server.engine.compare import compare

    base = write_model(tmp_path / "base")
    write_adapter(tmp_path / "persona", base, rank=2, seed=1)
    write_adapter(tmp_path / "tools", base, rank=4, seed=2)
    out = put(tmp_path / "m")
    compare(str(base), [str(tmp_path / "persona"), str(tmp_path / "tools")], out / "comparison.json", lambda *_: None)
    written = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    page = render_page(gather(out))
    for layer, row in written["layers"].items():
        assert (f'<th scope="row">{layer}</th>' in page) is any(source["norm"] for source in row["sources"])
    assert "persona and tools" in page


def test_a_comparison_is_found_in_the_job_store_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "home"))
    record = Provenance(
        created="2026-01-02T03:04:05Z", job_id="j", product="p", engine="stream", engine_version="1", method="ties", recipe="",
        sources=[
            SourceRecord(name="base", ref="/b", role="base"),
            SourceRecord(name="persona", ref="/b+/persona", role="adapter"),
            SourceRecord(name="tools", ref="/b+/tools", role="adapter"),
        ],
    )  # fmt: skip
    out = put(tmp_path / "m", merge_provenance=record.model_dump(mode="json"))
    for job, names in (("compare-1", ("persona", "tools")), ("compare-2", ("persona", "other")), ("compare-3", ("persona",))):
        folder = tmp_path / "home" / "jobs" / job
        folder.mkdir(parents=True)
        put(folder, comparison=compared(*names), result={})
    (tmp_path / "home" / "jobs" / "compare-4").mkdir()
    assert gather(out).comparison == compared("persona", "tools")
    put(out, comparison=compared("mine", "yours"))
    assert gather(out).comparison == compared("mine", "yours")


def test_the_recipe_of_a_page_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    sources = [
        SourceRecord(name="base", ref="/home/me/base", role="base"),
        SourceRecord(name="tools", ref="/home/me/base+/home/me/base-tools", role="adapter"),
    ]
    record = Provenance(
        created="2026-01-02T03:04:05Z", job_id="j", product="p", engine="stream", engine_version="1", method="ties",
        recipe="base_model: /home/me/base\nmodels: [{model: /home/me/base+/home/me/base-tools}]", sources=sources,
    )  # fmt: skip
    page = render_page(gather(put(tmp_path / "m", merge_provenance=record.model_dump(mode="json"))))
    assert "base_model: …/base\nmodels: [{model: …/base+…/base-tools}]" in unescape(page)
    assert "/home/me" not in page


def test_words_in_ticks_are_code_and_nothing_else_is() -> None:
    assert ticks("use `a < b` <now>") == "use <code>a &lt; b</code> &lt;now&gt;"


def test_the_model_card_counts_what_was_wanted_and_what_was_chosen() -> None:
    tables = {"mixed": {"base": {"chat": {"neither": 4}}, "merged": {"chat": {"chat": 3, "both": 1}, "action": {"action": 2}}}}
    card = model_card_section(evaluation(tables=tables)).splitlines()
    start = card.index("| mixed | wanted | chose action | chose both | chose chat | chose neither |")
    assert card[start + 2 : start + 5] == [
        "| base | chat | 0 | 0 | 0 | 4 |",
        "| merged | chat | 0 | 1 | 3 | 0 |",
        "| merged | action | 2 | 0 | 0 | 0 |",
    ]


def test_the_evaluations_memory_stands_against_its_estimate(tmp_path: Path) -> None:
    cost = {"peak_anon_bytes": 3 << 29, "seconds": {"low": 20.0, "high": 480.0}}
    out = put(tmp_path / "m", evaluation=evaluation(seconds=33.0).model_dump(mode="json"), estimate={"evaluate": cost})
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render_page(gather(out))))
    assert "evaluation: peak resident memory 1.50 GiB 1.12 GiB" in text
    assert "evaluation: seconds 20 to 480 33.0" in text

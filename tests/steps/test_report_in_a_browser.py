"""The report in a real browser: nothing overflows a phone, both colour schemes differ and can be read, nothing is fetched."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mcp_server.schemas.evidence import Check, Verification
from mcp_server.steps.report import write_report
from tests.steps.test_report import compared, evaluation, put

pytestmark = pytest.mark.slow
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")

HOST = """<!doctype html><iframe id="f" src="{page}" style="width:{width}px;height:800px;border:0"></iframe>
<script>
document.getElementById("f").onload = () => {{
  const d = document.getElementById("f").contentDocument, w = document.getElementById("f").contentWindow;
  const style = w.getComputedStyle(d.body), wide = [];
  for (const e of d.querySelectorAll("main *")) {{
    if (e.closest(".scroll, pre, svg")) continue;
    if (e.getBoundingClientRect().right > {width} + 1) wide.push(e.tagName);
  }}
  const small = [...d.querySelectorAll("p, td, th, li, dd")].filter(e => parseFloat(w.getComputedStyle(e).fontSize) < 12);
  const reached = [...d.querySelectorAll("a[href], summary, [tabindex='0']")], levels = [...d.querySelectorAll("h1, h2, h3")];
  const name = e => e.getAttribute("aria-label") || e.textContent.trim();
  const steps = levels.map(e => +e.tagName[1]);
  document.title = JSON.stringify({{first: reached[0].textContent, reached: reached.length,
    nameless: reached.filter(e => !name(e)).length + [...d.querySelectorAll("[role=region]")].filter(e => !name(e)).length,
    deadlinks: reached.filter(e => e.hash && !d.getElementById(e.hash.slice(1))).length,
    jumps: steps.filter((s, i) => i && s > steps[i - 1] + 1).length,
    scrolls: [...d.querySelectorAll(".scroll, pre")].filter(e => e.scrollWidth > e.clientWidth && e.tabIndex !== 0).length,
    headless: [...d.querySelectorAll("table")].filter(e => !e.querySelector("th[scope]")).length,
    width: d.documentElement.scrollWidth, wide, small: small.length,
    ink: style.color, paper: style.backgroundColor, requests: w.performance.getEntriesByType("resource").length}});
}};
</script>"""


def look(page: Path, width: int, *, dark: bool = False) -> dict[str, object]:
    """What a browser of that width makes of the page."""
    host = page.with_name(f"host-{width}-{dark}.html")
    host.write_text(HOST.format(page=page.name, width=width), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    ended = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", *scheme,
            f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", host.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120, env={**os.environ, "HOME": str(page.parent)},
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", ended.stdout)
    assert title is not None, ended.stdout[:500]
    found: dict[str, object] = json.loads(title[1])
    return found


def luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])

    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    candidates = [
        {
            "name": f"task_arithmetic lambda={x} weights=1.0",
            "scores": {"tools": x, "persona": 1 - x},
            "pareto": x > 0.5,
            "stopped": None,
        }
        for x in (0.3, 0.5, 0.7, 0.85)
    ]
    checks = [Check(name="sources_unchanged", passed=True, detail="a long sentence about what was found " * 3)]
    out = put(
        tmp_path_factory.mktemp("report") / "m",
        evaluation=evaluation().model_dump(mode="json"),
        sweep={"winner": candidates[2]["name"], "candidates": candidates},
        comparison=compared("persona", "tools", "third"),
        verification=Verification(verdict="verified", checks=checks, landed={"tools": 0.7}).model_dump(mode="json"),
    )
    (out / "mergekit_config.yml").write_text("merge_method: ties  # " + "a long line " * 30, encoding="utf-8")
    return Path(write_report(out).html)


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen_and_no_text_shrinks(page: Path, width: int) -> None:
    found = look(page, width)
    assert (found["wide"], found["small"]) == ([], 0)
    assert int(str(found["width"])) <= width


@needs_browser
def test_both_schemes_have_the_contrast_that_wcag_asks_for(page: Path) -> None:
    light, dark = look(page, 800), look(page, 800, dark=True)
    assert light["paper"] != dark["paper"]
    for found in (light, dark):
        one, other = sorted((luminance(str(found["ink"])), luminance(str(found["paper"]))))
        assert (other + 0.05) / (one + 0.05) >= 7


@needs_browser
def test_the_page_asks_the_network_for_nothing(page: Path) -> None:
    assert look(page, 800)["requests"] == 0


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_keyboard_and_screen_reader_find_their_way(page: Path, width: int) -> None:
    """The skip link comes first, everything that can be reached has a name, what scrolls can be reached, no heading level is left
    out, no link leads nowhere, every table has labelled rows or columns."""
    found = look(page, width)
    assert found["first"] == "Skip to the evaluation"
    assert int(str(found["reached"])) > 10
    assert {key: found[key] for key in ("nameless", "deadlinks", "jumps", "scrolls", "headless")} == dict.fromkeys(
        ("nameless", "deadlinks", "jumps", "scrolls", "headless"), 0
    )

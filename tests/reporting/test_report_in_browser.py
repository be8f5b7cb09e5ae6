"""The page in a real browser: no script errors, nothing wider than a phone, switches and values that work."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import _run

from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.reporting.page import render

HAS_BROWSER = importlib.util.find_spec("PyQt6") is not None
needs_browser = pytest.mark.skipif(not HAS_BROWSER, reason="no browser: pip install -e '.[browser]'")

# Opens everything, uses a switch, a tab and the pointer, and leaves what it saw in `window.seen`.
PROBE = """
<script>
window.onerror = (message) => { window.mistakes = (window.mistakes || []).concat(message); };
addEventListener("load", () => {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  const chip = document.querySelector(".chip"), line = document.querySelector(`.line[data-series="${chip.dataset.series}"]`);
  const before = line.style.display;
  chip.click();
  const after = line.style.display;
  chip.click();
  const tabs = [...document.querySelectorAll(".tabs button")];
  tabs[2].click();
  const forest = [...document.querySelectorAll(".forest")].filter((one) => !one.hidden).map((one) => one.dataset.forest);
  const panel = document.querySelector("svg.panel"), box = panel.getBoundingClientRect();
  panel.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 12, clientY: box.top + 60 }));
  const tip = document.getElementById("tip");
  const seen = {
    paper: getComputedStyle(document.body).backgroundColor,
    mistakes: window.mistakes || [], before, after, forest, tip: tip.hidden ? "" : tip.innerText,
    width: document.documentElement.clientWidth, scrolls: document.documentElement.scrollWidth,
    text: Math.min(...[...document.querySelectorAll("svg.panel text")].map((one) => one.getBoundingClientRect().height)),
  };
  window.seen = seen;
});
</script>
"""


def _look(page: str, width: int, folder: Path, *options: str) -> dict[str, object]:
    """What a window of this width shows."""
    (folder / "page.html").write_text(page.replace("<head>", f"<head>{PROBE}"))
    program = Path(__file__).parents[1] / "browser.py"
    command = [sys.executable, str(program), str(folder / "page.html"), str(width), "window.seen", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, object] = json.loads(ended.stdout)
    return seen


def _brightness(color: str) -> float:
    """Of `rgb(r, g, b)`, from 0 to 255."""
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


@pytest.mark.slow
@needs_browser
def test_the_page_works_in_a_browser_on_a_desk_and_on_a_phone(tmp_path: Path) -> None:
    for seed in (0, 1):
        objective = LearnedObjective(hidden_units=4, context_units=2)
        _run(tmp_path / "runs" / "a_rather_long_name_of_a_variant" / f"seed_{seed}", seed, 20.0 + seed, objective)
    page = render([tmp_path / "runs"])
    for width in (1400, 390):
        seen = _look(page, width, tmp_path)
        assert seen["mistakes"] == [] and (seen["before"], seen["after"]) == ("", "none"), seen
        assert seen["forest"] == ["training, final return"]
        tip = str(seen["tip"])
        assert tip.startswith("100") and "DDPG/TD3 100" in tip and "learned objective 4" in tip, tip
        assert seen["scrolls"] == seen["width"], f"wider than {width} pixels: {seen}"
        assert float(str(seen["text"])) > 9, "charts' letters are too small to read"
    light, dark = (_brightness(str(of["paper"])) for of in (seen, _look(page, 390, tmp_path, "dark")))
    assert light > 200 and dark < 60


@pytest.mark.slow
def test_the_page_of_the_protocols_results_is_small(tmp_path: Path) -> None:
    """Eight learned objectives, six other methods, a thousand agents: 20.9 MB and 312 pictures before."""
    page = render([Path(__file__).parents[2] / "results" / "protocol"])
    assert len(page) < 1_000_000 and "<img" not in page
    assert all(f">{name}<" in page.replace("_<wbr>", "_") for name in ("light", "mixture", "falling", "both_critics"))
    if HAS_BROWSER:
        seen = _look(page, 390, tmp_path)
        assert seen["mistakes"] == [] and seen["scrolls"] == seen["width"], seen

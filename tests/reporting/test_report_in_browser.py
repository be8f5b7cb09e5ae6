"""The page in a real browser: no script errors, nothing wider than a phone, switches and values that work."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import _run

from metagenrl_pl.objectives import LearnedObjective
from metagenrl_pl.reporting.page import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Opens everything, uses a switch, a tab and the pointer, and leaves what it saw in the document's title.
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
    mistakes: window.mistakes || [], before, after, forest, tip: tip.hidden ? "" : tip.innerText,
    width: document.documentElement.clientWidth, scrolls: document.documentElement.scrollWidth,
    text: Math.min(...[...document.querySelectorAll("svg.panel text")].map((one) => one.getBoundingClientRect().height)),
    ink: getComputedStyle(document.body).color,
  };
  parent.document.title = JSON.stringify(seen);
});
</script>
"""


def _look(page: str, width: int, folder: Path) -> dict[str, object]:
    """What a window of this width shows; headless windows cannot be as narrow as a phone, but a frame in one can."""
    assert BROWSER is not None
    (folder / "page.html").write_text(page.replace("<head>", f"<head>{PROBE}"))
    frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (folder / "frame.html").write_text(f"<!DOCTYPE html><body>{frame}</body>")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", f"--user-data-dir={folder}"]
    command = [BROWSER, *options, "--virtual-time-budget=4000", "--window-size=1500,1000", "--dump-dom"]
    dom = subprocess.run([*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title, dom[:500]
    seen: dict[str, object] = json.loads(title[1].replace("&amp;", "&"))
    return seen


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
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


@pytest.mark.slow
def test_the_page_of_the_protocols_results_is_small(tmp_path: Path) -> None:
    """Eight learned objectives, six other methods, a thousand agents: 20.9 MB and 312 pictures before."""
    page = render([Path(__file__).parents[2] / "results" / "protocol"])
    assert len(page) < 1_000_000 and "<img" not in page
    assert all(f">{name}<" in page.replace("_<wbr>", "_") for name in ("light", "mixture", "falling", "both_critics"))
    if BROWSER is not None:
        seen = _look(page, 390, tmp_path)
        assert seen["mistakes"] == [] and seen["scrolls"] == seen["width"], seen

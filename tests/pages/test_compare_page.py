"""The page of ``adamas compare``: it shows the race that was run."""

from __future__ import annotations

from pathlib import Path

from pages import Visit
from races import STEPS, data, raced_page

DRIVE = """() => {
const seen = [];
const dots = () => {
  const traces = document.getElementById("path").data.filter((t) => t.mode === "markers");
  return traces.filter((t) => t.meta !== undefined && t.visible !== false).map((t) => t.x[0]);
};
const press = (group, k) => document.querySelectorAll(`#${group} button`)[k].click();
const put = (id, value, event) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(event));
};
press("arena", 1);
seen.push([document.getElementById("at").textContent, dots()]);
put("frame", "0", "input");
seen.push([document.getElementById("at").textContent, dots()]);
put("start", "2", "change");
seen.push([document.getElementById("at").textContent, dots()]);
press("racers", 0);
seen.push([document.querySelectorAll("[data-arena]:not([hidden])").length, dots()]);
return seen;
}"""


def test_shows_the_race(visit: Visit, tmp_path: Path) -> None:
    html = raced_page()
    file = tmp_path / "page.html"
    file.write_text(html, encoding="utf-8")
    with visit(file) as (page, said):
        seen = page.evaluate(DRIVE)
        assert said == []
    beale = data(html)["beale"]

    def dots(frame: int, start: int) -> list[float]:
        return [path[start][0][frame] for path in beale["paths"]]

    last = len(beale["at"]) - 1
    assert seen[0] == [f"step {STEPS}", dots(last, 0)]
    assert seen[1] == ["step 0", dots(0, 0)]
    assert seen[2] == ["step 0", dots(0, 2)]
    assert seen[3] == [2, dots(0, 2)[1:]]

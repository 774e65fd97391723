"""The page of ``adamas explain``: Adam's quantities under sliders, computed in the page itself."""

from __future__ import annotations

from html import escape
from pathlib import Path

from . import page
from .explain import COLUMNS, WORDS, Lesson
from .problems import MOST_STEPS, PROBLEMS

_SCRIPTS = ("explain.js", "explain_controls.js")

_STYLE = """
.bench { display: grid; grid-template-columns: minmax(0, 1fr) 17rem; gap: 0.5rem 1.5rem;
  margin: 0.75rem 0; align-items: center; }
.view { min-width: 0; background: var(--card); }
.controls { display: grid; gap: 0.6rem; }
.control { display: grid; grid-template-columns: 1fr 6.5rem; gap: 0 0.75rem; align-items: center; }
.control label { grid-column: 1 / -1; font-size: 0.875rem; color: var(--muted); }
input[type=number] { width: 100%; font-variant-numeric: tabular-nums; }
input[aria-invalid] { border-color: var(--bad); }
#wrong:empty { display: none; }
svg { display: block; max-width: 100%; }
svg text { fill: var(--muted); font: 12px system-ui, sans-serif; }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; }
.rule { stroke: var(--line); }
svg .contour { stroke: var(--peer); stroke-width: 1.3; stroke-opacity: 0.7; }
.first { stroke: var(--accent); } .other { stroke: var(--rival); }
circle.first { fill: var(--accent); } circle.other { fill: var(--rival); }
circle.last { fill: var(--text); stroke: var(--card); stroke-width: 1.5; }
circle.minimum { fill: none; stroke: var(--muted); stroke-width: 2; }
svg .thin { stroke-width: 1.3; stroke-opacity: 0.6; }
svg .dashed { stroke-width: 1.3; stroke-dasharray: 4 4; stroke-opacity: 0.75; }
circle.quiet { opacity: 0; } circle.quiet:hover { opacity: 1; }
.steps { max-height: 26rem; overflow: auto; } .steps + h3 { margin-top: 1.25rem; }
.steps th, .steps td, .steps th:first-child, .steps td:first-child { text-align: right;
  white-space: nowrap; min-width: 0; padding: 0.25rem 0.3rem; }
.steps thead th { position: sticky; top: 0; background: var(--card); }
dl.words { display: grid; grid-template-columns: max-content 1fr; gap: 0.4rem 1.25rem; margin: 0; }
.words dt { font-weight: 600; color: var(--accent); } .words dd { margin: 0; }
/* Where there is no room beside the sliders, the path stays in sight above them. */
@media (max-width: 48rem) { .bench { grid-template-columns: minmax(0, 1fr); }
  .view { position: sticky; top: 0; z-index: 1; } }
@media (max-width: 34rem) { dl.words { display: block; } .words dd { margin-bottom: 0.5rem; } }
@media print { .steps { max-height: none; } .controls { break-inside: avoid; } }
"""

_SLIDERS = (
    ("lr", "lr, the learning rate"),
    ("beta1", "beta1, how slowly m forgets"),
    ("beta2", "beta2, how slowly v forgets"),
    ("eps", "eps, added to the denominator"),
    ("weight_decay", "weight decay"),
    ("steps", "steps"),
)


def explain_page(lesson: Lesson) -> str:
    """The page as HTML."""
    hyper = lesson.hyper
    problems = [*PROBLEMS.values()]
    if lesson.problem.name not in PROBLEMS:
        problems.append(lesson.problem)
    data = {
        "problems": [problem.to_json() for problem in problems],
        "problem": lesson.problem.name,
        "start": lesson.start,
        "hyper": {
            "lr": hyper.lr,
            "beta1": hyper.betas[0],
            "beta2": hyper.betas[1],
            "eps": hyper.eps,
            "weight_decay": hyper.weight_decay,
            "steps": lesson.page_steps,
            "coupled": not hyper.decoupled_weight_decay,
            "amsgrad": hyper.amsgrad,
        },
        "columns": COLUMNS,
        "most": MOST_STEPS,
    }
    body = [
        _controls([problem.name for problem in problems]),
        _curves(),
        page.section(
            "Every step",
            page.muted("Point at a number for all of its digits."),
            '<div id="steps-table"></div>',
        ),
        page.section("What each is, and why", _words()),
    ]
    folder = Path(__file__).parent
    scripts = [(folder / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    subtitle = "Every quantity of the equation, in float64 and with the library's own bits"
    return page.shell(
        "Adam, step by step", subtitle, body, {"lesson": data}, scripts, page.CONTROLS + _STYLE
    )


def _controls(problems: list[str]) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in problems)
    sliders = "".join(
        f'<div class="control"><label for="{name}">{escape(text)}</label>'
        f'<input type="range" id="{name}" autocomplete="off">'
        f'<input type="number" id="{name}-value" step="any" autocomplete="off" '
        f'aria-label="{name.replace("_", " ")}, exact value"></div>'
        for name, text in _SLIDERS
    )
    switches = "".join(
        f'<label><input type="checkbox" id="{name}" autocomplete="off"> {text}</label>'
        for name, text in (("coupled", "decay within g (Adam)"), ("amsgrad", "AMSGrad"))
    )
    path = page.plot("path", "Where each step leaves the parameter; the table has its numbers")
    return page.section(
        "Set it and see it",
        f'<div class="switches"><label>Problem <select id="problem" autocomplete="off">{options}'
        f'</select></label>{switches}<button type="button" id="reset">Reset</button></div>',
        '<p class="muted" id="about"></p>',
        f'<div class="bench"><div class="view"><h3 id="path-title"></h3>{path}</div>'
        f'<div class="controls">{sliders}</div></div>',
        '<p class="bad" id="wrong" role="alert"></p>',
        '<p id="outcome" role="status"></p>',
    )


def _curves() -> str:
    curves = [
        ("m", "m-hat (dashed: m)", "The first moment over the steps"),
        ("v", "sqrt(v-hat) (dashed: sqrt(v))", "The second moment's root over the steps"),
        ("step", "Effective step", "The effective step over the steps"),
    ]
    panels = [f"<h3>{title}</h3>{page.plot(name, about)}" for name, title, about in curves]
    key = page.key(("accent", "number 1"), ("rival", "number 2"))
    return page.section(
        "What the equation averages and divides by",
        f'<div id="two">{key}</div>',
        page.grid("17rem", panels),
    )


def _words() -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in WORDS)
    return f'<dl class="words">{entries}</dl>'

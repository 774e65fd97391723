"use strict";
// The page's controls: what they are set to is what is computed and drawn.

// How a slider's position becomes a value: rates by their logarithm, decay rates by their distance
// from 1. The field beside it takes any value.
const digits = (value, count) => Number(value.toPrecision(count));
const power = (x) => digits(10 ** x, 2);
const near_one = (x) => digits(1 - digits(10 ** -x, 2), 12);
const SLIDERS = {
  lr: { low: -4, high: 1, by: 0.05, value: power, position: Math.log10 },
  beta1: { low: 0, high: 3, by: 0.05, value: near_one, position: (b) => -Math.log10(1 - b) },
  beta2: { low: 0, high: 5, by: 0.05, value: near_one, position: (b) => -Math.log10(1 - b) },
  eps: { low: -12, high: 1, by: 0.1, value: power, position: Math.log10 },
  weight_decay: { low: 0, high: 2, by: 0.01, value: (x) => digits(x, 3), position: (w) => w },
  steps: { low: 1, high: 200, by: 1, value: (x) => x, position: (n) => n },
};

const at = (id) => document.getElementById(id);

// What is wrong with a value, in the words of the library's own errors.
function wrong(name, value, most) {
  if (name === "steps") {
    const good = Number.isInteger(value) && value >= 1 && value <= most;
    return good ? "" : `steps must be from 1 to ${most}`;
  }
  if (name.startsWith("beta")) return value >= 0 && value < 1 ? "" : `${name} must be in [0, 1)`;
  return value >= 0 && Number.isFinite(value) ? "" : `${name} must be finite and at least 0`;
}

// What the page was written with, and what it is set to.
let given;
let hyper;

function draw() {
  const problem = given.problems.find(({ name }) => name === at("problem").value);
  const start = problem.name === given.problem ? given.start : problem.start;
  const steps = trace(problem, hyper, hyper.steps, start);
  at("about").textContent = problem.about;
  at("two").hidden = start.length < 2;
  draw_path(problem, steps, start);
  draw_curve("m", "m-hat", steps, (s, i) => s.m_hat[i], (s, i) => s.m[i]);
  const root = (s, i) => Math.sqrt(s.v_hat[i]);
  draw_curve("v", "sqrt(v-hat)", steps, root, (s, i) => Math.sqrt(s.v_max[i]));
  draw_curve("step", "step", steps, (s, i) => s.step[i]);
  draw_table(given.columns, hyper, steps);
  at("outcome").textContent = outcome(steps[steps.length - 1], loss(problem, start));
}

function outcome(last, before) {
  const steps = `${last.t} step${last.t > 1 ? "s" : ""}`;
  let text = `After ${steps}, p is ${last.new.map(number).join(", ")}`;
  if (before !== null) text += `; the loss went from ${number(before)} to ${number(last.loss)}`;
  const finite = last.new.every(Number.isFinite);
  return text + (finite ? "." : "; the numbers grew beyond float64: lower lr.");
}

// Shows a value in a control's two parts; the part that it came from stays as the user has it.
function show(name, value, own) {
  const slider = SLIDERS[name];
  const [range, field] = [at(name), at(`${name}-value`)];
  const position = Math.min(Math.max(slider.position(value), slider.low), slider.high);
  if (own !== range) range.value = position;
  if (own !== field) field.value = String(value);
  range.setAttribute("aria-valuetext", String(value));
  field.removeAttribute("aria-invalid");
}

function set(name, value, own) {
  const error = wrong(name, value, given.most);
  at("wrong").textContent = error && `${error}; drawn is ${hyper[name]}.`;
  if (error) {
    own.setAttribute("aria-invalid", "true");
    return;
  }
  hyper[name] = value;
  show(name, value, own);
  draw();
}

function reset() {
  hyper = { ...given.hyper };
  for (const name of Object.keys(SLIDERS)) show(name, hyper[name]);
  for (const name of ["coupled", "amsgrad"]) at(name).checked = hyper[name];
  at("problem").value = given.problem;
  at("wrong").textContent = "";
  draw();
}

function main() {
  given = JSON.parse(at("lesson").textContent);
  SLIDERS.steps.high = Math.max(SLIDERS.steps.high, given.hyper.steps);
  for (const [name, slider] of Object.entries(SLIDERS)) {
    const [range, field] = [at(name), at(`${name}-value`)];
    Object.assign(range, { min: slider.low, max: slider.high, step: slider.by });
    range.addEventListener("input", () => set(name, slider.value(Number(range.value)), range));
    field.addEventListener("input", () => set(name, field.valueAsNumber, field));
  }
  for (const name of ["coupled", "amsgrad"]) {
    at(name).addEventListener("change", () => {
      hyper[name] = at(name).checked;
      draw();
    });
  }
  at("problem").addEventListener("change", draw);
  at("reset").addEventListener("click", reset);
  let width = innerWidth;
  // A phone's browser changes its height when it is scrolled, which changes nothing here.
  addEventListener("resize", () => {
    if (width !== innerWidth) requestAnimationFrame(draw);
    width = innerWidth;
  });
  reset();
}

if (typeof document !== "undefined") main();

"use strict";
// The races of the page: which arena is shown, who is shown, and how far they have come.

const { arenas } = JSON.parse(document.getElementById("race").textContent);
const at = (id) => document.getElementById(id);
const choices = (id) => [...at(id).querySelectorAll("button")];
const SECONDS = 6; // of a whole race

const names = Object.keys(arenas);
let arena = arenas[names[0]];
let playing = 0;

const pressed = (button) => button.getAttribute("aria-pressed") === "true";
const press = (button, yes) => button.setAttribute("aria-pressed", String(yes));

// Racers that are switched off are hidden in every figure.
function hide(figure) {
  const shown = choices("racers").map(pressed);
  for (const trace of figure.data) {
    if (trace.meta !== undefined) trace.visible = shown[trace.meta];
  }
}

// The path so far of each racer, and the dot at its end.
function move(figure) {
  const frame = Number(at("frame").value);
  const start = Number(at("start").value);
  const x = [];
  const y = [];
  const places = [];
  figure.data.forEach((trace, place) => {
    if (trace.meta === undefined) return;
    const [all_x, all_y] = arena.paths[trace.meta][start];
    const from = trace.mode === "lines" ? 0 : frame;
    trace.x = all_x.slice(from, frame + 1);
    trace.y = all_y.slice(from, frame + 1);
    x.push(trace.x);
    y.push(trace.y);
    places.push(place);
  });
  at("at").textContent = `step ${arena.at[frame]}`;
  return [{ x, y }, places];
}

function step(frame) {
  at("frame").value = frame;
  Plotly.restyle("path", ...move(arena.figures.path));
}

function pause() {
  cancelAnimationFrame(playing);
  playing = 0;
  at("play").textContent = "Play";
}

function play() {
  const last = arena.at.length - 1;
  const first = Number(at("frame").value) % last;
  let begun;
  const go = (now) => {
    begun = begun === undefined ? now : begun;
    const frame = Math.min(first + Math.floor(((now - begun) / 1000 / SECONDS) * last), last);
    if (frame !== Number(at("frame").value)) step(frame);
    if (frame < last) playing = requestAnimationFrame(go);
    else pause();
  };
  at("play").textContent = "Pause";
  playing = requestAnimationFrame(go);
}

function show() {
  for (const [id, figure] of Object.entries(arena.figures)) {
    hide(figure);
    figures[id] = figure;
    draw_figure(id);
  }
}

function choose(index) {
  pause();
  arena = arenas[names[index]];
  choices("arena").forEach((button, k) => press(button, k === index));
  for (const part of document.querySelectorAll("[data-arena]")) {
    part.hidden = part.dataset.arena !== names[index];
  }
  at("surface").hidden = !arena.figures.path;
  delete figures.path;
  if (arena.figures.path) {
    at("frame").max = arena.at.length - 1;
    at("frame").value = arena.at.length - 1;
    move(arena.figures.path);
  }
  show();
}

choices("arena").forEach((button, k) => button.addEventListener("click", () => choose(k)));
choices("racers").forEach((button) =>
  button.addEventListener("click", () => {
    press(button, !pressed(button));
    show();
  }),
);
at("play").addEventListener("click", () => (playing ? pause() : play()));
at("frame").addEventListener("input", () => {
  pause();
  step(Number(at("frame").value));
});
at("start").addEventListener("change", () => step(Number(at("frame").value)));
choose(Math.max(names.indexOf(location.hash.slice(1)), 0));

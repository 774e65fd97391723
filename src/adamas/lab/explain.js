"use strict";
// Adam in the page, with the names and the bits of the library: adamas.lab.trace in JavaScript,
// whose +, -, *, / and square root round as IEEE-754 says. Drawing begins further down.

const ONE = 1n << 128n;

// 1 - beta^step, rounded once: in integers, as hyper.bias_correction. In floating point it would
// lose what cancels: 6 of 53 bits of 1 - 0.999 ** 2.
function bias_correction(beta, step) {
  let power = ONE;
  let squaring = BigInt(Math.floor(beta * 2 ** 128));
  for (let rest = step; rest; rest >>= 1) {
    if (rest & 1) power = (power * squaring) >> 128n;
    squaring = (squaring * squaring) >> 128n;
  }
  return Number(ONE - power) / 2 ** 128;
}

function coefficients(hyper, step) {
  return {
    beta1: hyper.beta1,
    one_minus_beta1: 1 - hyper.beta1,
    beta2: hyper.beta2,
    one_minus_beta2: 1 - hyper.beta2,
    step_size: hyper.lr / bias_correction(hyper.beta1, step),
    denom_scale: 1 / Math.sqrt(bias_correction(hyper.beta2, step)),
    eps: Math.max(hyper.eps, Number.MIN_VALUE),
    decay: hyper.coupled ? 0 : hyper.lr * hyper.weight_decay,
    l2: hyper.coupled ? hyper.weight_decay : 0,
  };
}

// equations.adam of one number.
function adam(p, grad, m, v, v_max, c) {
  let g = grad;
  if (c.l2) g = g + c.l2 * p;
  m = c.beta1 * m + c.one_minus_beta1 * g;
  v = c.beta2 * v + c.one_minus_beta2 * (g * g);
  if (v_max !== null) v_max = Math.max(v_max, v);
  const d = Math.sqrt(v_max === null ? v : v_max) * c.denom_scale + c.eps;
  let u = (c.step_size * m) / d;
  if (c.decay) u = u + c.decay * p;
  return { new: p - u, update: u, m, v, v_max };
}

function slope(problem, p) {
  const g = p.map(() => 0);
  problem.curvature.forEach((column, j) => {
    const x = p[j] - problem.minimum[j];
    for (let i = 0; i < g.length; i++) g[i] = g[i] + column[i] * x;
  });
  return g;
}

function gradient(problem, p, step) {
  let g = slope(problem, p);
  const row = (rows) => rows[(step - 1) % rows.length];
  if (problem.present.length) g = g.map((x, i) => x * row(problem.present)[i]);
  if (problem.added.length) g = g.map((x, i) => x + row(problem.added)[i]);
  return g;
}

function loss(problem, p) {
  if (!problem.curvature.length) return null;
  const g = slope(problem, p);
  let total = 0;
  p.forEach((x, i) => (total = total + (x - problem.minimum[i]) * g[i]));
  return 0.5 * total;
}

// Each step's quantities, as trace.Step: an array with a place for each number of the parameter.
function trace(problem, hyper, steps, start) {
  const found = [];
  let p = start;
  let state = p.map(() => ({ m: 0, v: 0, v_max: hyper.amsgrad ? 0 : null }));
  for (let t = 1; t <= steps; t++) {
    const c = coefficients(hyper, t);
    const corrections = [bias_correction(hyper.beta1, t), bias_correction(hyper.beta2, t)];
    const g = gradient(problem, p, t);
    state = state.map((s, i) => adam(p[i], g[i], s.m, s.v, s.v_max, c));
    const each = (of) => state.map(of);
    const v_max = each((s) => (s.v_max === null ? s.v : s.v_max));
    const v_hat = v_max.map((v) => v / corrections[1]);
    const next = each((s) => s.new);
    found.push({
      t,
      p,
      g,
      decay: p.map((x) => (c.l2 || c.decay) * x),
      m: each((s) => s.m),
      v: each((s) => s.v),
      v_max,
      m_hat: each((s) => s.m / corrections[0]),
      v_hat,
      step: v_hat.map((v) => hyper.lr / (Math.sqrt(v) + c.eps)),
      update: each((s) => s.update),
      new: next,
      loss: loss(problem, next),
    });
    p = next;
  }
  return found;
}

// Four digits, in as few characters as they need.
function number(value) {
  if (!Number.isFinite(value)) return String(value).replace("Infinity", "inf");
  const rounded = Number(value.toPrecision(4));
  const size = Math.abs(rounded);
  if (size && (size < 1e-4 || size >= 1e4)) return rounded.toExponential().replace("+", "");
  return String(rounded);
}

// ---------------------------------------------------------------------------------- drawing

// Beyond, differences between values would not be finite.
const drawable = (value) => Math.abs(value) < 1e300;

const HEIGHT = { path: 420, curve: 210 };

function element(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

// Round numbers of about that count; decades where the axis is logarithmic.
function ticks([low, high], count, logarithmic) {
  const rough = (high - low) / count;
  const decade = 10 ** Math.floor(Math.log10(rough));
  let gap = decade * ([1, 2, 5].find((k) => k * decade >= rough) || 10);
  if (logarithmic) gap = Math.max(1, Math.round(gap));
  const first = Math.ceil(low / gap - 1e-9);
  const last = Math.floor(high / gap + 1e-9);
  const exactly = (tick) => Number(tick.toPrecision(12));
  return Array.from({ length: last - first + 1 }, (_, k) => exactly((first + k) * gap));
}

// Ends of an axis that has room for the values.
function ends(values, room = 0.06) {
  const finite = values.filter(drawable);
  let low = finite.reduce((a, b) => Math.min(a, b), Infinity);
  let high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low > high) [low, high] = [0, 1];
  const least = 1e-9 * Math.max(Math.abs(low), Math.abs(high)) || 0.5;
  const more = high - low > least ? room * (high - low) : least;
  return [low - more, high + more];
}

function draw_frame(svg, box, { x, y, show, marks, x_marks, logarithmic }, titles) {
  for (const tick of marks) {
    const at = y(logarithmic ? 10 ** tick : tick);
    element(svg, "line", { class: "rule", x1: box.left, x2: box.right, y1: at, y2: at });
    element(svg, "text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, show(tick));
  }
  for (const tick of x_marks) {
    if (titles[0] === "t" && !Number.isInteger(tick)) continue;
    const place = { x: x(tick), y: box.bottom + 16, "text-anchor": "middle" };
    element(svg, "text", place, number(tick));
  }
  element(svg, "text", { x: box.left, y: 14 }, titles[1]);
  const corner = { x: box.right, y: box.bottom + 32, "text-anchor": "end" };
  element(svg, "text", corner, titles[0]);
}

// Axes in the place of that name; draws lines and dots in the units of the axes.
function axes(name, height, x_ends, y_ends, titles, logarithmic) {
  const place = document.getElementById(name);
  const width = Math.max(place.clientWidth, 200);
  height = Math.min(height, Math.round(0.85 * width));
  place.replaceChildren();
  const svg = element(place, "svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const show = (tick) => (logarithmic ? number(10 ** tick) : number(tick));
  const marks = ticks(y_ends, height / 55, logarithmic);
  const left = 14 + 7.2 * Math.max(1, ...marks.map((tick) => show(tick).length));
  const box = { left, right: width - 10, top: 22, bottom: height - 36 };
  // What leaves the picture is not drawn where browsers can no longer count pixels.
  const pixel = (share) => Math.min(Math.max(share, -9), 10);
  const x = (value) =>
    box.left + pixel((value - x_ends[0]) / (x_ends[1] - x_ends[0])) * (box.right - box.left);
  const y = (value) => {
    const share = ((logarithmic ? Math.log10(value) : value) - y_ends[0]) / (y_ends[1] - y_ends[0]);
    return box.bottom - pixel(share) * (box.bottom - box.top);
  };
  const x_marks = ticks(x_ends, width / 90);
  draw_frame(svg, box, { x, y, show, marks, x_marks, logarithmic }, titles);
  const clip = element(svg, "clipPath", { id: `${name}-clip` });
  const size = { width: box.right - box.left + 8, height: box.bottom - box.top + 8 };
  element(clip, "rect", { x: box.left - 4, y: box.top - 4, ...size });
  const inner = element(svg, "g", { "clip-path": `url(#${name}-clip)` });
  return {
    line(points, kind) {
      let path = "";
      let pen = "M";
      for (const [a, b] of points) {
        if (drawable(a) && drawable(b) && !(logarithmic && b <= 0)) {
          path += `${pen}${x(a).toFixed(1)} ${y(b).toFixed(1)}`;
          pen = "L";
        } else pen = "M";
      }
      element(inner, "path", { class: kind, d: path });
    },
    dots(points, kind, radius, texts) {
      points.forEach(([a, b], k) => {
        if (!drawable(a) || !drawable(b)) return;
        const dot = element(inner, "circle", { class: kind, cx: x(a), cy: y(b), r: radius });
        element(dot, "title", {}, texts[k]);
      });
    },
  };
}

// Where the loss of a problem of two numbers has that value: an ellipse, by Cholesky's factor.
function contour({ curvature: [[a, b], [, d]], minimum }, level) {
  const l11 = Math.sqrt(a);
  const l21 = b / l11;
  const l22 = Math.sqrt(d - l21 * l21);
  return Array.from({ length: 97 }, (_, k) => {
    const angle = (2 * Math.PI * k) / 96;
    const y = (Math.sqrt(2 * level) * Math.sin(angle)) / l22;
    const x = (Math.sqrt(2 * level) * Math.cos(angle) - l21 * y) / l11;
    return [minimum[0] + x, minimum[1] + y];
  });
}

function draw_path(problem, steps, start) {
  const path = [start, ...steps.map((step) => step.new)];
  const texts = path.map((p, t) => `t = ${t}: p = ${p.map(number).join(", ")}`);
  // A path that leaves for good shall not shrink the rest to a point.
  const range = (i) => {
    const middle = problem.minimum[i];
    const reach = start[i] - middle || 0.1;
    const near = path.map((p) => p[i]).filter((x) => Math.abs(x - middle) < 4 * Math.abs(reach));
    return ends([start[i], middle, middle - 0.5 * reach, ...near], 0.1);
  };
  const heading = document.getElementById("path-title");
  let points = path;
  let plot;
  if (start.length === 2) {
    heading.textContent = "The path on the loss's contours";
    plot = axes("path", HEIGHT.path, range(0), range(1), ["number 1", "number 2"]);
    const top = loss(problem, start) || 1;
    for (let k = -3; k < 9; k++) plot.line(contour(problem, top / 2 ** k), "contour");
    plot.dots([problem.minimum], "minimum", 4, ["the minimum"]);
  } else if (problem.curvature.length) {
    heading.textContent = "The path on the loss";
    const [low, high] = range(0);
    const curve = Array.from({ length: 101 }, (_, k) => {
      const p = low + ((high - low) * k) / 100;
      return [p, loss(problem, [p])];
    });
    points = path.map((p) => [p[0], loss(problem, p)]);
    plot = axes("path", HEIGHT.path, [low, high], ends(curve.map((at) => at[1])), ["p", "loss"]);
    plot.line(curve, "contour");
  } else {
    heading.textContent = "The parameter over the steps";
    points = path.map((p, t) => [t, p[0]]);
    const values = ends(path.map((p) => p[0]));
    plot = axes("path", HEIGHT.path, [0, steps.length], values, ["t", "p"]);
  }
  plot.line(points, "first thin");
  plot.dots(points.slice(0, -1), "first", 2.5, texts);
  plot.dots(points.slice(-1), "last", 5, texts.slice(-1));
}

// One curve for each number of the parameter, and thinner and dashed what it would be uncorrected.
function draw_curve(name, title, steps, main, beside) {
  const numbers = steps[0].p.map((_, i) => i);
  const series = (of) => numbers.map((i) => steps.map((step) => [step.t, of(step, i)]));
  const lines = series(main);
  const thin = beside ? series(beside) : [];
  const all = [...lines, ...thin].flat().map((point) => point[1]);
  const positive = all.filter((value) => value > 0 && drawable(value));
  const logarithmic = !beside && Math.max(...positive) > 50 * Math.min(...positive);
  const y_ends = ends(logarithmic ? positive.map(Math.log10) : all);
  const x_ends = [1, Math.max(steps.length, 2)];
  const plot = axes(name, HEIGHT.curve, x_ends, y_ends, ["t", title], logarithmic);
  const colours = ["first", "other"];
  thin.forEach((points, i) => plot.line(points, `${colours[i]} dashed`));
  lines.forEach((points, i) => {
    plot.line(points, colours[i]);
    const texts = points.map(([t, value]) => `t = ${t}: ${number(value)}`);
    plot.dots(points, `${colours[i]} quiet`, steps.length > 100 ? 2 : 4, texts);
  });
}

function draw_table(columns, hyper, steps) {
  const shown = columns.filter(([, , of]) => !of || hyper[of]);
  const heads = ["t", ...shown.map((column) => column[1])];
  const parts = steps[0].p.map((_, i) => {
    const rows = steps.map((step) => {
      const values = shown.map(([key]) => step[key][i]);
      const cells = values.map((value) => `<td title="${value}">${number(value)}</td>`);
      return `<tr><td>${step.t}</td>${cells.join("")}</tr>`;
    });
    const of = steps[0].p.length > 1 ? `number ${i + 1}` : "the number";
    const head = heads.map((text) => `<th scope="col">${text}</th>`).join("");
    return (
      (steps[0].p.length > 1 ? `<h3>Number ${i + 1} of ${steps[0].p.length}</h3>` : "") +
      `<div class="scroll steps" tabindex="0" role="region" aria-label="steps of ${of}">` +
      `<table><thead><tr>${head}</tr></thead><tbody>${rows.join("")}</tbody></table></div>`
    );
  });
  document.getElementById("steps-table").innerHTML = parts.join("");
}

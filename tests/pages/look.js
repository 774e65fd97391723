// What is wrong with how a page looks, in words: texts that are small, faint, cut off or on top of
// each other, plots that are empty, and whatever sticks out of the window.
() => {
  const LEAST_PIXELS = 12;
  const LEAST_CONTRAST = 4.5; // WCAG 2, AA
  const wrong = [];
  const short = (text) => JSON.stringify(text.trim().slice(0, 40));

  // Colours, as red, green, blue and opacity from 0 to 1.
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const colour = (css) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((x) => x / 255);
  };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3]));
  const background = (element) => {
    if (!element) return [1, 1, 1];
    const own = colour(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, background(element.parentElement));
  };
  const luminance = (rgb) => {
    const linear = rgb.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };

  const inner = (box, frame) =>
    box.left >= frame.left - 1 && box.right <= frame.right + 1 &&
    box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  const overlap = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3; // lines of text have room above

  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) {
    wrong.push(`the page is ${document.documentElement.scrollWidth} wide, its window ${width}`);
  }

  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode;
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script, noscript, title, option")) continue;
    if (!parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    // An exponent is smaller than its base.
    const base = parent.closest("svg text") || parent;
    const style = getComputedStyle(base);
    if (parseFloat(style.fontSize) < LEAST_PIXELS) {
      wrong.push(`${short(node.data)} is of ${style.fontSize}`);
    }
    const ink = colour(base.closest("svg") ? style.fill : style.color);
    const bar = base.matches(".bartext-inside") && base.parentElement.querySelector("path");
    const card = background(base);
    const paper = bar ? over(colour(getComputedStyle(bar).fill), card) : card;
    const found = contrast(over(ink, paper), paper);
    // What is behind the numbers of a heatmap is an image: see below.
    if (!base.closest(".heatmaplayer") && found < LEAST_CONTRAST) {
      wrong.push(`${short(node.data)} has a contrast of ${found.toFixed(2)}`);
    }
    const scrolls = parent.closest(".scroll");
    if (!scrolls && (box.left < 0 || box.right > width)) {
      wrong.push(`${short(node.data)} leaves the window`);
    }
  }

  for (const plot of document.querySelectorAll(".plot")) {
    if (!plot.checkVisibility()) continue;
    const frame = plot.getBoundingClientRect();
    const pictures = [...plot.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect());
    if (!pictures.some(({ width, height }) => width > 100 && height > 50)) {
      wrong.push(`${plot.id} is empty`);
    }
    if (!pictures.every((box) => inner(box, frame))) wrong.push(`${plot.id} sticks out`);
    for (const { z, zmin, zmax, colorscale, textfont } of plot.data || []) {
      if (!z || !textfont) continue;
      const share = (Math.max(...z.flat()) - zmin) / (zmax - zmin);
      const [low, high] = colorscale.map(([, css]) => colour(css));
      const cell = low.map((x, k) => x + share * (high[k] - x));
      const found = contrast(colour(textfont.color || "white"), cell);
      if (found < LEAST_CONTRAST) wrong.push(`numbers in ${plot.id}: ${found.toFixed(2)}`);
    }
    const ticks = [...plot.querySelectorAll(".xtick text, .ytick text")];
    const sizes = new Set(ticks.map((text) => getComputedStyle(text).fontSize));
    if (sizes.size > 1) wrong.push(`ticks of ${plot.id} are of ${[...sizes].join(" and ")}`);
    const labels = [...plot.querySelectorAll("text")]
      .filter((text) => text.textContent.trim() && text.checkVisibility({ opacityProperty: true }))
      .map((text) => [text.textContent, text.getBoundingClientRect(), text.ownerSVGElement]);
    labels.forEach(([text, box, svg], k) => {
      if (!inner(box, svg.getBoundingClientRect())) {
        wrong.push(`${short(text)} is cut off in ${plot.id}`);
      }
      for (const [other, beside] of labels.slice(0, k)) {
        if (overlap(box, beside)) wrong.push(`${short(text)} is upon ${short(other)} in ${plot.id}`);
      }
    });
  }
  return wrong;
}

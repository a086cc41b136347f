"use strict";
// Drawing: elements, scales, and the three kinds of plots. Nothing here knows what is drawn.
// Text only ever enters the page as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return an HTML element; attributes that are null are left out. */
function element(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Return an SVG element. */
function shape(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(key, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// ---------------------------------------------------------------------- numbers

/** Relative differences below this are those of the order in which equal numbers were added. */
const ROUNDING = 1e-9;

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Return a number with four digits, as the tables of the command line have it. */
function shown(value) {
  if (!known(value)) return "–";
  if (Math.abs(value) >= 1e4) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

function percent(share) {
  if (!known(share)) return "–";
  if (Math.abs(share) <= ROUNDING) return "0.0 %";
  const text = Math.abs(share) >= 0.0005 ? (100 * share).toFixed(1) : String(Number((100 * share).toPrecision(1)));
  return (share > 0 ? "+" + text : text.replace(/-/g, "−")) + " %";
}

/** Return round numbers within a span, about so many. */
function ticks(low, high, count) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const raw = span / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(k * step + 0);
  return found;
}

/** Return tick labels with as many digits as they need to differ. */
function tickText(values, asPercent) {
  const step = values.length > 1 ? Math.abs(values[1] - values[0]) : Math.abs(values[0]) || 1;
  const factor = asPercent ? 100 : 1;
  const digits = Math.min(9, Math.max(0, Math.ceil(-Math.log10(step * factor) - 1e-9)));
  const more = Math.abs(step * factor * 10 ** digits - Math.round(step * factor * 10 ** digits)) > 1e-6 ? 1 : 0;
  const large = factor === 1 && Math.max(...values.map(Math.abs)) >= 1e4;
  return values.map((value) => {
    if (large) return Math.round(value).toLocaleString("en-US").replace("-", "−");
    return (value * factor).toFixed(digits + more).replace("-", "−") + (asPercent ? " %" : "");
  });
}

/** Return a linear scale from values to pixels. */
function scale(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** Return the least and the greatest of what is known, with room beside them. */
function extent(values, { zero = false, room = 0.06 } = {}) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (known(value)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (zero) {
    low = Math.min(low, 0);
    high = Math.max(high, 0);
  }
  if (!(low <= high)) return [0, 1];
  if (low === high) {
    const half = Math.abs(low) * 0.05 || 0.5;
    return [low - half, high + half];
  }
  const extra = (high - low) * room;
  return [zero && low === 0 ? 0 : low - extra, zero && high === 0 ? 0 : high + extra];
}

// ---------------------------------------------------------------------- text that has to fit

const measure = document.createElement("canvas").getContext("2d");

function textWidth(text) {
  measure.font = "12.5px " + getComputedStyle(document.body).fontFamily;
  return measure.measureText(text).width;
}

/** Return a text that is at most so wide, its middle left out if need be: names often differ at both ends. */
function fitted(text, width) {
  if (textWidth(text) <= width) return text;
  let keep = text.length;
  while (keep > 4) {
    keep -= 1;
    const head = Math.ceil(keep / 2);
    const short = text.slice(0, head) + "…" + text.slice(text.length - (keep - head));
    if (textWidth(short) <= width) return short;
  }
  return text.slice(0, 3) + "…";
}

// ---------------------------------------------------------------------- the tip beside the pointer

const tip = document.getElementById("tip");

function showTip(text, x, y) {
  if (tip.textContent !== text) tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - 10 - box.height : y + 14;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
}

function hideTip() {
  tip.hidden = true;
}

/** Let a mark tell its text to pointer, keyboard and screen reader. */
function telling(node, text) {
  node.setAttribute("tabindex", "0");
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", text.replace(/\n/g, ", "));
  node.addEventListener("pointermove", (event) => showTip(text, event.clientX, event.clientY));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("blur", hideTip);
  node.addEventListener("focus", () => {
    if (!node.matches(":focus-visible")) return;
    const box = node.getBoundingClientRect();
    showTip(text, box.left + box.width / 2, box.top + box.height / 2);
  });
  return node;
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});

// ---------------------------------------------------------------------- tables behind figures

/**
 * Return a table. A cell is a text, a number, or {value, text}; numbers are right as they stand in the
 * results, in the attribute data-value, and shown with four digits.
 */
function table(heads, rows, caption) {
  const cell = (content, first) => {
    const isPair = content !== null && typeof content === "object";
    const value = isPair ? content.value : content;
    const text = isPair ? content.text : typeof content === "string" ? content : shown(content);
    const attributes = first ? { scope: "row" } : {};
    if (known(value)) attributes["data-value"] = value;
    return element(first ? "th" : "td", attributes, text);
  };
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((content, at) => cell(content, at === 0))))),
  );
}

/** Return the element that hides a table until it is asked for. */
function behind(shownTable) {
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region" }, shownTable);
  scroll.setAttribute("aria-label", shownTable.caption.textContent);
  return element("details", {}, element("summary", {}, "Numbers as a table"), scroll);
}

// ---------------------------------------------------------------------- plots

const widthOf = (node) => Math.max(260, Math.floor(node.clientWidth || 640));

function canvas(width, height, label) {
  return shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
}

/** Draw the ticks of a horizontal axis below a plot, with lines through it, or through its strips alone. */
function axisBelow(svg, x, domain, top, bottom, width, asPercent, strips = [[top, bottom]]) {
  const values = ticks(domain[0], domain[1], Math.max(3, Math.floor(width / 70)));
  tickText(values, asPercent).forEach((text, k) => {
    const at = x(values[k]);
    const d = strips.map(([from, to]) => `M${at},${from}V${to}`).join("");
    svg.append(shape("path", { class: values[k] === 0 ? "zero" : "grid", d }));
    svg.append(shape("text", { class: "soft", x: at, y: bottom + 16, "text-anchor": "middle" }, text));
  });
}

/**
 * Draw rows of a mean, its interval, and the single episodes.
 *
 * A row is {name, value, low, high, points, tone, text, more}; `tone` is accent, better, worse, chance or
 * differs, `text` what stands at its right, `more` further lines of its tip. `marks` of a row are further
 * values, {value, tick: true for a bar instead of a dot}.
 */
function drawRows(place, rows, { label, axis, zero = false, asPercent = false, domain: given } = {}) {
  const width = widthOf(place);
  const wide = width >= 430;
  const gap = 10;
  const right = Math.max(...rows.map((row) => textWidth(row.text)), 20) + gap;
  const longest = Math.max(...rows.map((row) => textWidth(row.name)), 30) + gap;
  const left = wide ? Math.min(longest, width * 0.36) : 2;
  const rowHeight = wide ? 30 : 44;
  const top = 6;
  const bottom = top + rows.length * rowHeight;
  const height = bottom + (axis ? 38 : 22);
  const from = left + 8;
  const to = wide ? width - right - 8 : width - 10;
  const values = rows.flatMap((row) => [
    row.value, row.low, row.high, ...(row.points || []), ...(row.marks || []).map((mark) => mark.value),
  ]);
  const domain = given ?? extent(values, { zero });
  const x = scale(domain[0], domain[1], from, to);
  const svg = canvas(width, height, label);
  // Names that stand above their rows are not crossed.
  const strips = rows.map((_, index) => [top + index * rowHeight + 20, top + (index + 1) * rowHeight - 6]);
  axisBelow(svg, x, domain, top, bottom, to - from, asPercent, wide ? undefined : strips);
  if (axis) svg.append(shape("text", { class: "soft", x: (from + to) / 2, y: bottom + 34, "text-anchor": "middle" }, axis));
  rows.forEach((row, index) => {
    const y0 = top + index * rowHeight;
    const y = wide ? y0 + rowHeight / 2 : y0 + 28;
    const group = shape("g", { class: "row" });
    group.append(shape("rect", { class: "row-ground", x: 0, y: y0, width, height: rowHeight, rx: 4 }));
    const nameY = wide ? y + 4 : y0 + 15;
    if (!wide && index) svg.append(shape("line", { class: "grid", x1: 0, x2: width, y1: y0, y2: y0 }));
    group.append(shape("text", { x: 2, y: nameY }, fitted(row.name, wide ? left - 4 : width - right - 8)));
    group.append(shape("text", { class: "soft value", x: width - 2, y: nameY, "text-anchor": "end" }, row.text));
    group.append(shape("line", { class: "axis", x1: from, x2: to, y1: y, y2: y, opacity: 0.5 }));
    for (const point of row.points || []) {
      if (known(point)) group.append(shape("circle", { class: "seed", cx: x(point), cy: y, r: 3 }));
    }
    const tone = "ink-" + (row.tone || "accent");
    if (known(row.low) && known(row.high)) {
      group.append(shape("path", { class: `interval ${tone}`, d: `M${x(row.low)},${y}H${x(row.high)}` }));
      for (const end of [row.low, row.high]) {
        group.append(shape("path", { class: `interval ${tone}`, d: `M${x(end)},${y - 4}V${y + 4}` }));
      }
    }
    for (const mark of row.marks || []) {
      if (known(mark.value)) group.append(shape("path", { class: `interval ${tone}`, d: `M${x(mark.value)},${y - 7}V${y + 7}` }));
    }
    if (known(row.value)) group.append(dot(row.tone || "accent", x(row.value), y));
    svg.append(telling(group, [row.name, row.text, ...(row.more || [])].filter(Boolean).join("\n")));
  });
  place.replaceChildren(svg);
}

/** Return a mark whose form tells what its colour does: better ▲, worse ▼, may be chance ○. */
function dot(tone, x, y) {
  const r = 5.5;
  if (tone === "better") {
    return shape("path", { class: "ink-better", d: `M${x},${y - r - 1}L${x + r + 1},${y + r}H${x - r - 1}Z` });
  }
  if (tone === "worse") {
    return shape("path", { class: "ink-worse", d: `M${x},${y + r + 1}L${x + r + 1},${y - r}H${x - r - 1}Z` });
  }
  return shape("circle", { class: `ink-${tone}${tone === "chance" ? " hollow" : ""}`, cx: x, cy: y, r });
}

const DASHES = ["", "7 4", "2 3", "9 3 2 3", "4 2", "1 4", "12 3", "6 2 1 2"];

/** Return the colour and the dashes of a line by its number. */
const lineStyle = (k) => ({ class: `line stroke k${k % 8}`, "stroke-dasharray": DASHES[(k + Math.floor(k / 8)) % 8] || null });

/**
 * Draw lines over a common axis; pointer and arrow keys read them off.
 *
 * A series is {name, xs, ys, k, faint}; `k` is the number of its colour, `faint` whether it stays behind the one
 * that is not. `steps` draws values that hold from one x
 * to the next. `mark` are places {x, text} on the axis.
 */
function drawLines(place, series, options) {
  const { label, axis, height = 220, zero = false, top: most, steps = false, xTitle = "", unit = "", marks = [], band } = options;
  const width = widthOf(place);
  const xs = [...new Set(series.flatMap((one) => one.xs))].sort((a, b) => a - b);
  const domain = options.domain || extent(xs, { room: 0 });
  const ys = series.flatMap((one) => one.ys);
  if (!ys.some(known)) {
    place.replaceChildren(element("p", { class: "nothing" }, options.nothing || "Nothing was observed."));
    return;
  }
  const span = most !== undefined ? [0, most] : extent(ys, { zero });
  const values = ticks(span[0], span[1], Math.max(3, Math.floor(height / 45)));
  const texts = tickText(values, false);
  const left = Math.max(...texts.map(textWidth)) + 10;
  const bottom = height - (axis ? 38 : 22);
  const x = scale(domain[0], domain[1], left, width - 12);
  const y = scale(span[0], span[1], bottom, 8);
  const svg = canvas(width, height, label);
  if (band) {
    const [a, b] = band.map((value) => Math.min(Math.max(value, domain[0]), domain[1]));
    svg.append(shape("rect", { x: x(a), y: 8, width: Math.max(0, x(b) - x(a)), height: bottom - 8, fill: "var(--panel)" }));
  }
  values.forEach((value, k) => {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, texts[k]));
  });
  const below = ticks(domain[0], domain[1], Math.max(3, Math.floor((width - left) / 80)));
  tickText(below, false).forEach((text, k) => {
    svg.append(shape("text", { class: "soft", x: x(below[k]), y: bottom + 16, "text-anchor": "middle" }, text));
  });
  svg.append(shape("line", { class: "axis", x1: left, x2: width - 12, y1: bottom, y2: bottom }));
  if (axis) svg.append(shape("text", { class: "soft", x: (left + width) / 2, y: bottom + 34, "text-anchor": "middle" }, axis));
  for (const mark of marks) {
    svg.append(shape("line", { class: "cursor", x1: x(mark.x), x2: x(mark.x), y1: 8, y2: bottom }));
    svg.append(shape("text", { class: "soft", x: x(mark.x) + 4, y: 18 }, mark.text));
  }
  for (const one of series) {
    let path = "";
    let pen = false;
    one.xs.forEach((value, at) => {
      if (!known(one.ys[at])) {
        pen = false;
        return;
      }
      if (pen && steps) path += `H${x(value).toFixed(2)}`;
      path += `${pen ? "L" : "M"}${x(value).toFixed(2)},${y(one.ys[at]).toFixed(2)}`;
      pen = true;
      if (steps && at + 1 < one.xs.length && !known(one.ys[at + 1])) path += `H${x(one.xs[at + 1]).toFixed(2)}`;
    });
    const style = lineStyle(one.k);
    if (one.faint !== undefined) Object.assign(style, { "stroke-dasharray": null, opacity: one.faint ? 0.45 : 1, "stroke-width": one.faint ? 1.2 : 2.2 });
    svg.append(shape("path", { ...style, d: path }));
    if (one.xs.length <= 40 && options.dots) {
      one.xs.forEach((value, at) => {
        if (known(one.ys[at])) svg.append(shape("circle", { class: `fill k${one.k % 8}`, cx: x(value), cy: y(one.ys[at]), r: 3 }));
      });
    }
  }
  const read = (value) => {
    const lines = series.map((one) => {
      let at = 0;
      while (at + 1 < one.xs.length && one.xs[at + 1] <= value) at += 1;
      const name = series.length > 1 ? `${one.name}: ` : "";
      return one.xs[at] <= value ? `${name}${shown(one.ys[at])}${unit}` : null;
    });
    return [`${xTitle}${shown(value)}`, ...lines.filter(Boolean)].join("\n");
  };
  place.replaceChildren(svg);
  reading(svg, { xs, x, top: 8, bottom, left, right: width - 12, read, label });
}

/**
 * Draw shares of a whole over time as areas on each other.
 *
 * `edges` are the ends of the intervals, one more than each series has values; a series is {name, ys, k}.
 */
function drawShares(place, edges, series, { label, axis, height = 160 }) {
  const width = widthOf(place);
  const left = textWidth("100 %") + 10;
  const bottom = height - (axis ? 38 : 22);
  const x = scale(edges[0], edges[edges.length - 1], left, width - 12);
  const y = scale(0, 1, bottom, 8);
  const svg = canvas(width, height, label);
  for (const share of [0, 0.5, 1]) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - 12, y1: y(share), y2: y(share) }));
    svg.append(shape("text", { class: "soft", x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`));
  }
  const totals = edges.slice(1).map((_, at) => series.reduce((sum, one) => sum + one.ys[at], 0));
  const below = edges.slice(1).map(() => 0);
  for (const one of series) {
    let path = "";
    one.ys.forEach((count, at) => {
      if (!totals[at] || !count) return;
      const low = below[at];
      below[at] = low + count / totals[at];
      path += `M${x(edges[at]).toFixed(2)},${y(low).toFixed(2)}V${y(below[at]).toFixed(2)}H${x(edges[at + 1]).toFixed(2)}V${y(low).toFixed(2)}Z`;
    });
    svg.append(shape("path", { class: `fill shade k${one.k % 8}`, "stroke-width": 0.4, d: path }));
  }
  const ticked = ticks(edges[0], edges[edges.length - 1], Math.max(3, Math.floor((width - left) / 80)));
  tickText(ticked, false).forEach((text, k) => {
    svg.append(shape("text", { class: "soft", x: x(ticked[k]), y: bottom + 16, "text-anchor": "middle" }, text));
  });
  if (axis) svg.append(shape("text", { class: "soft", x: (left + width) / 2, y: bottom + 34, "text-anchor": "middle" }, axis));
  const read = (value) => {
    let at = 0;
    while (at + 2 < edges.length && edges[at + 1] <= value) at += 1;
    const lines = series.map((one) => `${one.name}: ${totals[at] ? shown((100 * one.ys[at]) / totals[at]) + " %" : "–"}`);
    return [`from ${shown(edges[at])} s`, ...lines, `${shown(totals[at])} decisions`].join("\n");
  };
  place.replaceChildren(svg);
  reading(svg, { xs: edges.slice(0, -1), x, top: 8, bottom, left, right: width - 12, read, label });
}

/**
 * Draw points of two measured values with their intervals, each with its name beside it.
 *
 * A point is {name, k, x: {mean, ci95}, y: {mean, ci95}}.
 */
function drawPoints(place, points, { label, xAxis, height = 300 }) {
  const width = widthOf(place);
  const of = (side) => extent(points.flatMap((point) => [point[side].mean, ...point[side].ci95]), { room: 0.12 });
  const [spanX, spanY] = [of("x"), of("y")];
  const values = ticks(spanY[0], spanY[1], 5);
  const texts = tickText(values, false);
  const left = Math.max(...texts.map(textWidth)) + 10;
  const [right, top, bottom] = [width - 12, 8, height - 38];
  const x = scale(spanX[0], spanX[1], left, right);
  const y = scale(spanY[0], spanY[1], bottom, top);
  const svg = canvas(width, height, label);
  axisBelow(svg, x, spanX, top, bottom, right - left, false);
  values.forEach((value, k) => {
    svg.append(shape("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, texts[k]));
  });
  svg.append(shape("text", { class: "soft", x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xAxis));
  const taken = [];
  for (const point of points) {
    const [px, py] = [x(point.x.mean), y(point.y.mean)];
    const group = shape("g", { class: `point k${point.k % 8}` });
    const bar = (d) => group.append(shape("path", { class: "interval stroke", d }));
    if (point.x.ci95.every(known)) bar(`M${x(point.x.ci95[0])},${py}H${x(point.x.ci95[1])}`);
    if (point.y.ci95.every(known)) bar(`M${px},${y(point.y.ci95[0])}V${y(point.y.ci95[1])}`);
    group.append(shape("circle", { class: "fill", cx: px, cy: py, r: 5.5 }));
    const name = fitted(point.name, width * 0.42);
    const toLeft = px + 10 + textWidth(name) > right;
    // A name stands beside its point, above the point's interval; where it would lie on another one, it goes up or
    // down until it does not.
    const box = { left: toLeft ? px - 10 - textWidth(name) : px + 10, width: textWidth(name), y: py + 4 };
    const hits = (other) => Math.abs(other.y - box.y) < 14 && box.left < other.left + other.width && other.left < box.left + box.width;
    const shifts = point.x.ci95.every(known) ? [-9, 14, -23, 28, -37, 42] : [0, -14, 14, -28, 28, -42, 42];
    for (const shift of shifts) {
      box.y = py + 4 + shift;
      if (!taken.some(hits)) break;
    }
    taken.push(box);
    group.append(shape("text", { x: box.left, y: box.y }, name));
    const said = (value) => shown(value.mean) + (value.ci95.every(known) ? ` (${shown(value.ci95[0])} to ${shown(value.ci95[1])})` : "");
    svg.append(telling(group, `${point.name}\nacross: ${said(point.x)}\nup: ${said(point.y)}`));
  }
  place.replaceChildren(svg);
}

/** Let pointer and arrow keys read a plot off at one of the places `xs`. */
function reading(svg, { xs, x, top, bottom, left, right, read, label }) {
  if (!xs.length) return;
  const cursor = shape("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
  const frame = shape("rect", { class: "frame", x: left, y: top, width: Math.max(1, right - left), height: bottom - top });
  svg.append(cursor, frame);
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("aria-label", `${label}. Left and right arrows read values.`);
  let at = 0;
  const put = (next, clientX, clientY) => {
    at = Math.min(Math.max(next, 0), xs.length - 1);
    cursor.setAttribute("x1", x(xs[at]));
    cursor.setAttribute("x2", x(xs[at]));
    cursor.setAttribute("visibility", "visible");
    const box = svg.getBoundingClientRect();
    const px = clientX ?? box.left + (x(xs[at]) * box.width) / svg.viewBox.baseVal.width;
    showTip(read(xs[at]), px, clientY ?? box.top + box.height / 2);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  frame.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const here = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
    let low = 0;
    let high = xs.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (x(xs[middle]) <= here) low = middle;
      else high = middle - 1;
    }
    put(low, event.clientX, event.clientY);
  });
  frame.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const stride = event.shiftKey ? 10 : 1;
    const next = { ArrowRight: at + stride, ArrowLeft: at - stride, Home: 0, End: xs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    put(next);
  });
}

/** Return a legend of lines (or of areas). */
function legend(entries, areas = false) {
  const items = entries.map(({ name, k, faint }) => {
    const sample = shape("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" });
    if (areas) sample.append(shape("rect", { class: `fill shade k${k % 8}`, x: 5, y: 1, width: 14, height: 12 }));
    else if (faint === undefined) sample.append(shape("path", { ...lineStyle(k), d: "M0,7H26" }));
    else sample.append(shape("path", { class: `line stroke k${k % 8}`, opacity: faint ? 0.6 : 1, d: "M0,7H26" }));
    return element("li", {}, sample, element("span", {}, name));
  });
  return element("ul", { class: "legend" }, ...items);
}

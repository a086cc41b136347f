"use strict";
// The page: what is chosen, the controls that choose it, and drawing anew when it or the width changes.

/** What is chosen, by name; it stands in the address, so that a view can be linked to and come back to. */
const chosen = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

const MAIN_CONTROLS = [
  { key: "scenario", label: "Scenario", options: () => options(data.evaluations.map((one) => one.label)) },
  {
    key: "metric", label: "Metric",
    options: ({ evaluation }) => {
      const names = evaluation?.metrics ?? [];
      const first = data.selection.filter((name) => names.includes(name));
      return options([...first, ...names.filter((name) => !first.includes(name))], (name) => {
        const text = words(name);
        return text === name.replaceAll("_", " ") ? name : `${text} · ${name}`;
      });
    },
  },
];

/** Return what is chosen, with the results that the names stand for. */
function state() {
  const evaluation = data.evaluations.find((one) => one.label === chosen.scenario) ?? data.evaluations[0];
  const search = data.searches.find((one) => one.label === chosen.searched) ?? data.searches[0];
  const capacity = data.capacities.find((one) => one.label === chosen.capacity) ?? data.capacities[0];
  return { ...chosen, evaluation, search, capacity };
}

const controls = [];
const figures = [];

function addControl(place, { key, label, options: offered, preferred, last = false }) {
  const select = element("select", { "aria-label": label, name: key });
  const whole = element("label", {}, element("span", {}, label), select);
  select.addEventListener("change", () => {
    chosen[key] = select.value;
    update();
  });
  place.append(whole);
  const refresh = () => {
    const offers = offered(state());
    const isKnown = (value) => offers.some((offer) => offer.value === value);
    const first = offers.at(last ? -1 : 0)?.value;
    if (!isKnown(chosen[key])) chosen[key] = isKnown(preferred) ? preferred : first;
    select.replaceChildren(...offers.map(({ value, text }) => element("option", { value }, text)));
    if (chosen[key] !== undefined) select.value = chosen[key];
    whole.hidden = offers.length === 0;
    select.disabled = offers.length < 2;
  };
  controls.push(refresh);
}

function addFigure(place, { title, draw }) {
  const caption = element("figcaption", {});
  const plot = element("div", { class: "plot" });
  const key = element("div", {});
  const numbers = element("div", {});
  const figure = element("figure", {}, caption, key, plot, numbers);
  place.append(figure);
  let shownNow = null;
  const entry = {
    refresh() {
      shownNow = draw(state());
      figure.hidden = shownNow === null;
      if (shownNow === null) return;
      const note = shownNow.note ? element("small", {}, shownNow.note) : null;
      caption.replaceChildren(...[shownNow.title ?? title, note].filter(Boolean));
      key.replaceChildren(...[shownNow.legend].filter(Boolean));
      const wasOpen = numbers.firstChild?.open ?? false;
      const details = behind(shownNow.table);
      details.open = wasOpen;
      numbers.replaceChildren(details);
    },
    redraw() {
      if (shownNow !== null) shownNow.plot(plot);
    },
    get isShown() {
      return shownNow !== null;
    },
  };
  figures.push(entry);
  return entry;
}

function build() {
  const form = document.getElementById("controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  if (data.evaluations.length) {
    form.hidden = false;
    for (const control of MAIN_CONTROLS) addControl(form, control);
  }
  const main = document.getElementById("figures");
  return SECTIONS.map((section) => {
    let whole = document.getElementById(section.id);
    let grid = whole;
    if (section.controlsIn) {
      const place = document.getElementById(section.controlsIn);
      for (const control of section.controls) addControl(place, control);
    }
    if (!whole) {
      whole = element("section", { id: section.id }, element("h2", {}, section.title));
      if (section.lead) whole.append(element("p", { class: "lead" }, section.lead));
      const place = element("div", { class: "figure-controls" });
      for (const control of section.controls ?? []) addControl(place, control);
      grid = element("div", { class: section.single ? "figures single" : "figures" });
      whole.append(place, grid);
      main.append(whole);
    }
    return { whole, entries: section.figures.map((figure) => addFigure(grid, figure)) };
  });
}

const sections = build();

/** Show what is chosen now. */
function update() {
  hideTip();
  for (const refresh of controls) refresh();
  for (const figure of figures) figure.refresh();
  for (const { whole, entries } of sections) whole.hidden = !entries.some((entry) => entry.isShown);
  const at = data.evaluations.indexOf(state().evaluation);
  for (const one of document.querySelectorAll(".scoreboard")) one.hidden = Number(one.dataset.evaluation) !== at;
  document.getElementById("scoreboard").hidden = data.evaluations.length === 0;
  redraw();
  const named = Object.entries(chosen).filter(([, value]) => value !== undefined);
  history.replaceState(null, "", "#" + new URLSearchParams(named));
}

function redraw() {
  for (const figure of figures) figure.redraw();
}

let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  requestAnimationFrame(redraw);
});
addEventListener("hashchange", () => {
  Object.assign(chosen, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
  update();
});

update();

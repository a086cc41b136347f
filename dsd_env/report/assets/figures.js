"use strict";
// What a report shows: sections of figures. Each figure is a function of what is chosen; it returns null where
// the results hold nothing for it, else {note, plot, legend, table}. Numbers stay as the results have them.

const data = JSON.parse(document.getElementById("data").textContent);

const words = (metric) => data.metrics[metric]?.words ?? metric;
const direction = (metric) => ({ 1: "more is better", "-1": "less is better" })[data.metrics[metric]?.better] ?? "";
const axisOf = (metric) => [words(metric), direction(metric)].filter(Boolean).join(" — ");

function verdict(change, metric) {
  const [low, high] = change.ci95;
  if (!known(low) || !known(high) || (low <= ROUNDING && high >= -ROUNDING)) return "chance";
  const good = data.metrics[metric]?.better ?? 0;
  if (good === 0) return "differs";
  return change.relative > 0 === good > 0 ? "better" : "worse";
}

const intervalText = ([low, high]) => (known(low) && known(high) ? `${shown(low)} to ${shown(high)}` : "");
const percentsText = ([low, high]) => (known(low) && known(high) ? `${percent(low)} to ${percent(high)}` : "");

/** Return rows of a metric, one for each scheduler that has it. */
function meansOf(evaluation, metric, name = (entry) => entry.name) {
  return evaluation.schedulers
    .filter((entry) => entry.metrics[metric])
    .map((entry) => {
      const value = entry.metrics[metric];
      const interval = intervalText(value.ci95);
      return {
        name: name(entry), value: value.mean, low: value.ci95[0], high: value.ci95[1], points: value.per_seed,
        text: shown(value.mean), more: [interval && `95 % interval ${interval}`, `${value.per_seed.length} episodes`],
      };
    });
}

function tableOfMeans(evaluation, metrics, caption) {
  const rows = metrics.flatMap((metric) =>
    evaluation.schedulers
      .filter((entry) => entry.metrics[metric])
      .map((entry) => {
        const { mean, ci95, per_seed: perSeed } = entry.metrics[metric];
        const episodes = perSeed.map(shown).join(", ");
        return [entry.name, ...(metrics.length > 1 ? [metric] : []), mean, ci95[0], ci95[1], episodes];
      }),
  );
  const heads = ["scheduler", ...(metrics.length > 1 ? ["metric"] : []), "mean", "95 % from", "to", "single episodes"];
  return table(heads, rows, caption);
}

// ---------------------------------------------------------------------- scoreboard

function means({ evaluation, metric }) {
  if (!evaluation?.metrics.includes(metric)) return null;
  const rows = meansOf(evaluation, metric);
  const label = `${words(metric)} of each scheduler in ${evaluation.label}`;
  return {
    note: "Mean over the episodes ●, 95 % interval; grey: single episodes",
    plot: (place) => drawRows(place, rows, { label, axis: axisOf(metric) }),
    table: tableOfMeans(evaluation, [metric], label),
  };
}

function differences({ evaluation, metric }) {
  const entries = (evaluation?.schedulers ?? []).filter((entry) => entry.versus[metric]);
  if (!entries.length) return null;
  const told = { better: "better", worse: "worse", differs: "differs", chance: "may be chance" };
  const rows = entries.map((entry) => {
    const change = entry.versus[metric];
    const tone = verdict(change, metric);
    return {
      name: entry.name, value: change.relative, low: change.ci95[0], high: change.ci95[1], tone,
      text: percent(change.relative), more: [`95 % interval ${percentsText(change.ci95)}`, told[tone]],
    };
  });
  const label = `${words(metric)}, difference from ${evaluation.baseline}`;
  const cells = entries.map((entry) => {
    const { relative, ci95 } = entry.versus[metric];
    const cell = (value) => ({ value, text: percent(value) });
    return [entry.name, cell(relative), cell(ci95[0]), cell(ci95[1]), told[verdict(entry.versus[metric], metric)]];
  });
  return {
    title: `Difference from ${evaluation.baseline}`,
    note: "Paired by episode, relative, 95 % interval. ▲ better, ▼ worse, ○ may be chance",
    plot: (place) => drawRows(place, rows, { label, axis: axisOf(metric), zero: true, asPercent: true }),
    table: table(["scheduler", "difference", "95 % from", "to", "verdict"], cells, label),
  };
}

// ---------------------------------------------------------------------- latency

const LATENCIES = {
  e2e_s: "request time", ttft_s: "time to first token", tpot_s: "time per output token",
  stall_s: "longest gap of a request", itl_s: "gap between tokens",
};

function percentiles({ evaluation, latency }) {
  const metrics = ["p50", "p95", "p99"].map((rank) => `${latency}_${rank}`);
  const entries = (evaluation?.schedulers ?? []).filter((entry) => metrics.every((name) => entry.metrics[name]));
  if (!entries.length) return null;
  const rows = entries.map((entry) => {
    const [p50, p95, p99] = metrics.map((name) => entry.metrics[name].mean);
    const text = [p50, p95, p99].map(shown).join(" · ");
    return { name: entry.name, value: p50, low: p50, high: p99, marks: [{ value: p95 }], text,
      more: ["median · 95th · 99th percentile"] };
  });
  const label = `Percentiles of ${LATENCIES[latency]} in ${evaluation.label}`;
  return {
    note: "● median, | 95th percentile, end of the line 99th; means over the episodes",
    plot: (place) => drawRows(place, rows, { label, axis: `${LATENCIES[latency]} (s) — less is better` }),
    table: tableOfMeans(evaluation, metrics, label),
  };
}

/** Return the schedulers of which the history of an episode was kept, and their numbers among all. */
const withHistory = (evaluation) =>
  (evaluation?.schedulers ?? []).map((entry, k) => ({ ...entry, k })).filter((entry) => entry.history);

function distribution({ evaluation, latency }) {
  const entries = withHistory(evaluation).filter((entry) => entry.history.quantiles[latency]?.length > 1);
  if (!entries.length) return null;
  const series = entries.map((entry) => {
    const xs = entry.history.quantiles[latency];
    return { name: entry.name, xs, ys: xs.map((_, at) => (100 * at) / (xs.length - 1)), k: entry.k };
  });
  const label = `Distribution of ${LATENCIES[latency]} in ${evaluation.label}`;
  const ranks = [0, 5, 25, 50, 75, 95, 99, 100];
  const rows = entries.map((entry) => {
    const values = entry.history.quantiles[latency];
    return [entry.name, ...ranks.map((rank) => values[Math.round((rank / 100) * (values.length - 1))])];
  });
  const { seed, requests_measured: requests } = entries[0].history;
  return {
    note: `Share of the requests that took at most so long; one episode, seed ${seed}, ${requests} requests`,
    plot: (place) =>
      drawLines(place, series, { label, axis: `${LATENCIES[latency]} (s)`, top: 100, height: 260, unit: " %", xTitle: "at most " }),
    legend: legend(series),
    table: table(["scheduler", ...ranks.map((rank) => `${rank} %`)], rows, label),
  };
}

// ---------------------------------------------------------------------- classes of SLO

const BY_CLASS = { goodput_requests_per_s: "goodput", slo_attainment: "share that met its SLO" };

function byClass({ evaluation, slo }) {
  const metrics = (evaluation?.metrics ?? []).filter((name) => name.startsWith(`${slo}.`));
  if (!metrics.length) return null;
  const label = `${words(slo)} by class in ${evaluation.label}`;
  const domain = extent(
    metrics.flatMap((metric) => meansOf(evaluation, metric).flatMap((row) => [row.value, row.low, row.high, ...row.points])),
    { zero: true },
  );
  return {
    note: "Mean over the episodes, 95 % interval; more is better",
    plot: (place) => {
      const parts = metrics.map((metric) => {
        const part = element("div", {});
        return { metric, part, whole: element("div", {}, element("h3", {}, metric.slice(slo.length + 1)), part) };
      });
      place.replaceChildren(...parts.map((one) => one.whole));
      parts.forEach(({ metric, part }, at) => {
        const axis = at === parts.length - 1 ? words(slo) : null;
        drawRows(part, meansOf(evaluation, metric), { label: words(metric), axis, domain });
      });
    },
    table: tableOfMeans(evaluation, metrics, label),
  };
}

// ---------------------------------------------------------------------- over time

const edgesOf = ({ interval_s: step, end_s: end, decisions }) =>
  [...decisions.map((_, at) => at * step), end];

function overTime(column, title, { every = false, zero = true, note = "", nothing = "" } = {}) {
  return ({ evaluation, scheduler }) => {
    const all = withHistory(evaluation);
    const entries = every ? all : all.filter((entry) => entry.name === scheduler);
    if (!entries.length) return null;
    const series = entries.map((entry) => ({
      name: entry.name, xs: edgesOf(entry.history).slice(0, -1), ys: entry.history[column], k: entry.k,
      faint: entry.name !== scheduler,
    }));
    series.sort((a, b) => b.faint - a.faint); // the chosen one lies on top
    const end = Math.max(...entries.map((entry) => entry.history.end_s));
    const label = `${title} over time in ${evaluation.label}${every ? "" : `, ${scheduler}`}`;
    const rows = [];
    for (const one of series) one.ys.forEach((value, at) => rows.push([one.name, one.xs[at], value]));
    return {
      note,
      plot: (place) =>
        drawLines(place, series, { label, axis: "simulated time (s)", domain: [0, end], zero, steps: true, height: 190,
          xTitle: "from second ", band: evaluation.window, nothing }),
      legend: every ? legend(entries.map(({ name, k }) => ({ name, k, faint: name !== scheduler }))) : null,
      table: table(["scheduler", "from (s)", title], rows, label),
    };
  };
}

function placesOverTime({ evaluation, scheduler }) {
  const entry = withHistory(evaluation).find((one) => one.name === scheduler);
  if (!entry) return null;
  const edges = edgesOf(entry.history);
  const used = Object.entries(entry.history.places).filter(([, counts]) => counts.some((count) => count > 0));
  if (!used.length) return null;
  const all = Object.keys(entry.history.places);
  const series = used.map(([name, ys]) => ({ name, ys, k: [6, 4, 0, 2][all.indexOf(name)] ?? all.indexOf(name) }));
  const label = `Places chosen over time in ${evaluation.label}, ${scheduler}`;
  const rows = edges.slice(0, -1).map((from, at) => [shown(from), ...series.map((one) => one.ys[at])]);
  return {
    note: "Shares of the decisions",
    plot: (place) => drawShares(place, edges, series, { label, axis: "simulated time (s)", height: 190 }),
    legend: legend(series, true),
    table: table(["from (s)", ...series.map((one) => one.name)], rows, label),
  };
}

// ---------------------------------------------------------------------- cost and energy

function costs({ evaluation, cost }) {
  if (!evaluation?.metrics.includes(cost)) return null;
  const rows = meansOf(evaluation, cost);
  const label = `${words(cost)} of each scheduler in ${evaluation.label}`;
  return {
    note: "Mean over the episodes, 95 % interval",
    plot: (place) => drawRows(place, rows, { label, axis: axisOf(cost), zero: true }),
    table: tableOfMeans(evaluation, [cost], label),
  };
}

function tradeOff({ evaluation, cost, metric }) {
  const against = metric === cost ? "e2e_s_mean" : metric;
  const entries = (evaluation?.schedulers ?? []).map((entry, k) => ({ ...entry, k }));
  const both = entries.filter((entry) => entry.metrics[cost] && entry.metrics[against]);
  if (both.length < 2 || !cost) return null;
  const points = both.map((entry) => ({ name: entry.name, k: entry.k, x: entry.metrics[cost], y: entry.metrics[against] }));
  const label = `${words(against)} against ${words(cost)}`;
  const rows = points.map((point) => [point.name, point.x.mean, point.y.mean]);
  return {
    title: label,
    note: [`across: ${axisOf(cost)}`, `up: ${axisOf(against)}`].join("; ") + ". Lines: 95 % intervals",
    plot: (place) => drawPoints(place, points, { label, xAxis: words(cost) }),
    table: table(["scheduler", cost, against], rows, label),
  };
}

// ---------------------------------------------------------------------- training, static choices

function learning({ curve }) {
  const runs = data.runs.map((run, k) => ({ ...run, k })).filter((run) => run.curves[curve]);
  if (!runs.length) return null;
  const series = runs.map((run) => ({ name: run.label, xs: run.steps, ys: run.curves[curve], k: run.k }));
  const label = `${words(curve)} on validation episodes`;
  const rows = series.flatMap((one) => one.xs.map((step, at) => [one.name, step, one.ys[at]]));
  const marks = runs.length === 1 && runs[0].best_step !== null ? [{ x: runs[0].best_step, text: "best" }] : [];
  return {
    title: axisOf(curve),
    note: "Mean over the validation episodes, which are the same each time",
    plot: (place) =>
      drawLines(place, series, { label, axis: "decisions taken in training", height: 280, dots: true, marks, xTitle: "after decisions " }),
    legend: legend(series),
    table: table(["run", "decisions", words(curve)], rows, label),
  };
}

function searched({ search }) {
  if (!search?.uniform.length) return null;
  const places = [...new Set(search.uniform.map((one) => one.place))];
  const series = places.map((name, k) => {
    const own = search.uniform.filter((one) => one.place === name).sort((a, b) => a.gamma - b.gamma);
    return { name, xs: own.map((one) => one.gamma), ys: own.map((one) => one.e2e_s_mean), k };
  });
  const label = `Static choices in ${search.label}: mean request time (s)`;
  return {
    note: "The same choice for all, on the episodes that were searched; less is better",
    plot: (place) =>
      drawLines(place, series, { label, axis: "window γ (tokens)", height: 260, dots: true, xTitle: "γ = ", unit: " s" }),
    legend: legend(series),
    table: table(["choice", "mean request time (s)"], search.uniform.map((one) => [one.choice, one.e2e_s_mean]), label),
  };
}

function confirmed({ search }) {
  if (!search) return null;
  const rows = search.table
    .filter((row) => known(row.against_best_percent))
    .map((row) => {
      const share = row.against_best_percent / 100;
      const error = known(row.against_best_percent_se) ? row.against_best_percent_se / 100 : null;
      const marks = [search.best_for_all === row.scheduler && "best for all", search.best_per_class === row.scheduler && "best per class"];
      return {
        name: row.scheduler, value: share, low: error === null ? null : share - error, high: error === null ? null : share + error,
        text: percent(share), more: [error === null ? "" : `± ${(100 * error).toFixed(1)} % (standard error)`, ...marks],
      };
    });
  if (!rows.length) return null;
  const label = `Mean request time against ${search.best_for_all} in ${search.label}`;
  const heads = ["scheduler", "against the best for all (%)", "± s.e.", "request time (s)", "p95 (s)", "first token (s)", "per token (s)", "load", "$ per 1M tokens"];
  const cells = search.table.map((row) => [
    row.scheduler, row.against_best_percent, row.against_best_percent_se, row.e2e_s_mean, row.e2e_s_p95, row.ttft_s_mean,
    row.tpot_s_mean, row.load, row.cloud_usd_per_1m_tokens,
  ]);
  return {
    title: `Against ${search.best_for_all}`,
    note: "Mean request time on other episodes than those searched, ± one standard error; less is better",
    plot: (place) => drawRows(place, rows, { label, axis: "difference of the mean request time", zero: true, asPercent: true }),
    table: table(heads, cells, label),
  };
}

// ---------------------------------------------------------------------- capacity

function capacities({ capacity }) {
  const entries = (capacity?.schedulers ?? []).filter((one) => one.best);
  if (!entries.length) return null;
  const rows = entries.map(({ name, best, above }) => ({
    name, value: best.offered, low: best.offered, high: above?.offered ?? best.offered, text: shown(best.offered),
    more: [
      `${(100 * best.attainment).toFixed(1)} % of ${best.requests} requests met their SLO there`,
      above ? `too much: ${shown(above.offered)}` : "no load was too much",
    ],
  }));
  const label = `Capacity in ${capacity.label}`;
  const cells = entries.map(({ name, best, above }) => [
    name, best.offered, best.arrivals_per_s, best.attainment, above ? above.offered : "–",
  ]);
  return {
    note: `● the most ${capacity.unit} that were carried; the line ends at the least that were too many`,
    plot: (place) => drawRows(place, rows, { label, axis: `${capacity.unit} — more is better`, zero: true }),
    table: table(["scheduler", capacity.unit, "arrivals/s", "share that met its SLO", "too much"], cells, label),
  };
}

function attained({ capacity }) {
  if (!capacity) return null;
  const series = capacity.schedulers.map((one, k) => ({
    name: one.name, xs: one.probes.map((probe) => probe.offered), ys: one.probes.map((probe) => 100 * probe.attainment), k,
  }));
  const label = `Share that met its SLO by load in ${capacity.label}`;
  const rows = capacity.schedulers.flatMap((one) =>
    one.probes.map((probe) => [one.name, probe.offered, probe.arrivals_per_s, probe.attainment, probe.requests]),
  );
  return {
    note: `Every load that was tried; asked for: ${shown(100 * capacity.share)} %`,
    plot: (place) =>
      drawLines(place, series, { label, axis: capacity.unit, top: 100, height: 260, dots: true, unit: " %", xTitle: "" }),
    legend: legend(series),
    table: table(["scheduler", capacity.unit, "arrivals/s", "share that met its SLO", "requests"], rows, label),
  };
}

// ---------------------------------------------------------------------- the sections

const options = (names, text = (name) => name) => names.map((name) => ({ value: name, text: text(name) }));
const COSTS = [
  "cloud_usd_per_1m_tokens", "cost_usd_per_1m_tokens", "client_usd_per_1m_tokens", "energy_j_per_1k_tokens",
  "cloud_energy_j_per_1k_tokens", "client_energy_j_per_1k_tokens", "gpu_occupied_s_per_1k_tokens", "bytes_per_token",
];
const has = (evaluation) => (metric) => evaluation?.metrics.includes(metric);

const SECTIONS = [
  {
    id: "scoreboard-figures",
    figures: [{ title: "Means", draw: means }, { title: "Differences", draw: differences }],
  },
  {
    id: "capacity-figures", controlsIn: "capacity-controls",
    controls: [{
      key: "capacity", label: "Scenario",
      options: () => options(data.capacities.map((one) => one.label)),
    }],
    figures: [{ title: "The most load", draw: capacities }, { title: "Share that met its SLO (%)", draw: attained }],
  },
  {
    id: "latency", title: "Latency",
    controls: [{
      key: "latency", label: "Latency",
      options: ({ evaluation }) =>
        options(Object.keys(LATENCIES).filter((name) => has(evaluation)(`${name}_p50`)), (name) => LATENCIES[name]),
    }],
    figures: [{ title: "Percentiles", draw: percentiles }, { title: "Distribution", draw: distribution }],
  },
  {
    id: "classes", title: "Goodput by class",
    lead: "Each request belongs to a class with bounds of its own; good are those that met every one.",
    controls: [{
      key: "slo", label: "Show",
      options: ({ evaluation }) =>
        options(Object.keys(BY_CLASS).filter((name) => evaluation?.metrics.some((metric) => metric.startsWith(`${name}.`))), (name) => BY_CLASS[name]),
    }],
    single: true,
    figures: [{ title: "Classes", draw: byClass }],
  },
  {
    id: "time", title: "Load and decisions over time",
    lead: "One episode. The load is what the targets reported; decisions are what the scheduler asked for, admissions left out. Shaded: the time that is measured.",
    controls: [{
      key: "scheduler", label: "Scheduler",
      options: ({ evaluation }) => options(withHistory(evaluation).map((entry) => entry.name)),
      last: true,
    }],
    figures: [
      { title: "Requests at the targets", draw: overTime("active_requests", "requests", { every: true }) },
      { title: "Throughput (tokens/s)", draw: overTime("tokens_per_s", "tokens/s", { every: true }) },
      { title: "Window γ (tokens)", draw: overTime("gamma_mean", "mean γ", { note: "Mean of the decisions that ask for drafts", nothing: "No decision asked for drafts." }) },
      { title: "Batch size B", draw: overTime("batch_size_mean", "mean B", { note: "Mean of the decisions" }) },
      { title: "Place", draw: placesOverTime },
      { title: "Decisions", draw: overTime("decisions", "decisions", { note: "Number in each interval" }) },
    ],
  },
  {
    id: "cost", title: "Cost and energy",
    controls: [{
      key: "cost", label: "Show",
      options: ({ evaluation }) => options(COSTS.filter(has(evaluation)), words),
    }],
    figures: [{ title: "Cost", draw: costs }, { title: "Trade-off", draw: tradeOff }],
  },
  {
    id: "learning", title: "Training",
    controls: [{
      key: "curve", label: "Show",
      options: () => {
        const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.curves)))];
        return options(names, words);
      },
      preferred: "e2e_s_mean",
    }],
    single: true,
    figures: [{ title: "Learning curve", draw: learning }],
  },
  {
    id: "static", title: "Best static choice",
    lead: "A scheduler that decides by state should be held against the best choice that does not.",
    controls: [{
      key: "searched", label: "Scenario",
      options: () => options(data.searches.map((one) => one.label)),
    }],
    figures: [{ title: "Mean request time (s) by place and window", draw: searched }, { title: "Comparison", draw: confirmed }],
  },
];

// The page of every worker: reads /stats once a second and draws it. No framework, no network but this worker.
"use strict";

const POLL_MS = 1000;
const STATUS_COLOURS = { OK: "--good", DEGRADED: "--warning", INVALID: "--serious", EXPIRED: "--other", SHED: "--c5", ERROR: "--critical" };
const QUALITY = [
  ["auc", "AUC", "--c1", "solid"], ["brier", "Brier", "--c3", "solid"], ["precision", "Precision", "--c2", "solid"],
  ["recall", "Recall", "--c5", "solid"], ["coverage", "Coverage", "--other", "dot"],
];
const PSI_DRIFT = 0.1;
const PSI_FULL = 0.3;
const ALL = "";
const TRACK_SHARE = 1.5; // a stage bar ends at one and a half budgets

let lastGoodMs = 0;
const drawn = new Map();

const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const sum = (values) => values.reduce((total, value) => total + (isNumber(value) ? value : 0), 0);
const count = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en") : "–");
const fixed = (value, digits) => (isNumber(value) ? value.toFixed(digits) : "–");
const ms = (us) => (isNumber(us) ? (us >= 100000 ? (us / 1000).toFixed(0) : us >= 10000 ? (us / 1000).toFixed(1) : (us / 1000).toFixed(2)) : "–");
const rate = (value) => (isNumber(value) ? (value < 10 ? value.toFixed(1) : count(value)) : "–");
const worst = (values) => { const known = values.filter(isNumber); return known.length ? Math.max(...known) : null; };

function node(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = String(text);
  if (className) element.className = className;
  return element;
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

// Keeps the reader's choice while the list of options changes around it.
function fillSelect(select, options) {
  const wanted = select.value;
  const key = JSON.stringify(options);
  if (select.dataset.key === key) return;
  select.dataset.key = key;
  select.replaceChildren(...options.map(([value, label]) => { const option = node("option", label); option.value = value; return option; }));
  if (options.some(([value]) => value === wanted)) select.value = wanted;
}

// Draws only what changed since the last time, so that hovering over a plot is not disturbed.
function drawPlot(id, traces, layout) {
  const key = JSON.stringify([traces, layout, css("--surface")]);
  if (drawn.get(id) === key || typeof Plotly === "undefined") return;
  drawn.set(id, key);
  const line = css("--line");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, fixedrange: true };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 48, r: 16, t: 8, b: 34 },
    font: { family: "system-ui, sans-serif", size: 12, color: css("--ink-2") }, hovermode: "x unified",
    hoverlabel: { bgcolor: css("--surface"), bordercolor: line, font: { color: css("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, showlegend: false, uirevision: id,
  };
  const merged = { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  Plotly.react(id, traces, merged, { displayModeBar: false, responsive: true });
}

function bars(id, rows) {
  const top = Math.max(1, ...rows.map((row) => row.value));
  const total = Math.max(1, sum(rows.map((row) => row.value)));
  byId(id).replaceChildren(...rows.flatMap((row) => {
    const track = node("div", null, "track");
    const fill = node("i");
    fill.style.width = `${(100 * row.value) / top}%`;
    fill.style.background = `var(${row.colour || "--c1"})`;
    track.append(fill);
    const share = (100 * row.value) / total;
    track.title = `${row.name}: ${count(row.value)}, ${share.toFixed(2)} %`;
    return [node("span", row.name, "name"), track, node("span", count(row.value), "value")];
  }));
}

function pairs(id, entries) {
  byId(id).replaceChildren(...entries.flatMap(([name, value]) => [node("span", name, "name"), node("span", value, "value")]));
}

function tableRow(cells, className) {
  const row = node("tr", null, className);
  cells.forEach((cell, index) => {
    if (cell instanceof Node) row.append(cell);
    else row.append(node(index ? "td" : "th", cell));
  });
  row.firstElementChild.scope = "row";
  return row;
}

function addObjects(objects) {
  const total = {};
  for (const object of objects) for (const [key, value] of Object.entries(object || {})) total[key] = (total[key] || 0) + value;
  return total;
}

// Sums over workers where a sum means something, the slowest worker where it does not.
function mergeScoring(list) {
  const stage = (name) => {
    const parts = list.map((stats) => (name ? (stats.stages || {})[name] : stats.total) || {});
    return {
      p50_us: worst(parts.map((part) => part.p50_us)), p95_us: worst(parts.map((part) => part.p95_us)),
      p99_us: worst(parts.map((part) => part.p99_us)), budget_ms: worst(parts.map((part) => part.budget_ms)),
      exceeded: sum(parts.map((part) => part.exceeded)), count: sum(parts.map((part) => part.count)),
    };
  };
  const batches = list.map((stats) => stats.batches || {});
  const rows = sum(batches.map((batch) => batch.rows));
  const executions = sum(batches.map((batch) => batch.executions));
  return {
    rates: addObjects(list.map((stats) => stats.rates)),
    statuses: addObjects(list.map((stats) => stats.statuses)),
    conservation: addObjects(list.map((stats) => stats.conservation)),
    fires: addObjects(list.map((stats) => stats.fire_reasons)),
    sizes: addObjects(batches.map((batch) => batch.sizes)),
    meanRows: executions ? rows / executions : null,
    paddingShare: rows ? sum(batches.map((batch) => batch.padding_rows)) / (rows + sum(batches.map((batch) => batch.padding_rows))) : null,
    total: stage(null),
    stages: Object.keys(list[0].stages || {}).map((name) => [name, stage(name)]),
    windowS: list[0].quantile_window_s,
    series: mergeSeries(list.map((stats) => stats.series || {})),
  };
}

function mergeSeries(list) {
  const length = Math.max(0, ...list.map((series) => (series.rate || []).length));
  const at = (series, name, age) => { const values = series[name] || []; return values[values.length - 1 - age]; };
  const merged = { ages: [], rate: [], p50: [], p99: [] };
  for (let age = length - 1; age >= 0; age -= 1) {
    merged.ages.push(-age);
    merged.rate.push(sum(list.map((series) => at(series, "rate", age))));
    merged.p50.push(worst(list.map((series) => at(series, "p50_us", age))));
    merged.p99.push(worst(list.map((series) => at(series, "p99_us", age))));
  }
  return merged;
}

function drawScoring(workers) {
  const scoring = workers.filter(([, worker]) => worker.stats && worker.stats.stages);
  byId("scoring").hidden = scoring.length === 0;
  if (!scoring.length) return;
  const options = [[ALL, scoring.length === 1 ? "the only one" : `all ${scoring.length}`], ...scoring.map(([id]) => [id, id])];
  fillSelect(byId("scoring-worker"), options);
  const chosen = scoring.filter(([id]) => byId("scoring-worker").value === ALL || byId("scoring-worker").value === id);
  const figures = mergeScoring(chosen.map(([, worker]) => worker.stats));
  drawTiles(figures);
  drawSeries(figures, chosen.length);
  drawStages(figures, chosen.length);
  drawCounts(figures);
}

function drawTiles(figures) {
  const budgetUs = figures.total.budget_ms * 1000;
  const answered = Math.max(1, figures.conservation.terminal || 0);
  const bad = answered > 1 ? ((figures.statuses.ERROR || 0) + (figures.statuses.INVALID || 0)) / answered : 0;
  const tiles = [
    ["Answers per second", rate(figures.rates["10"]), `last 10 s; ${rate(figures.rates["60"])} over 60 s`],
    ["p50", `${ms(figures.total.p50_us)} ms`, "request to answer"],
    ["p99", `${ms(figures.total.p99_us)} ms`, `budget ${fixed(figures.total.budget_ms, 0)} ms`, figures.total.p99_us > budgetUs],
    ["Answered", count(figures.conservation.terminal), `${count(figures.conservation.consumed)} consumed`],
    ["In flight", count(figures.conservation.in_flight), "consumed, not yet answered"],
    ["Invalid or error", `${(100 * bad).toFixed(2)} %`, `${count((figures.statuses.ERROR || 0) + (figures.statuses.INVALID || 0))} of ${count(figures.conservation.terminal)}`],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value, note, isBad]) => {
    const tile = node("div");
    const figure = node("dd", value, isBad ? "bad" : "");
    figure.append(node("span", note, "quiet"));
    tile.append(node("dt", name), figure);
    return tile;
  }));
}

function drawSeries(figures, workerCount) {
  const { ages, rate: rates, p50, p99 } = figures.series;
  const xaxis = { range: [-120, 0], tickvals: [-120, -90, -60, -30, 0], ticktext: ["2 min ago", "90 s", "60 s", "30 s", "now"] };
  drawPlot("rate-plot", [{
    x: ages, y: rates, type: "scatter", mode: "lines", line: { color: css("--c1"), width: 2 }, fill: "tozeroy",
    fillcolor: `${css("--c1")}22`, hovertemplate: "%{y:,} answers/s<extra></extra>",
  }], { xaxis, yaxis: { rangemode: "tozero", tickformat: "~s" } });
  const budget = figures.total.budget_ms;
  const line = (name, values, colour) => ({
    x: ages, y: values.map((us) => (isNumber(us) ? us / 1000 : null)), name, type: "scatter", mode: "lines",
    line: { color: css(colour), width: 2 }, hovertemplate: `${name} %{y:.2f} ms<extra></extra>`,
  });
  const known = [...p50, ...p99].filter((us) => isNumber(us) && us > 0).map((us) => us / 1000);
  const low = Math.min(1, ...known) / 1.5;
  const high = Math.max(budget, ...known) * 1.6;
  drawPlot("latency-plot", [line("p99", p99, "--c3"), line("p50", p50, "--c1")], {
    xaxis, showlegend: true,
    yaxis: { type: "log", dtick: 1, ticksuffix: " ms", tickformat: "~g", range: [Math.log10(low), Math.log10(high)] },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: budget, y1: budget, line: { color: css("--critical"), width: 1.5, dash: "dash" } }],
    annotations: [{ xref: "paper", x: 1, xanchor: "right", y: Math.log10(budget), yanchor: "bottom", showarrow: false, text: `budget ${budget} ms`, font: { color: css("--ink-2") } }],
  });
  byId("latency-note").textContent = workerCount > 1 ? "of the slowest worker, log scale" : "log scale";
}

function drawStages(figures, workerCount) {
  byId("stage-note").textContent = `last ${figures.windowS} s${workerCount > 1 ? ", the slowest worker" : ""}`;
  const rows = [...figures.stages, ["total", figures.total]].map(([name, stage]) => {
    const budgetUs = stage.budget_ms * 1000;
    const cell = node("td", null, "meter");
    const track = node("div", null, "track");
    const layer = (fromShare, toShare, className) => {
      const fill = node("i", null, className);
      fill.style.left = `${(100 * Math.min(fromShare, TRACK_SHARE)) / TRACK_SHARE}%`;
      fill.style.width = `${(100 * Math.max(0, Math.min(toShare, TRACK_SHARE) - fromShare)) / TRACK_SHARE}%`;
      track.append(fill);
    };
    const [half, most] = [(stage.p50_us || 0) / budgetUs, (stage.p99_us || 0) / budgetUs];
    layer(0, Math.min(most, 1), "p99");
    layer(0, half, "p50");
    if (most > 1) layer(Math.max(1, Math.min(half, TRACK_SHARE)), most, "over");
    const limit = node("b");
    limit.style.left = `${100 / TRACK_SHARE}%`;
    track.append(limit);
    track.title = isNumber(stage.p99_us) ? `${name}: p99 takes ${((100 * stage.p99_us) / budgetUs).toFixed(1)} % of ${stage.budget_ms} ms` : `${name}: no requests yet`;
    cell.append(track);
    const p99 = node("td", ms(stage.p99_us), stage.p99_us > budgetUs ? "over-text" : "");
    return tableRow([name, ms(stage.p50_us), ms(stage.p95_us), p99, fixed(stage.budget_ms, 0), cell, count(stage.exceeded)], name === "total" ? "total" : "");
  });
  byId("stages").replaceChildren(...rows);
}

function drawCounts(figures) {
  bars("statuses", Object.entries(figures.statuses).map(([name, value]) => ({ name, value, colour: STATUS_COLOURS[name] })));
  bars("fires", Object.entries(figures.fires).filter(([name, value]) => name !== "NONE" || value).map(([name, value]) => ({ name: name.toLowerCase(), value })));
  const sizes = Object.entries(figures.sizes);
  const last = sizes.reduce((kept, [, value], index) => (value ? index : kept), 0);
  const named = sizes.map(([bound, value], index) => {
    const from = index ? Number(sizes[index - 1][0]) + 1 : 1;
    return { name: bound.startsWith(">") || from === Number(bound) ? bound : `${from}–${bound}`, value };
  });
  const first = Math.max(0, named.findIndex((row) => row.value));
  bars("sizes", named.slice(first, last + 1));
  byId("batch-note").textContent = isNumber(figures.meanRows) ? `mean ${figures.meanRows.toFixed(1)}, ${(100 * figures.paddingShare).toFixed(0)} % padding` : "";
  const kept = figures.conservation;
  const list = node("div", null, "pairs");
  const lines = [["Consumed", kept.consumed], ...Object.entries(figures.statuses), ["Undecodable", kept.undecodable], ["In flight", kept.in_flight]];
  list.replaceChildren(...lines.flatMap(([name, value]) => [node("span", name, "name"), node("span", count(value), "value")]));
  const broken = kept.in_flight < 0 || sum(Object.values(figures.statuses)) !== kept.terminal;
  const verdict = node("p", broken ? "The sums do not agree: more answers than requests" : "Every request is answered or in flight", broken ? "bad" : "");
  byId("conservation").replaceChildren(list, verdict);
}

function drawMonitor(workers) {
  const monitors = workers.filter(([, worker]) => worker.stats && Array.isArray(worker.stats.windows));
  byId("monitor").hidden = monitors.length === 0;
  if (!monitors.length) return;
  fillSelect(byId("monitor-worker"), monitors.map(([id]) => [id, id]));
  byId("monitor-choice").hidden = monitors.length === 1;
  const [, worker] = monitors.find(([id]) => id === byId("monitor-worker").value) || monitors[0];
  const nameOf = (window) => `${window.model_name} ${window.model_version}`;
  const latest = new Map();
  for (const window of worker.stats.windows) latest.set(nameOf(window), Math.max(latest.get(nameOf(window)) || 0, window.window_start));
  const models = [...latest.entries()].sort((a, b) => b[1] - a[1] || b[0].localeCompare(a[0], "en", { numeric: true }));
  fillSelect(byId("model"), models.length ? models.map(([name]) => [name, name]) : [["", "no window yet"]]);
  const windows = worker.stats.windows.filter((window) => nameOf(window) === byId("model").value).sort((a, b) => a.window_start - b.window_start);
  drawQuality(windows);
  drawDrift(windows);
  pairs("join", Object.entries(worker.stats.counters || {}).filter(([, value]) => isNumber(value)).map(([name, value]) => [name.replaceAll("_", " "), count(value)])
    .concat(isNumber(worker.stats.watermark_us) ? [["watermark (event time)", utc(worker.stats.watermark_us)]] : []));
  drawReports(worker);
}

const utc = (us) => (us > 0 ? `${new Date(us / 1000).toISOString().slice(0, 16).replace("T", " ")} UTC` : "–");
const labelOf = (window) => String(window.label || utc(window.window_start));

function drawQuality(windows) {
  const labels = windows.map(labelOf);
  drawPlot("quality-plot", QUALITY.map(([field, name, colour, dash]) => ({
    x: labels, y: windows.map((window) => (isNumber(window[field]) ? window[field] : null)), name, type: "scatter", mode: "lines+markers",
    line: { color: css(colour), width: 2, dash }, marker: { size: 7 }, hovertemplate: `${name} %{y:.3f}<extra></extra>`,
  })), { showlegend: true, xaxis: { type: "category" }, yaxis: { range: [0, 1.03], dtick: 0.2 }, margin: { l: 48, r: 16, t: 30, b: 34 } });
  byId("windows").replaceChildren(...windows.slice(-24).reverse().map((window) => tableRow([
    labelOf(window), count(window.predictions), isNumber(window.coverage) ? `${count(window.labelled)} (${fixed(100 * window.coverage, 0)} %)` : "–", fixed(window.auc, 3), fixed(window.brier, 4),
    fixed(window.precision, 3), fixed(window.recall, 3), fixed(window.base_rate, 3), fixed(window.mean_score, 3), fixed(window.score_psi, 3),
    node("td", (window.drifted || []).length ? window.drifted.join(", ") : "none", "text"), node("td", window.final ? "final" : "provisional", "text"),
  ])));
}

function drawDrift(windows) {
  const names = [...new Set(windows.flatMap((window) => Object.keys(window.features || {})))].sort().reverse();
  const cell = (window, name) => (window.features || {})[name] || {};
  const z = names.map((name) => windows.map((window) => (isNumber(cell(window, name).psi) ? cell(window, name).psi : null)));
  const marks = names.map((name) => windows.map((window) => (cell(window, name).drifted ? "●" : "")));
  const wanted = `${Math.max(140, 70 + 22 * names.length)}px`;
  const plot = byId("drift-plot");
  if (plot.style.height !== wanted) { plot.style.height = wanted; drawn.delete("drift-plot"); }
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const ramp = isDark ? [[0, "#23231f"], [PSI_DRIFT / PSI_FULL, "#184f95"], [1, "#9ec5f4"]] : [[0, "#f0efec"], [PSI_DRIFT / PSI_FULL, "#86b6ef"], [1, "#0d366b"]];
  drawPlot("drift-plot", [{
    type: "heatmap", x: windows.map(labelOf), y: names, z, text: marks, texttemplate: "%{text}", zmin: 0, zmax: PSI_FULL, colorscale: ramp, xgap: 2, ygap: 2,
    hovertemplate: "%{y}, %{x}<br>PSI %{z:.3f}<extra></extra>",
    colorbar: { thickness: 10, tickvals: [0, 0.1, 0.2, 0.3], ticktext: ["0", "0.1", "0.2", "≥ 0.3"], outlinewidth: 0 },
  }], { xaxis: { type: "category", showgrid: false }, yaxis: { showgrid: false, type: "category", dtick: 1 }, hovermode: "closest", margin: { l: 60, r: 8, t: 4, b: 34 } });
}

function drawReports(worker) {
  const names = (worker.stats.reports || []).map((report) => (typeof report === "string" ? report : report.name || report.file || report.path || ""))
    .map((name) => name.split("/").pop()).filter(Boolean);
  const base = /^https?:\/\//.test(worker.web_url || "") ? worker.web_url.replace(/\/$/, "") : ".";
  const items = names.slice(-20).reverse().map((name) => {
    const link = node("a", name);
    link.href = `${base}/reports/${encodeURIComponent(name)}`;
    const item = node("li");
    item.append(link);
    return item;
  });
  byId("reports").replaceChildren(...(items.length ? items : [node("li", "none written yet", "quiet")]));
}

const mebibytes = (bytes) => (isNumber(bytes) && bytes > 0 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : "–");
const distinct = (values) => [...new Set(values.filter((value) => value !== undefined && value !== null && value !== ""))];

// Each value once; where only some workers say so, how many of them.
function tally(said, workerCount) {
  return distinct(said).map((value) => {
    const times = said.filter((other) => other === value).length;
    return times === workerCount ? String(value) : `${value} (${times} of ${workerCount})`;
  });
}

function versionRow(entries, workerCount) {
  const [first] = entries;
  const states = distinct(entries.map((entry) => entry.state));
  const isReady = states.length === 1 && states[0] === "READY" && entries.length === workerCount;
  const state = node("td", null, "text");
  state.append(node("span", tally(entries.map((entry) => entry.state), workerCount).join(", "), `state ${isReady ? "good" : states.includes("FAILED") ? "bad" : ""}`));
  const reason = node("td", null, "reason");
  reason.append(...tally(entries.map((entry) => entry.reason), workerCount).map((text) => node("p", text)));
  return tableRow([
    node("th", first.name), first.version, node("td", tally(entries.flatMap((entry) => entry.labels || []), workerCount).join(", ") || "–", "text"), state,
    node("td", distinct(entries.map((entry) => entry.device)).join(", ") || "–", "text"), mebibytes(worst(entries.map((entry) => entry.memory_bytes))),
    tally(entries.map((entry) => entry.calibration_revision), workerCount).join(", ") || "–", count(sum(entries.map((entry) => entry.requests))), reason,
  ], states.every((name) => name === "UNLOADED") ? "quiet" : "");
}

function drawModels(workers) {
  const known = workers.filter(([, worker]) => worker.stats && worker.stats.models);
  byId("models").hidden = known.length === 0;
  const byVersion = new Map();
  for (const [, worker] of known) {
    for (const entry of worker.stats.models.versions || []) {
      const key = JSON.stringify([entry.name, entry.version]);
      byVersion.set(key, [...(byVersion.get(key) || []), entry]);
    }
  }
  const rows = [...byVersion.values()].sort(([a], [b]) => String(a.name).localeCompare(String(b.name)) || b.version - a.version);
  byId("versions").replaceChildren(...rows.map((entries) => versionRow(entries, known.length)));
  byId("models-note").textContent = known.filter(([, worker]) => worker.stats.models.loading).map(([id, worker]) => `${id} loads ${worker.stats.models.loading}`).join("; ");
  const refused = known.flatMap(([id, worker]) => (worker.stats.models.refused || []).map((item) => node("li", `${id} refused ${item.what}: ${item.reason}`, "over-text")));
  byId("refused").replaceChildren(...refused);
  byId("refused").hidden = refused.length === 0;
}

function drawWorkers(workers, own) {
  const nowMs = Date.now();
  byId("workers").replaceChildren(...workers.map(([id, worker]) => {
    const stats = worker.stats || {};
    const cell = node("th");
    if (/^https?:\/\//.test(worker.web_url || "")) {
      const link = node("a", id);
      link.href = worker.web_url;
      cell.append(link);
    } else cell.append(node("span", id));
    if (id === own) cell.append(node("span", " (this one)", "quiet"));
    const handled = stats.conservation ? stats.conservation.terminal : (stats.counters || {}).predictions;
    const age = (nowMs - worker.published_at / 1000) / 1000;
    return tableRow([cell, node("td", worker.role, "text"), rate((stats.rates || {})["10"]), ms((stats.total || {}).p99_us),
      count((stats.conservation || {}).in_flight), count(handled), duration(stats.uptime_s), age < 3 ? "now" : `${duration(age)} ago`]);
  }));
}

function drawCounters(workers) {
  const totals = addObjects(workers.filter(([, worker]) => worker.stats && worker.stats.stages).map(([, worker]) => worker.stats.counters));
  pairs("counters", Object.entries(totals).sort().map(([name, value]) => [name, count(value)]));
}

function draw(document_) {
  const workers = Object.entries(document_.workers || {}).sort(([a, x], [b, y]) => String(y.role).localeCompare(String(x.role)) || a.localeCompare(b));
  byId("whoami").textContent = `${document_.role} worker ${document_.worker}`;
  document.title = `Sluice · ${document_.worker}`;
  drawScoring(workers);
  drawMonitor(workers);
  drawModels(workers);
  drawWorkers(workers, document_.worker);
  drawCounters(workers);
}

function showState(text, isGood) {
  const state = byId("state");
  if (state.textContent !== text) state.textContent = text;
  state.className = `state ${isGood ? "good" : "bad"}`;
}

async function readHealth() {
  const response = await fetch("v2/health/ready", { signal: AbortSignal.timeout(5000) });
  const health = await response.json();
  const failing = (health.failing || []).map((item) => `${item.check}: ${item.reason}`).join("; ");
  showState(response.ok ? "ready" : `not ready: ${failing}`, response.ok);
}

async function poll() {
  try {
    if (!document.hidden) {
      const response = await fetch("stats", { signal: AbortSignal.timeout(5000) });
      if (!response.ok) throw new Error(`status ${response.status}`);
      draw(await response.json());
      await readHealth();
    }
    lastGoodMs = Date.now();
  } catch (error) {
    const since = lastGoodMs ? ` for ${duration((Date.now() - lastGoodMs) / 1000)}` : "";
    showState(`no figures from this worker${since} (${error.message})`, false);
  } finally {
    setTimeout(poll, POLL_MS);
  }
}

poll();

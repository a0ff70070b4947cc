// Coloured tables: what each layer keeps, round by round, and tickets that were carried over.
const mix = (color, share) => `background: color-mix(in srgb, var(${color}) ${Math.round(100 * share)}%, transparent)`;

/** ``cells`` are rows of {text, style, told}, or null where nothing is known. */
function heat(heads, names, cells, label) {
  const name = text => make("th", {scope: "row", title: text}, text);
  const rows = cells.map((row, i) => make("tr", {}, name(names[i]), row.map(heatCell)));
  const lines = heads.map(line => make("tr", {}, line.map(text => make("th", {scope: "col"}, text))));
  const table = make("table", {class: "heat"}, make("thead", {}, lines), make("tbody", {}, rows));
  table.querySelector(".told")?.setAttribute("tabindex", 0);
  return make("div", {class: "scroll", role: "region", "aria-label": label}, table);
}

function heatCell(cell) {
  if (!cell) return make("td", {class: "none"}, NONE);
  const label = [cell.told.title, ...cell.told.lines].join("; ");
  const node = make("td", {class: "told", tabindex: -1, style: cell.style, "aria-label": label}, cell.text);
  node.told = [cell.told];
  return node;
}

function beside(cell, key) {
  const {cellIndex: at, parentElement: row} = cell;
  const next = {ArrowRight: row.cells[at + 1], ArrowLeft: row.cells[at - 1],
    ArrowDown: row.nextElementSibling?.cells[at], ArrowUp: row.previousElementSibling?.cells[at]}[key];
  return next?.told ? next : null;
}

for (const box of [$("layers"), $("transfer")]) {
  walk(box, node => node.told, beside);
  const tell = (event, pin) => {
    const cell = event.target.closest(".told");
    if (cell) tip.show(cell, cell.told, pin);
    else tip.hide();
  };
  box.addEventListener("pointerover", event => hovers(event) && tell(event, false));
  box.addEventListener("pointerleave", event => hovers(event) && tip.hide());
  box.addEventListener("click", event => tell(event, true));
}

// ---- layers: of one seed, or the mean of all
const layerRun = picker("layer-run", "run", () => runs.filter(visible).map(run => [run.name, run.name]));
const layered = () => runs.find(run => run.name === layerRun.value()) || {points: [], layers: {}};
const arms = () => unique(layered().points.map(p => p.folder)).sort((a, b) => (b === "ticket") - (a === "ticket"));
const layerArm = picker("layer-arm", "arm", () => arms().map(arm => [arm, arm]));
const seeds = () => sorted(layered().points.map(p => p.seed)).map(String);
const layerSeed = picker("layer-seed", "seed", () => [["", "mean of all"], ...seeds().map(seed => [seed, seed])]);

function share(density) {
  const value = 100 * density;
  return value >= 9.95 ? value.toFixed(0) : value >= 0.995 ? value.toFixed(1) : String(Number(value.toPrecision(1)));
}

function layerCell(name, i, points, low) {
  if (points.some(p => p.kept[i] === null)) return null;
  const numel = layered().layers[name], kept = mean(points.map(p => p.kept[i])), [first] = points;
  const depth = kept ? 0.06 + 0.54 * (1 - Math.log(kept / numel) / Math.log(low)) : 0;
  const who = points.length > 1 ? `mean of ${points.length} seeds` : `seed ${first.seed}`;
  const counts = `${Number(kept.toFixed(1)).toLocaleString("en")} of ${numel.toLocaleString("en")} weights left`;
  const lines = [`${first.folder}, ${who}`, counts, `${exact((100 * kept) / numel)} %`];
  const told = {title: `${name}, round ${first.round}`, lines, address: points.length > 1 ? null : first.link};
  return {text: share(kept / numel), style: mix("--ticket", depth), told};
}

function drawLayers() {
  const names = Object.keys(layered().layers), arm = layerArm.value(), seed = layerSeed.value();
  const points = layered().points.filter(p => p.folder === arm && (!seed || String(p.seed) === seed));
  const rounds = sorted(points.map(p => p.round)), columns = rounds.map(round => points.filter(p => p.round === round));
  const shares = points.flatMap(p => names.map((name, i) => p.kept[i] / layered().layers[name]));
  const low = Math.min(0.5, ...shares.filter(value => value > 0));
  const totals = columns.map(here => share(mean(here.map(p => p.density))));
  const cells = names.map((name, i) => columns.map(here => layerCell(name, i, here, low)));
  const table = heat([["round", ...rounds.map(String)], ["left %", ...totals]], names, cells, "Weights left by layer");
  $("layers").replaceChildren(rounds.length ? table : nothing());
}

// ---- carried tickets: one table for each density
const densities = unique(data.transfer.map(cell => String(cell.density)));
const panelNames = [["", "all"], ...densities.map(value => [value, left(Number(value))])];
const density = picker("density", "density", () => panelNames);
const WIDEST = 10; // tolerances; differences beyond have the last colour

function transferCell(cell, limit) {
  const {arm, source, target, round, layers, roles} = cell, {accuracy, verdict, n} = roles[arm];
  const [gap, ...ends] = roles[arm].difference;
  const others = Object.keys(roles).filter(role => role !== arm).map(role => roles[role]);
  const lines = [
    `round ${round}, ${layers}, ${n} seed${n > 1 ? "s" : ""}`,
    `test accuracy ${exact(accuracy[0])} %`,
    gap === null ? "no dense network to compare with" : `to dense ${signed(gap)}${range(ends)}: ${verdict}`,
    ...others.map(role => [`${role.label}: ${exact(role.accuracy[0])} %`, role.verdict].filter(Boolean).join(", ")),
  ];
  const title = `${arm === "own" ? "own ticket of" : `${source} to`} ${target}, ${left(cell.density)}`;
  const style = gap === null ? null : mix(gap < 0 ? "--reinit" : "--ticket", 0.62 * Math.min(1, Math.abs(gap) / limit));
  const told = {title, lines, address: runs[cell.run].group, called: "W&B runs"};
  return {text: gap === null ? NONE : `${signed(gap)} ${data.marks[verdict]}`, style, told};
}

function drawTransfer() {
  const shown = data.transfer.filter(cell => visible(runs[cell.run]));
  const tolerance = Math.max(...runs.map(run => run.tolerance));
  const widest = Math.max(...shown.map(cell => Math.abs(cell.roles[cell.arm].difference[0] ?? 0)));
  const limit = Math.max(tolerance, Math.min(WIDEST * tolerance, widest));
  const targets = unique(shown.map(cell => cell.target)), order = targets.map(target => target.split(" ")[0]);
  const rank = source => (order.includes(source) ? order.indexOf(source) : source === "own ticket" ? 1e6 : 1e5);
  const sources = unique(shown.map(cell => cell.source)).sort((a, b) => rank(a) - rank(b));
  const wanted = unique(shown.map(cell => String(cell.density))).filter(value => [value, ""].includes(density.value()));
  const panels = wanted.map(value => {
    const here = shown.filter(cell => String(cell.density) === value), title = left(Number(value));
    const at = (source, target) => here.find(cell => cell.source === source && cell.target === target);
    const made = cell => cell && transferCell(cell, limit);
    const cells = sources.map(source => targets.map(target => made(at(source, target))));
    const table = heat([["from \\ to", ...targets]], sources, cells, `Carried tickets, ${title}`);
    return make("div", {class: "panel"}, make("h4", {}, title), table);
  });
  $("transfer").replaceChildren(...(panels.length ? panels : [nothing()]));
}

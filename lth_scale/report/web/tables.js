// Every round as a row, and the choices applied to the page's own tables.
const rounds = $("rounds");
const verdictCell = verdict => (verdict ? make("span", {class: `badge ${verdict.replace(" ", "-")}`}, verdict) : NONE);
const measureCell = (run, p, measure) => (shows(run, p, measure) ? measure.word(measure.of(p), p) : NONE);
const COLUMNS = [
  !alone && ["run", (p, run) => run.name],
  ["arm", p => p.folder],
  ["seed", p => p.seed],
  ["round", p => p.round],
  ["left %", p => (100 * p.density).toFixed(2)],
  ...known.map(measure => [measure.column, (p, run) => measureCell(run, p, measure)]),
  ["verdict, all seeds", (p, run) => verdictCell(verdictOf(run, p, 0)?.[3])],
  runs.some(run => run.points.some(p => p.link)) && ["W&B", p => (p.link ? link(p.link, "run") : NONE)],
].filter(Boolean);

function drawRounds() {
  const inOrder = run => Object.keys(data.arms).flatMap(arm => pointsOf(run).filter(p => p.arm === arm));
  const rows = runs.filter(visible).flatMap(run => inOrder(run).map(p => [p, run]));
  rounds.querySelector("summary").textContent = `Every round that is chosen: ${rows.length}`;
  if (!rounds.open) return;
  const head = make("tr", {}, COLUMNS.map(([name]) => make("th", {scope: "col"}, name)));
  const lines = rows.map(row => make("tr", {}, COLUMNS.map(([, cell]) => make("td", {}, cell(...row)))));
  rounds.querySelector("thead").replaceChildren(head);
  rounds.querySelector("tbody").replaceChildren(...lines);
}

const off = arm => arm in data.arms && !chosen.arm.has(arm);

/** Hide the columns of arms that are not chosen, and a table that has nothing but them. */
function filterColumns(table) {
  const heads = [...table.querySelectorAll("th.group")], [first, second, ...rows] = table.rows;
  const hidden = heads.flatMap(head => Array(head.colSpan).fill(off(head.dataset.arm)));
  const keys = first.cells.length - heads.length;
  heads.forEach(head => (head.hidden = off(head.dataset.arm)));
  const column = i => [second.cells[i], ...rows.map(row => row.cells[keys + i])];
  hidden.forEach((hide, i) => column(i).forEach(cell => (cell.hidden = hide)));
  table.closest("details").hidden = hidden.every(Boolean);
}

/** Hide the rows of arms that are not chosen, where a column names the arm. */
function filterRows(table) {
  const column = [...table.rows[0].cells].findIndex(cell => cell.textContent === "arm");
  if (column >= 0) [...table.tBodies[0].rows].forEach(row => (row.hidden = off(row.cells[column].textContent)));
}

const printed = [...document.querySelectorAll("details.grid table")].filter(table => !rounds.contains(table));

function filterPage() {
  document.querySelectorAll("[data-run]").forEach(section => (section.hidden = !visible(runs[section.dataset.run])));
  printed.forEach(table => (filterColumns(table), filterRows(table)));
}

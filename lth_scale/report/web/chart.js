// The main chart: every replicate's points and their means against density.
const verdictOf = (run, p, moment) => run.verdicts[`${p.arm}/${p.round}`]?.[moment];

/** A run's arms: their points, and by round the mean over seeds of means over draws; intervals over all seeds alone. */
function linesOf(measure) {
  return runs.filter(visible).flatMap(run => Object.keys(data.arms).flatMap(arm => {
    const points = pointsOf(run).filter(p => p.arm === arm && shows(run, p, measure));
    if (!points.length) return [];
    const byRound = sorted(points.map(p => p.round)).map(round => points.filter(p => p.round === round));
    const means = byRound.map(here => meanOf(run, here, measure));
    return [{run, arm, points, means, intervals: measure.gap ? means.map(intervalOf).filter(Boolean) : []}];
  }));
}

function meanOf(run, points, measure) {
  const seeds = unique(points.map(p => p.seed)), [{arm, round}] = points;
  const value = mean(seeds.map(seed => mean(points.filter(p => p.seed === seed).map(measure.of))));
  const verdict = whole(run) && measure.moment !== undefined ? verdictOf(run, points[0], measure.moment) : null;
  const [density, reached] = [mean(points.map(p => p.density)), points.every(p => p.reached)];
  return {arm, round, value, seeds, verdict, density, reached};
}

const intervalOf = ({density, verdict}) => verdict && verdict[1] !== null && {density, ends: verdict.slice(1, 3)};

// ---- what is said of a mark
const named = (run, arm) => (alone ? arm : `${run.name}, ${arm}`);

function ofPoint(run, p, {moment = 0}) {
  const gap = p.difference[moment], verdict = verdictOf(run, p, moment)?.[3];
  const lines = [
    left(p.density),
    p.accuracy[moment] !== null && `test accuracy ${exact(100 * p.accuracy[moment])} %`,
    gap !== null && !isDense(run, p) && `${signed(gap)} points to its dense network`,
    p.stop !== null && `early stop ${bound(p.stop, p)}`,
    verdict && `all seeds: ${verdict}`,
  ].filter(Boolean);
  return {title: `${named(run, p.folder)}, seed ${p.seed}, round ${p.round}`, lines, address: p.link};
}

function ofMean(run, m, measure) {
  const [gap, low, high, verdict] = m.verdict || [], count = m.seeds.length;
  const value = measure.word(m.value, m) + measure.unit;
  const judged = verdict && `to dense ${signed(gap)}${range([low, high])}: ${verdict}`;
  const title = `${named(run, m.arm)}, round ${m.round}, mean of ${count} seed${count > 1 ? "s" : ""}`;
  return {title, lines: [left(m.density), `mean ${value}`, judged].filter(Boolean)};
}

// ---- drawing
/** A line's marks: small ones of replicates, larger ones of means; where there is one seed these are its points. */
function marksOf({run, arm, points, means}, measure) {
  const {color} = look(run, arm), single = points.length === means.length;
  const small = {size: 2.6, fill: color, opacity: 0.45};
  const dot = p => ({...small, p, value: measure.of(p), seed: p.seed, told: ofPoint(run, p, measure)});
  const tops = means.map(m => {
    const verdict = measure.gap ? m.verdict?.[3] : null, p = single ? points.find(one => one.round === m.round) : m;
    const hollow = verdict === "not matching" || (measure.key === "stop" && !m.reached);
    const fill = hollow ? "var(--paper)" : verdict === "undecided" ? "var(--line)" : color;
    const told = single ? ofPoint(run, p, measure) : ofMean(run, m, measure);
    return {size: 4.2, fill, p, value: m.value, seed: single ? p.seed : "mean", told};
  });
  return [...(single ? [] : points.map(dot)), ...tops].map(mark => ({...mark, run, arm, line: `${run.name}/${arm}`}));
}

function drawMark({p, run, arm, size, seed, told, fill, opacity = null, x, y}) {
  const {marker, color} = look(run, arm), transform = `translate(${x.toFixed(2)},${y.toFixed(2)}) scale(${size})`;
  return draw("path", {
    class: "told", role: "img", tabindex: -1, "aria-label": [told.title, ...told.lines].join("; "),
    "data-arm": p.folder ?? arm, "data-round": p.round, "data-seed": seed,
    d: MARKERS[marker], transform, fill, opacity, stroke: color, "vector-effect": "non-scaling-stroke",
  });
}

function strokes({run, arm, means, intervals}, to) {
  const {color, dash} = look(run, arm), dashes = dash.map(one => 1.7 * one).join(" ") || null;
  const d = means.map(m => `${to.x(m.density).toFixed(2)},${to.y(m.value).toFixed(2)}`).join("L");
  const bar = ({density, ends: [low, high]}) => to.upright(density, to.y(low), to.y(high), {stroke: color});
  return [draw("path", {class: "mean", d: `M${d}`, stroke: color, "stroke-dasharray": dashes}), ...intervals.map(bar)];
}

/** In differences 0 and the tolerance; else, of one run, the dense networks' mean and range. */
function denseLines(drawn, measure, to) {
  const tolerance = Math.max(...drawn.map(line => line.run.tolerance));
  if (measure.gap) return [to.across(0, "dense"), to.across(-tolerance, "tolerance")];
  const dense = only()?.points.filter(p => isDense(only(), p) && chosen.seed.has(String(p.seed))) ?? [];
  const values = dense.map(measure.of).filter(value => value !== null);
  if (!values.length) return [];
  const {x, width} = to.box, [high, low] = [to.y(Math.max(...values)), to.y(Math.min(...values))];
  return [draw("rect", {class: "band", x, width, y: high, height: low - high}), to.across(mean(values), "dense")];
}

const chart = $("chart");
let marks = [], drawnFor = 0;

function drawChart() {
  [marks, drawnFor] = [[], chart.clientWidth];
  const measure = known.find(one => one.key === show.value()), drawn = measure ? linesOf(measure) : [];
  if (!drawn.length) return chart.replaceChildren(nothing());
  const width = Math.max(280, drawnFor), height = Math.round(Math.max(290, Math.min(430, 0.5 * width)));
  const low = Math.min(0.9, ...drawn.flatMap(line => line.points.map(p => p.density)));
  const to = frame(width, height, bounds(drawn, measure), low, measure);
  marks = drawn.flatMap(line => marksOf(line, measure)).filter(mark => to.inside(mark.value));
  marks = marks.map(mark => ({...mark, x: to.x(mark.p.density), y: to.y(mark.value)}));
  for (const mark of marks) mark.node = drawMark(mark);
  if (marks.length) marks[0].node.tabIndex = 0;
  const label = `${measure.text} against the weights left; arrow keys walk along a line and between lines`;
  const lines = [denseLines(drawn, measure, to), drawn.map(line => strokes(line, to))].flat(2);
  const [dots, tops] = [marks.filter(mark => mark.opacity), marks.filter(mark => !mark.opacity)];
  const shape = {viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label};
  chart.replaceChildren(draw("svg", shape,
    draw("clipPath", {id: "explore-clip"}, draw("rect", to.box)), to.parts,
    draw("g", {"clip-path": "url(#explore-clip)"}, lines), [...dots, ...tops].map(mark => mark.node)));
}

// ---- pointing, tapping, walking
/** What lies nearest to the pointer, with all that lies in the same place. */
function near(event) {
  const box = chart.getBoundingClientRect(), apart = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
  const pointer = {x: event.clientX - box.left, y: event.clientY - box.top};
  const distance = Math.min(22, ...marks.map(mark => apart(mark, pointer)));
  const nearest = marks.find(mark => apart(mark, pointer) === distance);
  return marks.filter(mark => nearest && apart(mark, nearest) < 0.5);
}

function point(event, pin) {
  const found = near(event);
  marks.forEach(mark => mark.node.classList.toggle("near", found.includes(mark)));
  if (found.length) tip.show(found[0].node, found.map(mark => mark.told), pin);
  else tip.hide();
}
const hovers = event => event.pointerType === "mouse" && !tip.pinned;
chart.addEventListener("pointermove", event => hovers(event) && point(event, false));
chart.addEventListener("pointerleave", event => hovers(event) && tip.hide());
chart.addEventListener("click", event => point(event, true));

const markAt = node => marks.find(mark => mark.node === node);
walk(chart, node => markAt(node) && [markAt(node).told], (node, key) => {
  const mark = markAt(node), order = unique(marks.map(one => one.line));
  const [along, across] = [{ArrowRight: 1, ArrowLeft: -1}[key], {ArrowDown: 1, ArrowUp: -1}[key]];
  if (along) return marks[marks.indexOf(mark) + along]?.node;
  const line = marks.filter(one => one.line === order[order.indexOf(mark.line) + across]);
  return (line.find(one => one.p.round === mark.p.round) || line[0])?.node;
});

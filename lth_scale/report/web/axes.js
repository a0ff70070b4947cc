// What the main chart may show, and its axes.
const bound = (value, p) => (p.reached ? String(value) : `\u2265 ${value}`);
const MEASURES = Object.entries(data.moments).flatMap(([moment, text], i) => [
  {key: `accuracy-${moment}`, text: `test accuracy ${text}`, axis: "test accuracy (%)", column: `% ${text}`, moment: i,
    word: exact, unit: " %", of: p => (p.accuracy[i] === null ? null : 100 * p.accuracy[i])},
  {key: `difference-${moment}`, text: `difference to dense ${text}`, axis: "difference to dense (points)",
    column: `against dense ${text}`, moment: i, gap: true, word: signed, unit: " points", of: p => p.difference[i]},
]);
MEASURES.push({key: "stop", text: "early-stopping iteration", axis: "early-stopping iteration", column: "early stop",
  word: (value, p) => bound(Math.round(value), p), unit: "", of: p => p.stop});

const isDense = (run, p) => p.arm === run.dense[0] && p.round === run.dense[1];
/** Whether a point has a measure that says something: a network is not compared with itself. */
const shows = (run, p, measure) => measure.of(p) !== null && !(measure.gap && isDense(run, p));
const known = MEASURES.filter(measure => runs.some(run => run.points.some(p => measure.of(p) !== null)));
// Accuracies of different data sets do not compare: there the differences come first.
if (GROUPS.data.options.length > 1) known.sort((a, b) => Boolean(b.gap) - Boolean(a.gap));
const show = picker("show", "show", () => known.map(measure => [measure.key, measure.text]));
const axis = picker("axis", "axis", () => [["tickets", "around the tickets"], ["whole", "whole"]]);

/** The lowest and the highest value to show: a control at chance would flatten everything else. */
function bounds(drawn, measure) {
  const ends = line => (line.arm === "ticket" ? line.intervals.flatMap(one => one.ends) : []);
  const values = line => [...line.points.map(measure.of), ...ends(line)];
  const all = drawn.flatMap(values), tolerance = Math.max(...drawn.map(line => line.run.tolerance));
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (measure.key === "stop") return [0, 1.06 * high || 1];
  if (measure.gap) [low, high] = [Math.min(low, -3 * tolerance), Math.max(high, 1.2 * tolerance)];
  const tickets = drawn.filter(line => line.arm === "ticket").flatMap(values);
  if (axis.value() === "tickets" && tickets.length) {
    const lowest = Math.min(...tickets, measure.gap ? -3 * tolerance : high);
    low = Math.max(low, high - Math.max(2.2 * (high - lowest), 8 * tolerance));
  }
  const margin = 0.05 * Math.max(high - low, 0.1);
  return [low - margin, high + margin];
}

function ticks(low, high) {
  const raw = (high - low) / 8, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= raw), first = Math.ceil(low / step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = Array.from({length: Math.floor(high / step) - first + 1}, (_, i) => (first + i) * step);
  return found.map(value => [value, (value + 0).toFixed(digits).replace("-", "\u2212")]);
}

function densityTicks(low, width) {
  const steps = low > 0.2 ? [1, 2, 3, 4, 5, 6, 8] : low > (width < 500 ? 0.04 : 0.004) ? [1, 2, 5] : [1, 3];
  const all = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1].flatMap(power => steps.map(step => step * power));
  const found = all.filter(density => density >= 0.999 * low && density <= 1.001);
  return found.map(density => [density, String(Number((100 * density).toPrecision(3)))]);
}

/** Places for densities and values, and the axes: dense is left, sparse is right. */
function frame(width, height, [bottom, top], low, measure) {
  const box = {x: 52, y: 12, width: width - 66, height: height - 52}, margin = low ** -0.03 * 1.01;
  const x = density => box.x + (box.width * Math.log(margin / density)) / Math.log((margin * margin) / low);
  const y = value => box.y + (box.height * (top - value)) / (top - bottom);
  const line = (x1, x2, y1, y2, rest) => draw("line", {x1, x2, y1, y2, ...rest});
  const across = (value, name) => line(box.x, box.x + box.width, y(value), y(value), {class: name});
  const upright = (density, from, to, rest) => line(x(density), x(density), from, to, rest);
  const text = (words, at, anchor, rest = {}) => draw("text", {...at, "text-anchor": anchor, ...rest}, words);
  const parts = [
    ticks(bottom, top).map(([value, words]) => [
      across(value, "line"), text(words, {x: box.x - 8, y: y(value) + 4}, "end")]),
    densityTicks(low, width).map(([density, words]) => [
      upright(density, box.y, box.y + box.height, {class: "line"}),
      text(words, {x: x(density), y: box.y + box.height + 17}, "middle")]),
    text("weights left (%)", {x: box.x + box.width / 2, y: height - 5}, "middle", {class: "name"}),
    text(measure.axis, {transform: `translate(12,${box.y + box.height / 2}) rotate(-90)`}, "middle", {class: "name"}),
  ];
  return {x, y, box, across, upright, parts: parts.flat(2), inside: value => value >= bottom && value <= top};
}

// What every part of the page shares: data, elements, the choices and their place in the address, the tip.
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent), runs = data.runs, alone = runs.length === 1;
const unique = list => [...new Set(list)], sorted = numbers => unique(numbers).sort((a, b) => a - b);
const mean = list => list.reduce((sum, one) => sum + one, 0) / list.length;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children.flat().filter(child => child !== null));
  return node;
}
const make = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const SVG = "http://www.w3.org/2000/svg";
const draw = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const nothing = () => make("p", {class: "note"}, "Nothing is chosen that was measured.");

const NONE = "\u2013", MINUS = "\u2212";
const exact = value => value.toFixed(4).replace(/0{1,2}$/, "");
const signed = value => (Math.round(100 * value) < 0 ? MINUS : "+") + Math.abs(value).toFixed(2);
const left = density => `${Number((100 * density).toPrecision(4))} % left`;
const range = ([low, high]) => (low === null ? "" : ` [${signed(low)}, ${signed(high)}]`);
const link = (address, text) => make("a", {href: address, target: "_blank", rel: "noopener noreferrer"}, text);

// matplotlib's markers, as wide as 2
const MARKERS = {
  "o": "M-1,0a1,1 0 1,0 2,0a1,1 0 1,0 -2,0z",
  "s": "M-.9,-.9h1.8v1.8h-1.8z",
  "D": "M0,-1.2L1.2,0L0,1.2L-1.2,0z",
  "^": "M0,-1.15L1.05,.85H-1.05z",
  "v": "M0,1.15L1.05,-.85H-1.05z",
  "<": "M-1.15,0L.85,1.05V-1.05z",
  ">": "M1.15,0L-.85,1.05V-1.05z",
  "P": "M-.4,-1.1h.8v.7h.7v.8h-.7v.7h-.8v-.7h-.7v-.8h.7z",
  "X": "M-1.1,-.6L-.6,-1.1L0,-.5L.6,-1.1L1.1,-.6L.5,0L1.1,.6L.6,1.1L0,.5L-.6,1.1L-1.1,.6L-.5,0z",
};
// One run's arms have colours; several runs have colours, and their arms marks alone.
const only = () => (runs.filter(visible).length === 1 ? runs.find(visible) : null);
const look = (run, arm) => ({...data.arms[arm], color: (only() ? data.arms[arm] : run.look).color});

// ---- choices: sets of what is shown, and what is picked from lists; what is not as usual stands in the address
const GROUPS = {
  data: {title: "data set", options: unique(runs.map(run => run.data))},
  run: {title: "run", options: runs.map(run => run.name)},
  arm: {title: "arm", options: Object.keys(data.arms)},
  seed: {title: "seed", options: sorted(runs.flatMap(run => run.points.map(p => p.seed))).map(String)},
};
const usual = key => GROUPS[key].options.filter(option => key !== "arm" || data.arms[option].on);
const chosen = {}, picked = {}, pickers = new Set(), views = [];

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [key, group] of Object.entries(GROUPS))
    chosen[key] = new Set(asked.has(key) ? asked.getAll(key).filter(one => group.options.includes(one)) : usual(key));
  for (const key of Object.keys(picked)) delete picked[key];
  for (const [key, value] of asked) if (pickers.has(key)) picked[key] = value;
}

function writeAddress() {
  const said = new URLSearchParams();
  for (const key of Object.keys(GROUPS)) {
    const now = GROUPS[key].options.filter(option => chosen[key].has(option));
    if (String(now) !== String(usual(key))) (now.length ? now : [""]).forEach(option => said.append(key, option));
  }
  for (const [key, value] of Object.entries(picked)) said.set(key, value);
  if (location.hash.slice(1) !== String(said)) history.replaceState(null, "", `#${said}`);
}

function update() {
  writeAddress();
  tip.hide();
  views.forEach(view => view());
}

const visible = run => chosen.data.has(run.data) && chosen.run.has(run.name);
const pointsOf = run => run.points.filter(p => chosen.arm.has(p.arm) && chosen.seed.has(String(p.seed)));
const whole = run => run.points.every(p => chosen.seed.has(String(p.seed)));

/** The mark of an arm, or a square of a run's colour. */
function swatch(key, option) {
  if (key === "data" || key === "seed") return null;
  const {color, marker} = key === "arm" ? data.arms[option] : runs.find(run => run.name === option).look;
  const mark = draw("path", {d: MARKERS[key === "arm" ? marker : "s"]});
  views.push(() => mark.setAttribute("fill", Boolean(only()) === (key === "arm") ? color : "var(--faint)"));
  return draw("svg", {viewBox: "-1.5 -1.5 3 3", width: 12, height: 12, "aria-hidden": "true"}, mark);
}

function chips(key) {
  const {title, options} = GROUPS[key];
  const boxes = options.map(option => {
    const box = make("input", {type: "checkbox", name: key, value: option});
    box.onchange = () => {
      chosen[key][box.checked ? "add" : "delete"](option);
      update();
    };
    views.push(() => (box.checked = chosen[key].has(option)));
    return make("label", {class: "chip"}, box, swatch(key, option), option);
  });
  return options.length < 2 ? "" : make("fieldset", {}, make("legend", {}, title), boxes);
}

/** A list to pick from; ``options`` gives [value, text] pairs anew at every update, the first is picked by itself. */
function picker(key, title, options) {
  const list = make("select", {name: key});
  const value = () => (options().some(([name]) => name === picked[key]) ? picked[key] : options()[0]?.[0]);
  pickers.add(key);
  list.onchange = () => {
    picked[key] = list.value;
    if (!list.selectedIndex) delete picked[key];
    update();
  };
  views.push(() => {
    list.replaceChildren(...options().map(([name, text]) => make("option", {value: name}, text)));
    list.value = value();
  });
  return {node: make("label", {class: "picker"}, title, list), value};
}

// ---- the tip: values of what is pointed at, focused, or, until something else is, clicked or tapped
const MOST = 5; // things in one place
const tip = {
  box: $("tip"),
  pinned: false,
  show(anchor, entries, pin) {
    const several = entries.length > 1, more = entries.length - MOST;
    const said = entries.slice(0, MOST).map(({title, lines, address, called = "W&B run"}) =>
      make("div", {}, make("strong", {}, title),
        (several ? [lines.join(" \u00b7 ")] : lines).map(line => make("span", {}, line)),
        address ? link(address, called) : null));
    this.box.replaceChildren(...said, more > 0 ? make("div", {}, `and ${more} more`) : "");
    this.box.hidden = false;
    [this.anchor, this.pinned] = [anchor, pin];
    this.place();
  },
  /** Above its anchor, or below where there is no room. */
  place() {
    const {left, top, bottom, width} = this.anchor.getBoundingClientRect();
    const {offsetWidth, offsetHeight} = this.box, room = document.documentElement.clientWidth;
    const above = top - offsetHeight - 10;
    this.box.style.left = `${Math.max(8, Math.min(left + width / 2 - offsetWidth / 2, room - offsetWidth - 8))}px`;
    this.box.style.top = `${above > 4 ? above : bottom + 10}px`;
  },
  hide() {
    this.box.hidden = true;
    this.pinned = false;
  },
};
document.addEventListener("keydown", event => event.key === "Escape" && tip.hide());
document.addEventListener("click", event => event.target.closest("#tip, #chart, .told") || tip.hide());
document.addEventListener("scroll", () => tip.box.hidden || tip.place(), {capture: true, passive: true});

/** Of a box's things that tell something one is in the order of tabs; arrow keys walk to what ``step`` says. */
function walk(box, tell, step) {
  box.addEventListener("keydown", event => {
    const next = event.target.matches(".told") && step(event.target, event.key);
    if (event.key === "Enter" && tell(event.target)) {
      tip.show(event.target, tell(event.target), true);
      tip.box.querySelector("a")?.focus();
    }
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  box.addEventListener("focusin", event => {
    const told = tell(event.target);
    if (told && event.target.matches(":focus-visible")) tip.show(event.target, told, false);
  });
  box.addEventListener("focusout", () => tip.pinned || tip.hide());
}

"use strict";
// The trees of the derivation on numbers: [operation, arguments...]. As replay.py, in doubles.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { scores: data.scores, ...data.chosen }; // t is the label, j and k are indices
const SAME = 1e-9;

function arithmetic(op, [a, da], [b, db] = [0, 0]) { // dual numbers: [value, derivative]
  switch (op) {
    case "()": return [a, da];
    case "neg": return [-a, -da];
    case "+": return [a + b, da + db];
    case "-": return [a - b, da - db];
    case "*": case "@": return [a * b, da * b + a * db];
    case "/": return [a / b, (da * b - a * db) / (b * b)];
    case "^": return [a ** b, b * a ** (b - 1) * da];
    case "exp": return [Math.exp(a), Math.exp(a) * da];
    case "log": return [Math.log(a), da / a];
    case "tanh": return [Math.tanh(a), (1 - Math.tanh(a) ** 2) * da];
  }
  throw Error(op);
}

class Numbers {
  constructor(setting) { // what the names stand for
    this.setting = setting;
    this.memo = new Map();
  }

  value = (e, at) => this.dual(e, at, null)[0];

  over([, letter, but], at) {
    return data.ranges[letter].filter((n) => but === null || n !== at[but]);
  }

  dual(e, at, seed) { // seed: what is differentiated by, as "z,1"
    const [op, ...args] = e;
    if (op === "num") return [args[0], 0];
    if (op === "at") return this.named(args[0], args.slice(1).map((i) => at[i]), seed);
    if (op === "delta") return [Number(at[args[0]] === at[args[1]]), 0];
    if (op === "D") {
      const [, name, ...by] = args[1];
      return [this.dual(args[0], at, String([name, ...by.map((i) => at[i])]))[1], 0];
    }
    if (op === "sum" || op === "max") {
      const terms = this.over(e, at).map((n) => this.dual(args[2], { ...at, [args[0]]: n }, seed));
      if (op === "max") return [Math.max(...terms.map(([v]) => v)), 0];
      return terms.reduce(([v, d], [w, f]) => [v + w, d + f], [0, 0]);
    }
    return arithmetic(op, ...args.map((x) => this.dual(x, at, seed)));
  }

  named(name, index, seed) {
    const place = String([name, ...index]), key = `${place};${seed}`;
    if (!this.memo.has(key)) this.memo.set(key, this.look(name, index, seed, place));
    return this.memo.get(key);
  }

  look(name, index, seed, place) {
    if (seed?.split(",")[0] === name) return [this.named(name, index, null)[0], Number(seed === place)];
    const { names, follow, given } = this.setting, key = `${name}/${index.length}`;
    const inside = (letters, body, seed) => this.dual(body, { t: state.t, ...Object.fromEntries(letters.map((i, n) => [i, index[n]])) }, seed);
    if (name in names) return names[name].filter(([letters]) => letters.length === index.length).map((x) => inside(...x, seed))[0];
    if (key in follow) return [inside(...follow[key], null)[0], 0];
    return [index.reduce((v, n) => v[n], name === "score" ? state.scores : given[key]), 0];
  }

  fill(e, at, terms = 4) { // the line with numbers for its names; a long sum shows its ends
    const [op, ...args] = e;
    if (op === "num") return e;
    if (op === "sum") return this.terms(e, at, terms);
    if (["at", "D", "delta", "exp"].includes(op)) return ["val", short(this.value(e, at))];
    if (op === "()" && ["at", "D", "exp", "sum", "delta", "log"].includes(args[0][0])) return this.fill(args[0], at, terms);
    return [op === "@" ? "*" : op, ...args.map((x) => this.fill(x, at, terms))];
  }

  terms(e, at, most) {
    const all = this.over(e, at), shown = all.length <= most ? all : [...all.slice(0, most - 2), null, all.at(-1)];
    const parts = shown.map((n) => (n === null ? ["val", "…"] : this.fill(e[3], { ...at, [e[1]]: n }, most)));
    if (!parts.length) return ["num", 0];
    if ("+-".includes(parts[0][0])) parts[0] = ["()", parts[0]];
    return parts.length === 1 ? parts[0] : ["()", parts.reduce((a, b) => ["+", a, b])];
  }
}

// ---- reading: as reading.text, of lines that are filled in ----

const RANK = { "+": 1, "-": 1, neg: 1, "*": 2, "/": 2, "^": 4 };
const rank = ([op, a]) => (op === "val" && a.startsWith("-") ? 1 : RANK[op] ?? 9);

function text(e) {
  const [op, a, b] = e;
  const part = (x, least) => (rank(x) < least ? `(${text(x)})` : text(x));
  switch (op) {
    case "num": return String(a);
    case "val": return minus(a);
    case "+": return `${part(a, 1)} + ${part(b, 2)}`;
    case "-": return `${part(a, 1)} − ${part(b, 2)}`;
    case "*": return `${part(a, 2)} · ${part(b, 3)}`;
    case "/": return part(a, 2) + ([a, b].every(([o]) => ["num", "val", "()"].includes(o)) ? "/" : " / ") + part(b, 3);
    case "^": return part(a, 5) + (b[1] === 2 ? "²" : `^${text(b)}`);
    case "neg": return `−${part(a, 2)}`;
    case "()": return `(${text(a)})`;
    case "log": case "tanh": return op + (a[0] === "()" ? text(a) : `(${text(a)})`);
  }
  throw Error(op);
}

const minus = (s) => s.replaceAll("-", "−");

function short(value, digits = 4) { // as "%.4g"
  if (!Number.isFinite(value)) return "beyond a double";
  if (value === 0) return "0";
  let x = Number(value.toPrecision(14)); // without the rounding of the last operations, 1.3875 rounds as in Python
  const whole = x.toExponential(60), end = whole.indexOf(".") + digits;
  if (/^[02468]50*e/.test(whole.slice(end - 1))) x *= 1 - 1e-9; // of two that are as near, Python takes the even one
  const [mantissa, exponent] = x.toExponential(digits - 1).split("e");
  if (exponent >= -4 && exponent < digits) return String(Number(x.toPrecision(digits)));
  return `${Number(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

// ---- the page ----

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const last = (name) => data.derivations[name].lines.at(-1);
const { shown } = data;
const sections = all(".derivation"), sliders = all("#scores input"), choices = all(".choices select");
const barRows = all("#bars tbody tr"), cells = all("#heat tbody tr").map((row) => all("td", row));

const say = (node, words) => { if (node.textContent !== words) node.textContent = words; };

function put(node, value, digits) {
  say(node, minus(short(value, digits)));
  node.value = value;
}

const agree = (a, b, rel) => Math.abs(a - b) <= SAME * (1 + Math.abs(a)) || (rel === ">=" && a > b);

function showDerivation(section, derivation, numbers) { // -> whether its lines agree
  const places = Object.entries(derivation.free).map(([letter, role]) => [letter, state[role] ?? 0]);
  const at = { t: state.t, ...Object.fromEntries(places) };
  const values = derivation.lines.map((line) => numbers.value(line, at));
  all(":scope > ol > li > .numbers", section).forEach((line, n) => {
    put($("data", line), values[n], 6);
    if (values.includes(0) && Math.abs(values[n]) < 1e-12) say($("data", line), values[n] === 0 ? "0" : "≈ 0"); // rounding
    say($(".filled", line), text(numbers.fill(derivation.lines[n], at)));
  });
  const good = values.every((v, n) => n === 0 || agree(values[n - 1], v, derivation.rels[n]));
  const finite = values.every(Number.isFinite), check = $(":scope > .check", section);
  check.className = `check ${good ? "good" : finite ? "bad" : ""}`;
  say(check, good ? `✓ ${values.length} lines agree` : finite ? "✗ lines differ" : "beyond a double");
  say($(":scope > .where .at", section), Object.entries(derivation.free).map(([letter, role]) => `${letter} = ${role in state ? data.names[state[role]] : 1}`).join(", "));
  return good;
}

function showBars(numbers) {
  barRows.forEach((row, k) => [shown.yhat, shown.y, last(shown.gradient)].forEach((line, n) => {
    const value = numbers.value(line, { t: state.t, k });
    put(all("data", row)[n], value);
    all(".bar", row)[n].style.setProperty("--x", value);
  }));
}

function showHeat(same, other) {
  const value = (j, k) => (j === k ? same.value(last(shown.same), { j }) : other.value(last(shown.other), { j, k }));
  const values = cells.map((row, j) => row.map((_, k) => value(j, k)));
  const most = Math.max(...values.flat().map(Math.abs));
  cells.forEach((row, j) => row.forEach((cell, k) => {
    put($("data", cell), values[j][k], 2);
    cell.style.setProperty("--x", Math.abs(values[j][k]) / most || 0);
    cell.className = values[j][k] < 0 ? "negative" : "positive";
    cell.ariaSelected = String(k === state.k && (j === state.j || j === k));
    cell.tabIndex = j === state.j && k === state.k ? 0 : -1;
  }));
}

let pause;
function update() {
  const settings = data.settings.map((one) => new Numbers(one));
  const numbers = (name) => settings[data.derivations[name].setting];
  const good = sections.map((one) => showDerivation(one, data.derivations[one.id], numbers(one.id))).filter(Boolean).length;
  showBars(numbers(shown.gradient));
  showHeat(numbers(shown.same), numbers(shown.other));
  sliders.forEach((input, n) => say(input.nextElementSibling, minus(short(state.scores[n]))));
  choices.forEach((select) => { select.value = state[select.dataset.letter]; });
  clearTimeout(pause); // the summary is read aloud: only once the hand rests
  pause = setTimeout(() => {
    const [loss, right] = [shown.loss, shown.yhat].map((e) => minus(short(numbers(shown.gradient).value(e, { t: state.t, k: state.t }))));
    const count = good === sections.length ? `All ${good}` : `${good} of ${sections.length}`;
    say($("#summary"), `${data.names[state.t]} is predicted with ${right}: loss ${loss}. ${count} derivations agree.`);
  }, 250);
}

function choose(letter, n) { // two indices that must differ change places where they would meet
  for (const pair of data.distinct.filter((pair) => pair.includes(letter))) {
    const other = pair.find((x) => x !== letter);
    if (state[other] === n) state[other] = state[letter];
  }
  state[letter] = n;
}

function chooseCell(j, k) {
  choose("k", k);
  if (j !== k) choose("j", j);
  update();
}

sliders.forEach((input, n) => input.addEventListener("input", () => {
  state.scores[n] = Number(input.value);
  update();
}));
choices.forEach((select) => select.addEventListener("change", () => {
  choose(select.dataset.letter, Number(select.value));
  update();
}));

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
cells.forEach((row, j) => row.forEach((cell, k) => {
  cell.addEventListener("click", () => chooseCell(j, k));
  cell.addEventListener("keydown", (event) => {
    const [down, right] = ARROWS[event.key] ?? [];
    if (event.key === "Enter" || event.key === " ") chooseCell(j, k);
    else if (down === undefined) return;
    else cells[j + down]?.[k + right]?.focus();
    event.preventDefault();
  });
}));

const theme = $("#theme");
theme.ariaPressed = matchMedia("(prefers-color-scheme: dark)").matches;
theme.addEventListener("click", () => {
  theme.ariaPressed = theme.ariaPressed !== "true";
  document.documentElement.style.colorScheme = theme.ariaPressed === "true" ? "dark" : "light";
});

function reveal() { // the target of a link may lie in a fold
  const target = document.getElementById(location.hash.slice(1));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", reveal);

const watch = new ResizeObserver(() => all(".scroll").forEach((box) => { // a box that scrolls is in reach of the keyboard
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
}));
all(".scroll, .scroll > *").forEach((node) => watch.observe(node));

update();
if (location.hash) reveal();

"use strict";
// The controls of the page, the state that they change, and the display of the numbers, which numbers.js computes when the state changes.

const $ = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse($("#data").textContent);
const state = { scores: data.scores.map((score) => score ?? -Infinity), ...data.chosen }; // t is the label; -Infinity masks a class
const { shown } = data;
const lastLine = (name) => data.derivations[name].lines.at(-1);
const sections = all(".derivation"), selects = all(".choices select");
const scoreRows = all(".score").map((row) => ({ row, slider: $("[type=range]", row), field: $("[type=text]", row) }));
const barRows = all("#bars tbody tr"), heatRows = all("#heat tbody tr").map((row) => all("td", row));

const setText = (node, words) => { if (node.textContent !== words) node.textContent = words; };

function setNumber(node, value, digits, words = short(value, digits)) {
  setText(node, minus(words));
  node.value = value.toSignificantDigits(17).toString();
}

// ---- the state ----

const masked = (n, { scores } = state) => !Number.isFinite(scores[n]);

function parseScore(words) { // returns a number, -Infinity, or NaN if the text is neither
  const x = words.trim().replace("−", "-");
  if (/^-inf(inity)?$/i.test(x)) return -Infinity;
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(x) && Math.abs(x) <= data.largest ? Number(x) : NaN;
}

const largest = data.largest.toExponential().replace("+", "");
const formatScore = (score) => (score === -Infinity ? "-inf" : String(score));

function problemWith({ scores, t, j, k }) { // returns the reason why the page cannot show this state, or ""
  const classes = data.names.length, isMasked = (n) => masked(n, { scores });
  if (scores.length !== classes || scores.some(Number.isNaN)) return `z must be ${classes} numbers of size ${largest} at most, or -inf`;
  if (scores.filter(Number.isFinite).length < 2) return "at least two classes must have a score other than -inf";
  if (isMasked(t)) return "the label t must be a class whose score is not -inf, since its loss would be infinite";
  return isMasked(j) || isMasked(k) || j === k ? "j and k must be two classes whose scores are not -inf" : "";
}

function chooseClass(letter, n) { // if two indices that must differ would become equal, they are swapped
  for (const pair of data.distinct.filter((pair) => pair.includes(letter))) {
    const other = pair.find((x) => x !== letter);
    if (state[other] === n) state[other] = state[letter];
  }
  state[letter] = n;
}

function setScore(n, score) { // returns the reason why the score cannot be set, or ""
  const next = moveMaskedIndices({ ...state, scores: Object.assign([...state.scores], { [n]: score }) });
  const problem = problemWith(next);
  if (!problem && score !== state.scores[n]) {
    Object.assign(state, next);
    stateChanged();
  }
  return problem;
}

function moveMaskedIndices(next) { // if the class of j or k is masked, the label or the most probable class replaces it
  const ranked = [...next.scores.keys()].filter((n) => !masked(n, next)).sort((a, b) => next.scores[b] - next.scores[a]);
  if (masked(next.k, next)) next.k = [next.t, ...ranked].find((n) => n !== next.j);
  if (masked(next.j, next)) next.j = ranked.find((n) => n !== next.k);
  return next;
}

// ---- the state in the address ----

const IN_ADDRESS = ["z", "t", "j", "k", "beyond"];
const beyond = $("#beyond"), openAtFirst = beyond.open; // the switch for the parts beyond the article
let changedByReader = false; // until then, the address is not changed

function writeAddress() {
  if (!changedByReader) return;
  const query = new URLSearchParams(location.search), { scores, t, j, k } = state;
  [scores.map(formatScore), t, j, k].forEach((value, n) => query.set(IN_ADDRESS[n], value));
  if (beyond.open === openAtFirst) query.delete("beyond");
  else query.set("beyond", Number(beyond.open));
  const address = `?${query}`.replaceAll("%2C", ",");
  try {
    if (address !== location.search) history.replaceState(history.state, "", address + location.hash);
  } catch {} // A page in a frame of a notebook has no address of its own.
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  if (!IN_ADDRESS.some((name) => query.has(name))) return;
  if (query.has("beyond")) beyond.open = query.get("beyond") === "1";
  const index = (name) => (query.has(name) ? Number(query.get(name) || NaN) : state[name]);
  const scores = query.has("z") ? query.get("z").split(",").map(parseScore) : state.scores;
  const next = { scores, t: index("t"), j: index("j"), k: index("k") }, problem = problemWith(next);
  if (problem) setText($("#address"), `The scores and indices in the address are not used: ${problem}.`);
  else Object.assign(state, next);
}

// ---- what is shown ----

let current; // the classes that are not masked, the places of t, j and k among them, and the values of the names

function startNumbers() {
  const classes = [...state.scores.keys()].filter((n) => !masked(n)), scores = classes.map((n) => state.scores[n]);
  const [t, j, k] = [state.t, state.j, state.k].map((n) => classes.indexOf(n)), decimals = scores.map(exact);
  setPrecision(scores);
  current = { classes, places: { t, j, k }, settings: data.settings.map((setting) => new Numbers(setting, decimals, t)) };
}

const numbersOf = (name) => current.settings[data.derivations[name].setting];
const place = (n) => current.classes.indexOf(n);

const agreement = new Map(); // whether the lines of a section agree

function showDerivation(section) {
  const derivation = data.derivations[section.id], numbers = numbersOf(section.id), free = Object.entries(derivation.free);
  const own = (selector) => all(selector, section).filter((node) => node.closest(".derivation") === section);
  const at = { t: current.places.t, ...Object.fromEntries(free.map(([letter, role]) => [letter, current.places[role] ?? 0])) };
  const values = derivation.lines.map((line) => numbers.value(line, at));
  own(".numbers").forEach((line, n) => {
    setNumber($("data", line), values[n], 6, shortOfLine(values[n], values.at(-1), 6));
    setText($(".filled", line), text(numbers.fill(derivation.lines[n], at)));
  });
  const good = values.every((value, n) => n === 0 || agree(values[n - 1], value, derivation.rels[n])), [check] = own(".check");
  agreement.set(section, good);
  check.className = `check ${good ? "good" : "bad"}`;
  setText(check, good ? `✓ ${values.length} lines agree` : "✗ lines differ");
  setText(own(".at")[0], free.map(([letter, role]) => `${letter} = ${role in state ? data.names[state[role]] : 1}`).join(", "));
}

function showBars() {
  const numbers = numbersOf(shown.gradient), { t } = current.places;
  barRows.forEach((row, n) => [shown.yhat, shown.y, place(n) === t ? shown.at_label : lastLine(shown.gradient)].forEach((line, column) => {
    const value = masked(n) ? ZERO : numbers.value(line, { t, k: place(n) });
    setNumber(all("data", row)[column], value);
    all(".bar", row)[column].style.setProperty("--x", value.toNumber());
  }));
}

function jacobian(j, k) { // the derivative of the prediction j by the score k
  const name = j === k ? shown.same : shown.other;
  const line = j === k ? shown.slope : lastLine(name);
  return masked(j) || masked(k) ? ZERO : numbersOf(name).value(line, { t: current.places.t, j: place(j), k: place(k) });
}

function showHeat() {
  const values = heatRows.map((row, j) => row.map((_, k) => jacobian(j, k)));
  const most = Decimal.max(...values.flat().map((value) => value.abs()));
  heatRows.forEach((row, j) => row.forEach((cell, k) => {
    setNumber($("data", cell), values[j][k], 2);
    cell.style.setProperty("--x", most.isZero() ? 0 : values[j][k].abs().div(most).toNumber());
    cell.className = values[j][k].isNegative() ? "negative" : "positive";
    cell.ariaSelected = String(k === state.k && (j === state.j || j === k));
    cell.ariaDisabled = String(masked(j) || masked(k));
    cell.tabIndex = j === state.j && k === state.k ? 0 : -1;
  }));
}

function showControls() {
  scoreRows.forEach(({ row, slider, field }, n) => {
    const score = state.scores[n], reach = Math.ceil(Math.abs(score));
    row.classList.toggle("masked", masked(n));
    if (!masked(n) && reach > slider.max) [slider.min, slider.max] = [-reach, reach];
    slider.value = masked(n) ? slider.min : score;
    slider.ariaValueText = masked(n) ? "-inf, masked" : null;
    if (parseScore(field.value) !== score) field.value = formatScore(score);
    showError(field, "");
  });
  for (const select of selects) {
    [...select.options].forEach((option, n) => { option.disabled = masked(n); });
    select.value = state[select.dataset.letter];
  }
}

function showSummary() {
  const numbers = numbersOf(shown.gradient), { t } = current.places;
  const [odds, yhat] = [shown.odds, shown.yhat].map((e) => numbers.value(e, { t, k: t }));
  const [loss, right] = [logOnePlus(odds), yhat].map((value) => minus(short(value)));
  const wrong = sections.filter((section) => !agreement.get(section)).length;
  const lines = wrong ? `The lines of ${wrong} derivations do not agree.` : "The lines of every derivation agree.";
  setText($("#summary"), `${data.names[state.t]} is predicted with ${right}: loss ${loss}. ${lines}`);
}

// ---- updates: visible parts first, and the others in slices of time, so that a slider moves smoothly ----

const SLICE = 12, PAUSE = 250; // milliseconds
const SHOW = { bars: showBars, heat: showHeat };
const parts = [$("#bars"), $("#heat"), ...sections], stale = new Set(); // stale parts have old numbers; the first of them has waited longest
const inView = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) inView[isIntersecting ? "add" : "delete"](target);
});
parts.forEach((part) => observer.observe(part));

let nextSlice, pause, paused;

function update() {
  startNumbers();
  showControls();
  parts.forEach((part) => stale.add(part));
  $("main").ariaBusy = "true";
  paused = false;
  clearTimeout(pause);
  pause = setTimeout(() => {
    paused = true;
    if (!stale.size) afterPause();
  }, PAUSE);
  showStale();
}

function showStale() {
  clearTimeout(nextSlice);
  const end = performance.now() + SLICE;
  do {
    const part = [...stale].find((one) => inView.has(one)) ?? [...stale][0];
    stale.delete(part);
    (SHOW[part.id] ?? showDerivation)(part);
  } while (stale.size && performance.now() < end);
  if (stale.size) {
    nextSlice = setTimeout(showStale);
    return;
  }
  $("main").ariaBusy = "false";
  if (paused) afterPause();
}

function afterPause() { // Screen readers read the summary aloud, and browsers limit how often the address may change.
  showSummary();
  writeAddress();
}

function stateChanged() {
  changedByReader = true;
  setText($("#address"), "");
  update();
}

// ---- the controls ----

function showError(field, words) {
  if (!words && !field.ariaInvalid) return;
  field.ariaInvalid = words ? "true" : null;
  setText($("#error"), words);
}

function useField(n, field) { // returns the reason why the score cannot be the text of the field, or ""
  const score = parseScore(field.value);
  if (Number.isNaN(score)) return `a score must be a number of size ${largest} at most, or -inf to mask the class`;
  const problem = setScore(n, score);
  if (!problem) showError(field, "");
  return problem;
}

scoreRows.forEach(({ slider, field }, n) => {
  slider.addEventListener("input", () => setScore(n, Number(Number(slider.value).toPrecision(3))));
  field.addEventListener("input", () => useField(n, field)); // an incomplete number is not reported as an error
  field.addEventListener("change", () => {
    const problem = useField(n, field);
    if (problem) showError(field, `“${field.value}” is not used for ${data.names[n]}: ${problem}. The score stays ${formatScore(state.scores[n])}.`);
  });
});

selects.forEach((select) => select.addEventListener("change", () => {
  chooseClass(select.dataset.letter, Number(select.value));
  stateChanged();
}));

beyond.addEventListener("toggle", () => {
  changedByReader = true;
  writeAddress();
});

function chooseCell(j, k) {
  if (masked(j) || masked(k)) return;
  chooseClass("k", k);
  if (j !== k) chooseClass("j", j);
  stateChanged();
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
heatRows.forEach((row, j) => row.forEach((cell, k) => {
  cell.addEventListener("click", () => chooseCell(j, k));
  cell.addEventListener("keydown", (event) => {
    const [down, right] = ARROWS[event.key] ?? [];
    if (event.key === "Enter" || event.key === " ") chooseCell(j, k);
    else if (down === undefined) return;
    else heatRows[j + down]?.[k + right]?.focus();
    event.preventDefault();
  });
}));

function reveal() { // opens the closed section that contains the target of a link
  const target = document.getElementById(location.hash.slice(1));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", reveal);
addEventListener("popstate", writeAddress); // The back button changes the position on the page, but not the state.

const watch = new ResizeObserver(() => all(".scroll").forEach((box) => { // a box that scrolls can be focused with the keyboard
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
}));
all(".scroll, .scroll > *").forEach((node) => watch.observe(node));

readAddress();
update();
if (location.hash) reveal();

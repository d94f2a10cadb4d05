"use strict";
// Evaluates the expressions of the derivation, which are trees [operation, arguments...], inserts numbers into them, and writes both as text.
// The operations and their order are those of replay.py: decimals (decimal.js) of at least 50 digits, and dual numbers for derivatives. The
// value and the derivative of a dual number are computed separately, so that a value is computed only once for the derivatives by all scores.

const DIGITS = 50, MORE = 480; // as in replay.py
const PRECISION_STEP = 16; // The precision changes in steps, because a change means that all exponentials are computed again.
const ZERO = new Decimal(0), ONE = new Decimal(1);
const TOLERANCE = new Decimal("1e-30"), FLOOR = new Decimal("1e-45"), NOUGHT = new Decimal("1e-40"); // as in replay.py and explanation

Decimal.set({ rounding: Decimal.ROUND_HALF_EVEN });

let covered = true; // whether the digits cover every cancellation; if not, a value of 0 may be a small one

function setPrecision(scores) { // as replay.digits_of: the larger the differences of the scores, the more digits 1 - yhat loses
  const ranked = [...new Set(scores)].sort((a, b) => b - a);
  const gap = [ranked.at(-1), ranked[1] ?? ranked[0]].map((score) => (ranked[0] - score) / 2.302).find((one) => one < MORE);
  covered = gap !== undefined;
  Decimal.precision = DIGITS + PRECISION_STEP * Math.ceil((gap ?? 0) / PRECISION_STEP);
}

const exact = (double) => new Decimal(`${double < 0 ? "-" : ""}0b${Math.abs(double).toString(2)}`); // all binary digits, as Python's Decimal

const agree = (a, b, rel) => a.minus(b).abs().lte(TOLERANCE.times(a.abs()).plus(FLOOR)) || (rel === ">=" && a.gt(b));

function remember(known, key, compute) {
  if (!known.has(key)) known.set(key, compute());
  return known.get(key);
}

const MOST_VALUES = 5000;
const functionValues = new Map(); // of exp and ln, which take a hundred times as long as a sum

function transcendental(name, x) {
  if (functionValues.size > MOST_VALUES) functionValues.clear();
  return remember(functionValues, `${name} ${Decimal.precision} ${x}`, () => x[name]());
}

function tanh(x) {
  const q = transcendental("exp", x.abs().times(-2)), value = ONE.minus(q).div(ONE.plus(q));
  return x.isNegative() ? value.neg() : value;
}

function tanhSlope(x) { // 1 - tanh^2, which would lose its digits far from 0
  const q = transcendental("exp", x.abs().times(-2)), sum = ONE.plus(q);
  return q.times(4).div(sum.times(sum));
}

// ---- values ----

const treeInfos = new WeakMap(), ids = new Map();

function treeInfo(e) { // the free indices of a tree, and a number that identifies it
  return remember(treeInfos, e, () => ({ id: remember(ids, JSON.stringify(e), () => ids.size), letters: [...letters(e)] }));
}

function letters([op, ...args]) {
  if (op === "at") return new Set(args.slice(1));
  if (op === "delta" || op === "rolled") return new Set(args);
  const free = new Set(args.filter(Array.isArray).flatMap((x) => treeInfo(x).letters));
  if (op === "sum" || op === "max") {
    free.delete(args[0]);
    if (args[1] !== null) free.add(args[1]);
  }
  return free;
}

class Numbers {
  constructor(setting, scores, t) { // the meaning of the names, the scores as decimals, and the label
    Object.assign(this, { setting, scores, t });
    this.values = new Map();
    this.slopes = new Map();
  }

  value(e, at) {
    return remember(this.values, this.key(e, at), () => this.compute(e, at));
  }

  slope(e, at, seed) { // the derivative by the seed, such as "z,1"
    if (e[0] !== "sum" && e[0] !== "at") return this.derive(e, at, seed);
    return remember(this.slopes, `${this.key(e, at)};${seed}`, () => this.derive(e, at, seed));
  }

  key(e, at) {
    const { id, letters } = treeInfo(e);
    return letters.reduce((key, i) => `${key},${at[i]}`, id);
  }

  over([, letter, but], at) { // the values of the index of a sum
    const n = this.scores.length, half = Math.floor(n / 2);
    const [from, to] = letter === "first" ? [0, half] : letter === "last" ? [half, n] : [0, this.setting.ranges[letter] ?? n];
    return Array.from({ length: to - from }, (_, i) => from + i).filter((i) => but === null || i !== at[but]);
  }

  compute(e, at) {
    const [op, a, b, c] = e, of = (x) => this.value(x, at);
    switch (op) {
      case "num": return new Decimal(a);
      case "at": return this.named(a, e.slice(2).map((i) => at[i]));
      case "delta": return at[a] === at[b] ? ONE : ZERO;
      case "rolled": return at[a] === (at[b] + at[c]) % this.scores.length ? ONE : ZERO; // the truth of row b of the batch: its label is shifted by b classes
      case "D": return this.slope(a, at, String([b[1], ...b.slice(2).map((i) => at[i])]));
      case "sum": return this.over(e, at).reduce((sum, n) => sum.plus(this.value(c, { ...at, [a]: n })), ZERO);
      case "max": return Decimal.max(...this.over(e, at).map((n) => this.value(c, { ...at, [a]: n })));
      case "()": return of(a);
      case "neg": return of(a).neg();
      case "+": return of(a).plus(of(b));
      case "-": return of(a).minus(of(b));
      case "*": case "@": return of(a).isZero() ? ZERO : of(a).times(of(b)); // y_j log(yhat_j) needs no logarithm where y_j is 0
      case "/": return of(a).div(of(b));
      case "^": return of(a).pow(of(b));
      case "exp": return transcendental("exp", of(a));
      case "log": return transcendental("ln", of(a));
      case "tanh": return tanh(of(a));
    }
    throw Error(op);
  }

  derive(e, at, seed) {
    const [op, a, b, c] = e, of = (x) => this.value(x, at), d = (x) => this.slope(x, at, seed);
    const product = (x, dy) => (dy.isZero() ? ZERO : of(x).times(dy));
    switch (op) {
      case "num": case "delta": case "rolled": case "max": return ZERO;
      case "at": return this.slopeOfNamed(a, e.slice(2).map((i) => at[i]), seed);
      case "sum": return this.over(e, at).map((n) => this.slope(c, { ...at, [a]: n }, seed)).reduce((x, y) => (y.isZero() ? x : x.plus(y)), ZERO);
      case "()": return d(a);
      case "neg": return d(a).neg();
      case "+": return d(a).plus(d(b));
      case "-": return d(a).minus(d(b));
      case "*": case "@": return product(b, d(a)).plus(of(a).isZero() ? ZERO : product(a, d(b)));
      case "/": {
        const above = product(b, d(a)).minus(product(a, d(b)));
        return above.isZero() ? ZERO : above.div(of(b).times(of(b)));
      }
    }
    const da = d(a);
    if (da.isZero()) return ZERO;
    switch (op) {
      case "^": return of(b).times(of(a).pow(of(b).minus(1))).times(da);
      case "exp": return of(e).times(da);
      case "log": return da.div(of(a));
      case "tanh": return tanhSlope(of(a)).times(da);
    }
    throw Error(op);
  }

  named(name, index) {
    const { names, follow, given } = this.setting, key = `${name}/${index.length}`;
    const meaning = names[key] ?? follow[key];
    if (meaning) return this.value(meaning.body, this.indicesIn(meaning, index));
    return name === "score" ? this.scores[index[0]] : new Decimal(index.reduce((values, n) => values[n], given[key]));
  }

  slopeOfNamed(name, index, seed) {
    if (seed.split(",")[0] === name) return seed === String([name, ...index]) ? ONE : ZERO;
    const meaning = this.setting.names[`${name}/${index.length}`];
    return meaning ? this.slope(meaning.body, this.indicesIn(meaning, index), seed) : ZERO;
  }

  indicesIn = ({ own }, index) => ({ t: this.t, ...Object.fromEntries(own.map((letter, n) => [letter, index[n]])) });

  fill(e, at, terms = 4) { // the line with numbers inserted; a long sum is abbreviated
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

// ---- text: as reading.text, of lines that are filled in ----

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

function short(value, digits = 4) { // as replay.short: "%.4g" of a double, or of the decimal if it is outside the range of doubles
  if (!value.isZero() && Math.abs(value.e) >= 300) return value.toExponential(digits - 1);
  const x = value.toNumber(), tie = digitsOfTie(x, digits); // Python rounds a tie to even, as Decimal does here, and JavaScript does not
  const [mantissa, exponent] = (tie ? new Decimal(tie) : x).toExponential(digits - 1).split("e");
  if (exponent >= -4 && exponent < digits) return String(Number(`${mantissa}e${exponent}`));
  return `${Number(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
}

function digitsOfTie(x, digits) { // all digits of a double that lies halfway between two numbers of `digits` digits; false for others
  const whole = x.toExponential(60), end = whole.indexOf(".") + digits;
  return /^50*e/.test(whole.slice(end)) && whole;
}

function logOnePlus(x) { // below 1e-26, up to x^2/3 of x
  return x.lt("1e-26") ? x.times(ONE.minus(x.div(2))) : transcendental("ln", ONE.plus(x));
}

function shortOfLine(value, last, digits) { // as in the terminal: after a cancellation that the digits do not cover, a value is shown as approximately 0
  if (value.isZero() && !covered) return "≈ 0";
  if (last.isZero() && value.abs().lt(NOUGHT)) return covered ? "0" : "≈ 0";
  const isNoise = Decimal.max(value.abs(), last.abs()).lt(TOLERANCE) && value.minus(last).abs().gt(last.abs().times("1e-6"));
  return isNoise ? "≈ 0" : short(value, digits);
}

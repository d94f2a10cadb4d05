"""What Rounding.v proves about rounding errors, in words and as statements, which Coq compares with those of its theorems.

BOUNDS has the bounds of relative errors, in the syntax that Python and Coq share. A test compares them with the functions of bounds.py.
"""

from __future__ import annotations

from .coq import comparison

BOUNDS = {  # name: (arguments, expression); u and v are the unit roundoffs of the compute type and of float64, n the number of classes
    "sum_bound": ("u v depth n", "1.001 * (4 * u + v * (depth + 2 * ln n))"),
    "loss_bound": ("u v depth n gap", "sum_bound u v depth n + v * (3 * gap + 4 * ln n + 14)"),
    "grad_bound": ("u v depth n gap distance", "5 * u + 2 * loss_bound u v depth n gap + 2 * v * distance"),
}
# The bound of an entry of the gradient. eta and eta_n are half of the smallest number of float64 and of the compute type.
OTHER_ENTRY = (
    "1.001 * (grad_bound u v depth (INR n) (Rabs (m - z t)) (m - z k) * (g * mass * softmax n z k) + 2 * u * (g * r * off)) + "
    "1.03 * (g * lost_mass) + 5 * INR n * eta * (g * mass) + 5 * eta + 6 * eta_n + 1.03 * off * (eta + eta_n / bpow radix2 h)"
)
# The same at the label, for a truth at the label alone; yhat_t is softmax n z t.
LABEL_ENTRY = (
    "1.001 * (loss_bound u v depth (INR n) (Rabs (m - z t)) * softmax n z t + 14 * v + u) * (g * mass * (1 - softmax n z t)) + "
    "5 * INR n * eta * (g * mass) + 2 * eta * g + 2 * eta + 2 * eta_n"
)
_FORMATS = (
    "forall (pn en pw ew : Z), Prec_gt_0 pn -> Prec_gt_0 pw -> (pn <= pw)%Z /\\ (ew <= en)%Z -> let u := unit_roundoff pn in "
    "let v := unit_roundoff pw in let eta := half_tiny ew in let eta_n := half_tiny en in "
)
_ROW = (
    _FORMATS + "forall (Exp Log Log1p : R -> R) (n t : nat) (z : vec) (m depth lost c : R) (s : tree), "
    "row_computed pn en pw ew Exp Log Log1p n t z m depth lost c s -> let s_ := computed pn en pw ew s in "
    "let bound := loss_bound u v depth (INR n) (Rabs (m - z t)) in "
)
_FLOAT64 = "generic_format radix2 (FLT_exp ew pw)"
_NARROW = "generic_format radix2 (FLT_exp en pn)"
THEOREMS = {
    "rounded_sum": (
        "A sum of non-negative numbers over any tree has a relative error of one unit for each addition on its deepest path. The additions "
        "in the compute type come first, those in float64 after them.",
        _FORMATS + "forall t : tree, well_made pn en pw ew t -> 0 <= exactly t /\\ "
        "near (INR (narrow_depth t) * u + INR (wide_depth t) * v) (exactly t) (computed pn en pw ew t)",
    ),
    "sum_of_a_block": (
        "The tree of the kernel for a block adds up all columns: 2 additions on a path in the compute type, for groups of 4, and in "
        "float64 one for each group, those of the tree over the 2^d lanes, and the factor of the block.",
        "forall (d groups : nat) (e : vec) (factor : R), let s := block_tree d groups e factor in "
        "exactly s = sum (groups * (4 * 2 ^ d)) (fun k => factor * e k) /\\ (narrow_depth s <= 2)%nat /\\ "
        "(wide_depth s <= groups + d + 1)%nat",
    ),
    "sum_of_exponentials": (
        "The sum s of e^(z_k - m) has a relative error of at most `sum_bound`, for any number of classes and any tree of additions.",
        _ROW + "let s0 := sum_but t n (fun k => exp (z k - m)) in Rabs (s_ - s0) <= sum_bound u v depth (INR n) * s0",
    ),
    "loss_of_label": (
        "The loss of the label, - log yhat_t, has a relative error of at most `loss_bound`, and an absolute one of 2 C times the smallest "
        "number of float64.",
        _ROW + "Rabs (nll_ pw ew Exp Log Log1p m (z t) s_ - (lse n z - z t)) <= bound * (lse n z - z t) + 4 * INR n * eta",
    ),
    "probability_of_a_miss": (
        "The probability of a miss, 1 - yhat_t, has the same relative error.",
        _ROW + "Rabs (miss_ pw ew Exp Log m (z t) s_ - (1 - softmax n z t)) <= bound * (1 - softmax n z t) + 4 * INR n * eta",
    ),
    "label_entry": (
        "The entry of the gradient at the label, for a truth at the label alone, is - g mass (1 - yhat_t). yhat_t multiplies the error "
        "of the sums.",
        _ROW + "forall g mass : R, 0 <= g -> 0 <= mass -> 3.2 * INR n * eta <= v -> u <= 1/4000 -> "
        "Rabs (label_entry_ pn en pw ew g mass (miss_ pw ew Exp Log m (z t) s_) - g * mass * (1 - softmax n z t)) <= " + LABEL_ENTRY,
    ),
    "other_entry": (
        "An entry of the gradient, g (mass yhat_k - r off_k) for k other than the label, has an error of `grad_bound` times the first term "
        "and 2u times the second. The further terms are for numbers near the smallest ones. If r g were not multiplied by 2^h, a "
        "subnormal r g would cost eta_n off_k.",
        _ROW + "forall (g mass mass_ lost_mass r off e block cb : R) (i j h : Z) (k : nat), "
        "entry_computed pn en pw ew Exp Log n t z m depth s g mass mass_ lost_mass r off e block cb i j h k -> "
        "Rabs (entry_ pn en (scale_ pw ew g mass_ (unit_ pw ew Exp Log m (z t) s_) block) (rounded pw ew (g * r)) e off i j h - "
        "(g * mass * softmax n z k - g * r * off)) <= " + OTHER_ENTRY,
    ),
    "a_row_is_computed": (
        "The hypotheses of these theorems can be met: by float32 and float64 with correctly rounded functions, and a row of two classes.",
        "row_computed 24 (-149) 53 (-1074) (fun x => rounded 53 (-1074) (exp x)) (fun x => rounded 53 (-1074) (ln x)) "
        "(fun x => if Rle_dec (unit_roundoff 53) x then rounded 53 (-1074) (ln (1 + x)) else x) 2 1 (fun _ => 0) 0 1 0 0 "
        "(Wide (Leaf 1) (Leaf 0))",
    ),
}
HYPOTHESES = {  # what the records of Rounding.v assume: the types of their constructors
    "Build_row_computed": (
        "forall (pn en pw ew : Z) (Exp Log Log1p : R -> R) (n t : nat) (z : vec) (m depth lost c : R) (s : tree), "
        "elementary pw ew Exp Log Log1p -> (en <= 0)%Z /\\ (ew + pw <= -40)%Z -> (t < n)%nat /\\ (1 < n)%nat /\\ ln (INR n) <= 19 -> "
        f"{_FLOAT64} m /\\ {_FLOAT64} (z t) -> (forall k, (k < n)%nat -> k <> t -> z k <= m) -> "
        "(exists k, (k < n)%nat /\\ k <> t /\\ z k = m) -> adds_up pn en pw ew n t z m c lost s -> "
        "(narrow_depth s <= 2)%nat /\\ 0 <= c /\\ INR (wide_depth s) + c <= depth -> "
        "0 <= lost /\\ 20000 * (INR n * lost) <= unit_roundoff pn -> "
        "loss_bound (unit_roundoff pn) (unit_roundoff pw) depth (INR n) (Rabs (m - z t)) <= 1/4000 -> "
        "row_computed pn en pw ew Exp Log Log1p n t z m depth lost c s"
    ),
    "Build_entry_computed": (
        "forall (pn en pw ew : Z) (Exp Log : R -> R) (n t : nat) (z : vec) (m depth : R) (s : tree) (g mass mass_ lost_mass r off "
        "e block cb : R) (i j h : Z) (k : nat), let u := unit_roundoff pn in let v := unit_roundoff pw in let power := bpow radix2 in "
        "let scale := scale_ pw ew g mass_ (unit_ pw ew Exp Log m (z t) (computed pn en pw ew s)) block in "
        "let drop := rounded pw ew (g * r) in (k < n)%nat /\\ k <> t -> 0 <= g /\\ 0 <= mass /\\ 0 <= r /\\ 0 <= off /\\ 0 <= lost_mass -> "
        f"{_NARROW} e /\\ {_NARROW} off -> within (loss_bound u v depth (INR n) (Rabs (m - z t))) lost_mass mass mass_ -> "
        "0 <= cb <= 4 /\\ near (2 * u + cb * v + 2 * v * (m - z k)) (exp (z k - m)) (e * power (i + j)%Z * block) /\\ "
        "0 <= e * power (i + j)%Z <= 3/2 /\\ 0 <= block -> "
        "(i = 0%Z /\\ e * power j <= 3/2 /\\ (j <= 0)%Z) \\/ (j = 0%Z /\\ 0 <= e /\\ power (en + pn - 1)%Z <= scale * power i) -> "
        "(h = 0%Z \\/ drop * power h <= 1) /\\ (rounded pn en (drop * power h) = drop * power h \\/ 1000 * v <= u) -> "
        "grad_bound u v depth (INR n) (Rabs (m - z t)) (m - z k) <= 1/2000 -> 4.32 * INR n * half_tiny ew <= 1/1000 -> "
        "entry_computed pn en pw ew Exp Log n t z m depth s g mass mass_ lost_mass r off e block cb i j h k"
    ),
}
DEFINITIONS = """Section Kernel.
Context (pn en pw ew : Z).
Notation wide_format := (generic_format radix2 (FLT_exp ew pw)).
Notation narrow_format := (generic_format radix2 (FLT_exp en pn)).
Definition near (e x y : R) : Prop := exp (- e) * x <= y <= exp e * x.
Definition within (e a x y : R) : Prop := exists x', 0 <= x' /\\ Rabs (x' - x) <= a /\\ near e x' y.
Definition rounded (p emin : Z) (x : R) : R := round radix2 (FLT_exp emin p) ZnearestE x.
Definition unit_roundoff (p : Z) : R := bpow radix2 (- p).
Definition half_tiny (emin : Z) : R := / 2 * bpow radix2 emin.
Notation rn := (rounded pn en).
Notation rw := (rounded pw ew).
Notation v := (unit_roundoff pw).
Notation eta := (half_tiny ew).
Fixpoint exactly (t : tree) : R :=
  match t with Leaf x => x | Narrow a b | Wide a b => exactly a + exactly b | Scaled c a => c * exactly a end.
Fixpoint lane_sum (four : nat -> tree) (groups : nat) : tree :=
  match groups with O => Leaf 0 | S g => Wide (lane_sum four g) (four g) end.
Fixpoint lanes_sum (lane : nat -> tree) (d : nat) : tree :=
  match d with O => lane 0%nat | S d => lanes_sum (fun i => Wide (lane i) (lane (i + 2 ^ d)%nat)) d end.
Definition block_tree (d groups : nat) (e : vec) (factor : R) : tree :=
  let column g c lane := Leaf (e ((g * 4 + c) * 2 ^ d + lane)%nat) in
  let four g lane := Narrow (Narrow (column g 0%nat lane) (column g 1%nat lane)) (Narrow (column g 2%nat lane) (column g 3%nat lane)) in
  Scaled factor (lanes_sum (fun lane => lane_sum (fun g => four g lane) groups) d).
Fixpoint narrow_depth (t : tree) : nat :=
  match t with
  | Leaf _ => 0
  | Narrow a b => S (Nat.max (narrow_depth a) (narrow_depth b))
  | Wide a b => Nat.max (narrow_depth a) (narrow_depth b)
  | Scaled _ a => narrow_depth a
  end.
Fixpoint wide_depth (t : tree) : nat :=
  match t with
  | Leaf _ => 0
  | Narrow a b => Nat.max (wide_depth a) (wide_depth b)
  | Wide a b => S (Nat.max (wide_depth a) (wide_depth b))
  | Scaled _ a => S (wide_depth a)
  end.
Fixpoint computed (t : tree) : R :=
  match t with
  | Leaf x => x
  | Narrow a b => rn (computed a + computed b)
  | Wide a b => rw (computed a + computed b)
  | Scaled c a => rw (c * computed a)
  end.
Fixpoint in_narrow (t : tree) : Prop :=
  match t with Leaf x => 0 <= x /\\ narrow_format x | Narrow a b => in_narrow a /\\ in_narrow b | _ => False end.
Fixpoint well_made (t : tree) : Prop :=
  match t with
  | Wide a b => well_made a /\\ well_made b
  | Scaled c a => well_made a /\\ 0 <= c /\\ (c * computed a = 0 \\/ bpow radix2 (ew + pw - 1) <= c * computed a)
  | t => in_narrow t
  end.
Definition adds_up (n t : nat) (z : vec) (m c lost : R) (s : tree) : Prop :=
  well_made s /\\ exists e : vec, exactly s = sum n e /\\
  forall k, (k < n)%nat -> if Nat.eqb k t then e k = 0 else
    near (2 * unit_roundoff pn + c * v + 2 * v * (m - z k)) (exp (z k - m)) (e k) \\/ Rabs (e k - exp (z k - m)) <= lost.
Definition elementary (Exp Log Log1p : R -> R) : Prop :=
  (forall x, wide_format x -> x <= 40 -> wide_format (Exp x) /\\ within (2 * v) (2 * eta) (exp x) (Exp x)) /\\
  (forall x, wide_format x -> 0 < x -> wide_format (Log x) /\\ Rabs (Log x - ln x) <= 2 * v * Rabs (ln x)) /\\
  (forall x, wide_format x -> 0 <= x -> wide_format (Log1p x) /\\ near (4 * v) (ln (1 + x)) (Log1p x)).
Section Finish.
Variables (Exp Log Log1p : R -> R) (m zt s : R).
Definition gap_ : R := rw (m - zt).
Definition low_ : R := (m - zt) - gap_.
Definition a_ : R := rw (gap_ + Log s).
Definition w_ (g l : R) : R := rw (Exp g + rw (Exp g * l)).
Definition inverse_s_ : R := rw (1 / s).
Definition odds_ : R := if Rlt_dec a_ 0 then rw (s * w_ gap_ low_) else rw (w_ (- gap_) (- low_) * inverse_s_).
Definition inverse_ : R := rw (1 / rw (1 + odds_)).
Definition nll_ : R := if Rlt_dec a_ 0 then Log1p odds_ else rw (a_ + Log1p odds_).
Definition miss_ : R := rw ((if Rlt_dec a_ 0 then odds_ else 1) * inverse_).
Definition unit_ : R := rw (miss_ * inverse_s_).
End Finish.
Definition label_entry_ (g mass miss : R) : R := rn (rw (g * rw (mass * miss))).
Definition scale_ (g mass factor block : R) : R := rw (rw (rw (g * mass) * factor) * block).
Definition entry_ (scale drop e off : R) (i j h : Z) : R :=
  rn (rn (rn (e * rn (scale * bpow radix2 i)) * bpow radix2 j) - rn (drop * bpow radix2 h) * rn (off * bpow radix2 (- h))).
End Kernel."""
TREE = (
    "(forall x : R, P (Rounding.Leaf x)) -> (forall a, P a -> forall b, P b -> P (Rounding.Narrow a b)) -> "
    "(forall a, P a -> forall b, P b -> P (Rounding.Wide a b)) -> (forall (c : R) a, P a -> P (Rounding.Scaled c a))"
)


def lines_file() -> str:
    """Return a Coq file that compares the definitions, hypotheses and theorems of Rounding.v with those stated here."""
    bounds = [f"Definition {name} ({arguments} : R) : R := {says}." for name, (arguments, says) in BOUNDS.items()]
    return comparison(
        "Rounding",
        ["From Coq Require Import Reals ZArith.", "From Flocq Require Import Core."],
        ["vec", "softmax", "lse", "sum", "sum_but"],
        "\n".join([DEFINITIONS, *bounds]),
        {name: says for name, (_, says) in THEOREMS.items()} | HYPOTHESES,
        types={"tree": (["Leaf", "Narrow", "Wide", "Scaled"], TREE)},
        records=["row_computed", "entry_computed"],
    )

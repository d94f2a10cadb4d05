"""The statement of each line of the derivation in Coq, generated from its expression, and its proof by the tactics of Softmax.v.

In Coq a derivative is a relation and not a value: `partial f k z d` states that d is the derivative of f with respect to the k-th
coordinate at z. If a derivation starts with a derivative, the statement of a line is `partial ... (the line)`. A derivative inside a line
becomes a number d1, or a family of numbers in a sum, with the hypothesis that it is that derivative.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from .derivation import POSITIVE, Derivation
from .expr import RANGES, E, Fact, children, in_row, letters, reindex, same, walk
from .wellformed import ill_formed

SIZES = {"N": "n", "D": "nd", "R": "nr"}
VECTORS = ("z", "y", "yhat", "v", "w", "u", "x", "b", "off")
SCALARS = (
    *("eps", "lam", "T", "c", "m", "m1", "m2", "s1", "s2", "u1", "u2", "a", "g1", "g2", "g3", "g4", "y0", "r0", "q"),
    *("h", "h1", "h2", "A1", "A2", "B1", "B2"),
)
BEYOND = {  # theorems of Softmax.v that are not lines of a derivation: in words, and the statement that they must have
    "softmax_positive": (
        "Every prediction is positive.",
        "forall (n : nat) (z : vec) (j : nat), (0 < n)%nat -> 0 < softmax n z j",
    ),
    "softmax_le_1": (
        "No prediction is above 1.",
        "forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> softmax n z j <= 1",
    ),
    "chain_rule": (
        "The chain rule of Part 3, for any two factors that are the derivatives.",
        "forall (n : nat) (z y : vec) (k : nat) (a b : vec), (k < n)%nat -> (forall j, (j < n)%nat -> partial (fun yhat => "
        "cross_entropy n y yhat) j (softmax n z) (a j)) -> (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (b "
        "j)) -> partial (fun z => loss n y z) k z (sum n (fun j => a j * b j))",
    ),
    "sum_one_is_needed": (
        "The gradient is yhat_k - y_k if and only if the truth sums to one.",
        "forall (n : nat) (z y : vec) (k : nat), (k < n)%nat -> partial (fun z => loss n y z) k z (softmax n z k - y k) <-> sum n y = 1",
    ),
    "loss_nonneg": (
        "A truth without a negative entry has a loss that is not negative.",
        "forall (n : nat) (y : vec) (z : vec), (forall j, (j < n)%nat -> 0 <= y j) -> 0 <= loss n y z",
    ),
    "gradient_sums_to_0": (
        "The gradient's entries sum to zero.",
        "forall (n : nat) (y z : vec), (0 < n)%nat -> sum n (gradient n y z) = 0",
    ),
    "gradient_bounded": (
        "No entry of yhat - y is larger than 1 in size, where 0 <= y_k <= 1.",
        "forall (n : nat) (y : vec) (z : vec) (k : nat), (k < n)%nat -> 0 <= y k <= 1 -> Rabs (softmax n z k - y k) <= 1",
    ),
    "loss_shift_invariant": (
        "The loss does not change when one number is added to every score.",
        "forall (n : nat) (y : vec) (z : vec) (c : R), (0 < n)%nat -> loss n y (fun i => z i + c) = loss n y z",
    ),
    "gradient_shift_invariant": (
        "The gradient does not change when one number is added to every score.",
        "forall (n : nat) (y : vec) (z : vec) (c : R) (k : nat), (k < n)%nat -> gradient n y (fun i => z i + c) k = gradient n y z k",
    ),
    "hessian_exists": (
        "The second derivatives exist.",
        "forall (n : nat) (y z : vec), is_hessian n y z (fun k j : nat => sum n y * (softmax n z k * (delta k j - softmax n z j)))",
    ),
    "hessian_entry": (
        "The entries of the Hessian are p yhat_k (delta_kj - yhat_j).",
        "forall (n : nat) (y z : vec) (H : nat -> vec) (k j : nat), is_hessian n y z H -> (k < n)%nat -> (j < n)%nat -> H k j = "
        "sum n y * (softmax n z k * (delta k j - softmax n z j))",
    ),
    "hessian_symmetric": (
        "The Hessian is symmetric.",
        "forall (n : nat) (y z : vec) (H : nat -> vec) (k j : nat), is_hessian n y z H -> (k < n)%nat -> (j < n)%nat -> H k j = H j k",
    ),
    "hessian_is_variance": (
        "v^T H v is p times the variance of v under the distribution yhat.",
        "forall (n : nat) (y z : vec) (H : nat -> vec) (v : vec), (0 < n)%nat -> is_hessian n y z H -> sum n (fun k => sum n "
        "(fun j => v k * H k j * v j)) = sum n y * sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2)",
    ),
    "hessian_nonneg": (
        "v^T H v is not negative if p is not negative.",
        "forall (n : nat) (y z : vec) (H : nat -> vec) (v : vec), (0 < n)%nat -> 0 <= sum n y -> is_hessian n y z H -> 0 <= sum "
        "n (fun k => sum n (fun j => v k * H k j * v j))",
    ),
    "entropy_nonneg": (
        "The entropy is not negative.",
        "forall (n : nat) (z : vec), 0 <= entropy n z",
    ),
    "along_derivatives": (
        "The derivatives of <dz, v>, for the gradient dz of all outputs, by the upstream gradients and by the numbers of the truth.",
        "forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t k : nat), (t < n)%nat -> (k < n)%nat -> "
        "derivable_pt_lim (fun g1 => along n z v off g1 g2 g3 g4 y0 r0 q t) g1 ((sum n (truth y0 r0 off t) + q * lse n z) * mean n z v "
        "- (y0 * v t + r0 * sum n (fun j => off j * v j))) /\\ "
        "derivable_pt_lim (fun g2 => along n z v off g1 g2 g3 g4 y0 r0 q t) g2 (mean n z v) /\\ "
        "derivable_pt_lim (fun g3 => along n z v off g1 g2 g3 g4 y0 r0 q t) g3 (v t - mean n z v) /\\ "
        "derivable_pt_lim (fun g4 => along n z v off g1 g2 g3 g4 y0 r0 q t) g4 (eta n z v) /\\ "
        "derivable_pt_lim (fun y0 => along n z v off g1 g2 g3 g4 y0 r0 q t) y0 (g1 * (mean n z v - v t)) /\\ "
        "derivable_pt_lim (fun r0 => along n z v off g1 g2 g3 g4 y0 r0 q t) r0 "
        "(g1 * (sum n off * mean n z v - sum n (fun j => off j * v j))) /\\ "
        "derivable_pt_lim (fun q => along n z v off g1 g2 g3 g4 y0 r0 q t) q (g1 * lse n z * mean n z v) /\\ "
        "partial (fun off => along n z v off g1 g2 g3 g4 y0 r0 q t) k off (g1 * r0 * (mean n z v - v k))",
    ),
    "softcap_by_abs": (
        "With w = e^(-2|x|/c), which is at most 1, tanh |x/c| is (1 - w) / (1 + w), and the slope of the softcap is 4 w / (1 + w)^2 / T.",
        "forall x c T : R, 0 < c -> T <> 0 -> let w := exp (- (2 * (Rabs x / c))) in 0 < w <= 1 /\\ "
        "tanh (Rabs x / c) = (1 - w) / (1 + w) /\\ (1 - (tanh (x / c)) ^ 2) / T = 4 * w / (1 + w) ^ 2 / T",
    ),
    "lse_above_tangent": (
        "Log-sum-exp lies above each of its tangent planes.",
        "forall (n : nat) (z : vec) (w : vec), (0 < n)%nat -> lse n z + sum n (fun j => softmax n z j * (w j - z j)) <= lse n w",
    ),
    "loss_above_tangent": (
        "The loss lies above each of its tangent planes.",
        "forall (n : nat) (y z : vec) (w : vec), (0 < n)%nat -> 0 <= sum n y -> loss n y z + sum n (fun j => gradient n y z j * "
        "(w j - z j)) <= loss n y w",
    ),
    "loss_convex": (
        "The loss is convex in the scores.",
        "forall (n : nat) (y : vec) (z w : vec) (a : R), (0 < n)%nat -> 0 <= sum n y -> 0 <= a <= 1 -> loss n y (fun j => a * z "
        "j + (1 - a) * w j) <= a * loss n y z + (1 - a) * loss n y w",
    ),
    "one_hot_nonneg": (
        "A one-hot truth is not negative.",
        "forall t k : nat, 0 <= delta k t",
    ),
    "one_hot_picks": (
        "A one-hot truth selects one term of a sum.",
        "forall (n t : nat) (f : vec), (t < n)%nat -> sum n (fun j => delta j t * f j) = f t",
    ),
    "merge_correct": (
        "Merging the partial sums (m, s, u) of two parts adds up e^m s, the sum of e^z, and e^m (m s - u), the sum of e^z z.",
        "forall a b : state, stands_for (merge a b) = stands_for a + stands_for b /\\ weighs (merge a b) = weighs a + weighs b",
    ),
    "merge_commutative": (
        "Merging is commutative.",
        "forall a b : state, merge a b = merge b a",
    ),
    "merge_associative": (
        "Merging is associative.",
        "forall a b c : state, merge a (merge b c) = merge (merge a b) c",
    ),
    "merge_identity": (
        "The partial sums of no columns are the identity of merging.",
        "forall a : option state, merge_any None a = a /\\ merge_any a None = a",
    ),
    "any_plan_same_state": (
        "Any tree of merges, over the scores in any order, gives the same (m, s, u).",
        "forall t t' : plan, Permutation (scores t) (scores t') -> run t = run t'",
    ),
    "run_max": (
        "The m of a tree of merges is the largest score.",
        "forall t : plan, In (m_of (run t)) (scores t) /\\ Forall (fun x => x <= m_of (run t)) (scores t)",
    ),
    "run_safe": (
        "The s of a tree of merges is at least 1, u is at least 0, and both are at most the number of scores. So nothing overflows and "
        "log s is defined.",
        "forall t : plan, 1 <= s_of (run t) <= INR (length (scores t)) /\\ 0 <= u_of (run t) <= INR (length (scores t))",
    ),
    "online_chunks": (
        "Merging the results of two chunks gives the result of the whole row.",
        "forall (x : R) (l : list R) (x' : R) (l' : list R), merge (online x l) (online x' l') = online x (l ++ x' :: l')",
    ),
    "online_is_any_plan": (
        "Adding one score after another gives the same result as any tree of merges.",
        "forall (t : plan) (x : R) (l : list R), Permutation (scores t) (x :: l) -> run t = online x l",
    ),
    "streaming_lse": (
        "m + log s of a tree of merges is the log-sum-exp of the row.",
        "forall (t : plan) (n : nat) (z : vec), Permutation (scores t) (map z (seq 0 n)) -> read (run t) = lse n z",
    ),
    "streaming_softmax": (
        "e^(z_k - m) / s, with m and s of a tree of merges, is the softmax of the row.",
        "forall (t : plan) (n : nat) (z : vec) (k : nat), Permutation (scores t) (map z (seq 0 n)) -> exp (z k - m_of (run t)) / "
        "s_of (run t) = softmax n z k",
    ),
    "streaming_entropy": (
        "log s + u / s, with s and u of a tree of merges, is the entropy of the row.",
        "forall (t : plan) (n : nat) (z : vec), (0 < n)%nat -> Permutation (scores t) (map z (seq 0 n)) -> ln (s_of (run t)) + "
        "u_of (run t) / s_of (run t) = entropy n z",
    ),
    "sums_associative": (
        "Merging the seven sums of a row, with a maximum of -inf for no columns, is associative.",
        "forall a b c : sums, merge_sums a (merge_sums b c) = merge_sums (merge_sums a b) c",
    ),
    "sums_commutative": (
        "Merging the seven sums is commutative.",
        "forall a b : sums, merge_sums a b = merge_sums b a",
    ),
    "sums_identity": (
        "The seven sums of no columns are the identity of merging.",
        "forall a : sums, merge_sums no_sums a = a /\\ merge_sums a no_sums = a",
    ),
    "sums_of_parts": (
        "The seven sums of two parts of a row, merged, are those of the whole row.",
        "forall l l' : list column, sums_of (l ++ l') = merge_sums (sums_of l) (sums_of l')",
    ),
    "sums_of_any_order": (
        "The order of the columns does not change the seven sums.",
        "forall l l' : list column, Permutation l l' -> sums_of l = sums_of l'",
    ),
    "masked_is_not_there": (
        "A masked class, with a logit of -inf, adds nothing to the sums.",
        "forall (l : list column) (n : nat), sums_of (l ++ repeat Masked n) = sums_of l",
    ),
    "finish_correct": (
        "`finish`: from the sums of a row, merged from any parts and with any classes masked, log(1 + e^a) is the loss of the "
        "label, 1 / (1 + e^-a) the probability of a miss, and log s + log(1 + e^-a) is lse - m.",
        "forall (n : nat) (z off : vec) (t : nat) (l : list column), row n z off t l -> (1 < n)%nat -> exists x : rest, "
        "sums_of l = (Some x, (Some (z t), off t)) /\\ let a := log_odds x (z t) in ln (1 + exp a) = - ln (softmax n z t) /\\ / "
        "(1 + exp (- a)) = 1 - softmax n z t /\\ ln (s_of (fst x)) + ln (1 + exp (- a)) = lse n z - m_of (fst x)",
    ),
    "outputs_of_sums": (
        "The loss of the truth of a kernel, and the entropy, from the sums of a row and without a negative term.",
        "forall (n : nat) (z off : vec) (t : nat) (l : list column) (y0 r0 : R), row n z off t l -> (1 < n)%nat -> exists x : "
        "rest, sums_of l = (Some x, (Some (z t), off t)) /\\ let nll := lse n z - z t in let over := lse n z - m_of (fst x) in "
        "loss n (truth y0 r0 off t) z = (y0 + r0 * off t) * nll + r0 * (d_of x + o_of x * over) /\\ entropy n z = softmax n z t "
        "* nll + exp (m_of (fst x) - lse n z) * (u_of (fst x) + s_of (fst x) * over)",
    ),
    "label_alone": (
        "A label without other classes has all of the probability.",
        "forall (z off : vec) (l : list column), row 1 z off 0%nat l -> sums_of l = (None, (Some (z 0%nat), off 0%nat)) /\\ lse "
        "1 z = z 0%nat /\\ softmax 1 z 0%nat = 1",
    ),
    "coefficients_of_outputs": (
        "The gradient of all outputs by the coefficients of a kernel, and its entry at the label, which is computed by the "
        "probability of a miss.",
        "forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t k : nat), (t < n)%nat -> (k < n)%nat -> let rest := r0 * "
        "sum_but t n off + q * lse n z in let at_t := y0 + r0 * off t in let miss := 1 - softmax n z t in let a := g1 * (at_t + "
        "rest) + g2 - g3 - g4 * entropy n z in let h := g1 * (rest * softmax n z t - at_t * miss) + g2 * softmax n z t + g3 * "
        "miss - g4 * entropy n z * softmax n z t in (k <> t -> dz n (truth y0 r0 off t) z g1 g2 g3 g4 q t k = a * softmax n z k "
        "+ g4 * (softmax n z k * (lse n z - z k)) - g1 * r0 * off k) /\\ dz n (truth y0 r0 off t) z g1 g2 g3 g4 q t t = h + g4 "
        "* (softmax n z t * (lse n z - z t))",
    ),
    "filter_within_tolerance": (
        "The gradient filter: if the bounds of what is left out of G W satisfy the condition of `filter_losses`, the relative "
        "error is at most tol.",
        "forall (nr n nd : nat) (G W keep : nat -> vec) (bound : vec) (tol : R), (forall i k : nat, keep i k = 0 \\/ keep i k = "
        "1) -> (forall i : nat, (i < nr)%nat -> sum n (fun k => (1 - keep i k) * Rabs (G i k) * norm nd (W k)) <= bound i) -> "
        "let whole := product n nd G W in let kept := product n nd (fun i k => keep i k * G i k) W in 0 <= tol -> norm nr "
        "bound <= tol * (frobenius nr nd kept - norm nr bound) -> frobenius nr nd (fun i d => kept i d - whole i d) <= tol * "
        "frobenius nr nd whole",
    ),
    "linear_hessian_product": (
        "The Hessian product of a linear head: the gradients by x, W and b change by HG W + G dW, HG x + G dx and HG.",
        "forall (n nd : nat) (y : vec) (W dW : nat -> vec) (x dx b db : vec) (k d : nat), (k < n)%nat -> let G := fun s => "
        "gradient n y (scores_at nd W dW x dx b db s) in let HG := hessian_times n y (scores_at nd W dW x dx b db 0) "
        "(score_velocity nd W dW x dx db) in derivable_pt_lim (fun s => sum n (fun k => G s k * (W k d + s * dW k d))) 0 (sum "
        "n (fun k => HG k * W k d + G 0 k * dW k d)) /\\ derivable_pt_lim (fun s => G s k * (x d + s * dx d)) 0 (HG k * x d + G "
        "0 k * dx d) /\\ derivable_pt_lim (fun s => G s k) 0 (HG k)",
    ),
    "linear_gauss_newton": (
        "The Gauss-Newton product of a linear head is HG W, HG x and HG. Its quadratic form is p times a variance, and not negative.",
        "forall (n nd : nat) (y : vec) (W dW : nat -> vec) (x dx b db : vec), (0 < n)%nat -> 0 <= sum n y -> let z := "
        "scores_at nd W dW x dx b db 0 in let V := score_velocity nd W dW x dx db in let HG := hessian_times n y z V in sum nd "
        "(fun d => dx d * sum n (fun k => HG k * W k d)) + sum n (fun k => sum nd (fun d => dW k d * (HG k * x d))) + sum n "
        "(fun k => db k * HG k) = sum n y * sum n (fun k => softmax n z k * (V k - mean n z V) ^ 2) /\\ 0 <= sum n y * sum n "
        "(fun k => softmax n z k * (V k - mean n z V) ^ 2)",
    ),
}
MEANINGS = {  # the definitions of the names in the statements; Coq compares those of Softmax.v with them
    "vec": ("Definition vec := nat -> R."),
    "sum": ("Fixpoint sum (n : nat) (f : vec) : R := match n with O => 0 | S m => sum m f + f m end."),
    "delta": ("Definition delta (j k : nat) : R := if Nat.eqb j k then 1 else 0."),
    "sum_but": ("Definition sum_but (k n : nat) (f : vec) : R := sum n (fun j => if Nat.eqb j k then 0 else f j)."),
    "set": ("Definition set (z : vec) (k : nat) (t : R) : vec := fun i => if Nat.eqb i k then t else z i."),
    "partial": (
        "Definition partial (f : vec -> R) (k : nat) (z : vec) (d : R) : Prop := derivable_pt_lim (fun t => f (set z k t)) (z k) d."
    ),
    "set2": ("Definition set2 (W : nat -> vec) (k d : nat) (t : R) : nat -> vec := fun i => if Nat.eqb i k then set (W i) d t else W i."),
    "partial2": (
        "Definition partial2 (f : (nat -> vec) -> R) (k d : nat) (W : nat -> vec) (v : R) : Prop :=\n"
        "  derivable_pt_lim (fun t => f (set2 W k d t)) (W k d) v."
    ),
    "softmax": ("Definition softmax (n : nat) (z : vec) : vec := fun j => exp (z j) / sum n (fun i => exp (z i))."),
    "cross_entropy": ("Definition cross_entropy (n : nat) (y yhat : vec) : R := - sum n (fun j => y j * ln (yhat j))."),
    "loss": ("Definition loss (n : nat) (y z : vec) : R := cross_entropy n y (softmax n z)."),
    "lse": ("Definition lse (n : nat) (z : vec) : R := ln (sum n (fun i => exp (z i)))."),
    "gradient": ("Definition gradient (n : nat) (y z : vec) : vec := fun k => sum n y * softmax n z k - y k."),
    "entropy": ("Definition entropy (n : nat) (z : vec) : R := - sum n (fun j => softmax n z j * ln (softmax n z j))."),
    "mean": ("Definition mean (n : nat) (z v : vec) : R := sum n (fun j => softmax n z j * v j)."),
    "is_hessian": (
        "Definition is_hessian (n : nat) (y z : vec) (H : nat -> vec) : Prop :=\n"
        "  exists G : vec -> vec, (forall k z, (k < n)%nat -> partial (fun z => loss n y z) k z (G z k)) /\\\n"
        "    forall k j, (k < n)%nat -> (j < n)%nat -> partial (fun z => G z k) j z (H k j)."
    ),
    "eta": ("Definition eta (n : nat) (z v : vec) : R := sum n (fun j => softmax n z j * (lse n z - z j) * (v j - mean n z v))."),
    "truth": ("Definition truth (y0 r0 : R) (off : vec) (t : nat) : vec := fun k => y0 * delta k t + r0 * off k."),
    "alpha": (
        "Definition alpha (n : nat) (y z : vec) (g1 g2 g3 g4 q : R) : R := g1 * (sum n y + q * lse n z) + g2 - g3 - g4 * entropy n z."
    ),
    "dz": (
        "Definition dz (n : nat) (y z : vec) (g1 g2 g3 g4 q : R) (t k : nat) : R :=\n"
        "  softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k."
    ),
    "along": (
        "Definition along (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat) : R :=\n"
        "  sum n (fun k => dz n (truth y0 r0 off t) z g1 g2 g3 g4 q t k * v k)."
    ),
    "state": ("Definition state : Type := R * R * R."),
    "m_of": ("Definition m_of (a : state) : R := fst (fst a)."),
    "s_of": ("Definition s_of (a : state) : R := snd (fst a)."),
    "u_of": ("Definition u_of (a : state) : R := snd a."),
    "one": ("Definition one (x : R) : state := (x, 1, 0)."),
    "stands_for": ("Definition stands_for (a : state) : R := exp (m_of a) * s_of a."),
    "weighs": ("Definition weighs (a : state) : R := exp (m_of a) * (m_of a * s_of a - u_of a)."),
    "read": ("Definition read (a : state) : R := m_of a + ln (s_of a)."),
    "merge": (
        "Definition merge (a b : state) : state :=\n"
        "  let m := Rmax (m_of a) (m_of b) in\n"
        "  (m, exp (m_of a - m) * s_of a + exp (m_of b - m) * s_of b,\n"
        "   exp (m_of a - m) * (u_of a + s_of a * (m - m_of a)) + exp (m_of b - m) * (u_of b + s_of b * (m - m_of b)))."
    ),
    "merge_any": (
        "Definition merge_any (a b : option state) : option state :=\n"
        "  match a, b with None, _ => b | _, None => a | Some a, Some b => Some (merge a b) end."
    ),
    "stands_for_any": ("Definition stands_for_any (a : option state) : R := match a with None => 0 | Some a => stands_for a end."),
    "run": ("Fixpoint run (t : plan) : state := match t with Score x => one x | Merge a b => merge (run a) (run b) end."),
    "scores": ("Fixpoint scores (t : plan) : list R := match t with Score x => [x] | Merge a b => scores a ++ scores b end."),
    "online": ("Definition online (x : R) (l : list R) : state := fold_left (fun a x => merge a (one x)) l (one x)."),
    "rest": ("Definition rest : Type := state * (R * R)."),
    "sums": ("Definition sums : Type := option rest * (option R * R)."),
    "o_of": ("Definition o_of (a : rest) : R := fst (snd a)."),
    "d_of": ("Definition d_of (a : rest) : R := snd (snd a)."),
    "higher": (
        "Definition higher (a b : option R) : option R := match a, b with None, x | x, None => x | Some x, Some y => Some (Rmax x y) end."
    ),
    "merge_rest": (
        "Definition merge_rest (a b : rest) : rest :=\n"
        "  let m := Rmax (m_of (fst a)) (m_of (fst b)) in\n"
        "  (merge (fst a) (fst b), (o_of a + o_of b, d_of a + o_of a * (m - m_of (fst a)) + (d_of b + o_of b * (m - m_of (fst b)))))."
    ),
    "merge_sums": (
        "Definition merge_sums (a b : sums) : sums :=\n"
        "  (match fst a, fst b with None, x | x, None => x | Some x, Some y => Some (merge_rest x y) end,\n"
        "   (higher (fst (snd a)) (fst (snd b)), snd (snd a) + snd (snd b)))."
    ),
    "no_sums": ("Definition no_sums : sums := (None, (None, 0))."),
    "sums_at": (
        "Definition sums_at (c : column) : sums :=\n"
        "  match c with\n"
        "  | Class z off => (Some (one z, (off, 0)), (None, 0))\n"
        "  | Label z off => (None, (Some z, off))\n"
        "  | Masked => no_sums\n"
        "  end."
    ),
    "sums_of": ("Definition sums_of (l : list column) : sums := fold_right (fun c a => merge_sums (sums_at c) a) no_sums l."),
    "columns": (
        "Definition columns (n : nat) (z off : vec) (t : nat) : list column :=\n"
        "  map (fun k => if Nat.eqb k t then Label (z k) (off k) else Class (z k) (off k)) (seq 0 n)."
    ),
    "row": (
        "Definition row (n : nat) (z off : vec) (t : nat) (l : list column) : Prop :=\n"
        "  (t < n)%nat /\\ exists masked, Permutation l (columns n z off t ++ repeat Masked masked)."
    ),
    "log_odds": ("Definition log_odds (x : rest) (zt : R) : R := m_of (fst x) - zt + ln (s_of (fst x))."),
    "norm": ("Definition norm (n : nat) (f : vec) : R := sqrt (sum n (fun i => (f i) ^ 2))."),
    "frobenius": ("Definition frobenius (n nd : nat) (A : nat -> vec) : R := norm n (fun i => norm nd (A i))."),
    "product": ("Definition product (n nd : nat) (G W : nat -> vec) : nat -> vec := fun i d => sum n (fun k => G i k * W k d)."),
    "hessian_times": ("Definition hessian_times (n : nat) (y z v : vec) : vec := fun k => sum n y * softmax n z k * (v k - mean n z v)."),
    "scores_at": (
        "Definition scores_at (nd : nat) (W dW : nat -> vec) (x dx b db : vec) (s : R) : vec :=\n"
        "  fun k => sum nd (fun d => (W k d + s * dW k d) * (x d + s * dx d)) + (b k + s * db k)."
    ),
    "score_velocity": (
        "Definition score_velocity (nd : nat) (W dW : nat -> vec) (x dx db : vec) : vec :=\n"
        "  fun k => sum nd (fun d => W k d * dx d + dW k d * x d) + db k."
    ),
}
INDUCTIVE = {  # the inductive types of Softmax.v and their constructors, and the induction principles that they must have
    ("plan", "Score", "Merge"): "(forall x : R, P (Softmax.Score x)) -> (forall a, P a -> forall b, P b -> P (Softmax.Merge a b))",
    ("column", "Class", "Label", "Masked"): (
        "(forall z off : R, P (Softmax.Class z off)) -> (forall z off : R, P (Softmax.Label z off)) -> P Softmax.Masked"
    ),
}
_DEFINED = {"yhat": "softmax z", "L": "loss y z", "lse": "lse z", "p": "sum y", "g": "gradient y z", "mu": "mean z v", "H": "entropy z"}
_OPERATORS = {"+": 1, "-": 1, "*": 3, "@": 3, "/": 3}


class Statement:
    """The statement of one equation in Coq. While it is composed, its variables are collected."""

    def __init__(self, derivation: Derivation, before: E, after: E, rel: str = "=", given: tuple[Fact, ...] = ()):
        if fault := ill_formed(derivation):
            raise ValueError(f"{derivation.name} cannot be said in Coq: {fault}")
        self.bodies = {one.name: one for one in derivation.where}
        self.bound = frozenset({"yhat"} if POSITIVE in derivation.given else ())  # Part 2: yhat is any positive vector
        self.rows = any(RANGES[i] == "R" for line in (before, after) for i in _bound_letters(line))
        self.used: set[str] = set()
        self.indices: set[str] = set(letters(before) | letters(after))
        self.families: list[tuple[E, str | None, str]] = []  # derivatives inside the line: expression, bound index, name in Coq
        whole = before.op == "D"
        for e in (after,) if whole else (before, after):
            self._find(e, None)
        for e in (after,) if whole else (before, after):
            self._find(e, None, free=True)
        if whole:
            self.says = self._partial(before, f"({self.term(after)})" if not self.term(after).isalnum() else self.term(after), self.bound)
        else:
            self.says = f"{self.term(before)} {rel} {self.term(after)}"
        hypotheses = []
        for d, index, name in self.families:
            if index is None:
                hypotheses.append(self._partial(d, name, self.bound))
            else:
                size = self._size(index)
                hypotheses.append(f"(forall {index}, ({index} < {size})%nat -> {self._partial(d, f'({name} {index})', self.bound)})")
        facts = [self._fact(fact) for fact in (*derivation.given, *given)]
        apart = [f"{a} <> {b}" for a, b in derivation.distinct]
        bounds = [f"({i} < {self._size(i)})%nat" for i in sorted(self.indices)]
        if "n" in self.used and not any(RANGES[i] == "N" for i in self.indices):
            bounds = ["(0 < n)%nat", *bounds]
        self.hypotheses = [*bounds, *apart, *facts, *hypotheses]

    def __str__(self) -> str:
        groups: list[tuple[list[str], str]] = [
            ([s for s in SIZES.values() if s in self.used], "nat"),
            ([v for v in VECTORS if v in self.used and not (self.rows and v in ("x", "y"))], "vec"),
            ([v for v in ("W", "x", "y") if v in self.used and (self.rows or v == "W")], "nat -> vec"),
            ([s for s in SCALARS if s in self.used], "R"),
            (sorted(self.indices), "nat"),
            ([name for _, index, name in self.families if index is None], "R"),
            ([name for _, index, name in self.families if index is not None], "vec"),
        ]
        variables = " ".join(f"({' '.join(names)} : {kind})" for names, kind in groups if names)
        return f"forall {variables},\n  " + " ->\n  ".join([*self.hypotheses, self.says])

    # ---- terms

    def term(self, e: E, bound: frozenset[str] | None = None, level: int = 0) -> str:
        bound = self.bound if bound is None else bound
        text, own = self._term(e, bound)
        return f"({text})" if own < level else text

    def _term(self, e: E, bound: frozenset[str]) -> tuple[str, int]:
        o, a = e.op, e.args
        if o == "num":
            return str(a[0]), 9
        if o == "()":
            return self._term(a[0], bound)
        if o == "at":
            return self._at(a[0], a[1:], bound)
        if o in _OPERATORS:
            n = _OPERATORS[o]
            return f"{self.term(a[0], bound, n)} {'*' if o == '@' else o} {self.term(a[1], bound, n + 1)}", n
        if o == "neg":
            return f"- {self.term(a[0], bound, 4)}", 2  # - a * b is (- a) * b in Coq
        if o == "^":
            return f"{self.term(a[0], bound, 9)} ^ {self.term(a[1], bound, 9)}", 8
        if o == "delta":
            return f"delta {a[0]} {a[1]}", 8
        if o == "sum":
            body = f"(fun {a[0]} => {self.term(a[2], bound)})" if a[0] in letters(a[2]) else f"(fun _ => {self.term(a[2], bound)})"
            size = self._size(a[0])
            return (f"sum {size} {body}" if a[1] is None else f"sum_but {a[1]} {size} {body}"), 8
        if o == "D":
            return self._family(e), 8
        return f"{ {'log': 'ln'}.get(o, o) } {self.term(a[0], bound, 9)}", 8

    def _at(self, name: str, index: tuple[str, ...], bound: frozenset[str]) -> tuple[str, int]:
        row, index = (index[0], index[1:]) if index and RANGES[index[0]] == "R" else (None, index)
        if name == "N":
            return f"INR {self._size('i')}", 8
        if name in bound or name in ("v", "w", "u", "b", "off", "W") or (name in SCALARS and name not in self.bodies):
            if name in self.bound or name not in bound:
                self.used.add(name)
            return " ".join((name, *index)), 8 if index else 9
        if name in self.bodies and row is None:
            head, body = self.bodies[name]
            self.indices |= letters(body) - set(head.args[1:])
            return self._term(reindex(body, dict(zip(head.args[1:], index, strict=True))), bound)
        if name not in _DEFINED:
            return " ".join((self.vec(name, bound, row).strip("()"), *index)), 8 if index else 9
        function, *vectors = _DEFINED[name].split() if name != "L" or "yhat" not in bound else ("cross_entropy", "y", "yhat")
        self.used |= {"v"} & set(vectors)
        return " ".join((function, self._size("i"), *(v if v == "v" else self.vec(v, bound, row) for v in vectors), *index)), 8

    def vec(self, name: str, bound: frozenset[str], row: str | None = None) -> str:
        """Return a vector as a term."""
        if name == "yhat" and name not in bound:
            return f"(softmax {self._size('i')} {self.vec('z', bound, row)})"
        if name in self.bodies and name not in bound:
            head, body = self.bodies[name]
            inner = head.args[1]
            self.indices |= letters(body) - {inner}
            text = self.term(in_row(body, row) if row else body, bound)
            return f"(fun {inner if inner in letters(body) else '_'} => {text})"
        if row is not None and name in ("x", "y"):
            self.used.add(name)
            return f"({name} {row})"
        if name in self.bound or name not in bound:
            self.used.add(name)
        return name

    # ---- derivatives

    def _partial(self, d: E, value: str, bound: frozenset[str]) -> str:
        f, x = d.args
        name, *index = x.args
        function = f"(fun {name} => {self.term(f, bound | {name})})"
        where = self.vec(name, bound) if name != "W" else "W"
        self.used |= {"W"} if name == "W" else set()
        return f"partial{'2' if len(index) == 2 else ''} {function} {' '.join(index)} {where} {value}"

    def _find(self, e: E, index: str | None, free: bool = False) -> None:
        """Collect the derivatives in e: those that depend on the index of a sum, as families, or with `free` the others."""
        if e.op == "D":
            runs = index is not None and index in letters(e)
            if runs and not free and self._known(e) is None:
                assert index is not None
                self.families.append((e, index, f"d{len(self.families) + 1}"))
            if not runs and free and self._known(e) is None:
                self.families.append((e, None, f"d{len(self.families) + 1}"))
            return
        for x in children(e):
            self._find(x, e.args[0] if e.op == "sum" else index, free)

    def _known(self, e: E) -> str | None:
        for d, index, name in self.families:
            if index is None and same(d, e):
                return name
            if index is not None:
                for i in sorted(letters(e)):
                    if RANGES[i] == RANGES[index] and same(reindex(d, {index: i}), e):
                        return f"{name} {i}"
        return None

    def _family(self, e: E) -> str:
        name = self._known(e)
        assert name is not None, e
        return name

    # ---- facts and sizes

    def _fact(self, fact: Fact) -> str:
        says = f"{self.term(fact.left)} {fact.rel.replace('!=', '<>')} {self.term(fact.right)}"
        if fact.every is None:
            return says
        return f"(forall {fact.every}, ({fact.every} < {self._size(fact.every)})%nat -> {says})"

    def _size(self, index: str) -> str:
        size = SIZES[RANGES[index]]
        self.used.add(size)
        return size


def _bound_letters(e: E) -> Iterator[str]:
    return (x.args[0] for x in walk(e) if x.op == "sum")


def statements(derivation: Derivation) -> Iterator[tuple[str, str]]:
    """Yield (theorem, statement) for each line, and at the end for the whole derivation, which states start = last line."""
    lines = derivation.lines
    for n, step in enumerate(derivation.steps, 1):
        yield derivation.theorem(n), str(Statement(derivation, lines[n - 1], step.expr, step.rel, step.given))
    given = tuple(dict.fromkeys(fact for step in derivation.steps for fact in step.given))
    yield derivation.name, str(Statement(derivation, lines[0], lines[-1], derivation.steps[-1].rel, given))


def proof_of(name: str, wanted: Iterable[str]) -> str:
    """Return the proof of a line by `line`, or that of a whole derivation from the theorems of its lines, which are in `wanted`.

    If the derivation starts with a derivative, the first line says what it is, and the others are equations. If the first line needs
    derivatives that the whole does not name, or if a line is not proved, `line` proves the whole.
    """
    lines = [f"line_{one}" for one in wanted if re.fullmatch(rf"{name}_\d+", one)]
    if not lines:
        return "Softmax.line."
    first, *others = [f"Softmax.line_after {one}; " for one in lines]
    equations = "".join(others) + "reflexivity"
    derivative = f"eapply Softmax.partial_eq; [reflexivity| |Softmax.line_by {lines[0]}]"
    return f"intros; first [solve [{first}{equations}] | solve [{derivative}; {equations}] | Softmax.line]."


def same_definitions() -> Iterator[tuple[str, str]]:
    """Yield (name, a command of Coq) for each name in the statements. Coq accepts it only if Softmax.v defines the name in the same way."""
    for (name, *_), cases in INDUCTIVE.items():
        yield name, f"Definition same_{name} : forall P : Softmax.{name} -> Prop, {cases} -> forall x, P x := @Softmax.{name}_ind."
    for name in MEANINGS:
        yield name, f"Definition same_{name} : @Meant.{name} = @Softmax.{name} := eq_refl."


def meant() -> Iterator[str]:
    """Yield the commands that define the names as the statements mean them, in a module of their own."""
    yield from ("Module Meant.", *of_softmax_v(chain(*INDUCTIVE)), *MEANINGS.values(), "End Meant.")


def of_softmax_v(names: Iterable[str]) -> Iterator[str]:
    """Yield the commands that give each name the meaning that it has in Softmax.v."""
    return (f"Notation {name} := Softmax.{name}." for name in names)


def comparison(
    module: str,
    libraries: Iterable[str],
    of_softmax: Iterable[str],
    definitions: str,
    theorems: dict[str, str],
    types: dict[str, tuple[list[str], str]] | None = None,
    records: Iterable[str] = (),
) -> str:
    """Return a Coq file that compares a module with definitions and theorems that are stated in Python, and prints its assumptions.

    libraries: the commands that load the libraries of the module.
    of_softmax: the names of Softmax.v in the statements.
    definitions: those that the module must have, as text of Coq.
    theorems: the statement of each theorem by its name.
    types: inductive types of the module by name: their constructors, and the cases of their induction principle.
    records: further names of the module in the statements.
    """
    names = [line.split()[1] for line in definitions.splitlines() if line.startswith(("Definition ", "Fixpoint "))]
    text = [*libraries, f"From Softxent Require Softmax {module}.", "Open Scope R_scope."]
    text += of_softmax_v(of_softmax)
    for name, (constructors, cases) in (types or {}).items():
        text += [f"Notation {x} := {module}.{x}." for x in (name, *constructors)]
        text.append(f"Definition same_{name} : forall P : {name} -> Prop, {cases} -> forall t, P t := @{module}.{name}_ind.")
    text += ["Module Meant.", definitions, "End Meant."]
    text += [f"Definition same_{name} : @Meant.{name} = @{module}.{name} := eq_refl." for name in names]
    text += [f"Notation {name} := {module}.{name}." for name in (*names, *records)]
    for name, says in theorems.items():
        text += [f"Definition says_{name} : Prop := {says}.", f"Definition line_{name} : says_{name} := @{module}.{name}."]
    text += [f"Definition everything := ({', '.join(f'line_{name}' for name in theorems)}, tt).", "Print Assumptions everything.", ""]
    return "\n".join(text)

(** * Rounding errors of the sums, the loss and the gradient, for every number of classes

    The bounds of bounds.py. Each operation is rounded to the nearest number of a format of Flocq, ties to even: a format has p bits and a
    smallest exponent. The exact values are those of Softmax.v. The exponential and the logarithms may be any functions with the relative
    errors that are stated. Formats have no largest number here: the theorems hold if nothing overflows.

    [near e x y] says that the logarithms of x and y differ by at most e. Then a rounding is near u, the numbers e of factors add up, and the
    e of a sum of positive terms is the largest of theirs. At the end, e is a relative error of at most 1.001 e. [within e a x y] adds an
    absolute error of a, for numbers below the smallest normal one. *)

From Coq Require Import Reals Lra Lia ZArith.
From Flocq Require Import Core Relative Plus_error Mult_error.
From Softxent Require Import Softmax.
Open Scope R_scope.

(** ** Relative errors *)

Definition near (e x y : R) : Prop := exp (- e) * x <= y <= exp e * x.

(** near, up to an absolute error: y is near a number that differs from x by at most a *)
Definition within (e a x y : R) : Prop := exists x', 0 <= x' /\ Rabs (x' - x) <= a /\ near e x' y.

Lemma exp_pos_ge e : 1 + e <= exp e.
Proof. pose proof (exp_ineq1_le e). lra. Qed.

Lemma exp_le a b : a <= b -> exp a <= exp b.
Proof. intros [L | ->]; [left; now apply exp_increasing | right; easy]. Qed.

Lemma exp_minus e : exp e * exp (- e) = 1.
Proof. rewrite <- exp_plus. replace (e + - e) with 0 by ring. apply exp_0. Qed.

(** e^e - 1 is at most 1.001 e *)
Lemma exp_minus_1 e : 0 <= e < 1 -> exp e - 1 <= e / (1 - e).
Proof.
  intros E. pose proof (exp_pos_ge (- e)). pose proof (exp_minus e). pose proof (exp_pos e).
  assert (exp e * (1 - e) <= 1) by nra. apply Rmult_le_reg_r with (1 - e); [lra|]. field_simplify; [nra | lra].
Qed.

Lemma exp_minus_1_1001 x : 0 <= x -> x <= 1/1001 -> exp x - 1 <= 1.001 * x.
Proof.
  intros X Y. eapply Rle_trans; [apply exp_minus_1; lra|]. apply Rmult_le_reg_r with (1 - x); [lra|].
  unfold Rdiv at 1. rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.

Lemma part_le a y : 0 <= a -> 0 <= y <= 1 -> 0 <= a * y <= a.
Proof. intros. split; [apply Rmult_le_pos; lra | rewrite <- (Rmult_1_r a) at 2; apply Rmult_le_compat_l; lra]. Qed.

Ltac sure := repeat match goal with
  | |- 0 <= exp _ => left; apply exp_pos
  | |- 0 < exp _ => apply exp_pos
  | |- 0 <= _ * _ => apply Rmult_le_pos
  | |- 0 <= _ + _ => apply Rplus_le_le_0_compat
  | |- 0 <= / _ => left; apply Rinv_0_lt_compat
  end; try lra; auto.

Lemma near_refl e x : 0 <= e -> 0 <= x -> near e x x.
Proof.
  intros E X. pose proof (exp_pos_ge e). pose proof (exp_le (- e) 0 ltac:(lra)) as L. rewrite exp_0 in L. split; nra.
Qed.

Lemma near_pos e x y : near e x y -> 0 <= x -> 0 <= y.
Proof. intros [L _] X. apply Rle_trans with (2 := L). sure. Qed.

Lemma near_mono e f x y : e <= f -> 0 <= x -> near e x y -> near f x y.
Proof.
  intros E X [L U]. split; [apply Rle_trans with (2 := L) | apply Rle_trans with (1 := U)];
    apply Rmult_le_compat_r; auto; apply exp_le; lra.
Qed.

Lemma near_trans e f x y z : near e x y -> near f y z -> near (e + f) x z.
Proof.
  intros [L U] [L' U']. unfold near. rewrite Ropp_plus_distr, !exp_plus. pose proof (exp_pos f). pose proof (exp_pos (- f)).
  split; [apply Rle_trans with (2 := L') | apply Rle_trans with (1 := U')]; nra.
Qed.

Lemma near_sym e x y : near e x y -> near e y x.
Proof.
  intros [L U]. pose proof (exp_minus e). pose proof (exp_pos e). pose proof (exp_pos (- e)).
  split; [replace x with (exp (- e) * (exp e * x)) by (rewrite <- Rmult_assoc, (Rmult_comm (exp (- e))); rewrite H; ring)
         | replace x with (exp e * (exp (- e) * x)) by (rewrite <- Rmult_assoc, H; ring)]; apply Rmult_le_compat_l; lra.
Qed.

Lemma near_add e x y x' y' : near e x y -> near e x' y' -> near e (x + x') (y + y').
Proof. unfold near. lra. Qed.

Lemma near_mul e f x y x' y' : 0 <= x -> 0 <= x' -> near e x y -> near f x' y' -> near (e + f) (x * x') (y * y').
Proof.
  intros X X' N N'. pose proof (near_pos _ _ _ N X). pose proof (near_pos _ _ _ N' X'). destruct N as [L U], N' as [L' U'].
  unfold near. rewrite Ropp_plus_distr, !exp_plus. split.
  - replace (exp (- e) * exp (- f) * (x * x')) with ((exp (- e) * x) * (exp (- f) * x')) by ring.
    apply Rmult_le_compat; auto; sure.
  - replace (exp e * exp f * (x * x')) with ((exp e * x) * (exp f * x')) by ring. apply Rmult_le_compat; auto.
Qed.

Lemma near_inv e x y : 0 < x -> near e x y -> near e (/ x) (/ y).
Proof.
  intros X [L U]. pose proof (exp_pos e). pose proof (exp_pos (- e)).
  assert (0 < y) by (apply Rlt_le_trans with (2 := L); nra). pose proof (exp_minus e).
  assert (I : / exp e = exp (- e)) by (rewrite exp_Ropp; auto). assert (I' : / exp (- e) = exp e) by (rewrite exp_Ropp, Rinv_inv; auto).
  split.
  - rewrite <- I, <- Rinv_mult. apply Rinv_le_contravar; auto.
  - rewrite <- I', <- Rinv_mult. apply Rinv_le_contravar; auto. nra.
Qed.

Lemma near_div e f x y x' y' : 0 <= x -> 0 < x' -> near e x y -> near f x' y' -> near (e + f) (x / x') (y / y').
Proof. intros. apply near_mul; auto; [left; now apply Rinv_0_lt_compat | now apply near_inv]. Qed.

Lemma near_error e x y : 0 <= e -> 0 <= x -> near e x y -> Rabs (y - x) <= (exp e - 1) * x.
Proof.
  intros E X [L U]. apply Rabs_le. pose proof (exp_minus e). pose proof (exp_pos_ge e). pose proof (exp_pos_ge (- e)).
  split; [|lra]. assert (2 <= exp e + exp (- e)) by (pose proof (exp_pos e); pose proof (exp_pos (- e)); nra). nra.
Qed.

(** a relative error of d is near d / (1 - d) *)
Lemma near_of_error d x y : 0 <= d < 1 -> 0 <= x -> Rabs (y - x) <= d * x -> near (d / (1 - d)) x y.
Proof.
  intros D X A. apply Rabs_le_inv in A. set (e := d / (1 - d)). assert (E : e * (1 - d) = d) by (unfold e; field; lra).
  assert (d <= e) by nra. pose proof (exp_pos_ge e). pose proof (exp_minus e). pose proof (exp_pos (- e)).
  assert (exp (- e) <= 1 - d) by nra. split; nra.
Qed.

Lemma near_sum e n f g : (forall k, (k < n)%nat -> near e (f k) (g k)) -> near e (sum n f) (sum n g).
Proof. induction n; simpl; intros N; [unfold near; lra | apply near_add; auto]. Qed.

(** *** With an absolute error *)

Lemma within_near e x y : 0 <= x -> near e x y -> within e 0 x y.
Proof. intros X N. exists x. rewrite Rminus_diag, Rabs_R0. auto with real. Qed.

Lemma within_0 e x y : within e 0 x y -> near e x y.
Proof. intros (x' & _ & D & N). apply Rabs_le_inv in D. now replace x with x' by lra. Qed.

Lemma within_pos e a x y : within e a x y -> 0 <= y.
Proof. intros (x' & P & _ & N). now apply near_pos with (1 := N). Qed.

Lemma within_mono e f a b x y : e <= f -> a <= b -> within e a x y -> within f b x y.
Proof. intros E A (x' & P & D & N). exists x'. split; [auto|]. split; [lra|]. now apply near_mono with e. Qed.

Lemma within_near_trans e f a x y z : within e a x y -> near f y z -> within (e + f) a x z.
Proof. intros (x' & P & D & N) N'. exists x'. split; [auto|]. split; [auto|]. now apply near_trans with y. Qed.

Lemma within_add e a b x y x' y' : within e a x y -> within e b x' y' -> within e (a + b) (x + x') (y + y').
Proof.
  intros (w & P & D & N) (w' & P' & D' & N'). exists (w + w'). split; [lra|]. split; [|now apply near_add].
  replace (w + w' - (x + x')) with ((w - x) + (w' - x')) by ring. eapply Rle_trans; [apply Rabs_triang | lra].
Qed.

Lemma within_mul e f a x y x' y' :
  0 <= x' -> within e a x y -> near f x' y' -> within (e + f) (a * x') (x * x') (y * y').
Proof.
  intros P' (w & P & D & N) N'. exists (w * x'). split; [sure|]. split; [|now apply near_mul].
  replace (w * x' - x * x') with ((w - x) * x') by ring. rewrite Rabs_mult, (Rabs_right x') by lra. now apply Rmult_le_compat_r.
Qed.

Lemma near_within e f a x y z : 0 <= e -> 0 <= x -> near e x y -> within f a y z -> within (e + f) (exp e * a) x z.
Proof.
  intros E [X | <-] N (w & P & D & W).
  2:{ unfold near in N. rewrite !Rmult_0_r in N. assert (y = 0) as -> by lra. exists w. split; [auto|].
      pose proof (exp_pos_ge e). pose proof (Rabs_pos (w - 0)). split; [nra | now apply near_mono with f; [lra|..]]. }
  rename N into N'. assert (N := N'). pose proof (near_sym _ _ _ N) as [_ B]. destruct N as [L U].
  assert (Y : 0 < y) by (apply Rlt_le_trans with (2 := L); apply Rmult_lt_0_compat; [apply exp_pos | auto]).
  assert (Q : 0 <= w / y) by (apply Rmult_le_pos; [auto | left; now apply Rinv_0_lt_compat]). exists (x * (w / y)).
  split; [apply Rmult_le_pos; lra|]. split.
  - replace (x * (w / y) - x) with ((x / y) * (w - y)) by (field; lra).
    assert (0 <= x / y <= exp e). { split; [apply Rmult_le_pos; [lra | left; now apply Rinv_0_lt_compat]|].
      apply Rmult_le_reg_r with y; [auto|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
    rewrite Rabs_mult, (Rabs_pos_eq (x / y)) by lra. apply Rmult_le_compat; auto; [lra | apply Rabs_pos | lra].
  - apply near_trans with (2 := W). replace w with (y * (w / y)) at 2 by (field; lra).
    split; rewrite <- Rmult_assoc; now apply Rmult_le_compat_r.
Qed.

Lemma within_product e f a b x y x' y' : 0 <= x -> 0 <= x' -> within e a x y -> within f b x' y' ->
  within (e + f) (a * x' + b * x + a * b) (x * x') (y * y').
Proof.
  intros X X' (w & P & D & N) (w' & P' & D' & N'). exists (w * w'). split; [now apply Rmult_le_pos|]. split; [|now apply near_mul].
  replace (w * w' - x * x') with ((w - x) * x' + ((w' - x') * x + (w - x) * (w' - x'))) by ring.
  eapply Rle_trans; [apply Rabs_triang|]. rewrite Rplus_assoc. apply Rplus_le_compat.
  - rewrite Rabs_mult, (Rabs_pos_eq x') by auto. now apply Rmult_le_compat_r.
  - eapply Rle_trans; [apply Rabs_triang|]. rewrite !Rabs_mult, (Rabs_pos_eq x) by auto.
    apply Rplus_le_compat; [now apply Rmult_le_compat_r | apply Rmult_le_compat; auto using Rabs_pos].
Qed.

(** moving y by d moves a by at most 1.01 d *)
Lemma within_move e a d x y y' : 0 <= e <= 1/200 -> 0 <= y' -> Rabs (y' - y) <= d -> within e a x y -> within e (a + 1.01 * d) x y'.
Proof.
  intros E P' D (w & P & A & L & U). apply Rabs_le_inv in D, A. pose proof (exp_minus e) as H.
  pose proof (exp_pos_ge e). pose proof (exp_minus_1 e ltac:(lra)) as X.
  assert (X2 : exp e <= 1.01). { assert (e / (1 - e) <= 0.01); [|lra]. apply Rmult_le_reg_r with (1 - e); [lra|]. field_simplify; lra. }
  assert (B : exp (- e) <= 1) by (pose proof (exp_le (- e) 0 ltac:(lra)) as Z; now rewrite exp_0 in Z). pose proof (exp_pos (- e)).
  assert (I : exp e * (exp (- e) * w) = w) by (rewrite <- Rmult_assoc, H; ring).
  assert (J : exp (- e) * (exp e * w) = w) by (rewrite <- Rmult_assoc, (Rmult_comm (exp (- e))), H; ring).
  destruct (Rle_dec y' (exp e * w)) as [F|F], (Rle_dec (exp (- e) * w) y') as [G|G].
  - exists w. split; [auto|]. split; [|easy]. apply Rabs_le. lra.
  - exists (exp e * y'). split; [sure|]. split.
    + apply Rabs_le. assert (w - exp e * y' <= 1.01 * d) by nra. assert (exp e * y' <= w) by nra. lra.
    + apply near_sym. split; [|lra]. apply Rmult_le_compat_r; [auto | apply exp_le; lra].
  - exists (exp (- e) * y'). split; [sure|]. split.
    + apply Rabs_le. assert (w <= exp (- e) * y') by nra. assert (exp (- e) * y' <= w + d) by nra. lra.
    + apply near_sym. split; [lra|]. apply Rmult_le_compat_r; [auto | apply exp_le; lra].
  - exfalso. nra.
Qed.

Lemma within_error e a x y : 0 <= e -> within e a x y -> Rabs (y - x) <= (exp e - 1) * x + exp e * a.
Proof.
  intros E (w & P & D & N). pose proof (near_error _ _ _ E P N) as A. apply Rabs_le_inv in A, D. pose proof (exp_pos_ge e).
  apply Rabs_le. nra.
Qed.

(** ** Rounding *)

Section Format.
Context (p emin : Z) {Hp : Prec_gt_0 p}.
Notation format := (generic_format radix2 (FLT_exp emin p)).

Definition rounded (x : R) : R := round radix2 (FLT_exp emin p) ZnearestE x.
Definition unit_roundoff : R := bpow radix2 (- p).
Definition half_tiny : R := / 2 * bpow radix2 emin. (* half of the smallest subnormal *)

Notation u := unit_roundoff.

Lemma unit_ro : u_ro radix2 p = u.
Proof. unfold u_ro, unit_roundoff. rewrite bpow_plus. change (bpow radix2 1) with 2. field. Qed.

Lemma unit_pos : 0 < u.
Proof. apply bpow_gt_0. Qed.

Lemma tiny_pos : 0 < half_tiny.
Proof. unfold half_tiny. pose proof (bpow_gt_0 radix2 emin). lra. Qed.

Lemma near_1_plus d x : 0 <= x -> Rabs d <= u / (1 + u) -> near u x (x * (1 + d)).
Proof.
  intros X D. apply Rabs_le_inv in D. pose proof unit_pos. pose proof (exp_pos_ge u). pose proof (exp_minus u). pose proof (exp_pos (- u)).
  assert (Q : u / (1 + u) * (1 + u) = u) by (field; lra). set (q := u / (1 + u)) in *. assert (q <= u) by nra.
  assert (exp (- u) <= 1 - q) by nra. split; [|rewrite (Rmult_comm (exp u))]; [rewrite Rmult_comm|]; apply Rmult_le_compat_l; lra.
Qed.

(** A number that is not subnormal is rounded with a relative error of u, any other with an absolute one. *)
Lemma rounded_near x : 0 <= x -> near u x (rounded x) \/ Rabs (rounded x - x) <= half_tiny.
Proof.
  intros X. destruct (relative_error_N_FLT'_ex radix2 emin p Hp (fun x => negb (Z.even x)) x) as (d & t & D & T & Z & E).
  rewrite unit_ro in D. unfold rounded, half_tiny. rewrite E. apply Rmult_integral in Z. destruct Z as [-> | ->].
  - right. now replace (x * (1 + 0) + t - x) with t by ring.
  - left. rewrite Rplus_0_r. now apply near_1_plus.
Qed.

Lemma rounded_normal x : bpow radix2 (emin + p - 1) <= x -> near u x (rounded x).
Proof.
  intros N. assert (P : 0 <= x) by (apply Rle_trans with (2 := N); apply bpow_ge_0). unfold rounded.
  rewrite round_FLT_FLX by now rewrite Rabs_pos_eq.
  destruct (relative_error_N_FLX'_ex radix2 p Hp (fun x => negb (Z.even x)) x) as (d & D & E). rewrite E. rewrite unit_ro in D.
  now apply near_1_plus.
Qed.

Lemma rounded_pos x : 0 <= x -> 0 <= rounded x.
Proof. intros X. unfold rounded. rewrite <- (round_0 radix2 (FLT_exp emin p) ZnearestE). now apply round_le; auto with typeclass_instances. Qed.

Lemma rounded_format x : format (rounded x).
Proof. apply generic_format_round; auto with typeclass_instances. Qed.

(** the sum of two numbers of the format has no absolute error *)
Lemma rounded_plus_near x y : format x -> format y -> 0 <= x + y -> near u (x + y) (rounded (x + y)).
Proof.
  intros F G P. destruct (FLT_plus_error_N_ex radix2 emin p (fun x => negb (Z.even x)) x y F G) as (d & D & E).
  unfold rounded. rewrite E. rewrite unit_ro in D. now apply near_1_plus.
Qed.

(** a product with a power of two is exact, unless it is subnormal *)
Lemma rounded_power x e : format x -> rounded (x * bpow radix2 e) = x * bpow radix2 e \/
  Rabs (rounded (x * bpow radix2 e) - x * bpow radix2 e) <= half_tiny.
Proof.
  intros F. destruct (Rle_dec (bpow radix2 (emin + p - 1)) (Rabs (x * bpow radix2 e))) as [N | N].
  - left. apply round_generic; auto with typeclass_instances. destruct (Req_dec x 0) as [-> | X]; [rewrite Rmult_0_l; apply generic_format_0|].
    apply mult_bpow_exact_FLT; auto. apply mag_ge_bpow in N. rewrite mag_mult_bpow in N by auto. lia.
  - right. unfold rounded, half_tiny. rewrite <- (ulp_FLT_small radix2 emin p) with (x := x * bpow radix2 e).
    + apply error_le_half_ulp; auto with typeclass_instances.
    + apply Rlt_le_trans with (bpow radix2 (emin + p - 1)); [lra | apply bpow_le; lia].
Qed.

Lemma rounded_within e a x y : 0 <= e -> e + u <= 1/200 -> within e a x y -> within (e + u) (a + 1.01 * half_tiny) x (rounded y).
Proof.
  intros E S W. pose proof (within_pos _ _ _ _ W) as P. pose proof unit_pos. pose proof tiny_pos.
  destruct (rounded_near y P) as [N|N].
  - apply within_mono with (e + u) a; [lra | lra|]. now apply within_near_trans with y.
  - apply within_mono with e (a + 1.01 * half_tiny); [lra | lra|]. apply within_move with y; auto; [lra | now apply rounded_pos].
Qed.
End Format.

(** ** Sums over trees *)

(** how a sum is computed: its terms, additions in the compute type (Narrow) or in float64 (Wide), and the products with the factor of a
    block, which are in float64 *)
Inductive tree : Type :=
  | Leaf (term : R)
  | Narrow (left right : tree)
  | Wide (left right : tree)
  | Scaled (factor : R) (part : tree).

(** the number that the tree stands for *)
Fixpoint exactly (t : tree) : R :=
  match t with
  | Leaf x => x
  | Narrow a b | Wide a b => exactly a + exactly b
  | Scaled c a => c * exactly a
  end.

(** *** The mean distance from the maximum adds at most 2 v ln n *)

Lemma exp_convex p d : 0 <= p <= 1 -> exp (p * d) <= p * exp d + (1 - p).
Proof.
  intros P. pose proof (exp_pos_ge ((1 - p) * d)). pose proof (exp_pos_ge (- (p * d))). pose proof (exp_pos (p * d)).
  replace (exp d) with (exp (p * d) * exp ((1 - p) * d)) by (rewrite <- exp_plus; f_equal; ring).
  assert (exp (p * d) * exp (- (p * d)) = 1) by apply exp_minus.
  assert (exp (p * d) * (1 + (1 - p) * d) <= exp (p * d) * exp ((1 - p) * d)) by (apply Rmult_le_compat_l; lra).
  assert (exp (p * d) * (1 + - (p * d)) <= 1) by nra.
  assert (p * (exp (p * d) * (1 + (1 - p) * d)) <= p * (exp (p * d) * exp ((1 - p) * d))) by (apply Rmult_le_compat_l; lra).
  assert ((1 - p) * (exp (p * d) * (1 + - (p * d))) <= (1 - p) * 1) by (apply Rmult_le_compat_l; lra).
  nra.
Qed.

Lemma exp_le_inv a b : exp a <= exp b -> a <= b.
Proof. intros E. destruct (Rle_lt_dec a b) as [|L]; auto. apply exp_increasing in L. lra. Qed.

Lemma sum_but_pos n t f g : 0 < sum_but t n (fun k => exp (f k)) -> 0 < sum_but t n (fun k => exp (g k)).
Proof.
  unfold sum_but. induction n; simpl; intros S; [auto|]. destruct (Nat.eqb n t); [rewrite Rplus_0_r in *; auto|].
  apply Rplus_le_lt_0_compat; [|apply exp_pos]. apply sum_nonneg. intros k _. destruct (Nat.eqb k t); [lra | left; apply exp_pos].
Qed.

Lemma power_sum n t p d : 0 <= p <= 1 -> (0 < n)%nat -> 0 < sum_but t n (fun k => exp (d k)) ->
  sum_but t n (fun k => exp (p * d k)) <= exp (p * ln (sum_but t n (fun k => exp (d k))) + (1 - p) * ln (INR n)).
Proof.
  intros P N S. set (A := sum_but t n (fun k => exp (d k))) in *. apply lt_0_INR in N. set (b := ln A - ln (INR n)).
  assert (B : exp b = A / INR n) by (unfold b, Rminus; rewrite exp_plus, exp_Ropp, !exp_ln; auto).
  assert (L : sum_but t n (fun k => exp (p * d k)) <= exp (p * b) * (p * (A / exp b) + (1 - p) * INR n)).
  { unfold A, sum_but. replace (exp (p * b) * _) with
      (sum n (fun k => exp (p * b) * (p / exp b * (if Nat.eqb k t then 0 else exp (d k)) + (1 - p) * 1)));
      [|rewrite sum_scal, sum_add, !sum_scal, sum_const; pose proof (exp_pos b); field; lra].
    apply sum_le. intros k _. pose proof (exp_pos (p * b)). destruct (Nat.eqb k t).
    - rewrite Rmult_0_r. apply Rmult_le_pos; lra.
    - replace (p * d k) with (p * b + p * (d k - b)) by ring. rewrite exp_plus. apply Rmult_le_compat_l; [lra|].
      eapply Rle_trans; [now apply exp_convex|]. unfold Rminus at 1. rewrite exp_plus, exp_Ropp. right. field.
      pose proof (exp_pos b). lra. }
  eapply Rle_trans; [apply L|]. rewrite B. replace (A / (A / INR n)) with (INR n) by (field; lra).
  replace (p * INR n + (1 - p) * INR n) with (INR n) by ring. right.
  replace (INR n) with (exp (ln (INR n))) at 1 by now apply exp_ln. rewrite <- exp_plus. f_equal. unfold b. ring.
Qed.

(** the sum of e^(-d), each e^-d with a relative error of x d, has a relative error of x ln n *)
Lemma distances n t x d s : 0 <= x <= 1 -> (0 < n)%nat -> s = sum_but t n (fun k => exp (- d k)) -> 1 <= s ->
  exp (- (x * ln (INR n))) * s <= sum_but t n (fun k => exp (- d k - x * d k)) /\
  sum_but t n (fun k => exp (- d k + x * d k)) <= exp (x * ln (INR n)) * s.
Proof.
  intros X N D S. assert (L : 0 <= ln s) by (rewrite <- ln_1; destruct S as [S | <-]; [left; apply ln_increasing|]; lra).
  assert (E : exp (ln s) = s) by (apply exp_ln; lra). rewrite <- E, <- !exp_plus. split.
  - set (s' := sum_but t n (fun k => exp (- d k - x * d k))).
    assert (P : 0 < s') by (apply sum_but_pos with (fun k => - d k); lra).
    assert (I : 0 < / (1 + x) <= 1) by (split; [apply Rinv_0_lt_compat; lra | rewrite <- Rinv_1; apply Rinv_le_contravar; lra]).
    assert (Q : exp (ln s) <= exp (/ (1 + x) * ln s' + (1 - / (1 + x)) * ln (INR n))).
    { rewrite E, D. eapply Rle_trans; [right|now apply (power_sum n t (/ (1 + x)) (fun k => - d k - x * d k)); [lra|..]].
      apply sum_but_ext. intros k _ _. f_equal. field. lra. }
    apply exp_le_inv in Q. replace s' with (exp (ln s')) by now apply exp_ln. apply exp_le.
    assert ((1 + x) * ln s <= ln s' + x * ln (INR n)); [|nra].
    replace (ln s' + x * ln (INR n)) with ((1 + x) * (/ (1 + x) * ln s' + (1 - / (1 + x)) * ln (INR n))) by (field; lra).
    apply Rmult_le_compat_l; lra.
  - eapply Rle_trans; [right|eapply Rle_trans; [apply (power_sum n t (1 - x) (fun k => - d k)); [lra | auto | lra]|]].
    + apply sum_but_ext. intros k _ _. f_equal. ring.
    + rewrite <- D. apply exp_le. nra.
Qed.

(** *** The rounded sum *)

(** the largest number of additions in the compute type, and of operations in float64, that a term passes through *)
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

(** *** The tree of the kernel

    A block of n = groups * 4 * lanes columns, where the columns after the end of the row and that of the label are 0: groups of four vectors
    are added in the compute type, each lane has a sum in float64, and the lanes, of which there are 2^d, are added as a tree. *)

Fixpoint lane_sum (four : nat -> tree) (groups : nat) : tree :=
  match groups with O => Leaf 0 | S g => Wide (lane_sum four g) (four g) end.
Fixpoint lanes_sum (lane : nat -> tree) (d : nat) : tree :=
  match d with O => lane 0%nat | S d => lanes_sum (fun i => Wide (lane i) (lane (i + 2 ^ d)%nat)) d end.
Definition block_tree (d groups : nat) (e : vec) (factor : R) : tree :=
  let column g c lane := Leaf (e ((g * 4 + c) * 2 ^ d + lane)%nat) in
  let four g lane := Narrow (Narrow (column g 0%nat lane) (column g 1%nat lane)) (Narrow (column g 2%nat lane) (column g 3%nat lane)) in
  Scaled factor (lanes_sum (fun lane => lane_sum (fun g => four g lane) groups) d).

Lemma sum_product n m f : sum (n * m) f = sum n (fun i => sum m (fun j => f (i * m + j)%nat)).
Proof.
  assert (A : forall k l g, sum (k + l) g = sum k g + sum l (fun j => g (k + j)%nat)).
  { intros k l g. induction l; simpl; [rewrite Nat.add_0_r; lra|]. rewrite Nat.add_succ_r. simpl. rewrite IHl. lra. }
  induction n; [easy|]. replace (S n * m)%nat with (n * m + m)%nat by ring. rewrite A, IHn. easy.
Qed.

Lemma lane_sum_is four groups : exactly (lane_sum four groups) = sum groups (fun g => exactly (four g)).
Proof. induction groups; simpl; lra. Qed.

Lemma lanes_sum_is lane d : exactly (lanes_sum lane d) = sum (2 ^ d) (fun i => exactly (lane i)).
Proof.
  revert lane. induction d as [|d IH]; intros lane; simpl lanes_sum; [simpl; lra|]. rewrite IH. simpl exactly. rewrite sum_add.
  replace (2 ^ S d)%nat with (2 * 2 ^ d)%nat by (simpl; lia). rewrite sum_product. simpl. rewrite Rplus_0_l. f_equal.
  apply sum_ext. intros i _. do 2 f_equal. lia.
Qed.

Lemma lanes_sum_depth lane d a b : (forall i, (narrow_depth (lane i) <= a)%nat /\ (wide_depth (lane i) <= b)%nat) ->
  (narrow_depth (lanes_sum lane d) <= a)%nat /\ (wide_depth (lanes_sum lane d) <= b + d)%nat.
Proof.
  revert lane b. induction d as [|d IH]; intros lane b L; simpl; [rewrite Nat.add_0_r; apply L|].
  destruct (IH (fun i => Wide (lane i) (lane (i + 2 ^ d)%nat)) (S b)) as [N W]; [|split; [auto | lia]].
  intros i. destruct (L i), (L (i + 2 ^ d)%nat). simpl. lia.
Qed.

Lemma lane_sum_depth four groups a : (forall g, (narrow_depth (four g) <= a)%nat /\ wide_depth (four g) = 0%nat) ->
  (narrow_depth (lane_sum four groups) <= a)%nat /\ (wide_depth (lane_sum four groups) <= groups)%nat.
Proof. intros F. induction groups as [|g [N W]]; simpl; [lia|]. destruct (F g). lia. Qed.

(** It adds up all columns; a test compares its depth with `bounds.depth`. *)
Theorem sum_of_a_block d groups e factor :
  let s := block_tree d groups e factor in
  exactly s = sum (groups * (4 * 2 ^ d)) (fun k => factor * e k) /\ (narrow_depth s <= 2)%nat /\ (wide_depth s <= groups + d + 1)%nat.
Proof.
  cbv zeta. unfold block_tree. split.
  - simpl exactly. rewrite lanes_sum_is, sum_scal. f_equal. rewrite sum_product.
    rewrite (sum_ext _ _ (fun i => sum groups (fun g => sum 4 (fun c => e ((g * 4 + c) * 2 ^ d + i)%nat)))).
    + rewrite sum_swap. apply sum_ext. intros g _. rewrite sum_swap, sum_product. apply sum_ext. intros c _. apply sum_ext. intros i _.
      f_equal. lia.
    + intros i _. rewrite lane_sum_is. apply sum_ext. intros g _. simpl. lra.
  - simpl. destruct (lanes_sum_depth (fun lane => lane_sum (fun g => Narrow
      (Narrow (Leaf (e ((g * 4 + 0) * 2 ^ d + lane)%nat)) (Leaf (e ((g * 4 + 1) * 2 ^ d + lane)%nat)))
      (Narrow (Leaf (e ((g * 4 + 2) * 2 ^ d + lane)%nat)) (Leaf (e ((g * 4 + 3) * 2 ^ d + lane)%nat)))) groups) d 2 groups) as [N W].
    + intros i. apply lane_sum_depth. intros g. simpl. lia.
    + lia.
Qed.

Section Kernel.
Context (pn en pw ew : Z) {Hpn : Prec_gt_0 pn} {Hpw : Prec_gt_0 pw}. (* the compute type, and float64 *)
Hypothesis wider : (pn <= pw)%Z /\ (ew <= en)%Z.
Notation narrow_format := (generic_format radix2 (FLT_exp en pn)).
Notation wide_format := (generic_format radix2 (FLT_exp ew pw)).
Notation rn := (rounded pn en).
Notation rw := (rounded pw ew).
Notation u := (unit_roundoff pn).
Notation v := (unit_roundoff pw).
Notation eta := (half_tiny ew).

Fixpoint computed (t : tree) : R :=
  match t with
  | Leaf x => x
  | Narrow a b => rn (computed a + computed b)
  | Wide a b => rw (computed a + computed b)
  | Scaled c a => rw (c * computed a)
  end.

Fixpoint in_narrow (t : tree) : Prop :=
  match t with
  | Leaf x => 0 <= x /\ narrow_format x
  | Narrow a b => in_narrow a /\ in_narrow b
  | _ => False
  end.

(** The terms are not negative, additions in the compute type come first, and no product with a factor is subnormal. *)
Fixpoint well_made (t : tree) : Prop :=
  match t with
  | Wide a b => well_made a /\ well_made b
  | Scaled c a => well_made a /\ 0 <= c /\ (c * computed a = 0 \/ bpow radix2 (ew + pw - 1) <= c * computed a)
  | t => in_narrow t
  end.

Lemma v_pos : 0 < v.
Proof. apply unit_pos. Qed.

Lemma u_pos : 0 < u.
Proof. apply unit_pos. Qed.

Lemma unit_le_half : v <= 1/2.
Proof. unfold unit_roundoff, Prec_gt_0 in *. change (1/2) with (1 * bpow radix2 (-1)). rewrite Rmult_1_l. apply bpow_le. lia. Qed.

Lemma narrow_is_wide x : narrow_format x -> wide_format x.
Proof.
  apply generic_inclusion_mag. intros _. unfold FLT_exp. lia.
Qed.

Lemma computed_narrow t : in_narrow t -> narrow_format (computed t).
Proof. destruct t; simpl; try easy. intros _. now apply rounded_format. Qed.

Lemma well_made_wide t : well_made t -> wide_format (computed t).
Proof.
  destruct t; simpl; intros W; [now apply narrow_is_wide | | |]; try now apply rounded_format.
  apply narrow_is_wide. now apply rounded_format.
Qed.

Lemma rounded_normal_or_0 x : 0 <= x -> x = 0 \/ bpow radix2 (ew + pw - 1) <= x -> near v x (rw x).
Proof.
  intros P [-> | N]; [|apply rounded_normal; try exact _; auto].
  unfold rounded. rewrite round_0 by auto with typeclass_instances. pose proof v_pos. apply near_refl; lra.
Qed.

Definition depth_error (t : tree) : R := INR (narrow_depth t) * u + INR (wide_depth t) * v.

Lemma depth_max a b : INR (narrow_depth a) * u + INR (wide_depth a) * v <=
  INR (Nat.max (narrow_depth a) (narrow_depth b)) * u + INR (Nat.max (wide_depth a) (wide_depth b)) * v.
Proof.
  pose proof u_pos. pose proof v_pos. pose proof (le_INR _ _ (Nat.le_max_l (narrow_depth a) (narrow_depth b))).
  pose proof (le_INR _ _ (Nat.le_max_l (wide_depth a) (wide_depth b))). nra.
Qed.

Lemma narrow_sum t : in_narrow t -> 0 <= exactly t /\ near (depth_error t) (exactly t) (computed t).
Proof.
  unfold depth_error. pose proof u_pos. pose proof v_pos. induction t as [x | a IHa b IHb | |]; cbn [in_narrow exactly computed narrow_depth wide_depth]; try easy.
  - intros [P _]. split; [auto|]. change (INR 0) with 0. apply near_refl; lra.
  - intros [A B]. destruct (IHa A) as [PA NA], (IHb B) as [PB NB]. split; [lra|]. rewrite S_INR.
    pose proof (depth_max a b). pose proof (depth_max b a) as M. rewrite (Nat.max_comm (narrow_depth b)), (Nat.max_comm (wide_depth b)) in M.
    set (e := INR (Nat.max _ _) * u + INR (Nat.max _ _) * v) in *.
    replace ((_ + 1) * u + _) with (e + u) by (unfold e; ring). apply near_trans with (computed a + computed b).
    + apply near_add; [apply near_mono with (3 := NA) | apply near_mono with (3 := NB)]; auto.
    + apply rounded_plus_near; try exact _; try now apply computed_narrow. pose proof (near_pos _ _ _ NA PA). pose proof (near_pos _ _ _ NB PB). lra.
Qed.

(** The sum over any tree has the relative error of the deepest path. *)
Theorem rounded_sum t : well_made t -> 0 <= exactly t /\ near (depth_error t) (exactly t) (computed t).
Proof.
  unfold depth_error. pose proof u_pos. pose proof v_pos. induction t as [x | a _ b _ | a IHa b IHb | c a IHa];
    cbn [well_made exactly computed narrow_depth wide_depth].
  - apply (narrow_sum (Leaf x)).
  - apply (narrow_sum (Narrow a b)).
  - intros [A B]. destruct (IHa A) as [PA NA], (IHb B) as [PB NB]. split; [lra|]. rewrite S_INR.
    pose proof (depth_max a b). pose proof (depth_max b a) as M. rewrite (Nat.max_comm (narrow_depth b)), (Nat.max_comm (wide_depth b)) in M.
    set (e := INR (Nat.max _ _) * u + INR (Nat.max _ _) * v) in *.
    replace (_ + (_ + 1) * v) with (e + v) by (unfold e; ring). apply near_trans with (computed a + computed b).
    + apply near_add; [apply near_mono with (3 := NA) | apply near_mono with (3 := NB)]; auto.
    + apply rounded_plus_near; try exact _; try now apply well_made_wide. pose proof (near_pos _ _ _ NA PA). pose proof (near_pos _ _ _ NB PB). lra.
  - intros [A [C S]]. destruct (IHa A) as [PA NA]. split; [sure|]. rewrite S_INR.
    replace (_ + (_ + 1) * v) with (INR (narrow_depth a) * u + INR (wide_depth a) * v + v) by ring.
    apply near_trans with (c * computed a).
    + replace (_ + _) with (0 + (INR (narrow_depth a) * u + INR (wide_depth a) * v)) by ring. apply near_mul; auto. apply near_refl; lra.
    + apply rounded_normal_or_0; auto. pose proof (near_pos _ _ _ NA PA). sure.
Qed.

(** ** The sum of the exponentials *)

Definition sum_bound (u v depth n : R) : R := 1.001 * (4 * u + v * (depth + 2 * ln n)).

(** The tree s adds up the computed exponentials e^(z_k - m) of the columns k other than t, and zeros. An exponential and
    the factor of its block have a relative error of 2 u + c v + 2 v (m - z_k) together, or of at most `lost`, an absolute one. *)
Definition adds_up (n t : nat) (z : vec) (m c lost : R) (s : tree) : Prop :=
  well_made s /\ exists e : vec, exactly s = sum n e /\
  forall k, (k < n)%nat -> if Nat.eqb k t then e k = 0 else 
    near (2 * u + c * v + 2 * v * (m - z k)) (exp (z k - m)) (e k) \/ Rabs (e k - exp (z k - m)) <= lost.

Lemma ln_INR_nonneg n : (0 < n)%nat -> 0 <= ln (INR n).
Proof.
  intros N. assert (1 <= INR n) as [L | <-] by (apply (le_INR 1); lia); rewrite <- ln_1; [left; apply ln_increasing; lra | lra].
Qed.

Lemma sum_near n t z m c lost s : (0 < n)%nat -> 0 <= c -> 2 * u + c * v + 2 * v * ln (INR n) <= 1/2 -> 0 <= lost -> INR n * lost <= 1/8 ->
  (forall k, (k < n)%nat -> k <> t -> z k <= m) -> 1 <= sum_but t n (fun k => exp (z k - m)) -> adds_up n t z m c lost s ->
  near (depth_error s + 2 * u + c * v + 2 * v * ln (INR n) + 4 * (INR n * lost)) (sum_but t n (fun k => exp (z k - m))) (computed s).
Proof.
  intros N C0 C L0 L M S1 [W (x & T & X)]. set (e := sum_but t n _) in *. destruct (rounded_sum s W) as [_ S].
  rewrite T in S. replace (depth_error s + _ + _ + _ + _) with
    (2 * u + c * v + 2 * v * ln (INR n) + 4 * (INR n * lost) + depth_error s) by ring.
  apply near_trans with (2 := S). clear T S W. pose proof v_pos as V. pose proof u_pos as U. pose proof unit_le_half as H.
  set (a := 2 * u + c * v) in *. assert (A : 0 <= a) by (unfold a; nra).
  destruct (distances n t (2 * v) (fun k => m - z k) e) as [D1 D2]; [lra | auto | | auto |].
  { apply sum_but_ext. intros k _ _. f_equal. ring. }
  assert (L1 : 0 <= INR n * lost) by (apply Rmult_le_pos; [apply pos_INR | auto]).
  set (low := fun k => exp (- (m - z k) - 2 * v * (m - z k))) in D1. set (high := fun k => exp (- (m - z k) + 2 * v * (m - z k))) in D2.
  assert (B : exp (- a) * sum_but t n low - INR n * lost <= sum n x <= exp a * sum_but t n high + INR n * lost).
  { unfold sum_but. rewrite <- !sum_scal, <- !(sum_const n lost), <- sum_sub, <- sum_add.
    split; apply sum_le; intros k K; specialize (X k K); destruct (Nat.eqb_spec k t) as [_ | O]; try (rewrite X; lra);
      specialize (M k K O); assert (0 <= 2 * v * (m - z k)) by nra; pose proof (exp_pos (z k - m));
      destruct X as [[X Y] | X]; try apply Rabs_le_inv in X; unfold low, high; rewrite <- exp_plus; rewrite <- ?exp_plus in *.
    - eapply Rle_trans; [|apply X]. eapply Rle_trans; [|apply exp_le with (a := - a + (- (m - z k) - 2 * v * (m - z k)))]; lra.
    - assert (exp (- a + (- (m - z k) - 2 * v * (m - z k))) <= exp (z k - m)) by (apply exp_le; lra). lra.
    - eapply Rle_trans; [apply Y|]. eapply Rle_trans; [apply exp_le with (b := a + (- (m - z k) + 2 * v * (m - z k)))|]; lra.
    - assert (exp (z k - m) <= exp (a + (- (m - z k) + 2 * v * (m - z k)))) by (apply exp_le; lra). lra. }
  set (b := 2 * v * ln (INR n)) in *. assert (B0 : 0 <= b).
  { unfold b. apply Rmult_le_pos; [lra | now apply ln_INR_nonneg]. }
  pose proof (exp_pos a). pose proof (exp_pos (- a)). set (l := INR n * lost) in *.
  assert (X1 : exp (- (a + b)) * e - l <= sum n x) by (rewrite Ropp_plus_distr, exp_plus; nra).
  assert (X2 : sum n x <= exp (a + b) * e + l) by (rewrite exp_plus; nra). clear B D1 D2 X.
  assert (E : exp (a + b) <= 2) by (pose proof (exp_minus_1 (a + b) ltac:(lra)) as E; assert ((a + b) / (1 - (a + b)) <= 1);
    [apply Rmult_le_reg_r with (1 - (a + b)); [lra|]; field_simplify; lra | lra]).
  pose proof (exp_pos_ge (a + b)). pose proof (exp_minus (a + b)). pose proof (exp_pos_ge (4 * l)). pose proof (exp_minus (4 * l)).
  pose proof (exp_pos (- (a + b))). pose proof (exp_pos (- (4 * l))). split.
  - rewrite Ropp_plus_distr, exp_plus. apply Rle_trans with (2 := X1).
    assert (exp (- (4 * l)) <= 1 - 2 * l) by nra. assert (1/2 <= exp (- (a + b))) by nra.
    assert (exp (- (a + b)) * e * exp (- (4 * l)) <= exp (- (a + b)) * e * (1 - 2 * l)) by (apply Rmult_le_compat_l; [sure | lra]).
    assert (1/2 <= exp (- (a + b)) * e) by nra. nra.
  - rewrite exp_plus. apply Rle_trans with (1 := X2).
    assert (exp (a + b) * e * (1 + 4 * l) <= exp (a + b) * e * exp (4 * l)) by (apply Rmult_le_compat_l; [sure | lra]).
    assert (1 <= exp (a + b) * e) by nra. nra.
Qed.

(** ** What follows from the sums of a row *)

Lemma log1p_scale c x : 1 <= c -> 0 <= x -> ln (1 + c * x) <= c * ln (1 + x).
Proof.
  intros C X. assert (P : 0 <= / c <= 1) by (split; [left; apply Rinv_0_lt_compat; lra | rewrite <- Rinv_1; apply Rinv_le_contravar; lra]).
  pose proof (exp_convex (/ c) (ln (1 + c * x)) P) as E. rewrite exp_ln in E by nra.
  replace (/ c * (1 + c * x) + (1 - / c)) with (exp (ln (1 + x))) in E by (rewrite exp_ln by lra; field; lra).
  apply exp_le_inv in E. replace (ln (1 + c * x)) with (c * (/ c * ln (1 + c * x))) by (field; lra). apply Rmult_le_compat_l; lra.
Qed.

Lemma ln_le x y : 0 < x -> x <= y -> ln x <= ln y.
Proof. intros X [L | ->]; [left; now apply ln_increasing | right; easy]. Qed.

Lemma exp_ge_1 e : 0 <= e -> 1 <= exp e.
Proof. pose proof (exp_pos_ge e). lra. Qed.

Lemma near_log1p e x y : 0 <= e -> 0 <= x -> near e x y -> near e (ln (1 + x)) (ln (1 + y)).
Proof.
  intros E X N. pose proof (near_pos _ _ _ N X) as Y. apply near_sym in N as N'. destruct N as [_ U], N' as [_ L].
  pose proof (exp_ge_1 e E). pose proof (exp_minus e). pose proof (exp_pos (- e)). split.
  - assert (ln (1 + x) <= exp e * ln (1 + y)).
    { eapply Rle_trans; [apply ln_le with (y := 1 + exp e * y); lra | now apply log1p_scale]. }
    replace (ln (1 + y)) with (exp (- e) * (exp e * ln (1 + y))) by (rewrite <- Rmult_assoc, (Rmult_comm (exp (- e))), H0; ring).
    apply Rmult_le_compat_l; lra.
  - eapply Rle_trans; [apply ln_le with (y := 1 + exp e * x); lra | now apply log1p_scale].
Qed.

Lemma ln_diff x y : 1 <= x -> x <= y -> ln y - ln x <= y - x.
Proof.
  intros X L. replace (ln y - ln x) with (ln (y / x)) by (unfold Rdiv; rewrite ln_mult, ln_Rinv; try lra; apply Rinv_0_lt_compat; lra).
  assert (0 < / x <= 1) by (split; [apply Rinv_0_lt_compat; lra | rewrite <- Rinv_1; apply Rinv_le_contravar; lra]).
  assert (y / x <= exp (y - x)). { pose proof (exp_pos_ge (y - x)). replace (y / x) with (1 + (y - x) * / x) by (field; lra). nra. }
  rewrite <- (ln_exp (y - x)). apply ln_le; auto. apply Rdiv_lt_0_compat; lra.
Qed.

Lemma within_log1p e a x y : 0 <= e -> 0 <= x -> within e a x y -> within e a (ln (1 + x)) (ln (1 + y)).
Proof.
  intros E X (w & P & D & N). exists (ln (1 + w)). split; [rewrite <- ln_1; apply ln_le; lra|]. split; [|now apply near_log1p].
  apply Rabs_le_inv in D. apply Rabs_le. destruct (Rle_dec x w).
  - pose proof (ln_diff (1 + x) (1 + w)). pose proof (ln_le (1 + x) (1 + w)). lra.
  - pose proof (ln_diff (1 + w) (1 + x)). pose proof (ln_le (1 + w) (1 + x)). lra.
Qed.

Lemma inverse_1_plus x : 0 <= x -> 0 < / (1 + x) <= 1.
Proof. split; [apply Rinv_0_lt_compat; lra | rewrite <- Rinv_1; apply Rinv_le_contravar; lra]. Qed.

Lemma near_plus_1 e x y : 0 <= e -> 0 <= x -> near e x y -> near e (1 + x) (1 + y).
Proof. intros. apply near_add; auto. apply near_refl; lra. Qed.

(** 1 / (1 + x) *)
Lemma within_inverse e a x y : 0 <= e -> 0 <= x -> within e a x y -> within e a (1 / (1 + x)) (1 / (1 + y)).
Proof.
  intros E X (w & P & D & N). pose proof (near_plus_1 _ _ _ E P N). unfold Rdiv. rewrite !Rmult_1_l. exists (/ (1 + w)).
  split; [left; apply Rinv_0_lt_compat; lra|]. split; [|apply near_inv; [lra | auto]].
  replace (/ (1 + w) - / (1 + x)) with ((x - w) * (/ (1 + w) * / (1 + x))) by (field; lra).
  pose proof (inverse_1_plus w P) as W1. pose proof (inverse_1_plus x X) as X1.
  rewrite Rabs_mult, (Rabs_pos_eq (_ * _)), Rabs_minus_sym by (apply Rmult_le_pos; lra).
  apply Rle_trans with (Rabs (w - x) * 1); [apply Rmult_le_compat_l; [apply Rabs_pos | nra] | lra].
Qed.

(** x / (1 + x) *)
Lemma within_fraction e a x y : 0 <= e -> 0 <= x -> within e a x y -> within e a (x / (1 + x)) (y / (1 + y)).
Proof.
  intros E X (w & P & D & N). pose proof (near_pos _ _ _ N P) as Y. exists (w / (1 + w)).
  split; [apply Rmult_le_pos; [auto | left; apply Rinv_0_lt_compat; lra]|]. split.
  - replace (w / (1 + w) - x / (1 + x)) with ((w - x) * (/ (1 + w) * / (1 + x))) by (field; lra).
    pose proof (inverse_1_plus w P) as W1. pose proof (inverse_1_plus x X) as X1.
    rewrite Rabs_mult, (Rabs_pos_eq (_ * _)) by (apply Rmult_le_pos; lra).
    apply Rle_trans with (Rabs (w - x) * 1); [apply Rmult_le_compat_l; [apply Rabs_pos | nra] | lra].
  - assert (G : forall x y, 0 <= x -> 0 <= y -> y <= exp e * x -> y / (1 + y) <= exp e * (x / (1 + x))).
    { pose proof (exp_ge_1 e E) as C. revert C. generalize (exp e). clear. intros c C x y X Y L.
      replace (y / (1 + y)) with (y * (1 + x) * (/ (1 + x) * / (1 + y))) by (field; lra).
      replace (c * (x / (1 + x))) with (c * x * (1 + y) * (/ (1 + x) * / (1 + y))) by (field; lra).
      apply Rmult_le_compat_r; [apply Rmult_le_pos; left; apply Rinv_0_lt_compat; lra|]. assert (0 <= x * y) by nra. nra. }
    pose proof (near_sym _ _ _ N) as [_ L]. destruct N as [_ U]. split; [|now apply G].
    specialize (G y w Y P L). pose proof (exp_minus e). pose proof (exp_pos (- e)).
    replace (y / (1 + y)) with (exp (- e) * (exp e * (y / (1 + y)))) by (rewrite <- Rmult_assoc, (Rmult_comm (exp (- e))), H; ring).
    apply Rmult_le_compat_l; lra.
Qed.

(** an error of x changes x / (1 + x) by the part 1 / (1 + x) of it *)
Lemma near_fraction_fine e x y : 0 <= e <= 1/3900 -> 0 <= x -> near e x y -> near (1.0008 * e * / (1 + x)) (x / (1 + x)) (y / (1 + y)).
Proof.
  intros E X N. pose proof (near_pos _ _ _ N X) as Y. destruct N as [L U]. pose proof (exp_minus_1 e ltac:(lra)) as P.
  assert (P' : e / (1 - e) <= 1.00026 * e) by (apply Rmult_le_reg_r with (1 - e); [lra|]; unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; nra).
  pose proof (exp_pos_ge e) as Q. pose proof (exp_minus e) as I. pose proof (exp_pos_ge (- e)) as Q'. set (c := exp e) in *. set (d := exp (- e)) in *.
  pose proof (inverse_1_plus x X) as W. set (w := / (1 + x)) in *. assert (WX : w * (1 + x) = 1) by (unfold w; field; lra).
  assert (D : 0 < d <= 1) by (split; [apply exp_pos | unfold d; rewrite <- exp_0; apply exp_le; lra]).
  pose proof (exp_pos_ge (1.0008 * e * w)) as R. pose proof (exp_minus (1.0008 * e * w)) as S. pose proof (exp_pos (- (1.0008 * e * w))) as S'.
  assert (EW : 0 <= e * w <= 1/3900) by nra. assert (XW : 0 <= x / (1 + x)) by (apply Rmult_le_pos; [lra | left; apply Rinv_0_lt_compat; lra]).
  split.
  - apply Rle_trans with (d * x / (1 + d * x)).
    + assert (T : exp (- (1.0008 * e * w)) <= 1 - 1.0003 * (e * w)).
      { set (q := e * w) in *. replace (1.0008 * e * w) with (1.0008 * q) in * by (unfold q; ring).
        assert (exp (- (1.0008 * q)) * (1 + 1.0008 * q) <= 1) by nra. apply Rmult_le_reg_r with (1 + 1.0008 * q); [lra|]. nra. }
      assert (V : 0 <= d * x) by (apply Rmult_le_pos; lra).
      apply Rle_trans with ((1 - 1.0003 * (e * w)) * (x / (1 + x))); [apply Rmult_le_compat_r; auto|].
      assert (0 <= 1 + d * x) by lra. apply Rmult_le_reg_r with (1 + d * x); [lra|].
      replace (d * x / (1 + d * x) * (1 + d * x)) with (x * d) by (field; lra).
      replace ((1 - 1.0003 * (e * w)) * (x / (1 + x)) * (1 + d * x)) with (x * ((1 - 1.0003 * (e * w)) * (w * (1 + d * x))))
        by (unfold w; field; lra).
      apply Rmult_le_compat_l; auto.
      assert (HH : w * (1 + d * x) = d + (1 - d) * w) by (replace (d + (1 - d) * w) with (d * (w * (1 + x)) + (1 - d) * w) by (rewrite WX; ring); ring).
      rewrite HH. assert (H1 : (1 - d) * w <= e * w) by (apply Rmult_le_compat_r; lra).
      assert (H2 : 0.99974 <= d) by lra. set (q := e * w) in *. assert (q * 0.99974 <= q * d) by (apply Rmult_le_compat_l; lra).
      assert (0 <= q * q) by (apply Rmult_le_pos; lra).
      apply Rle_trans with ((1 - 1.0003 * q) * (d + q)); [apply Rmult_le_compat_l; lra | lra].
    + apply Rmult_le_reg_r with ((1 + d * x) * (1 + y)); [apply Rmult_lt_0_compat; nra|].
      replace (d * x / (1 + d * x) * ((1 + d * x) * (1 + y))) with (d * x * (1 + y)) by (field; nra).
      replace (y / (1 + y) * ((1 + d * x) * (1 + y))) with (y * (1 + d * x)) by (field; nra). nra.
  - apply Rle_trans with (c * x / (1 + c * x)).
    + apply Rmult_le_reg_r with ((1 + c * x) * (1 + y)); [apply Rmult_lt_0_compat; nra|].
      replace (y / (1 + y) * ((1 + c * x) * (1 + y))) with (y * (1 + c * x)) by (field; nra).
      replace (c * x / (1 + c * x) * ((1 + c * x) * (1 + y))) with (c * x * (1 + y)) by (field; nra). nra.
    + apply Rle_trans with ((1 + 1.0008 * e * w) * (x / (1 + x))); [|apply Rmult_le_compat_r; [auto | lra]].
      apply Rmult_le_reg_r with (1 + c * x); [nra|]. replace (c * x / (1 + c * x) * (1 + c * x)) with (x * c) by (field; nra).
      replace ((1 + 1.0008 * e * w) * (x / (1 + x)) * (1 + c * x)) with (x * ((1 + 1.0008 * e * w) * (w * (1 + c * x)))) by (unfold w; field; lra).
      apply Rmult_le_compat_l; auto.
      assert (HH : w * (1 + c * x) = c - (c - 1) * w) by (replace (c - (c - 1) * w) with (c * (w * (1 + x)) - (c - 1) * w) by (rewrite WX; ring); ring).
      rewrite HH. assert (H1 : (c - 1) * w <= 1.00026 * e * w) by (apply Rmult_le_compat_r; lra). set (q := e * w) in *.
      replace (1.0008 * e * w) with (1.0008 * q) by (unfold q; ring). assert (q * 1 <= q * c) by (apply Rmult_le_compat_l; lra).
      assert (q * q <= q * (1/3900)) by (apply Rmult_le_compat_l; lra).
      assert (H4 : (c - 1) * w <= 1.00026 * q) by (unfold q; lra).
      apply Rle_trans with ((1 + 1.0008 * q) * (c - 1.00026 * q)); [lra | apply Rmult_le_compat_l; lra].
Qed.

Lemma near_inverse_fine e x y : 0 <= e <= 1/3900 -> 0 <= x -> near e x y -> near (1.0008 * e * (x / (1 + x))) (1 / (1 + x)) (1 / (1 + y)).
Proof.
  intros E [X | <-] N.
  - assert (Y : 0 < y) by (destruct N as [L _]; apply Rlt_le_trans with (2 := L); apply Rmult_lt_0_compat; [apply exp_pos | auto]).
    pose proof (Rinv_0_lt_compat _ X). apply near_inv in N; auto. apply near_fraction_fine in N; [|auto | lra].
    replace (x / (1 + x)) with (/ (1 + / x)) by (field; lra). replace (1 / (1 + x)) with (/ x / (1 + / x)) by (field; lra).
    replace (1 / (1 + y)) with (/ y / (1 + / y)) by (field; lra). auto.
  - unfold near in N. rewrite !Rmult_0_r in N. replace y with 0 by lra. unfold Rdiv. rewrite Rmult_0_l, Rmult_0_r. apply near_refl; lra.
Qed.

(** *** The steps of `finish`

    exp, log and log1p are any functions with these errors: two units, two units and four units; a result of exp near the smallest numbers
    has an absolute error of the smallest subnormal, 2 eta. *)

Definition elementary (Exp Log Log1p : R -> R) : Prop :=
  (forall x, wide_format x -> x <= 40 -> wide_format (Exp x) /\ within (2 * v) (2 * eta) (exp x) (Exp x)) /\
  (forall x, wide_format x -> 0 < x -> wide_format (Log x) /\ Rabs (Log x - ln x) <= 2 * v * Rabs (ln x)) /\
  (forall x, wide_format x -> 0 <= x -> wide_format (Log1p x) /\ near (4 * v) (ln (1 + x)) (Log1p x)).

Section Finish.
Variables Exp Log Log1p : R -> R.
Variables m zt s : R. (* the largest logit but the label's, the label's logit, and the computed sum *)

(** the names of the kernel; a < 0 if the label has more than half of the probability *)
Definition gap_ : R := rw (m - zt).
Definition low_ : R := (m - zt) - gap_. (* computed without an error, as m - zt - gap *)
Definition a_ : R := rw (gap_ + Log s).
Definition w_ (g l : R) : R := rw (Exp g + rw (Exp g * l)).
Definition inverse_s_ : R := rw (1 / s).
Definition odds_ : R := if Rlt_dec a_ 0 then rw (s * w_ gap_ low_) else rw (w_ (- gap_) (- low_) * inverse_s_).
Definition inverse_ : R := rw (1 / rw (1 + odds_)).
Definition nll_ : R := if Rlt_dec a_ 0 then Log1p odds_ else rw (a_ + Log1p odds_).
Definition miss_ : R := rw ((if Rlt_dec a_ 0 then odds_ else 1) * inverse_).
Definition unit_ : R := rw (miss_ * inverse_s_).

Hypothesis functions : elementary Exp Log Log1p.
Hypothesis small : v <= 1/50000.
Hypothesis smallest : (ew + pw <= -40)%Z. (* so that the inverses are normal *)
Hypothesis formats : wide_format m /\ wide_format zt /\ wide_format s.
Hypothesis s_is : 0.99 <= s /\ ln s <= 20.
Hypothesis moderate : v * Rabs (m - zt) <= 1/10000.

Notation G := (Rabs (m - zt)).
Notation tiny := (3.1 * eta * (1 + s)).

Lemma low_small : Rabs low_ <= v * G.
Proof.
  destruct formats as [M [Z _]]. unfold low_, gap_, rounded. unfold Rminus at 3. apply generic_format_opp in Z.
  destruct (FLT_plus_error_N_ex radix2 ew pw (fun x => negb (Z.even x)) m (- zt) M Z) as (d & D & E). rewrite unit_ro in D. rewrite E.
  replace (m - zt - (m + - zt) * (1 + d)) with (- d * (m - zt)) by ring. rewrite Rabs_mult, Rabs_Ropp.
  apply Rmult_le_compat_r; [apply Rabs_pos|]. apply Rle_trans with (1 := D). pose proof v_pos.
  apply Rmult_le_reg_r with (1 + v); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.

Lemma gap_format : wide_format gap_.
Proof. now apply rounded_format. Qed.

Lemma gap_low : gap_ + low_ = m - zt.
Proof. unfold low_. ring. Qed.

(** e^(g + l), where g is rounded and l small *)
Lemma w_within g l : wide_format g -> g <= 40 -> Rabs l <= 1/2000 -> within (3 * v + Rabs l) (3.05 * eta) (exp (g + l)) (w_ g l).
Proof.
  intros FG B L. destruct functions as (F & _ & _). destruct (F g FG B) as [FE WE]. clear F. unfold w_. set (e := Exp g) in *.
  pose proof v_pos as V. pose proof (tiny_pos ew) as T. pose proof (Rabs_pos l) as L0. pose proof (within_pos _ _ _ _ WE) as P.
  destruct (relative_error_N_FLT'_ex radix2 ew pw Hpw (fun x => negb (Z.even x)) (e * l)) as (d & t & D & T' & _ & E).
  rewrite unit_ro in D. fold ZnearestE in E. fold (rounded pw ew (e * l)) in E. fold eta in T'.
  assert (D' : Rabs d <= v). { apply Rle_trans with (1 := D). apply Rmult_le_reg_r with (1 + v); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. nra. }
  apply Rabs_le_inv in D'.
  assert (N : near (Rabs l) (exp l) (1 + l * (1 + d))).
  { unfold near. rewrite <- !exp_plus. destruct (Rle_dec 0 l) as [S|S].
    - rewrite Rabs_pos_eq in * by auto. replace (- l + l) with 0 by ring. rewrite exp_0. pose proof (exp_pos_ge (l + l)). nra.
    - rewrite Rabs_left in * by lra. replace (- l + l) with 0 by ring. rewrite exp_0. split; [|nra].
      rewrite Ropp_involutive. set (x := - l) in *. replace (l + l) with (- (2 * x)) by (unfold x; ring).
      replace l with (- x) by (unfold x; ring). pose proof (exp_pos_ge (2 * x)). pose proof (exp_minus (2 * x)).
      pose proof (exp_pos (- (2 * x))). assert (exp (- (2 * x)) * (1 + 2 * x) <= 1) by nra.
      apply Rmult_le_reg_r with (1 + 2 * x); [lra|]. nra. }
  assert (X : exp l <= 1.001).
  { pose proof (exp_le l (1/2000)). assert (l <= 1/2000) by (apply Rabs_le_inv in L; lra).
    pose proof (exp_minus_1 (1/2000) ltac:(lra)). lra. }
  replace (3 * v + Rabs l) with (2 * v + Rabs l + v) by ring. rewrite exp_plus.
  assert (Q : 0 <= e + rw (e * l)).
  { assert (rw (- e) <= rw (e * l)).
    { apply round_le; auto with typeclass_instances. apply Rabs_le_inv in L. nra. }
    replace (rw (- e)) with (- e) in H; [lra|]. symmetry. apply round_generic; auto with typeclass_instances. now apply generic_format_opp. }
  apply within_near_trans with (e + rw (e * l)).
  - apply within_mono with (2 * v + Rabs l) (2 * eta * exp l + 1.01 * eta); [lra | nra|].
    apply within_move with (e * (1 + l * (1 + d))); [lra | auto | | apply within_mul; auto; left; apply exp_pos].
    rewrite E. now replace (e + (e * l * (1 + d) + t) - e * (1 + l * (1 + d))) with t by ring.
  - apply rounded_plus_near; try exact _; auto. now apply rounded_format.
Qed.

(** the exact odds against or for the label, with the computed s *)
Notation odds := (if Rlt_dec a_ 0 then s * exp (m - zt) else exp (- (m - zt)) / s).

Lemma sign_of_sum x y : wide_format x -> wide_format y -> (rw (x + y) < 0 <-> x + y < 0).
Proof.
  intros X Y. destruct (FLT_plus_error_N_ex radix2 ew pw (fun x => negb (Z.even x)) x y X Y) as (d & D & E). rewrite unit_ro in D.
  fold ZnearestE in E. fold (rounded pw ew (x + y)) in E. rewrite E. pose proof v_pos.
  assert (v / (1 + v) < 1). { apply Rmult_lt_reg_r with (1 + v); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
  apply Rabs_le_inv in D. split; intros; nra.
Qed.

Lemma a_sign : a_ < 0 <-> gap_ + Log s < 0.
Proof. apply sign_of_sum; [now apply rounded_format | apply functions; [apply formats | lra]]. Qed.

Lemma log_s_error : Rabs (Log s - ln s) <= 2 * v * Rabs (ln s).
Proof. apply functions; [apply formats | lra]. Qed.

Lemma ln_s_above : -1/50 <= ln s.
Proof.
  destruct s_is as [S _]. rewrite <- (ln_exp (-1/50)). apply ln_le; [apply exp_pos|]. apply Rle_trans with (2 := S).
  pose proof (exp_minus_1 (1/50) ltac:(lra)). pose proof (exp_pos_ge (1/50)). pose proof (exp_minus (1/50)).
  replace (-1/50) with (- (1/50)) by lra. pose proof (exp_pos (- (1/50))). nra.
Qed.

(** 1 / s is not subnormal, nor is 1 / (1 + odds) *)
Lemma exp_20 : exp 20 <= bpow radix2 32.
Proof.
  change (bpow radix2 32) with 4294967296. assert (D : forall x, exp (2 * x) = exp x * exp x) by (intros x; rewrite <- exp_plus; f_equal; ring).
  replace 20 with (2 * (2 * (2 * (2 * 1) + 1))) by ring. rewrite !D, exp_plus, !D. pose proof exp_le_3. pose proof (exp_pos 1).
  set (x := exp 1) in *. assert (0 <= x * x <= 9) by nra. set (x2 := x * x) in *. assert (0 <= x2 * x2 <= 81) by nra. set (x4 := x2 * x2) in *.
  assert (0 <= x4 * x <= 243) by nra. set (x5 := x4 * x) in *. assert (0 <= x5 * x5 <= 59049) by nra. nra.
Qed.

Lemma s_below : s <= bpow radix2 32.
Proof. destruct s_is as [S1 S2]. rewrite <- (exp_ln s) by lra. apply Rle_trans with (2 := exp_20). now apply exp_le. Qed.

Lemma inverse_near x : 0 < x -> x <= bpow radix2 32 -> near v (/ x) (rw (1 / x)).
Proof.
  intros P L. unfold Rdiv. rewrite Rmult_1_l. apply rounded_normal; try exact _. apply Rle_trans with (bpow radix2 (- (32))); [apply bpow_le; lia|].
  rewrite bpow_opp. now apply Rinv_le_contravar.
Qed.

Lemma inverse_s : near v (/ s) inverse_s_.
Proof. apply inverse_near; [lra | apply s_below]. Qed.

(** a product with s has one rounding, a product with its inverse two *)
Notation of_odds := ((if Rlt_dec a_ 0 then 4 else 5) + G).

Lemma odds_steps : 0 <= odds /\ within (v * of_odds) tiny odds odds_ /\ wide_format odds_ /\ 0 <= odds_.
Proof.
  pose proof v_pos as V. pose proof low_small as L. pose proof gap_low as E. pose proof (tiny_pos ew) as T. pose proof log_s_error as LE.
  pose proof ln_s_above as LS. destruct s_is as [S1 S2]. pose proof a_sign as A. pose proof (Rabs_pos low_). pose proof (Rabs_pos (m - zt)).
  apply Rabs_le_inv in LE. assert (Rabs (ln s) <= 20) by (apply Rabs_le; lra).
  assert (O : within (v * of_odds) tiny odds odds_).
  { unfold odds_. destruct (Rlt_dec a_ 0) as [N | N].
    - apply A in N. assert (B : gap_ <= 40) by nra. pose proof (w_within gap_ low_ gap_format B ltac:(nra)) as W. rewrite E in W.
      rewrite (Rmult_comm s), (Rmult_comm s).
      apply within_mono with (0 + (3 * v + Rabs low_) + v) (3.05 * eta * s + 1.01 * eta); [nra | nra|].
      rewrite Rplus_0_l. apply rounded_within; auto; try exact _; try nra.
      replace (3 * v + Rabs low_) with (3 * v + Rabs low_ + 0) by ring. apply within_mul; auto; [lra|]. apply near_refl; lra.
    - assert (B : - gap_ <= 40) by (apply Rnot_lt_le in N; assert (~ gap_ + Log s < 0) by (intros Z; apply A in Z; lra); nra).
      pose proof (w_within (- gap_) (- low_) (generic_format_opp _ _ _ gap_format) B ltac:(rewrite Rabs_Ropp; nra)) as W. rewrite Rabs_Ropp in W.
      replace (- gap_ + - low_) with (- (m - zt)) in W by (rewrite <- E; ring).
      assert (I : 0 < / s) by (apply Rinv_0_lt_compat; lra).
      apply within_mono with (3 * v + Rabs low_ + v + v) (3.05 * eta * / s + 1.01 * eta); [nra | |].
      { assert (eta * / s <= eta * (1.0102)). { apply Rmult_le_compat_l; [lra|]. apply Rmult_le_reg_l with s; [lra|]. rewrite Rinv_r by lra. nra. }
        assert (eta * 0.99 <= eta * s) by (apply Rmult_le_compat_l; lra). lra. }
      apply rounded_within; auto; try exact _; try nra. apply within_mul; auto; [lra | apply inverse_s]. }
  split; [|split; [auto|split]].
  - destruct (Rlt_dec a_ 0); [apply Rmult_le_pos; [lra|] | apply Rmult_le_pos; [|left; apply Rinv_0_lt_compat; lra]]; left; apply exp_pos.
  - unfold odds_. destruct (Rlt_dec a_ 0); now apply rounded_format.
  - now apply within_pos with (1 := O).
Qed.

Lemma odds_within : 0 <= odds /\ within (v * (5 + G)) tiny odds odds_ /\ wide_format odds_ /\ 0 <= odds_.
Proof.
  destruct odds_steps as (O & W & F). split; [auto|]. split; [|auto]. pose proof v_pos. apply within_mono with (3 := W); [|lra].
  apply Rmult_le_compat_l; [lra|]. destruct (Rlt_dec a_ 0); lra.
Qed.

Lemma odds_below : odds <= 1.01.
Proof.
  pose proof v_pos as V. pose proof low_small as L. pose proof gap_low as E. pose proof log_s_error as LE. pose proof ln_s_above as LS.
  destruct s_is as [S1 S2]. pose proof a_sign as A. assert (Rabs (ln s) <= 20) by (apply Rabs_le; lra).
  assert (LE' : Rabs (Log s - ln s) <= 1/1000) by nra. assert (L' : Rabs low_ <= 1/1000) by lra. apply Rabs_le_inv in LE', L'.
  pose proof (exp_minus_1 (1/500) ltac:(lra)). destruct (Rlt_dec a_ 0) as [N | N].
  - apply A in N. replace (s * exp (m - zt)) with (exp (ln s + (m - zt))) by (rewrite exp_plus, exp_ln; lra).
    pose proof (exp_le (ln s + (m - zt)) (1/500)). lra.
  - assert (~ gap_ + Log s < 0) by (intros Z; apply A in Z; lra).
    replace (exp (- (m - zt)) / s) with (exp (- (m - zt) + - ln s)) by (rewrite exp_plus, (exp_Ropp (ln s)), exp_ln; [easy | lra]).
    pose proof (exp_le (- (m - zt) + - ln s) (1/500)). lra.
Qed.

Lemma tiny_below : tiny <= 1/50.
Proof.
  pose proof s_below as S. destruct s_is as [S1 _]. unfold half_tiny.
  assert (B : bpow radix2 ew * bpow radix2 32 <= bpow radix2 (-9)).
  { rewrite <- bpow_plus. apply bpow_le. unfold Prec_gt_0 in *. lia. }
  assert (B0 : 1 <= bpow radix2 32) by (change 1 with (bpow radix2 0); apply bpow_le; lia).
  change (bpow radix2 (-9)) with (/ 512) in B. pose proof (bpow_gt_0 radix2 ew). set (x := bpow radix2 ew) in *. set (y := bpow radix2 32) in *.
  assert (x * (1 + s) <= x * (2 * y)) by (apply Rmult_le_compat_l; lra). lra.
Qed.

Lemma one_wide_format : wide_format 1.
Proof. change 1 with (bpow radix2 0). apply generic_format_bpow. unfold FLT_exp, Prec_gt_0 in *. lia. Qed.

(** the inverse of 1 + odds *)
Lemma inverse_within : near (2 * v) (/ (1 + odds_)) inverse_.
Proof.
  destruct odds_within as (O & W & F & P). pose proof odds_below as OB. pose proof tiny_below as TB. pose proof v_pos as V.
  assert (D : near v (1 + odds_) (rw (1 + odds_))) by (apply rounded_plus_near; try exact _; auto using one_wide_format; lra).
  assert (B : odds_ <= 2).
  { apply within_error in W; [|pose proof (Rabs_pos (m - zt)); nra]. apply Rabs_le_inv in W.
    pose proof (exp_minus_1 (v * (5 + G))) as X. pose proof (Rabs_pos (m - zt)). set (e := v * (5 + G)) in *.
    assert (E0 : 0 <= e <= 1/1000) by (unfold e; nra). specialize (X ltac:(lra)). pose proof (exp_le e (1/1000) ltac:(lra)) as Y.
    pose proof (exp_minus_1 (1/1000) ltac:(lra)). assert (exp e <= 1.1) by lra. pose proof (exp_ge_1 e ltac:(lra)). nra. }
  replace (2 * v) with (v + v) by ring. apply near_trans with (/ rw (1 + odds_)); [apply near_inv; [lra | auto]|].
  destruct D as [D1 D2]. pose proof (exp_le v 1) as X. pose proof exp_le_3. pose proof (exp_pos (- v)).
  apply inverse_near; [apply Rlt_le_trans with (2 := D1); apply Rmult_lt_0_compat; lra|]. apply Rle_trans with (1 := D2).
  change (bpow radix2 32) with 4294967296. pose proof (exp_pos v). assert (exp v <= 3) by lra. nra.
Qed.

Lemma inverse_exact : rw inverse_ = inverse_.
Proof. apply round_generic; auto with typeclass_instances. now apply rounded_format. Qed.

Lemma ln_2_below : exp 0.67 <= 1.98.
Proof.
  pose proof (exp_minus_1 (0.67 / 32) ltac:(lra)) as E. assert (D : forall x, exp (2 * x) = exp x * exp x) by (intros x; rewrite <- exp_plus; f_equal; ring).
  replace 0.67 with (2 * (2 * (2 * (2 * (2 * (0.67 / 32)))))) by field. rewrite !D. set (x := exp (0.67 / 32)) in *.
  assert (0 <= x <= 1.0214) by (split; [left; apply exp_pos | lra]).
  assert (0 <= x * x <= 1.04326) by nra. set (x2 := x * x) in *. assert (0 <= x2 * x2 <= 1.0884) by nra. set (x4 := x2 * x2) in *.
  assert (0 <= x4 * x4 <= 1.18463) by nra. set (x8 := x4 * x4) in *. assert (0 <= x8 * x8 <= 1.40335) by nra. nra.
Qed.

Lemma softplus_above a : - (1/50) <= a -> 0.67 <= ln (1 + exp a).
Proof.
  intros A. rewrite <- (ln_exp 0.67). apply ln_le; [apply exp_pos|]. pose proof ln_2_below. pose proof (exp_pos_ge a). lra.
Qed.

(** a change of h of a number that is at least 0.67 *)
Lemma near_shift h x y : 0 <= h <= 1/50 -> 0.67 <= x -> Rabs (y - x) <= h -> near (1.6 * h) x y.
Proof.
  intros H X D. apply Rabs_le_inv in D. pose proof (exp_pos_ge (1.6 * h)). pose proof (exp_minus (1.6 * h)). pose proof (exp_pos (- (1.6 * h))).
  split; [|nra]. apply Rle_trans with (x - h); [|lra].
  assert (exp (- (1.6 * h)) * (1 + 1.6 * h) <= 1) by nra. apply Rmult_le_reg_r with (1 + 1.6 * h); [lra|]. nra.
Qed.

(** the loss of the label, - log yhat_t = log (1 + s e^(m - z_t)) *)
Lemma nll_within : within (v * (2.6 * G + 3.2 * Rabs (ln s) + 10)) (3.15 * eta * (1 + s)) (ln (1 + s * exp (m - zt))) nll_.
Proof.
  destruct odds_within as (O & W & F & P). pose proof v_pos as V. pose proof (Rabs_pos (m - zt)). pose proof (Rabs_pos (ln s)).
  pose proof low_small as L. pose proof gap_low as E. pose proof log_s_error as LE. pose proof ln_s_above as LS. pose proof a_sign as A.
  destruct s_is as [S1 S2]. pose proof (tiny_pos ew) as T. assert (T0 : 0 <= tiny) by nra.
  destruct functions as (_ & FL & F1). destruct (F1 odds_ F P) as [FS NS].
  destruct (FL s ltac:(apply formats) ltac:(lra)) as [FLs _]. clear F1 FL.
  apply within_log1p in W; [|nra|auto]. pose proof (within_near_trans _ _ _ _ _ _ W NS) as N. unfold nll_.
  destruct (Rlt_dec a_ 0) as [_ | B].
  - apply within_mono with (3 := N); nra.
  - assert (B' : 0 <= gap_ + Log s) by (apply Rnot_lt_le; intros Z; apply A in Z; lra).
    set (Q := ln (1 + exp (- (m - zt)) / s)) in *. set (x := gap_ + Log s) in *.
    assert (R : near v x a_) by (apply rounded_plus_near; try exact _; auto; now apply rounded_format).
    assert (Y : within (v * (9 + G) + v) tiny (x + Q) (rw (a_ + Log1p odds_))).
    { apply within_near_trans with (a_ + Log1p odds_).
      - rewrite <- (Rplus_0_l tiny). apply within_add.
        + apply within_near; auto. apply near_mono with v; [nra | auto | auto].
        + apply within_mono with (3 := N); [nra | lra].
      - apply rounded_plus_near; try exact _; auto; [now apply rounded_format|]. apply within_pos in N. apply near_pos in R; [lra | auto]. }
    assert (I : ln (1 + s * exp (m - zt)) = (m - zt + ln s) + Q).
    { unfold Q. replace (m - zt + ln s) with (ln (s * exp (m - zt))) by (rewrite ln_mult, ln_exp; [ring | lra | apply exp_pos]).
      pose proof (exp_pos (m - zt)). rewrite <- ln_mult; [|nra|].
      - f_equal. rewrite exp_Ropp. field. split; [apply Rgt_not_eq; apply exp_pos | lra].
      - apply Rplus_lt_le_0_compat; [lra | auto]. }
    set (h := v * G + 2 * v * Rabs (ln s)). assert (H1 : Rabs (x - (m - zt + ln s)) <= h).
    { replace (x - (m - zt + ln s)) with ((Log s - ln s) + - low_) by (unfold x; rewrite <- E; ring).
      eapply Rle_trans; [apply Rabs_triang|]. rewrite Rabs_Ropp. unfold h. lra. }
    assert (H3 : 0 <= h) by (unfold h; nra). assert (H2 : h <= 1/50). { unfold h. assert (Rabs (ln s) <= 20) by (apply Rabs_le; lra). nra. }
    assert (J : near (1.6 * h) (ln (1 + s * exp (m - zt))) (x + Q)).
    { apply near_shift; [lra | |]; rewrite I.
      - rewrite <- I. replace (s * exp (m - zt)) with (exp (m - zt + ln s)) by (rewrite exp_plus, exp_ln; [ring | lra]).
        apply softplus_above. apply Rabs_le_inv in H1. lra.
      - now replace (x + Q - (m - zt + ln s + Q)) with (x - (m - zt + ln s)) by ring. }
    apply within_mono with (1.6 * h + (v * (9 + G) + v)) (exp (1.6 * h) * tiny); [unfold h; nra | |].
    + pose proof (exp_le (1.6 * h) (1/100)). pose proof (exp_minus_1 (1/100) ltac:(lra)).
      assert (h <= 1/160); [|nra]. unfold h. assert (Rabs (ln s) <= 20) by (apply Rabs_le; lra). nra.
    + apply near_within with (3 := J); auto; [lra|]. left. rewrite <- ln_1. apply ln_increasing; [lra|]. pose proof (exp_pos (m - zt)). nra.
Qed.

(** 1 - yhat_t = s e^(m - z_t) / (1 + s e^(m - z_t)) *)
Lemma miss_within : within (v * (G + 7)) (tiny + 1.01 * eta) (s * exp (m - zt) / (1 + s * exp (m - zt))) miss_.
Proof.
  destruct odds_steps as (O & W & F & P). pose proof inverse_within as D. pose proof v_pos as V. pose proof (Rabs_pos (m - zt)).
  destruct s_is as [S1 S2]. pose proof (exp_pos (m - zt)) as X. pose proof (tiny_pos ew) as T. unfold miss_. destruct (Rlt_dec a_ 0) as [_ | _].
  - apply within_mono with (v * (4 + G) + 2 * v + v) (tiny + 1.01 * eta); [nra | lra|]. apply rounded_within; try exact _; [nra | nra|].
    apply within_near_trans with (odds_ / (1 + odds_)); [apply within_fraction; auto; nra|].
    rewrite <- (Rplus_0_l (2 * v)). apply near_mul; auto; [left; apply Rinv_0_lt_compat; lra | apply near_refl; lra].
  - rewrite Rmult_1_l, inverse_exact. replace (s * exp (m - zt) / (1 + s * exp (m - zt))) with (1 / (1 + exp (- (m - zt)) / s)).
    + apply within_mono with (v * (5 + G) + 2 * v) tiny; [nra | nra|].
      apply within_near_trans with (1 / (1 + odds_)); [apply within_inverse; auto; nra|]. unfold Rdiv. now rewrite Rmult_1_l.
    + rewrite exp_Ropp. field. repeat split; nra.
Qed.

(** miss, with an error that yhat_t multiplies *)
Lemma miss_fine : tiny <= v -> within (1.001 * (v * (5 + G)) * / (1 + s * exp (m - zt)) + 3 * v) (tiny + 1.01 * eta)
  (s * exp (m - zt) / (1 + s * exp (m - zt))) miss_.
Proof.
  intros FEW. destruct odds_within as (O & W & F & P). pose proof v_pos as V. pose proof (Rabs_pos (m - zt)). destruct s_is as [S1 S2].
  pose proof (exp_pos (m - zt)) as X. pose proof (tiny_pos ew) as T. unfold miss_. set (y := / (1 + s * exp (m - zt))).
  assert (SX : 0 < s * exp (m - zt)) by (apply Rmult_lt_0_compat; lra). pose proof (inverse_1_plus _ (Rlt_le _ _ SX)) as Y1. fold y in Y1.
  set (e := v * (5 + G)) in *. assert (E0 : 0 <= e <= 1/3900) by (unfold e; nra). assert (EY : 0 <= e * y <= e) by nra.
  assert (T0 : 0 <= tiny) by nra.
  pose proof inverse_within as D.
  destruct W as (x & X0 & XD & N). apply Rabs_le_inv in XD. pose proof (inverse_1_plus x X0) as W1.
  destruct (Rlt_dec a_ 0) as [_ | _].
  - replace (1.001 * e * y + 3 * v) with (1.001 * e * y + 2 * v + v) by ring. apply rounded_within; try exact _; [lra | lra|].
    set (o := s * exp (m - zt)) in *.
    assert (B : e * / (1 + x) <= e * y * 1.0001).
    { rewrite Rmult_assoc. apply Rmult_le_compat_l; [lra|]. apply Rmult_le_reg_r with ((1 + x) * (1 + o)); [apply Rmult_lt_0_compat; lra|].
      replace (/ (1 + x) * ((1 + x) * (1 + o))) with (1 + o) by (field; lra).
      replace (y * 1.0001 * ((1 + x) * (1 + o))) with (1.0001 * (1 + x)) by (unfold y; field; lra). lra. }
    pose proof (within_fraction 0 tiny o x ltac:(lra) ltac:(lra)) as Q.
    assert (A : within 0 tiny o x) by (exists x; split; [auto|]; split; [apply Rabs_le; lra | apply near_refl; lra]).
    apply within_mono with (0 + 1.0008 * e * / (1 + x) + 2 * v) tiny; [lra | lra|]. apply within_near_trans with (odds_ / (1 + odds_)).
    + apply within_near_trans with (x / (1 + x)); [now apply Q | now apply near_fraction_fine].
    + rewrite <- (Rplus_0_l (2 * v)). apply near_mul; auto; [left; apply Rinv_0_lt_compat; lra | apply near_refl; lra].
  - rewrite Rmult_1_l, inverse_exact. set (o := exp (- (m - zt)) / s) in *.
    assert (Z : s * exp (m - zt) / (1 + s * exp (m - zt)) = 1 / (1 + o)).
    { unfold o. rewrite exp_Ropp. field. repeat split; nra. }
    assert (Z' : y = o / (1 + o)). { unfold y, o. rewrite exp_Ropp. field. repeat split; nra. }
    rewrite Z.
    assert (B : x / (1 + x) <= y + tiny).
    { rewrite Z'. pose proof (within_fraction 0 tiny o x ltac:(lra) O) as Q. destruct Q as (q & _ & Q1 & Q2 & Q3).
      - exists x. split; [auto|]. split; [apply Rabs_le; lra | apply near_refl; lra].
      - rewrite Ropp_0, exp_0, !Rmult_1_l in *. apply Rabs_le_inv in Q1. lra. }
    assert (B' : e * (x / (1 + x)) <= e * y + e * tiny) by (rewrite <- Rmult_plus_distr_l; apply Rmult_le_compat_l; lra).
    assert (B2 : e * tiny <= 1/3900 * v) by (apply Rmult_le_compat; lra).
    pose proof (within_inverse 0 tiny o x ltac:(lra) O) as Q.
    assert (A : within 0 tiny o x) by (exists x; split; [auto|]; split; [apply Rabs_le; lra | apply near_refl; lra]).
    apply within_mono with (0 + 1.0008 * e * (x / (1 + x)) + 2 * v) tiny; [lra | lra|]. apply within_near_trans with (1 / (1 + odds_)).
    + apply within_near_trans with (1 / (1 + x)); [now apply Q | now apply near_inverse_fine].
    + unfold Rdiv. now rewrite Rmult_1_l.
Qed.

(** e^(m - lse) *)
Lemma unit_within : within (v * (G + 9)) (4.3 * eta * (1 + s)) (exp (m - zt) / (1 + s * exp (m - zt))) unit_.
Proof.
  pose proof v_pos as V. pose proof (Rabs_pos (m - zt)). destruct s_is as [S1 S2]. pose proof (tiny_pos ew) as T.
  pose proof (exp_pos (m - zt)) as X. assert (I : 0 < / s <= 1.02) by (split; [apply Rinv_0_lt_compat; lra |
    apply Rmult_le_reg_l with s; [lra|]; rewrite Rinv_r; nra]).
  apply within_mono with (v * (G + 7) + v + v) ((tiny + 1.01 * eta) * / s + 1.01 * eta); [nra | |].
  { assert (eta * 0.99 <= eta * s) by (apply Rmult_le_compat_l; lra).
    assert (eta * (/ s * s) = eta) by (rewrite Rinv_l; lra). assert (eta * / s <= eta * 1.02) by (apply Rmult_le_compat_l; lra). lra. }
  unfold unit_. apply rounded_within; try exact _; [nra | nra|].
  replace (exp (m - zt) / (1 + s * exp (m - zt))) with (s * exp (m - zt) / (1 + s * exp (m - zt)) * / s) by (field; split; nra).
  apply within_mul; [lra | apply miss_within | apply inverse_s].
Qed.
End Finish.

(** ** A row with a label *)

(** bounds.loss_bound *)
Definition loss_bound (u v depth n gap : R) : R := sum_bound u v depth n + v * (3 * gap + 4 * ln n + 14).

Section Row.
Variables Exp Log Log1p : R -> R.
Variables (n t : nat) (z : vec) (m depth lost c : R) (s : tree).

(** The functions have the stated errors; the numbers are floating-point numbers; m is the largest logit but the label's; s adds up the
    exponentials, as deep as stated; and the bound itself is small. *)
Record row_computed : Prop := {
  functions : elementary Exp Log Log1p;
  smallest : (en <= 0)%Z /\ (ew + pw <= -40)%Z;
  label_there : (t < n)%nat /\ (1 < n)%nat /\ ln (INR n) <= 19;
  formats : wide_format m /\ wide_format (z t);
  m_above : forall k, (k < n)%nat -> k <> t -> z k <= m;
  m_there : exists k, (k < n)%nat /\ k <> t /\ z k = m;
  summed : adds_up n t z m c lost s;
  as_deep : (narrow_depth s <= 2)%nat /\ 0 <= c /\ INR (wide_depth s) + c <= depth;
  little_lost : 0 <= lost /\ 20000 * (INR n * lost) <= u;
  small : loss_bound u v depth (INR n) (Rabs (m - z t)) <= 1/4000
}.
Hypothesis row : row_computed.

Notation G := (Rabs (m - z t)).
Notation exact_s := (sum_but t n (fun k => exp (z k - m))).
Notation E0 := (4 * u + v * (depth + 2 * ln (INR n))).
Notation E := (E0 + 4 * (INR n * lost)).
Notation s_ := (computed s).

Lemma s_between : 1 <= exact_s <= INR n - 1.
Proof.
  destruct row as [_ _ [T [N _]] _ M [k [K [KT KM]]] _ _ _ _]. split.
  - apply Rle_trans with (sum n (fun j => if Nat.eqb j k then (fun _ => 1) j else 0)); [now rewrite sum_only by auto; right|].
    apply sum_le. intros j J. destruct (Nat.eqb_spec j k) as [-> | _].
    + apply Nat.eqb_neq in KT. rewrite KT, KM, Rminus_diag, exp_0. lra.
    + destruct (Nat.eqb j t); [lra | left; apply exp_pos].
  - replace (INR n - 1) with (sum n (fun j => if Nat.eqb j t then 0 else 1)).
    + apply sum_le. intros j J. destruct (Nat.eqb_spec j t) as [| O]; [lra|]. rewrite <- exp_0. apply exp_le. specialize (M j J O). lra.
    + pose proof (sum_split n t (fun _ => 1) T) as S. unfold sum_but in S. rewrite sum_const in S. lra.
Qed.

Lemma row_numbers : 0 < u /\ 0 < v <= 1/56000 /\ 0 <= ln (INR n) /\ 0 <= depth /\ v * G <= 1/12000 /\ E0 <= 1/4000 /\ 0 <= INR n * lost /\
  0 <= v * (depth + 2 * ln (INR n)) /\ 0 <= v * ln (INR n) /\ 0 <= v * G.
Proof.
  destruct row as [_ _ [T [N _]] _ _ _ _ [_ [C D]] [L _] S]. unfold loss_bound, sum_bound in S. pose proof v_pos. pose proof u_pos.
  pose proof (ln_INR_nonneg n ltac:(lia)). pose proof (pos_INR (wide_depth s)). pose proof (Rabs_pos (m - z t)). pose proof (pos_INR n).
  assert (0 <= v * (depth + 2 * ln (INR n))) by nra. assert (0 <= v * G) by nra. assert (0 <= v * ln (INR n)) by nra.
  repeat split; try lra. now apply Rmult_le_pos.
Qed.

Lemma s_near : near E exact_s s_.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E1 & L0 & H1 & H2 & H3). pose proof s_between.
  destruct row as [_ _ [T [N _]] _ M _ S [D1 [C D2]] [L1 L2] _]. apply le_INR in D1. simpl (INR 2) in D1.
  pose proof (pos_INR (wide_depth s)). assert (v * (INR (wide_depth s) + c) <= v * depth) by (apply Rmult_le_compat_l; lra).
  assert (0 <= v * INR (wide_depth s)) by (apply Rmult_le_pos; lra). assert (0 <= v * ln (INR n)) by (apply Rmult_le_pos; lra).
  pose proof (sum_near n t z m c lost s ltac:(lia) C ltac:(lra) L1 ltac:(lra) M ltac:(lra) S) as X.
  apply near_mono with (3 := X); [|lra].
  unfold depth_error. assert (u * INR (narrow_depth s) <= u * 2) by (apply Rmult_le_compat_l; lra). lra.
Qed.

(** The computed sum has a relative error of at most sum_bound. *)
Theorem sum_of_exponentials : Rabs (s_ - exact_s) <= sum_bound u v depth (INR n) * exact_s.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E1 & L0 & H1 & H2 & H3). pose proof s_between. destruct row as [_ _ _ _ _ _ _ _ [_ L2] _].
  eapply Rle_trans; [apply near_error with (3 := s_near); lra|]. apply Rmult_le_compat_r; [lra|].
  eapply Rle_trans; [apply exp_minus_1; lra|]. unfold sum_bound. apply Rmult_le_reg_r with (1 - E); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.

Lemma s_computed : 0.99 <= s_ /\ ln s_ <= ln (INR n) + E /\ s_ <= 1.001 * (INR n - 1).
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E1 & L0 & H1 & H2 & H3). pose proof s_between as [S1 S2]. destruct row as [_ _ [_ [N _]] _ _ _ _ _ [_ L2] _].
  destruct s_near as [A B]. pose proof (exp_minus_1 E ltac:(lra)) as X. pose proof (exp_pos_ge (- E)). pose proof (exp_pos E).
  assert (Y : E / (1 - E) <= 1/1000) by (apply Rmult_le_reg_r with (1 - E); [lra|]; unfold Rdiv; rewrite Rmult_assoc, Rinv_l; lra).
  assert (S : 0.99 <= s_) by nra. split; [auto|]. split; [|nra].
  rewrite <- (ln_exp E), <- ln_mult by (try apply exp_pos; apply lt_0_INR; lia). apply ln_le; [lra|]. nra.
Qed.

Lemma nll_is : ln (1 + exact_s * exp (m - z t)) = lse n z - z t.
Proof.
  destruct row as [_ _ [T _] _ _ _ _ _ _ _]. unfold lse. rewrite (sum_split n t) by auto.
  replace (sum_but t n (fun i => exp (z i))) with (exp m * exact_s).
  - pose proof s_between. pose proof (exp_pos m). pose proof (exp_pos (z t)).
    replace (exp (z t) + exp m * exact_s) with (exp (z t) * (1 + exact_s * exp (m - z t))).
    + rewrite ln_mult, ln_exp; [ring | auto|]. pose proof (exp_pos (m - z t)). nra.
    + unfold Rminus. rewrite exp_plus, exp_Ropp. field. lra.
  - rewrite <- sum_but_scal. apply sum_but_ext. intros j _ _. rewrite <- exp_plus. f_equal. ring.
Qed.

Lemma softmax_label : softmax n z t = / (1 + exact_s * exp (m - z t)).
Proof.
  assert (L : ln (softmax n z t) = - ln (1 + exact_s * exp (m - z t))).
  { rewrite nll_is. unfold softmax, lse. destruct row as [_ _ [T _] _ _ _ _ _ _ _]. unfold Rdiv. rewrite ln_mult, ln_exp, ln_Rinv; [ring | ..];
    try apply Rinv_0_lt_compat; try apply exp_pos; apply expsum_pos; lia. }
  pose proof s_between. pose proof (exp_pos (m - z t)). assert (P : 0 < 1 + exact_s * exp (m - z t)) by nra.
  rewrite <- (exp_ln (/ _)) by now apply Rinv_0_lt_compat. rewrite ln_Rinv, <- L, exp_ln; auto.
  destruct row as [_ _ [T _] _ _ _ _ _ _ _]. apply softmax_positive. lia.
Qed.

Notation nll := (nll_ Exp Log Log1p m (z t) s_).
Notation miss := (miss_ Exp Log m (z t) s_).
Notation unit := (unit_ Exp Log m (z t) s_).

Lemma exp_minus_1_small x : 0 <= x -> x <= 1/3000 -> exp x - 1 <= (1 + 1/2500) * x.
Proof.
  intros X Y. eapply Rle_trans; [apply exp_minus_1; lra|]. apply Rmult_le_reg_r with (1 - x); [lra|].
  unfold Rdiv at 1. rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.

(** the relative error of a function of the sum, from that of the sum and that of the steps *)
Lemma from_sum (f : R -> R) e a y : 0 < f exact_s -> near E (f exact_s) (f s_) -> 0 <= a -> 0 <= e ->
  e <= v * (2.6 * G + 3.2 * (ln (INR n) + E) + 10) -> within e a (f s_) y ->
  within (E + e) (1.001 * a) (f exact_s) y /\
  Rabs (y - f exact_s) <= loss_bound u v depth (INR n) G * f exact_s + 1.002 * a.
Proof.
  intros P N A E1 B W. pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3).
  destruct row as [_ _ _ _ _ _ _ _ [_ L2] S]. unfold loss_bound in *. pose proof (Rabs_pos (m - z t)).
  assert (W' := near_within E e a _ _ _ ltac:(lra) (Rlt_le _ _ P) N W).
  set (w := v * ln (INR n)) in *. set (w' := v * G) in *. set (x := E + e) in *.
  assert (V2 : v * (2.6 * G + 3.2 * (ln (INR n) + E) + 10) <= 2.6 * w' + 3.2 * w + 11 * v).
  { assert (v * E <= v * (1/1000)) by (apply Rmult_le_compat_l; lra). unfold w, w'. lra. }
  assert (S' : 1.001 * E0 + 3 * w' + 4 * w + 14 * v <= 1/4000) by (unfold w, w', sum_bound in *; lra).
  assert (X0 : 0 <= x) by (unfold x; lra). assert (X : x <= 1/3000) by (unfold x; lra). pose proof (exp_minus_1_small x X0 X) as Y.
  assert (Q : exp x - 1 <= sum_bound u v depth (INR n) + v * (3 * G + 4 * ln (INR n) + 14)).
  { unfold sum_bound. replace (v * (3 * G + 4 * ln (INR n) + 14)) with (3 * w' + 4 * w + 14 * v) by (unfold w, w'; ring).
    apply Rle_trans with (1 := Y). assert (x <= 1.0001 * E0 + (2.6 * w' + 3.2 * w + 11 * v)) by (unfold x; lra). lra. }
  assert (Q1 : 0 < exp E <= exp x) by (split; [apply exp_pos | apply exp_le; unfold x; lra]). assert (Q2 : exp x <= 1.0005) by lra.
  split; [apply within_mono with (3 := W'); [lra | apply Rmult_le_compat_r; lra]|].
  apply within_error in W'; [|lra]. eapply Rle_trans; [apply W'|]. apply Rplus_le_compat; [apply Rmult_le_compat_r; lra|].
  assert (exp x * exp E <= 1.0005 * 1.0005) by (apply Rmult_le_compat; lra). rewrite <- Rmult_assoc. apply Rmult_le_compat_r; lra.
Qed.

Lemma computed_functions (P : Prop) :
  (elementary Exp Log Log1p -> v <= 1/50000 -> (ew + pw <= -40)%Z -> wide_format m /\ wide_format (z t) /\ wide_format s_ -> 0.99 <= s_ /\ ln s_ <= 20 ->
   v * G <= 1/10000 -> Rabs (ln s_) <= ln (INR n) + E -> P) -> P.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3). pose proof s_computed as (S1 & S2 & _). intros F.
  destruct row as [FF W [_ [_ L19]] [M M'] _ _ [SW _] _ [_ L2] _]. apply F; auto; try lra; try lia.
  { split; [auto|]. split; [auto | now apply well_made_wide]. }
  apply Rabs_le. split; [|lra]. destruct s_near as [A _]. pose proof s_between as [S _]. pose proof (exp_pos (- E)).
  assert (ln (exp (- E)) <= ln s_) by (apply ln_le; nra). rewrite ln_exp in *. lra.
Qed.

Theorem loss_of_label : Rabs (nll - (lse n z - z t)) <= loss_bound u v depth (INR n) G * (lse n z - z t) + 4 * INR n * eta.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3). pose proof s_computed as (S1 & S2 & S3). pose proof s_between.
  pose proof (tiny_pos ew). pose proof (exp_pos (m - z t)). apply computed_functions. intros F1 F2 F3 F4 F5 F6 F7. rewrite <- nll_is.
  destruct row as [_ _ [_ [N _]] _ _ _ _ _ [_ L2] _]. apply le_INR in N. simpl (INR 2) in N. pose proof (Rabs_pos (ln s_)).
  destruct (from_sum (fun s => ln (1 + s * exp (m - z t))) (v * (2.6 * G + 3.2 * Rabs (ln s_) + 10)) (3.15 * eta * (1 + s_)) nll) as [_ B].
  - rewrite <- ln_1. apply ln_increasing; nra.
  - apply near_log1p; [lra | nra|]. replace E with (E + 0) by ring. apply near_mul; [lra | lra | apply s_near | apply near_refl; lra].
  - nra.
  - apply Rmult_le_pos; [lra|]. pose proof (Rabs_pos (m - z t)). lra.
  - apply Rmult_le_compat_l; lra.
  - now apply nll_within.
  - eapply Rle_trans; [apply B|]. apply Rplus_le_compat_l. assert (eta * (1 + s_) <= eta * (1.001 * INR n)) by (apply Rmult_le_compat_l; lra). nra.
Qed.

Theorem probability_of_a_miss : Rabs (miss - (1 - softmax n z t)) <= loss_bound u v depth (INR n) G * (1 - softmax n z t) + 4 * INR n * eta.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3). pose proof s_computed as (S1 & S2 & S3). pose proof s_between.
  pose proof (tiny_pos ew). pose proof (exp_pos (m - z t)). apply computed_functions. intros F1 F2 F3 F4 F5 F6 F7. rewrite softmax_label.
  destruct row as [_ _ [_ [N _]] _ _ _ _ _ [_ L2] _]. apply le_INR in N. simpl (INR 2) in N.
  assert (P : 0 < exact_s * exp (m - z t)) by (apply Rmult_lt_0_compat; lra).
  replace (1 - / (1 + exact_s * exp (m - z t))) with (exact_s * exp (m - z t) / (1 + exact_s * exp (m - z t))) by (field; lra).
  destruct (from_sum (fun s => s * exp (m - z t) / (1 + s * exp (m - z t))) (v * (G + 7)) (3.1 * eta * (1 + s_) + 1.01 * eta) miss) as [_ B].
  - apply Rdiv_lt_0_compat; lra.
  - apply within_0. apply within_fraction; [lra | lra|]. apply within_near; [lra|].
    replace E with (E + 0) by ring. apply near_mul; [lra | lra | apply s_near | apply near_refl; lra].
  - nra.
  - pose proof (Rabs_pos (m - z t)). nra.
  - pose proof (Rabs_pos (m - z t)). apply Rmult_le_compat_l; lra.
  - now apply miss_within with Log1p.
  - eapply Rle_trans; [apply B|]. apply Rplus_le_compat_l. assert (eta * (1 + s_) <= eta * (1.001 * INR n)) by (apply Rmult_le_compat_l; lra).
    assert (eta * 2 <= eta * INR n) by (apply Rmult_le_compat_l; lra).
    assert (0 <= eta * INR n) by (apply Rmult_le_pos; lra). lra.
Qed.

(** e^(m - lse), the factor of the other predictions *)
Lemma unit_row : within (E + v * (G + 9)) (4.32 * INR n * eta) (exp (m - lse n z)) unit.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3). pose proof s_computed as (S1 & S2 & S3). pose proof s_between.
  pose proof (tiny_pos ew). pose proof (exp_pos (m - z t)) as X. apply computed_functions. intros F1 F2 F3 F4 F5 F6 F7.
  assert (P : 0 < exact_s * exp (m - z t)) by (apply Rmult_lt_0_compat; lra).
  replace (exp (m - lse n z)) with (exp (m - z t) / (1 + exact_s * exp (m - z t))).
  2:{ replace (m - lse n z) with ((m - z t) + - (lse n z - z t)) by ring. rewrite <- nll_is, exp_plus, exp_Ropp, exp_ln; [easy | lra]. }
  destruct row as [_ _ [_ [N _]] _ _ _ _ _ [_ L2] _]. apply le_INR in N. simpl (INR 2) in N.
  destruct (from_sum (fun s => exp (m - z t) / (1 + s * exp (m - z t))) (v * (G + 9)) (4.3 * eta * (1 + s_)) unit) as [W B].
  - apply Rdiv_lt_0_compat; lra.
  - replace E with (0 + E) by ring. apply near_div; [lra | lra | apply near_refl; lra|]. apply near_plus_1; [lra | lra|].
    replace E with (E + 0) by ring. apply near_mul; [lra | lra | apply s_near | apply near_refl; lra].
  - nra.
  - pose proof (Rabs_pos (m - z t)). nra.
  - pose proof (Rabs_pos (m - z t)). apply Rmult_le_compat_l; lra.
  - now apply unit_within with Log1p.
  - apply within_mono with (3 := W); [lra|]. assert (eta * (1 + s_) <= eta * (1.001 * INR n)) by (apply Rmult_le_compat_l; lra).
    assert (0 <= eta * INR n) by (apply Rmult_le_pos; lra). lra.
Qed.

(** *** The gradient at the label

    For a truth at the label alone it is - g mass (1 - yhat_t). *)

Definition label_entry_ (g mass miss : R) : R := rn (rw (g * rw (mass * miss))).

Theorem label_entry g mass : 0 <= g -> 0 <= mass -> 3.2 * INR n * eta <= v -> u <= 1/4000 ->
  Rabs (label_entry_ g mass miss - g * mass * (1 - softmax n z t)) <=
    1.001 * (loss_bound u v depth (INR n) G * softmax n z t + 14 * v + u) * (g * mass * (1 - softmax n z t)) +
    5 * INR n * eta * (g * mass) + 2 * eta * g + 2 * eta + 2 * half_tiny en.
Proof.
  intros P1 P2 FEW U1. pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3). pose proof s_computed as (S1 & S2 & S3).
  pose proof s_between. pose proof (tiny_pos ew) as T. pose proof (tiny_pos en) as T'. pose proof (exp_pos (m - z t)) as X. apply computed_functions.
  intros F1 F2 F3 F4 F5 F6 F7. rewrite softmax_label. destruct row as [_ _ [_ [N _]] _ _ _ _ _ [_ L2] SM]. apply le_INR in N. simpl (INR 2) in N.
  set (w0 := exp (m - z t)) in *. assert (X1 : 0 < exact_s * w0) by (apply Rmult_lt_0_compat; lra). assert (X2 : 0 < s_ * w0) by (apply Rmult_lt_0_compat; lra).
  pose proof (inverse_1_plus _ (Rlt_le _ _ X1)) as Y. set (y := / (1 + exact_s * w0)) in *.
  replace (1 - y) with (exact_s * w0 / (1 + exact_s * w0)) by (unfold y; field; lra). set (M := exact_s * w0 / (1 + exact_s * w0)).
  assert (NE : near E (exact_s * w0) (s_ * w0)) by (replace E with (E + 0) by ring; apply near_mul; [lra | lra | apply s_near | apply near_refl; lra]).
  assert (TN : 3.1 * eta * (1 + s_) <= 3.12 * INR n * eta).
  { assert (eta * (1 + s_) <= eta * (1.001 * INR n)) by (apply Rmult_le_compat_l; lra). assert (0 <= eta * INR n) by (apply Rmult_le_pos; lra). lra. }
  assert (W : within (1.001 * (v * (5 + G)) * / (1 + s_ * w0) + 3 * v) (3.1 * eta * (1 + s_) + 1.01 * eta) (s_ * w0 / (1 + s_ * w0)) miss).
  { apply miss_fine with Log1p; auto. assert (0 <= eta * INR n) by (apply Rmult_le_pos; lra). lra. }
  pose proof (near_fraction_fine E _ _ ltac:(lra) (Rlt_le _ _ X1) NE) as NF. fold y in NF. fold M in NF.
  assert (YS : / (1 + s_ * w0) <= 1.0005 * y).
  { pose proof (near_inv E (1 + exact_s * w0) (1 + s_ * w0) ltac:(lra) (near_plus_1 E _ _ ltac:(lra) (Rlt_le _ _ X1) NE)) as [_ B]. apply Rle_trans with (1 := B). fold y.
    apply Rmult_le_compat_r; [lra|]. pose proof (exp_minus_1_small E ltac:(lra) ltac:(lra)). lra. }
  assert (M0 : 0 <= M) by (unfold M; apply Rmult_le_pos; [lra | left; apply Rinv_0_lt_compat; lra]).
  set (q := v * (5 + G)) in *. assert (Q0 : 0 <= q <= 1/5000) by (unfold q; lra). assert (Q0' : 0 <= q) by lra.
  assert (QY : q * / (1 + s_ * w0) <= q * (1.0005 * y)) by (apply Rmult_le_compat_l; lra). pose proof (part_le E y ltac:(lra) ltac:(lra)) as EY.
  assert (QY0 : 0 <= q * / (1 + s_ * w0)) by (apply Rmult_le_pos; [lra | left; apply Rinv_0_lt_compat; lra]). pose proof (part_le q y Q0' ltac:(lra)) as QY1.
  apply (near_within (1.0008 * E * y) _ _ _ _ _ ltac:(lra) M0 NF) in W. set (e1 := 1.0008 * E * y + 1.002 * (q * y) + 3 * v).
  assert (ET : exp (1.0008 * E * y) <= 1.001) by (pose proof (exp_minus_1_small (1.0008 * E * y) ltac:(lra) ltac:(lra)); lra).
  assert (A : within e1 (3.2 * INR n * eta + 1.1 * eta) M miss).
  { apply within_mono with (3 := W); [unfold e1; lra|]. apply Rle_trans with (1.001 * (3.12 * INR n * eta + 1.01 * eta)).
    - assert (0 <= eta * (1 + s_)) by (apply Rmult_le_pos; lra). apply Rmult_le_compat; [left; apply exp_pos | lra | auto | lra].
    - assert (0 <= eta * INR n) by (apply Rmult_le_pos; lra). lra. }
  assert (E1 : 0 <= e1 <= 1/1500) by (unfold e1; lra).
  assert (A1 : within (e1 + v) ((3.2 * INR n * eta + 1.1 * eta) * mass + 1.01 * eta) (M * mass) (rw (mass * miss))).
  { apply rounded_within; try exact _; [lra | lra|]. rewrite (Rmult_comm mass). replace e1 with (e1 + 0) by ring.
    apply within_mul; auto. apply near_refl; lra. }
  assert (A2 : within (e1 + 2 * v) (((3.2 * INR n * eta + 1.1 * eta) * mass + 1.01 * eta) * g + 1.01 * eta) (M * mass * g) (rw (g * rw (mass * miss)))).
  { replace (e1 + 2 * v) with (e1 + v + v) by ring. apply rounded_within; try exact _; [lra | lra|]. rewrite (Rmult_comm g).
    replace (e1 + v) with (e1 + v + 0) by ring. apply within_mul; auto. apply near_refl; lra. }
  assert (A3 : within (e1 + 2 * v + u) (((3.2 * INR n * eta + 1.1 * eta) * mass + 1.01 * eta) * g + 1.01 * eta + 1.01 * half_tiny en) (M * mass * g)
    (label_entry_ g mass miss)) by (apply rounded_within; try exact _; auto; lra).
  apply within_error in A3; [|lra]. replace (g * mass * M) with (M * mass * g) by ring. apply Rle_trans with (1 := A3).
  set (e3 := e1 + 2 * v + u) in *. assert (E3 : 0 <= e3 <= 1/1001) by (unfold e3; lra). pose proof (exp_minus_1_1001 e3 ltac:(lra) ltac:(lra)) as Q.
  assert (GM : 0 <= g * mass) by now apply Rmult_le_pos. assert (GX : 0 <= M * mass * g) by (apply Rmult_le_pos; [apply Rmult_le_pos|]; auto).
  assert (NG : 0 <= INR n * eta * (g * mass)) by (apply Rmult_le_pos; [apply Rmult_le_pos|]; lra).
  assert (N2 : 2 * (eta * (g * mass)) <= INR n * eta * (g * mass)) by (rewrite Rmult_assoc; apply Rmult_le_compat_r; [apply Rmult_le_pos|]; lra).
  assert (EG : 0 <= eta * g) by (apply Rmult_le_pos; lra).
  assert (LBY : e3 <= loss_bound u v depth (INR n) G * y + 14 * v + u).
  { unfold e3, e1, loss_bound, sum_bound, q. set (w' := v * G) in *. set (w := v * ln (INR n)) in *.
    assert (E * y <= 1.0001 * E0 * y) by (apply Rmult_le_compat_r; lra). assert (0 <= w' * y) by (apply Rmult_le_pos; lra).
    assert (0 <= w * y) by (apply Rmult_le_pos; lra). assert (0 <= E0 * y) by (apply Rmult_le_pos; lra). pose proof (part_le v y ltac:(lra) ltac:(lra)).
    replace (v * (5 + G) * y) with (5 * (v * y) + w' * y) by (unfold w'; ring).
    replace ((1.001 * (4 * u + v * (depth + 2 * ln (INR n))) + v * (3 * G + 4 * ln (INR n) + 14)) * y) with
      (1.001 * (E0 * y) + 3 * (w' * y) + 4 * (w * y) + 14 * (v * y)) by (unfold w', w; ring). lra. }
  assert (B1 : (exp e3 - 1) * (M * mass * g) <= 1.001 * (loss_bound u v depth (INR n) G * y + 14 * v + u) * (M * mass * g))
    by (apply Rmult_le_compat_r; [auto | lra]).
  set (b := ((3.2 * INR n * eta + 1.1 * eta) * mass + 1.01 * eta) * g + 1.01 * eta + 1.01 * half_tiny en) in *.
  assert (B2 : b = 3.2 * (INR n * eta * (g * mass)) + 1.1 * (eta * (g * mass)) + 1.01 * (eta * g) + 1.01 * eta + 1.01 * half_tiny en)
    by (unfold b; ring).
  assert (B3 : 0 <= eta * (g * mass)) by (apply Rmult_le_pos; lra).
  assert (B4 : exp e3 * b <= 1.001 * b) by (apply Rmult_le_compat_r; lra). lra.
Qed.

(** *** The gradient at a class other than the label

    dz_k = g (mass yhat_k - r off_k). The factor of e_k is g mass e^(m - lse) and that of its block, in float64. The kernel multiplies it by
    a power of two, 2^i, and the result by 2^j, so that neither is subnormal; e_k has been multiplied by 2^-(i + j). In the same way, r g is
    multiplied by 2^h, and off_k by 2^-h. *)

Definition scale_ (g mass factor block : R) : R := rw (rw (rw (g * mass) * factor) * block).
Definition entry_ (scale drop e off : R) (i j h : Z) : R :=
  rn (rn (rn (e * rn (scale * bpow radix2 i)) * bpow radix2 j) - rn (drop * bpow radix2 h) * rn (off * bpow radix2 (- h))).

(** bounds.grad_bound, where 2 v distance is in place of 2 v gap *)
Definition grad_bound (u v depth n gap distance : R) : R := 5 * u + 2 * loss_bound u v depth n gap + 2 * v * distance.

Section Entry.
Variables (g mass mass_ lost_mass r off e block cb : R) (i j h : Z) (k : nat).
Notation LB := (loss_bound u v depth (INR n) G).
Notation eta_n := (half_tiny en).
Notation scale := (scale_ g mass_ unit block).
Notation drop := (rw (g * r)).
Notation power := (bpow radix2).

Record entry_computed : Prop := {
  other : (k < n)%nat /\ k <> t;
  not_negative : 0 <= g /\ 0 <= mass /\ 0 <= r /\ 0 <= off /\ 0 <= lost_mass;
  in_format : narrow_format e /\ narrow_format off;
  mass_near : within LB lost_mass mass mass_;
  e_near : 0 <= cb <= 4 /\ near (2 * u + cb * v + 2 * v * (m - z k)) (exp (z k - m)) (e * power (i + j) * block) /\
    0 <= e * power (i + j) <= 3/2 /\ 0 <= block;
  scaled : (i = 0%Z /\ e * power j <= 3/2 /\ (j <= 0)%Z) \/ (j = 0%Z /\ 0 <= e /\ power (en + pn - 1) <= scale * power i);
  balanced : (h = 0%Z \/ drop * power h <= 1) /\ (rn (drop * power h) = drop * power h \/ 1000 * v <= u);
  grad_small : grad_bound u v depth (INR n) G (m - z k) <= 1/2000;
  few : 4.32 * INR n * eta <= 1/1000
}.
Hypothesis entry : entry_computed.
Notation X := (g * mass * softmax n z k).

Lemma softmax_is : softmax n z k = exp (z k - m) * exp (m - lse n z).
Proof.
  destruct entry as [[K _] _ _ _ _ _ _ _ _]. unfold softmax, lse. rewrite <- exp_plus. replace (z k - m + (m - ln _)) with
    (z k + - ln (sum n (fun i => exp (z i)))) by ring. rewrite exp_plus, exp_Ropp, exp_ln; [easy | apply expsum_pos; lia].
Qed.

Lemma entry_numbers : 0 <= X /\ 0 <= exp (m - lse n z) <= 1 /\ 0 <= exp (z k - m) <= 1 /\ 0 <= LB <= 1/4000 /\ 0 <= u <= 1/10000 /\ 0 < v <= 1/56000 /\
  0 <= 2 * u + cb * v + 2 * v * (m - z k) <= 1/2000 /\ E + v * (G + 9) + (3 + cb) * v <= LB /\ 0 <= E + v * (G + 9) /\
  0 <= v * (m - z k) /\ 0 <= cb * v.
Proof.
  pose proof row_numbers as (U & V & L & D & G0 & E2 & L0 & H1 & H2 & H3). pose proof s_between as [S1 _]. pose proof (exp_pos (m - z t)).
  destruct entry as [[K KT] [P1 [P2 _]] _ _ [C _] _ _ S _]. destruct row as [_ _ [T [N _]] _ M _ _ _ [_ L2] SM].
  specialize (M k K KT). assert (Q : 0 <= v * (m - z k)) by (apply Rmult_le_pos; lra).
  assert (R : exp (m - lse n z) <= 1).
  { rewrite <- exp_0. apply exp_le. replace (m - lse n z) with (m - z t - ln (1 + exact_s * exp (m - z t))) by (rewrite nll_is; ring).
    assert (ln (exp (m - z t)) <= ln (1 + exact_s * exp (m - z t))) by (apply ln_le; nra). rewrite ln_exp in *. lra. }
  assert (R' : exp (z k - m) <= 1) by (rewrite <- exp_0; apply exp_le; lra).
  assert (W : 0 <= v * (m - z k) /\ 0 <= v * G) by (split; auto).
  assert (L67 : v * 0.67 <= v * ln (INR n)).
  { apply Rmult_le_compat_l; [lra|]. apply le_INR in N. simpl (INR 2) in N. rewrite <- (ln_exp 0.67). apply ln_le; [apply exp_pos|].
    pose proof ln_2_below. lra. }
  assert (B : 0 <= v * cb <= v * 4) by (split; [apply Rmult_le_pos | apply Rmult_le_compat_l]; lra).
  pose proof SM as SM'. unfold grad_bound in S. unfold loss_bound, sum_bound in *.
  repeat split; try lra; try (left; apply exp_pos).
  apply Rmult_le_pos; [apply Rmult_le_pos; lra | left; apply softmax_positive; lia].
Qed.

Lemma rounded_narrow d a x y : 0 <= d -> d + u <= 1/200 -> within d a x y -> within (d + u) (a + 1.01 * eta_n) x (rn y).
Proof. apply rounded_within; exact _. Qed.
Lemma rounded_wide d a x y : 0 <= d -> d + v <= 1/200 -> within d a x y -> within (d + v) (a + 1.01 * eta) x (rw y).
Proof. apply rounded_within; exact _. Qed.

Lemma scale_within :
  within (LB + (E + v * (G + 9)) + 3 * v) ((1.001 * (g * lost_mass) + 4.33 * INR n * eta * (g * mass) + 2.03 * eta) * block + 1.01 * eta)
    (g * mass * exp (m - lse n z) * block) scale.
Proof.
  destruct entry_numbers as (X0 & M0 & Z0 & L0 & U0 & V0 & K0 & S0 & E1 & _ & CB). destruct entry as [_ [P1 [P2 [P3 [P4 P5]]]] _ W [_ [_ [_ P6]]] _ _ _ FEW].
  pose proof (tiny_pos ew) as T. pose proof unit_row as R. unfold scale_.
  assert (N0 : 0 <= INR n * eta) by (apply Rmult_le_pos; [apply pos_INR | lra]).
  assert (A1 : within (LB + v) (g * lost_mass + 1.01 * eta) (g * mass) (rw (g * mass_))).
  { apply rounded_wide; [lra | lra|]. rewrite (Rmult_comm g mass), (Rmult_comm g lost_mass), (Rmult_comm g mass_).
    replace LB with (LB + 0) by ring. apply within_mul; auto. apply near_refl; lra. }
  assert (G1 : 0 <= g * mass) by now apply Rmult_le_pos. assert (G2 : 0 <= g * lost_mass) by now apply Rmult_le_pos.
  pose proof (within_product _ _ _ _ _ _ _ _ G1 (proj1 M0) A1 R) as A2. apply rounded_wide in A2; [|lra|lra].
  set (x := exp (m - lse n z)) in *. set (q := 4.32 * INR n * eta) in *. assert (Q : 0 <= q) by (unfold q; lra).
  assert (A3 : within (LB + (E + v * (G + 9)) + 2 * v) (1.001 * (g * lost_mass) + 4.33 * INR n * eta * (g * mass) + 2.03 * eta) (g * mass * x)
    (rw (rw (g * mass_) * unit))).
  { apply within_mono with (3 := A2); [lra|]. unfold q in *. set (y := g * mass) in *. set (y' := g * lost_mass) in *.
    assert ((y' + 1.01 * eta) * x <= (y' + 1.01 * eta) * 1) by (apply Rmult_le_compat_l; lra).
    assert ((y' + 1.01 * eta) * (4.32 * INR n * eta) <= (y' + 1.01 * eta) * (1/1000)) by (apply Rmult_le_compat_l; lra).
    assert (0 <= INR n * eta * y) by (apply Rmult_le_pos; lra). lra. }
  replace (LB + (E + v * (G + 9)) + 3 * v) with (LB + (E + v * (G + 9)) + 2 * v + 0 + v) by ring.
  apply rounded_wide; [lra | lra|]. apply within_mul; auto. apply near_refl; lra.
Qed.

Lemma first_part : within (LB + (LB + 4 * u + 2 * v * (m - z k)))
  (1.02 * (g * lost_mass) + 4.5 * INR n * eta * (g * mass) + 4 * eta + 3.7 * eta_n) X
  (rn (rn (e * rn (scale * power i)) * power j)).
Proof.
  destruct entry_numbers as (X0 & M0 & Z0 & L0 & U0 & V0 & K0 & S0 & E1 & D0 & CB).
  destruct entry as [_ [P1 [P2 [P3 [P4 P5]]]] [F1 F2] _ [[C0 C1] [NE [[B1 B2] P6]]] SC _ _ _].
  pose proof (tiny_pos ew) as T. pose proof (tiny_pos en) as T'. pose proof scale_within as A.
  assert (N0 : 0 <= INR n * eta) by (apply Rmult_le_pos; [apply pos_INR | lra]).
  assert (G1 : 0 <= g * mass) by now apply Rmult_le_pos. assert (G2 : 0 <= g * lost_mass) by now apply Rmult_le_pos.
  assert (G3 : 0 <= INR n * eta * (g * mass)) by now apply Rmult_le_pos.
  pose proof (bpow_gt_0 radix2 i) as PI. pose proof (bpow_gt_0 radix2 j) as PJ.
  assert (e0 : 0 <= e). { apply Rmult_le_reg_r with (power (i + j)); [apply bpow_gt_0 | lra]. }
  set (a := 1.001 * (g * lost_mass) + 4.33 * INR n * eta * (g * mass) + 2.03 * eta) in *. assert (A0 : 0 <= a) by (unfold a; lra).
  set (y := g * mass * exp (m - lse n z)) in *. set (e1 := LB + (E + v * (G + 9)) + 3 * v) in *.
  (* after the rounding to the compute type; the absolute error is 0 where the scale is multiplied by 2^i *)
  assert (A4 : exists b, 0 <= b /\ b * (e * power j) <= 1.6 * eta_n /\
    within (e1 + u) ((a * block + 1.01 * eta) * power i + b) (y * block * power i) (rn (scale * power i))).
  { assert (W : within e1 ((a * block + 1.01 * eta) * power i) (y * block * power i) (scale * power i)).
    { replace e1 with (e1 + 0) by ring. apply within_mul; auto; [lra | apply near_refl; lra]. }
    destruct SC as [[_ [B _]] | [J [_ N]]].
    - exists (1.01 * eta_n). split; [lra|]. split; [|apply rounded_narrow; unfold e1 in *; auto; lra].
      assert (eta_n * (e * power j) <= eta_n * (3/2)) by (apply Rmult_le_compat_l; lra). lra.
    - exists 0. split; [lra|]. split; [lra|]. rewrite Rplus_0_r. apply within_near_trans with (1 := W).
      apply rounded_normal; try exact _; lra. }
  destruct A4 as (b & b0 & b1 & A4).
  assert (A5 : within (e1 + 2 * u) (((a * block + 1.01 * eta) * power i + b) * e + 1.01 * eta_n) (y * block * power i * e)
    (rn (e * rn (scale * power i)))).
  { replace (e1 + 2 * u) with (e1 + u + 0 + u) by ring. apply rounded_narrow; [unfold e1 in *; lra | unfold e1 in *; lra|].
    rewrite (Rmult_comm e). apply within_mul; auto. apply near_refl; lra. }
  assert (J : power j <= 1).
  { change 1 with (power 0). apply bpow_le. destruct SC as [[_ [_ J]] | [-> _]]; lia. }
  set (a5 := ((a * block + 1.01 * eta) * power i + b) * e + 1.01 * eta_n) in *. set (p := rn (e * rn (scale * power i))) in *.
  assert (A6 : within (e1 + 2 * u) (a5 * power j + 1.01 * eta_n) (y * (e * power (i + j) * block)) (rn (p * power j))).
  { replace (y * (e * power (i + j) * block)) with (y * block * power i * e * power j) by (rewrite bpow_plus; ring).
    assert (W : within (e1 + 2 * u) (a5 * power j) (y * block * power i * e * power j) (p * power j)).
    { replace (e1 + 2 * u) with (e1 + 2 * u + 0) by ring. apply within_mul; auto; [lra | apply near_refl; lra]. }
    destruct (rounded_power pn en p j) as [Q | Q]; [now apply rounded_format | rewrite Q; apply within_mono with (3 := W); lra|].
    apply within_move with (4 := W); [unfold e1; lra | | auto]. apply (rounded_pos pn en). now apply within_pos with (1 := W). }
  assert (NX : near (2 * u + cb * v + 2 * v * (m - z k)) X (y * (e * power (i + j) * block))).
  { rewrite softmax_is. replace (g * mass * (exp (z k - m) * exp (m - lse n z))) with (exp (z k - m) * y) by (unfold y; ring).
    rewrite (Rmult_comm y). rewrite <- (Rplus_0_r (2 * u + _ + _)). assert (0 <= y) by (apply Rmult_le_pos; lra).
    apply near_mul; auto; [lra | apply near_refl; lra]. }
  set (ek := 2 * u + cb * v + 2 * v * (m - z k)) in *. pose proof (near_within _ _ _ _ _ _ (proj1 K0) X0 NX A6) as F.
  assert (EK : 1 <= exp ek <= 1.001). { pose proof (exp_pos_ge ek). pose proof (exp_minus_1 ek ltac:(lra)) as Q. split; [lra|].
    assert (ek / (1 - ek) <= 0.001); [|lra]. apply Rmult_le_reg_r with (1 - ek); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra. }
  apply within_mono with (3 := F); [unfold e1, ek; lra|].
  assert (H : e * power (i + j) * block <= 1.001).
  { destruct NE as [_ NE]. apply Rle_trans with (1 := NE). rewrite <- (Rmult_1_r 1.001). apply Rmult_le_compat; lra. }
  assert (H5 : a5 * power j + 1.01 * eta_n <= 1.001 * a + 1.52 * eta + 3.63 * eta_n).
  { unfold a5. replace ((((a * block + 1.01 * eta) * power i + b) * e + 1.01 * eta_n) * power j) with
      (a * (e * power (i + j) * block) + 1.01 * (eta * (e * power (i + j))) + b * (e * power j) + 1.01 * (eta_n * power j))
      by (rewrite bpow_plus; ring).
    assert (a * (e * power (i + j) * block) <= a * 1.001) by (apply Rmult_le_compat_l; lra).
    assert (eta * (e * power (i + j)) <= eta * (3/2)) by (apply Rmult_le_compat_l; lra).
    assert (eta_n * power j <= eta_n * 1) by (apply Rmult_le_compat_l; lra). lra. }
  apply Rle_trans with (1.001 * (1.001 * a + 1.52 * eta + 3.63 * eta_n)); [|unfold a; lra].
  assert (0 <= a5 * power j + 1.01 * eta_n). { destruct A6 as (w & _ & Q & _). apply Rle_trans with (2 := Q). apply Rabs_pos. }
  apply Rmult_le_compat; lra.
Qed.

Lemma second_part : within (1.001 * u)
  (1.02 * off * (eta + eta_n / power h) + 1.02 * eta_n) (g * r * off) (rn (drop * power h) * rn (off * power (- h))).
Proof.
  destruct entry_numbers as (_ & _ & _ & _ & U0 & V0 & _). destruct entry as [_ [P1 [_ [P3 [P4 _]]]] [_ F2] _ _ _ [B C] _ _].
  pose proof (tiny_pos ew) as T. pose proof (tiny_pos en) as T'. pose proof (bpow_gt_0 radix2 h) as PH. pose proof (bpow_gt_0 radix2 (- h)) as PH'.
  assert (I : power h * power (- h) = 1) by (rewrite <- bpow_plus; replace (h + - h)%Z with 0%Z by lia; easy).
  assert (I' : / power h = power (- h)) by (rewrite bpow_opp; easy). assert (GR : 0 <= g * r) by now apply Rmult_le_pos.
  assert (VU : v <= u) by (apply bpow_le; lia).
  assert (D : within v (1.01 * eta) (g * r) drop).
  { replace v with (0 + v) at 1 by ring. replace (1.01 * eta) with (0 + 1.01 * eta) by ring. apply rounded_wide; [lra | lra|].
    apply within_near; auto. apply near_refl; lra. }
  assert (D1 : within v (1.01 * eta * power h) (g * r * power h) (drop * power h)).
  { replace v with (v + 0) at 1 by ring. apply within_mul; auto; [lra | apply near_refl; lra]. }
  assert (D2 : within (1.001 * u) (1.01 * eta * power h + 1.01 * eta_n) (g * r * power h) (rn (drop * power h))).
  { destruct C as [-> | C]; [apply within_mono with (3 := D1); lra|].
    apply within_mono with (v + u) (1.01 * eta * power h + 1.01 * eta_n); [lra | lra | apply rounded_narrow; auto; lra]. }
  assert (W : within (1.001 * u) ((1.01 * eta * power h + 1.01 * eta_n) * (off * power (- h))) (g * r * off)
    (rn (drop * power h) * (off * power (- h)))).
  { replace (g * r * off) with (g * r * power h * (off * power (- h))) by (rewrite <- (Rmult_1_r (g * r * off)), <- I; ring).
    rewrite <- (Rplus_0_r (1.001 * u)). apply within_mul; auto; [|apply near_refl; [lra|]]; apply Rmult_le_pos; lra. }
  assert (M : (1.01 * eta * power h + 1.01 * eta_n) * (off * power (- h)) = 1.01 * off * (eta + eta_n / power h)).
  { unfold Rdiv. rewrite I'. replace (_ * (off * power (- h))) with
      (1.01 * eta * off * (power h * power (- h)) + 1.01 * eta_n * off * power (- h)) by ring. rewrite I. ring. }
  assert (N : 0 <= off * (eta + eta_n / power h)). { apply Rmult_le_pos; [auto|]. unfold Rdiv. rewrite I'.
    assert (0 <= eta_n * power (- h)) by (apply Rmult_le_pos; lra). lra. }
  rewrite M in W. destruct (rounded_power pn en off (- h) F2) as [Q | Q]; [rewrite Q; apply within_mono with (3 := W); lra|].
  destruct B as [-> | B].
  { replace (rn (off * power (- 0))) with (off * power (- 0)); [apply within_mono with (3 := W); lra|].
    change (power (- 0)) with 1. rewrite Rmult_1_r. symmetry. apply round_generic; auto with typeclass_instances. }
  assert (L : 0 <= rn (drop * power h) <= 1).
  { split; [apply (rounded_pos pn en); now apply within_pos with (1 := D1)|].
    replace 1 with (rn 1); [apply round_le; auto with typeclass_instances|]. apply round_generic; auto with typeclass_instances.
    change 1 with (bpow radix2 0). apply generic_format_bpow. destruct row as [_ E0 _ _ _ _ _ _ _ _]. unfold FLT_exp, Prec_gt_0 in *. lia. }
  apply within_mono with (1.001 * u) (1.01 * off * (eta + eta_n / power h) + 1.01 * eta_n); [lra | lra|].
  apply within_move with (4 := W); [lra | |].
  - apply Rmult_le_pos; [lra | apply (rounded_pos pn en); apply Rmult_le_pos; lra].
  - rewrite <- Rmult_minus_distr_l, Rabs_mult, (Rabs_pos_eq (rn (drop * _))) by lra. rewrite <- (Rmult_1_l eta_n) at 1.
    apply Rmult_le_compat; auto using Rabs_pos; lra.
Qed.

(** An entry of the gradient. The last two terms are those of numbers near the smallest ones: the smallest numbers of float64 and of the
    compute type are 2 eta and 2 eta_n. If h = 0, a subnormal r g would cost eta_n off_k. *)
Theorem other_entry :
  Rabs (entry_ scale drop e off i j h - (X - g * r * off)) <=
    1.001 * (grad_bound u v depth (INR n) G (m - z k) * X + 2 * u * (g * r * off)) +
    1.03 * (g * lost_mass) + 5 * INR n * eta * (g * mass) + 5 * eta + 6 * eta_n + 1.03 * off * (eta + eta_n / power h).
Proof.
  destruct entry_numbers as (X0 & M0 & Z0 & L0 & U0 & V0 & K0 & S0 & E1 & D0 & CB).
  pose proof first_part as A. pose proof second_part as B. destruct entry as [_ [P1 [P2 [P3 [P4 P5]]]] _ _ _ _ _ S _].
  assert (Y0 : 0 <= g * r * off) by (apply Rmult_le_pos; [apply Rmult_le_pos|]; auto). unfold entry_.
  set (a := rn (rn (e * rn (scale * power i)) * power j)) in *. set (b := rn (drop * power h) * rn (off * power (- h))) in *.
  pose proof (within_pos _ _ _ _ A) as A0. pose proof (within_pos _ _ _ _ B) as B0.
  destruct (relative_error_N_FLT'_ex radix2 en pn Hpn (fun x => negb (Z.even x)) (a - b)) as (d & t' & D & T & _ & R).
  rewrite unit_ro in D. fold ZnearestE in R. fold (rn (a - b)) in R. fold eta_n in T. rewrite R.
  assert (D' : Rabs d <= u). { apply Rle_trans with (1 := D). apply Rmult_le_reg_r with (1 + u); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. nra. }
  assert (H : forall e' a' x y, 0 <= e' -> e' + u <= 1/1100 -> 0 <= x -> within e' a' x y -> Rabs (y - x) + u * y <= (exp (e' + u) - 1) * x + 1.001 * a').
  { intros e' a' x y E' E'' X' W'. destruct W' as (w & W0 & W1 & W2).
    pose proof (near_error _ _ _ E' W0 W2) as Q. destruct W2 as [_ W2]. pose proof (exp_pos_ge u). pose proof (exp_ge_1 e' E').
    pose proof (exp_minus_1 (e' + u) ltac:(lra)) as Q2. rewrite exp_plus in *. set (c1 := exp e') in *. set (c2 := exp u) in *.
    assert (Q3 : (e' + u) / (1 - (e' + u)) <= 0.001) by
      (apply Rmult_le_reg_r with (1 - (e' + u)); [lra|]; unfold Rdiv; rewrite Rmult_assoc, Rinv_l; lra).
    assert (Q4 : Rabs (y - x) <= (c1 - 1) * w + Rabs (w - x)).
    { replace (y - x) with ((y - w) + (w - x)) by ring. eapply Rle_trans; [apply Rabs_triang | lra]. }
    assert (Q5 : u * y <= u * (c1 * w)) by (apply Rmult_le_compat_l; lra).
    assert (Q6 : c1 * (1 + u) * w <= c1 * c2 * w) by (apply Rmult_le_compat_r; [auto | apply Rmult_le_compat_l; lra]).
    assert (Q9 : 1 <= c1 * c2) by (rewrite <- (Rmult_1_l 1); apply Rmult_le_compat; lra).
    assert (Q7 : (c1 * c2 - 1) * w <= (c1 * c2 - 1) * (x + Rabs (w - x))).
    { apply Rmult_le_compat_l; [lra|]. pose proof (Rle_abs (w - x)). lra. }
    assert (Q8 : c1 * c2 * Rabs (w - x) <= 1.001 * a') by (apply Rmult_le_compat; auto using Rabs_pos; lra). lra. }
  set (aA := 1.02 * (g * lost_mass) + _ + _ + _) in *. set (aB := 1.02 * off * _ + _) in *. set (eA := LB + (LB + 4 * u + 2 * v * (m - z k))) in *.
  assert (G1 : eA + u = grad_bound u v depth (INR n) G (m - z k)) by (unfold eA, grad_bound; ring). rewrite <- G1 in *.
  apply H in A; [|unfold eA; lra | lra | auto]. apply H in B; [|lra | lra | auto].
  assert (EA : exp (eA + u) - 1 <= 1.001 * (eA + u)).
  { assert (0 <= eA + u) by (unfold eA; lra). apply exp_minus_1_1001; lra. }
  assert (EB : exp (1.001 * u + u) - 1 <= 1.001 * (2 * u)).
  { pose proof (exp_minus_1_small (1.001 * u + u) ltac:(lra) ltac:(lra)). lra. }
  assert (F : Rabs ((a - b) * (1 + d) + t' - (X - g * r * off)) <= Rabs (a - X) + u * a + (Rabs (b - g * r * off) + u * b) + eta_n).
  { replace ((a - b) * (1 + d) + t' - (X - g * r * off)) with ((a - X) + - (b - g * r * off) + d * (a - b) + t') by ring.
    assert (Rabs (d * (a - b)) <= u * (a + b)).
    { rewrite Rabs_mult. apply Rmult_le_compat; auto using Rabs_pos. apply Rabs_le. lra. }
    pose proof (Rabs_triang ((a - X) + - (b - g * r * off) + d * (a - b)) t'). pose proof (Rabs_triang ((a - X) + - (b - g * r * off)) (d * (a - b))).
    pose proof (Rabs_triang (a - X) (- (b - g * r * off))) as Q. rewrite Rabs_Ropp in Q. lra. }
  apply Rle_trans with (1 := F). assert ((exp (eA + u) - 1) * X <= 1.001 * (eA + u) * X) by (apply Rmult_le_compat_r; auto).
  assert ((exp (1.001 * u + u) - 1) * (g * r * off) <= 1.001 * (2 * u) * (g * r * off)) by (apply Rmult_le_compat_r; auto).
  assert (N0 : 0 <= INR n * eta * (g * mass)).
  { apply Rmult_le_pos; [apply Rmult_le_pos; [apply pos_INR | left; apply (tiny_pos ew)] | now apply Rmult_le_pos]. }
  assert (0 <= g * lost_mass) by now apply Rmult_le_pos. pose proof (tiny_pos ew). pose proof (tiny_pos en).
  assert (0 <= off * (eta + eta_n / power h)). { apply Rmult_le_pos; [auto|]. pose proof (bpow_gt_0 radix2 h).
    assert (0 <= eta_n / power h) by (apply Rmult_le_pos; [lra | left; now apply Rinv_0_lt_compat]). lra. }
  unfold aA, aB in *. lra.
Qed.
End Entry.
End Row.
End Kernel.

(** ** The hypotheses can be met

    In float32 and float64, with correctly rounded functions, for a row of two classes. *)

Section Example.
Notation wide := (generic_format radix2 (FLT_exp (-1074) 53)).
Notation rw := (rounded 53 (-1074)).
Notation v := (unit_roundoff 53).
Instance narrow_precision : Prec_gt_0 24 := eq_refl.
Instance wide_precision : Prec_gt_0 53 := eq_refl.

Definition example_exp (x : R) : R := rw (exp x).
Definition example_log (x : R) : R := rw (ln x).
Definition example_log1p (x : R) : R := if Rle_dec v x then rw (ln (1 + x)) else x.

Lemma v_is : 0 < v <= 1/100000000.
Proof.
  unfold unit_roundoff. split; [apply bpow_gt_0|]. apply Rle_trans with (bpow radix2 (-30)); [apply bpow_le; lia|].
  simpl. lra.
Qed.

Lemma one_wide : wide 1.
Proof. change 1 with (bpow radix2 0). apply generic_format_bpow. easy. Qed.

Lemma log_not_small x : wide x -> 0 < x -> x <> 1 -> / 2 * v <= Rabs (ln x).
Proof.
  intros F P N. pose proof v_is as V. destruct (Rle_lt_dec x 1) as [L | L].
  - assert (Q : x <= 1 - v).
    { replace (1 - v) with (pred radix2 (FLT_exp (-1074) 53) (bpow radix2 0)).
      - apply pred_ge_gt; auto using one_wide with typeclass_instances. change (bpow radix2 0) with 1. lra.
      - rewrite pred_bpow by auto with typeclass_instances. easy. }
    assert (ln x <= x - 1) by (pose proof (exp_pos_ge (ln x)) as E; rewrite exp_ln in E; lra). rewrite Rabs_left by lra. lra.
  - assert (Q : 1 + v <= x).
    { apply Rle_trans with (succ radix2 (FLT_exp (-1074) 53) 1).
      - rewrite succ_eq_pos by lra. apply Rplus_le_compat_l. change 1 with (bpow radix2 0). rewrite ulp_bpow. apply bpow_le. easy.
      - apply succ_le_lt; auto using one_wide with typeclass_instances. }
    assert (v / 2 <= ln (1 + v)).
    { rewrite <- (ln_exp (v / 2)). apply ln_le; [apply exp_pos|]. pose proof (exp_minus_1 (v / 2) ltac:(lra)) as E.
      assert (v / 2 / (1 - v / 2) <= v); [|lra]. apply Rmult_le_reg_r with (1 - v / 2); [lra|]. unfold Rdiv at 1. rewrite Rmult_assoc, Rinv_l by lra. nra. }
    assert (ln (1 + v) <= ln x) by (apply ln_le; lra). rewrite Rabs_pos_eq; lra.
Qed.

Lemma normal_is_small : bpow radix2 (-1074 + 53 - 1) <= / 2 * v * / 2.
Proof.
  replace (/ 2 * v * / 2) with (bpow radix2 (- (53) + -2)); [now apply bpow_le|].
  rewrite bpow_plus. fold v. change (bpow radix2 (-2)) with (/ 4). field.
Qed.

Lemma elementary_example : elementary 53 (-1074) example_exp example_log example_log1p.
Proof.
  pose proof v_is as V. pose proof (tiny_pos (-1074)) as T. pose proof normal_is_small as S. split; [|split].
  - intros x _ _. split; [now apply rounded_format|]. apply within_mono with (0 + v) (0 + 1.01 * half_tiny (-1074)); [lra | lra|].
    apply rounded_within; try exact _; [lra | lra|]. apply within_near; [left; apply exp_pos | apply near_refl; [lra | left; apply exp_pos]].
  - intros x F P. split; [now apply rounded_format|]. unfold example_log, rounded. destruct (Req_dec x 1) as [-> | N].
    + rewrite ln_1, round_0, Rminus_0_r, !Rabs_R0 by auto with typeclass_instances. lra.
    + pose proof (log_not_small x F P N). pose proof (relative_error_N_FLT radix2 (-1074) 53 eq_refl (fun x => negb (Z.even x)) (ln x) ltac:(lra)) as E.
      fold (u_ro radix2 53) in E. rewrite unit_ro in E. eapply Rle_trans; [apply E|]. pose proof (Rabs_pos (ln x)). nra.
  - intros x F P. unfold example_log1p. destruct (Rle_dec v x) as [L | L].
    + split; [now apply rounded_format|]. assert (v / 2 <= ln (1 + x)).
      { rewrite <- (ln_exp (v / 2)). apply ln_le; [apply exp_pos|]. pose proof (exp_minus_1 (v / 2) ltac:(lra)) as E.
        assert (v / 2 / (1 - v / 2) <= v); [|lra]. apply Rmult_le_reg_r with (1 - v / 2); [lra|]. unfold Rdiv at 1. rewrite Rmult_assoc, Rinv_l by lra. nra. }
      apply near_mono with v; [lra | lra | apply rounded_normal; try exact _; lra].
    + split; [auto|]. apply near_mono with x; [lra | rewrite <- ln_1; apply ln_le; lra|]. pose proof (exp_pos_ge x) as E. split.
      * assert (ln (1 + x) <= x) by (rewrite <- (ln_exp x) at 2; apply ln_le; lra). assert (0 <= ln (1 + x)) by (rewrite <- ln_1; apply ln_le; lra).
        assert (exp (- x) <= 1) by (rewrite <- exp_0; apply exp_le; lra). pose proof (exp_pos (- x)). nra.
      * assert (x / (1 + x) <= ln (1 + x)).
        { replace (ln (1 + x)) with (- ln (/ (1 + x))) by (rewrite ln_Rinv; lra). pose proof (exp_pos_ge (ln (/ (1 + x)))) as Q.
          rewrite exp_ln in Q by (apply Rinv_0_lt_compat; lra). replace (x / (1 + x)) with (1 - / (1 + x)) by (field; lra). lra. }
        apply Rle_trans with ((1 + x) * (x / (1 + x))); [right; field; lra|].
        assert (0 <= x / (1 + x)) by (apply Rmult_le_pos; [lra | left; apply Rinv_0_lt_compat; lra]). apply Rmult_le_compat; lra.
Qed.

(** logits 0 and 0, and the label 1 *)
Notation sum_of_one := (Wide (Leaf 1) (Leaf 0)).
Notation in_float32 := (generic_format radix2 (FLT_exp (-149) 24)).

Lemma formats_0_1 : in_float32 0 /\ in_float32 1 /\ wide 0 /\ computed 24 (-149) 53 (-1074) sum_of_one = 1.
Proof.
  repeat split; try apply generic_format_0.
  - change 1 with (bpow radix2 0). now apply generic_format_bpow.
  - simpl. rewrite Rplus_0_r. apply round_generic; auto using one_wide with typeclass_instances.
Qed.

Theorem a_row_is_computed :
  row_computed 24 (-149) 53 (-1074) example_exp example_log example_log1p 2 1 (fun _ => 0) 0 1 0 0 sum_of_one.
Proof.
  destruct formats_0_1 as (F0 & F1 & W0 & _). pose proof (unit_pos 24) as U. assert (L : 0 <= ln (INR 2) <= 1).
  { simpl. split; [rewrite <- ln_1; apply ln_le; lra|]. pose proof (exp_pos_ge 1).
    apply Rle_trans with (ln (exp 1)); [apply ln_le; lra | rewrite ln_exp; lra]. }
  split; auto using elementary_example; try lia; try lra.
  - split; [lia|]. split; [lia | lra].
  - intros. lra.
  - exists 0%nat. repeat split; auto.
  - split; [repeat split; auto; lra|]. exists (fun k => if Nat.eqb k 1 then 0 else 1). split.
    + simpl. ring.
    + intros k K. destruct (Nat.eqb k 1); [auto|]. right. rewrite Rminus_diag, exp_0, Rminus_diag, Rabs_R0. lra.
  - simpl. split; [auto|]. lra.
  - pose proof v_is as V. rewrite Rminus_diag, Rabs_R0. unfold loss_bound, sum_bound.
    assert (unit_roundoff 24 <= 1/20000). { unfold unit_roundoff. apply Rle_trans with (bpow radix2 (-15)); [now apply bpow_le | simpl; lra]. } nra.
Qed.
End Example.

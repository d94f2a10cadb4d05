(** * The gradient of softmax followed by cross-entropy, for every size

    Every line of the derivations of derivation.py, and what softxent builds on them, for ALL sizes n, all real scores z and all
    real truths y. A derivative is a true limit ([derivable_pt_lim] of the standard library) of a function of one coordinate, the
    others held fixed. The theorem name_n says that line n of the derivation follows from the line before; where a derivative occurs
    inside a line, it is a number d1 (in a sum: one for each index) of which it is given that it is that derivative. The theorem name
    is the conclusion, from the first line to the last. Hypotheses that a line does not need come with its derivation. *)

From Coq Require Import Reals Lra Lia List Permutation.
Import ListNotations.
Open Scope R_scope.

(** ** Vectors, sums and derivatives *)

Definition vec := nat -> R.

(** f 0 + ... + f (n - 1) *)
Fixpoint sum (n : nat) (f : vec) : R := match n with O => 0 | S m => sum m f + f m end.

(** 1 if j = k, else 0 *)
Definition delta (j k : nat) : R := if Nat.eqb j k then 1 else 0.

(** the sum over every j but k *)
Definition sum_but (k n : nat) (f : vec) : R := sum n (fun j => if Nat.eqb j k then 0 else f j).

(** z with t as its coordinate k, and the derivative of f by the coordinate k, at z *)
Definition set (z : vec) (k : nat) (t : R) : vec := fun i => if Nat.eqb i k then t else z i.
Definition partial (f : vec -> R) (k : nat) (z : vec) (d : R) : Prop := derivable_pt_lim (fun t => f (set z k t)) (z k) d.

(** the same for a matrix *)
Definition set2 (W : nat -> vec) (k d : nat) (t : R) : nat -> vec := fun i => if Nat.eqb i k then set (W i) d t else W i.
Definition partial2 (f : (nat -> vec) -> R) (k d : nat) (W : nat -> vec) (v : R) : Prop :=
  derivable_pt_lim (fun t => f (set2 W k d t)) (W k d) v.

Definition softmax (n : nat) (z : vec) : vec := fun j => exp (z j) / sum n (fun i => exp (z i)).
Definition cross_entropy (n : nat) (y yhat : vec) : R := - sum n (fun j => y j * ln (yhat j)).
Definition loss (n : nat) (y z : vec) : R := cross_entropy n y (softmax n z).
Definition lse (n : nat) (z : vec) : R := ln (sum n (fun i => exp (z i))).
Definition gradient (n : nat) (y z : vec) : vec := fun k => sum n y * softmax n z k - y k.
Definition mean (n : nat) (z v : vec) : R := sum n (fun j => softmax n z j * v j).

(** *** Sums *)

Ltac by_index := unfold delta, set, set2 in *;
  repeat match goal with |- context [Nat.eqb ?a ?b] => destruct (Nat.eqb_spec a b); subst end; try lra; try lia; auto.

Lemma sum_ext n f g : (forall j, (j < n)%nat -> f j = g j) -> sum n f = sum n g.
Proof. induction n; simpl; intros E; [easy|]. rewrite IHn, E; auto. Qed.

Lemma sum_add n f g : sum n (fun j => f j + g j) = sum n f + sum n g.
Proof. induction n; simpl; lra. Qed.

Lemma sum_scal n c f : sum n (fun j => c * f j) = c * sum n f.
Proof. induction n; simpl; [|rewrite IHn]; lra. Qed.

Lemma sum_zero n : sum n (fun _ => 0) = 0.
Proof. induction n; simpl; lra. Qed.

Lemma sum_const n c : sum n (fun _ => c) = INR n * c.
Proof. induction n; simpl sum; [simpl|rewrite IHn, S_INR]; lra. Qed.

Lemma sum_le n f g : (forall j, (j < n)%nat -> f j <= g j) -> sum n f <= sum n g.
Proof. induction n; simpl; intros H; [lra|]. apply Rplus_le_compat; auto. Qed.

Lemma sum_nonneg n f : (forall j, (j < n)%nat -> 0 <= f j) -> 0 <= sum n f.
Proof. intros H. rewrite <- (sum_zero n). now apply sum_le. Qed.

(** a factor, or a minus sign, may stand anywhere *)
Lemma sum_scal_r n c f : sum n (fun j => f j * c) = sum n f * c.
Proof. rewrite Rmult_comm, <- sum_scal. apply sum_ext; intros; ring. Qed.

Lemma sum_opp n f : sum n (fun j => - f j) = - sum n f.
Proof. induction n; simpl; lra. Qed.

Lemma sum_sub n f g : sum n (fun j => f j - g j) = sum n f - sum n g.
Proof. induction n; simpl; lra. Qed.

(** the sum of f j at j = k alone is f k *)
Lemma sum_only n k f : (k < n)%nat -> sum n (fun j => if Nat.eqb j k then f j else 0) = f k.
Proof.
  assert (Z : forall m, (m <= k)%nat -> sum m (fun j => if Nat.eqb j k then f j else 0) = 0).
  { induction m; simpl; intros; [lra|]. rewrite IHm by lia. by_index. }
  induction n; simpl; intros H; [lia|].
  destruct (Nat.eq_dec k n) as [->|]; [rewrite Z by lia|rewrite IHn by lia]; by_index.
Qed.

Lemma delta_same k : delta k k = 1.
Proof. by_index. Qed.

Lemma delta_sym j k : delta j k = delta k j.
Proof. by_index. Qed.

Lemma delta_other j k : j <> k -> delta j k = 0.
Proof. by_index. Qed.

Lemma sum_delta n k f : (k < n)%nat -> sum n (fun j => f j * delta j k) = f k.
Proof. intros H. rewrite <- (sum_only n k f H). apply sum_ext; intros; by_index. Qed.

Lemma sum_delta_l n k f : (k < n)%nat -> sum n (fun j => delta k j * f j) = f k.
Proof. intros H. rewrite <- (sum_only n k f H). apply sum_ext; intros; by_index. Qed.

(** the term k stands apart from the others *)
Lemma sum_split n k f : (k < n)%nat -> sum n f = f k + sum_but k n f.
Proof. intros H. rewrite <- (sum_only n k f H). unfold sum_but. rewrite <- sum_add. apply sum_ext; intros; by_index. Qed.

Lemma sum_but_ext k n f g : (forall j, (j < n)%nat -> j <> k -> f j = g j) -> sum_but k n f = sum_but k n g.
Proof. intros E. apply sum_ext; intros; by_index. Qed.

Lemma sum_but_add k n f g : sum_but k n (fun j => f j + g j) = sum_but k n f + sum_but k n g.
Proof. unfold sum_but. rewrite <- sum_add. apply sum_ext; intros; by_index. Qed.

Lemma sum_but_scal k n c f : sum_but k n (fun j => c * f j) = c * sum_but k n f.
Proof. unfold sum_but. rewrite <- sum_scal. apply sum_ext; intros; by_index. Qed.

(** a sum of zeros is zero *)
Lemma sum_but_zero k n f : (forall j, f j = 0) -> sum_but k n f = 0.
Proof. intros E. rewrite <- (sum_zero n). apply sum_ext; intros. rewrite E. by_index. Qed.

Lemma sum_but_nonneg k n f : (forall j, 0 <= f j) -> 0 <= sum_but k n f.
Proof. intros H. apply sum_nonneg; intros; by_index. Qed.

(** *** Positive numbers: what makes every division and every logarithm below lawful *)

Lemma expsum_pos n z : (0 < n)%nat -> 0 < sum n (fun i => exp (z i)).
Proof.
  intros H. destruct n; [lia|]. simpl. pose proof (exp_pos (z n)).
  assert (0 <= sum n (fun i => exp (z i))); [|lra]. apply sum_nonneg; intros. left; apply exp_pos.
Qed.

(** every prediction is positive *)
Theorem softmax_positive n z j : (0 < n)%nat -> 0 < softmax n z j.
Proof. intros. apply Rdiv_lt_0_compat; [apply exp_pos|now apply expsum_pos]. Qed.

Ltac positive := first [assumption | apply exp_pos | apply expsum_pos; lia | apply softmax_positive; lia | apply lt_0_INR; lia].

(** an identity between fractions, whose denominators are positive (or are said not to be 0) *)
Ltac fractions := field; repeat split; try assumption; apply Rgt_not_eq; positive.

Lemma ln_quotient a b : 0 < a -> 0 < b -> ln (a / b) = ln a - ln b.
Proof. intros. unfold Rdiv. rewrite ln_mult, ln_Rinv; auto using Rinv_0_lt_compat; ring. Qed.

(** *** The rules of differentiation *)

Lemma set_same z k : set z k (z k) = z.
Proof. apply FunctionalExtensionality.functional_extensionality; intros; by_index. Qed.

Lemma d_eq f g x d d' : (forall t, f t = g t) -> d = d' -> derivable_pt_lim f x d -> derivable_pt_lim g x d'.
Proof. intros E <-. now rewrite (FunctionalExtensionality.functional_extensionality f g E). Qed.

(** a derivative is unique *)
Lemma unique {f x d d'} : derivable_pt_lim f x d -> derivable_pt_lim f x d' -> d = d'.
Proof. apply uniqueness_limite. Qed.

(** constants; x itself *)
Lemma d_const f c x : (forall t, f t = c) -> derivable_pt_lim f x 0.
Proof. intros E. apply (d_eq (fun _ => c) f x 0); [now symmetry|easy|apply derivable_pt_lim_const]. Qed.

Lemma d_id f x : (forall t, f t = t) -> derivable_pt_lim f x 1.
Proof. intros E. apply (d_eq id f x 1); [now symmetry|easy|apply derivable_pt_lim_id]. Qed.

(** linearity *)
Lemma d_add f g x a b : derivable_pt_lim f x a -> derivable_pt_lim g x b -> derivable_pt_lim (fun t => f t + g t) x (a + b).
Proof. apply derivable_pt_lim_plus. Qed.

Lemma d_sub f g x a b : derivable_pt_lim f x a -> derivable_pt_lim g x b -> derivable_pt_lim (fun t => f t - g t) x (a - b).
Proof. apply derivable_pt_lim_minus. Qed.

Lemma d_opp f x a : derivable_pt_lim f x a -> derivable_pt_lim (fun t => - f t) x (- a).
Proof. apply derivable_pt_lim_opp. Qed.

Lemma d_scal c f x a : derivable_pt_lim f x a -> derivable_pt_lim (fun t => c * f t) x (c * a).
Proof. apply derivable_pt_lim_scal. Qed.

Lemma d_scal_r c f x a : derivable_pt_lim f x a -> derivable_pt_lim (fun t => f t * c) x (a * c).
Proof. intros H. eapply d_eq; [| |apply (d_scal c), H]; intros; cbv beta; ring. Qed.

Lemma d_sum n (f : nat -> R -> R) d x : (forall j, (j < n)%nat -> derivable_pt_lim (f j) x (d j)) ->
  derivable_pt_lim (fun t => sum n (fun j => f j t)) x (sum n d).
Proof. induction n; simpl; intros H; [now apply (d_const _ 0)|]. apply (d_add (fun t => sum n (fun j => f j t))); auto. Qed.

(** the other rules; v is the value of the inner function at x *)
Lemma d_mul f g x a b u v : derivable_pt_lim f x a -> derivable_pt_lim g x b -> f x = u -> g x = v ->
  derivable_pt_lim (fun t => f t * g t) x (a * v + u * b).
Proof. intros A B <- <-. now apply derivable_pt_lim_mult. Qed.

Lemma d_square f x a v : derivable_pt_lim f x a -> f x = v -> derivable_pt_lim (fun t => (f t) ^ 2) x (2 * v * a).
Proof. intros A E. eapply d_eq; [| |apply (d_mul f f x a a v v A A E E)]; intros; cbv beta; ring. Qed.

Lemma d_div f g x a b u v : derivable_pt_lim f x a -> derivable_pt_lim g x b -> f x = u -> g x = v -> v <> 0 ->
  derivable_pt_lim (fun t => f t / g t) x ((a * v - u * b) / v ^ 2).
Proof.
  intros A B <- <- N. eapply d_eq; [| |apply (derivable_pt_lim_div f g); eauto]; [reflexivity|].
  unfold Rsqr; now field.
Qed.

Lemma d_exp f x a v : derivable_pt_lim f x a -> f x = v -> derivable_pt_lim (fun t => exp (f t)) x (exp v * a).
Proof. intros A <-. apply (derivable_pt_lim_comp f exp); auto. apply derivable_pt_lim_exp. Qed.

Lemma d_ln f x a v : derivable_pt_lim f x a -> f x = v -> 0 < v -> derivable_pt_lim (fun t => ln (f t)) x (1 / v * a).
Proof.
  intros A <- P. apply (derivable_pt_lim_comp f ln); auto.
  unfold Rdiv; rewrite Rmult_1_l. now apply derivable_pt_lim_ln.
Qed.

Lemma d_tanh f x a v : derivable_pt_lim f x a -> f x = v -> derivable_pt_lim (fun t => tanh (f t)) x ((1 - (tanh v) ^ 2) * a).
Proof.
  intros A <-. apply (derivable_pt_lim_comp f tanh); auto.
  assert (0 < cosh (f x)) by (unfold cosh; pose proof (exp_pos (f x)); pose proof (exp_pos (- f x)); lra).
  eapply d_eq; [| |apply (d_div sinh cosh); [apply derivable_pt_lim_sinh|apply derivable_pt_lim_cosh|easy|easy|lra]].
  - reflexivity.
  - unfold tanh; field; lra.
Qed.

(** z_j moves with z_k, one for one, if it is z_k, and not at all if it is another *)
Lemma coordinate_same z k : partial (fun z => z k) k z 1.
Proof. apply d_id; intros; by_index. Qed.

Lemma coordinate_other z j k : j <> k -> partial (fun z => z j) k z 0.
Proof. intros. apply (d_const _ (z j)); intros; by_index. Qed.

Lemma coordinate z j k : partial (fun z => z j) k z (delta j k).
Proof. unfold delta. destruct (Nat.eqb_spec j k) as [->|N]; [apply coordinate_same|now apply coordinate_other]. Qed.

Lemma coordinates_have_derivatives z k : exists d : vec, forall j, partial (fun z => z j) k z (d j).
Proof. exists (fun j => delta j k). intros; apply coordinate. Qed.

(** the value of a derivative may be written in another way, and so may the function *)
Lemma partial_eq f g k z d d' : (forall w, f w = g w) -> d = d' -> partial f k z d -> partial g k z d'.
Proof. intros E. apply d_eq; intros; apply E. Qed.

(** apply a rule of differentiation *)
Ltac rule := intros; unfold partial, partial2 in *; cbv beta in *.

(** go on from the line before by the theorem T *)
Ltac line T := eapply eq_trans; [eapply T; eauto|].

(** ** Part 1. The derivative of softmax *)

Theorem numerator_same_1 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> partial (fun z => exp (z j)) j z (exp (z j)).
Proof. rule. eapply d_eq; [reflexivity| |apply d_exp; [apply coordinate_same|now rewrite set_same]]. ring. Qed.

(** u' = e^z_j in the case j = k *)
Theorem numerator_same : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> partial (fun z => exp (z j)) j z (exp (z j)).
Proof. exact numerator_same_1. Qed.

Lemma exponentials_have_derivatives z k : exists d : vec, forall i, partial (fun z => exp (z i)) k z (d i).
Proof.
  exists (fun i => if Nat.eqb i k then exp (z k) else 0). intros i.
  destruct (Nat.eqb_spec i k) as [->|N]; [apply (numerator_same (S k)); lia|].
  apply (d_const _ (exp (z i))); intros; f_equal; by_index.
Qed.

Theorem denominator_1 : forall (n : nat) (z : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall i, (i < n)%nat -> partial (fun z => exp (z i)) k z (d1 i)) ->
  partial (fun z => sum n (fun i => exp (z i))) k z (sum n (fun i => d1 i)).
Proof. rule. now apply d_sum. Qed.
Theorem denominator_2 : forall (n : nat) (z : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall i, (i < n)%nat -> partial (fun z => exp (z i)) k z (d1 i)) -> sum n (fun i => d1 i) = d1 k + sum_but k n (fun i => d1 i).
Proof. intros. now apply (sum_split n k d1). Qed.
Theorem denominator_3 : forall (n : nat) (z : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall i, (i < n)%nat -> partial (fun z => exp (z i)) k z (d1 i)) ->
  d1 k + sum_but k n (fun i => d1 i) = exp (z k) + sum_but k n (fun _ => 0).
Proof.
  intros n z k d1 H D. rewrite (unique (D k H) (numerator_same n z k H)). f_equal.
  apply sum_but_ext; intros j J N. apply (unique (D j J)), (d_const _ (exp (z j))). intros; f_equal; by_index.
Qed.
Theorem denominator_4 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> exp (z k) + sum_but k n (fun _ => 0) = exp (z k).
Proof. intros. rewrite sum_but_zero by easy. ring. Qed.

(** v' = e^z_k: all the terms but one are constant *)
Theorem denominator : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> partial (fun z => sum n (fun i => exp (z i))) k z (exp (z k)).
Proof.
  intros n z k H. destruct (exponentials_have_derivatives z k) as [d D].
  eapply partial_eq; [reflexivity| |now apply (denominator_1 n z k d)].
  line denominator_2. line denominator_3. now apply denominator_4.
Qed.

Theorem result1_1 : forall (n : nat) (z : vec) (j : nat) (d1 d2 : R), (j < n)%nat -> partial (fun z => exp (z j)) j z d1 ->
  partial (fun z => sum n (fun i => exp (z i))) j z d2 ->
  partial (fun z => softmax n z j) j z ((d1 * sum n (fun i => exp (z i)) - exp (z j) * d2) / (sum n (fun i => exp (z i))) ^ 2).
Proof. rule. eapply d_div; try eassumption; [now rewrite set_same|now rewrite set_same|apply Rgt_not_eq; positive]. Qed.
Theorem result1_2 : forall (n : nat) (z : vec) (j : nat) (d1 d2 : R), (j < n)%nat -> partial (fun z => exp (z j)) j z d1 ->
  partial (fun z => sum n (fun i => exp (z i))) j z d2 ->
  (d1 * sum n (fun i => exp (z i)) - exp (z j) * d2) / (sum n (fun i => exp (z i))) ^ 2
    = (exp (z j) * sum n (fun i => exp (z i)) - exp (z j) * exp (z j)) / (sum n (fun i => exp (z i))) ^ 2.
Proof. intros n z j d1 d2 H D1 D2. now rewrite (unique D1 (numerator_same n z j H)), (unique D2 (denominator n z j H)). Qed.
Theorem result1_3 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  (exp (z j) * sum n (fun i => exp (z i)) - exp (z j) * exp (z j)) / (sum n (fun i => exp (z i))) ^ 2
    = exp (z j) / sum n (fun i => exp (z i)) * (sum n (fun i => exp (z i)) / sum n (fun i => exp (z i)))
    - exp (z j) / sum n (fun i => exp (z i)) * (exp (z j) / sum n (fun i => exp (z i))).
Proof. intros. fractions. Qed.
Theorem result1_4 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  exp (z j) / sum n (fun i => exp (z i)) * (sum n (fun i => exp (z i)) / sum n (fun i => exp (z i)))
    - exp (z j) / sum n (fun i => exp (z i)) * (exp (z j) / sum n (fun i => exp (z i))) = softmax n z j * 1 - softmax n z j * softmax n z j.
Proof. intros. unfold softmax. fractions. Qed.
Theorem result1_5 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  softmax n z j * 1 - softmax n z j * softmax n z j = softmax n z j * (1 - softmax n z j).
Proof. intros. ring. Qed.

(** RESULT 1: d yhat_j / d z_j = yhat_j (1 - yhat_j) *)
Theorem result1 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  partial (fun z => softmax n z j) j z (softmax n z j * (1 - softmax n z j)).
Proof.
  intros n z j H. pose proof (numerator_same n z j H) as D1. pose proof (denominator n z j H) as D2.
  eapply partial_eq; [reflexivity| |exact (result1_1 n z j _ _ H D1 D2)].
  line result1_2. line result1_3. line result1_4. now apply result1_5.
Qed.

Theorem numerator_other_1 : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => exp (z j)) k z 0.
Proof. rule. apply (d_const _ (exp (z j))); intros; f_equal; by_index. Qed.

(** u' = 0 in the case j <> k *)
Theorem numerator_other : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => exp (z j)) k z 0.
Proof. exact numerator_other_1. Qed.

Theorem result2_1 : forall (n : nat) (z : vec) (j k : nat) (d1 d2 : R), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => exp (z j)) k z d1 -> partial (fun z => sum n (fun i => exp (z i))) k z d2 ->
  partial (fun z => softmax n z j) k z ((d1 * sum n (fun i => exp (z i)) - exp (z j) * d2) / (sum n (fun i => exp (z i))) ^ 2).
Proof. rule. eapply d_div; try eassumption; [now rewrite set_same|now rewrite set_same|apply Rgt_not_eq; positive]. Qed.
Theorem result2_2 : forall (n : nat) (z : vec) (j k : nat) (d1 d2 : R), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => exp (z j)) k z d1 -> partial (fun z => sum n (fun i => exp (z i))) k z d2 ->
  (d1 * sum n (fun i => exp (z i)) - exp (z j) * d2) / (sum n (fun i => exp (z i))) ^ 2
    = (0 * sum n (fun i => exp (z i)) - exp (z j) * exp (z k)) / (sum n (fun i => exp (z i))) ^ 2.
Proof.
  intros n z j k d1 d2 J K N D1 D2.
  now rewrite (unique D1 (numerator_other n z j k J K N)), (unique D2 (denominator n z k K)).
Qed.
Theorem result2_3 : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  (0 * sum n (fun i => exp (z i)) - exp (z j) * exp (z k)) / (sum n (fun i => exp (z i))) ^ 2
    = - (exp (z j) * exp (z k) / (sum n (fun i => exp (z i))) ^ 2).
Proof. intros. fractions. Qed.
Theorem result2_4 : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  - (exp (z j) * exp (z k) / (sum n (fun i => exp (z i))) ^ 2)
    = - (exp (z j) / sum n (fun i => exp (z i)) * (exp (z k) / sum n (fun i => exp (z i)))).
Proof. intros. fractions. Qed.
Theorem result2_5 : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  - (exp (z j) / sum n (fun i => exp (z i)) * (exp (z k) / sum n (fun i => exp (z i)))) = - (softmax n z j * softmax n z k).
Proof. reflexivity. Qed.

(** RESULT 2: d yhat_j / d z_k = - yhat_j yhat_k for j <> k *)
Theorem result2 : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => softmax n z j) k z (- (softmax n z j * softmax n z k)).
Proof.
  intros n z j k J K N. pose proof (numerator_other n z j k J K N) as D1. pose proof (denominator n z k K) as D2.
  eapply partial_eq; [reflexivity| |exact (result2_1 n z j k _ _ J K N D1 D2)].
  line result2_2. line result2_3. line result2_4. now apply result2_5.
Qed.

(** both in one line: d yhat_j / d z_k = yhat_j (delta_jk - yhat_k) *)
Lemma softmax_jacobian n z j k : (j < n)%nat -> (k < n)%nat ->
  partial (fun z => softmax n z j) k z (softmax n z j * (delta j k - softmax n z k)).
Proof.
  intros J K. destruct (Nat.eq_dec j k) as [->|N].
  - eapply partial_eq; [reflexivity| |now apply result1]. by_index.
  - eapply partial_eq; [reflexivity| |now apply result2]. by_index.
Qed.

(** ** Part 2. The derivative of cross-entropy *)

Theorem log_same_1 : forall (n : nat) (yhat : vec) (k : nat), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  partial (fun yhat => ln (yhat k)) k yhat (1 / yhat k).
Proof. intros n yhat k K P. eapply d_eq; [reflexivity| |apply d_ln; [apply coordinate_same|now rewrite set_same|now apply P]]. ring. Qed.

(** d log yhat_k / d yhat_k = 1 / yhat_k *)
Theorem log_same : forall (n : nat) (yhat : vec) (k : nat), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  partial (fun yhat => ln (yhat k)) k yhat (1 / yhat k).
Proof. exact log_same_1. Qed.

Theorem log_other_1 : forall (n : nat) (yhat : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  (forall k, (k < n)%nat -> yhat k > 0) -> partial (fun yhat => ln (yhat j)) k yhat 0.
Proof. rule. apply (d_const _ (ln (yhat j))); intros; f_equal; by_index. Qed.

(** ... and it is 0 by any other yhat_k *)
Theorem log_other : forall (n : nat) (yhat : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  (forall k, (k < n)%nat -> yhat k > 0) -> partial (fun yhat => ln (yhat j)) k yhat 0.
Proof. exact log_other_1. Qed.

Lemma logarithms_have_derivatives n yhat k : (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  exists d : vec, forall j, (j < n)%nat -> partial (fun yhat => ln (yhat j)) k yhat (d j).
Proof.
  intros K P. exists (fun j => if Nat.eqb j k then 1 / yhat k else 0). intros j J.
  destruct (Nat.eqb_spec j k) as [->|N]; [now apply (log_same n)|now apply (log_other n)].
Qed.

Theorem result3_1 : forall (n : nat) (y yhat : vec) (k : nat) (d1 : R), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  partial (fun yhat => - sum n (fun j => y j * ln (yhat j))) k yhat d1 -> partial (fun yhat => cross_entropy n y yhat) k yhat d1.
Proof. auto. Qed.
Theorem result3_2 : forall (n : nat) (y yhat : vec) (k : nat) (d1 : vec), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  (forall j, (j < n)%nat -> partial (fun yhat => ln (yhat j)) k yhat (d1 j)) ->
  partial (fun yhat => - sum n (fun j => y j * ln (yhat j))) k yhat (- sum n (fun j => y j * d1 j)).
Proof. rule. apply d_opp, (d_sum n (fun j t => y j * ln (set yhat k t j))). intros j J. apply d_scal; auto. Qed.
Theorem result3_3 : forall (n : nat) (y yhat : vec) (k : nat) (d1 : vec), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  (forall j, (j < n)%nat -> partial (fun yhat => ln (yhat j)) k yhat (d1 j)) ->
  - sum n (fun j => y j * d1 j) = - (y k * d1 k + sum_but k n (fun j => y j * d1 j)).
Proof. intros. f_equal. now apply (sum_split n k (fun j => y j * d1 j)). Qed.
Theorem result3_4 : forall (n : nat) (y yhat : vec) (k : nat) (d1 : vec), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  (forall j, (j < n)%nat -> partial (fun yhat => ln (yhat j)) k yhat (d1 j)) ->
  - (y k * d1 k + sum_but k n (fun j => y j * d1 j)) = - (y k * (1 / yhat k) + sum_but k n (fun j => y j * 0)).
Proof.
  intros n y yhat k d1 K P D. rewrite (unique (D k K) (log_same n yhat k K P)). do 2 f_equal.
  apply sum_but_ext; intros j J N. now rewrite (unique (D j J) (log_other n yhat j k J K N P)).
Qed.
Theorem result3_5 : forall (n : nat) (y yhat : vec) (k : nat), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  - (y k * (1 / yhat k) + sum_but k n (fun j => y j * 0)) = - (y k * (1 / yhat k)).
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.
Theorem result3_6 : forall (n : nat) (y yhat : vec) (k : nat), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  - (y k * (1 / yhat k)) = - (y k / yhat k).
Proof. intros. unfold Rdiv. ring. Qed.

(** RESULT 3: d L / d yhat_k = - y_k / yhat_k *)
Theorem result3 : forall (n : nat) (y yhat : vec) (k : nat), (k < n)%nat -> (forall k, (k < n)%nat -> yhat k > 0) ->
  partial (fun yhat => cross_entropy n y yhat) k yhat (- (y k / yhat k)).
Proof.
  intros n y yhat k K P. destruct (logarithms_have_derivatives n yhat k K P) as [d D].
  eapply partial_eq; [reflexivity| |apply result3_1; auto; now apply (result3_2 n y yhat k d)].
  line result3_3. line result3_4. line result3_5. now apply (result3_6 n).
Qed.

(** ** Part 3. The chain rule *)

(** a derivative of L by a prediction, at the softmax *)
Lemma by_prediction n z y j d : (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) d ->
  d = - (y j / softmax n z j).
Proof. intros J D. apply (unique D), (result3 n y (softmax n z) j J). intros; apply softmax_positive; lia. Qed.

Theorem own_term_1 : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : R), (k < n)%nat ->
  partial (fun yhat => cross_entropy n y yhat) k (softmax n z) d1 -> partial (fun z => softmax n z k) k z d2 ->
  d1 * d2 = (- (y k / softmax n z k)) * (softmax n z k * (1 - softmax n z k)).
Proof. intros n z y k d1 d2 K D1 D2. now rewrite (by_prediction _ _ _ _ _ K D1), (unique D2 (result1 n z k K)). Qed.
Theorem own_term_2 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  (- (y k / softmax n z k)) * (softmax n z k * (1 - softmax n z k)) = - (y k * (1 - softmax n z k)).
Proof. intros. fractions. Qed.
Theorem own_term_3 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat -> - (y k * (1 - softmax n z k)) = - y k + y k * softmax n z k.
Proof. intros. ring. Qed.

(** the term j = k is - y_k + y_k yhat_k *)
Theorem own_term : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : R), (k < n)%nat ->
  partial (fun yhat => cross_entropy n y yhat) k (softmax n z) d1 -> partial (fun z => softmax n z k) k z d2 ->
  d1 * d2 = - y k + y k * softmax n z k.
Proof. intros. line own_term_1. line own_term_2. now apply (own_term_3 n). Qed.

Theorem other_terms_1 : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) ->
  sum_but k n (fun j => d1 j * d2 j) = sum_but k n (fun j => (- (y j / softmax n z j)) * (- (softmax n z j * softmax n z k))).
Proof.
  intros n z y k d1 d2 K D1 D2. apply sum_but_ext; intros j J N.
  now rewrite (by_prediction _ _ _ _ _ J (D1 j J)), (unique (D2 j J) (result2 n z j k J K N)).
Qed.
Theorem other_terms_2 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  sum_but k n (fun j => (- (y j / softmax n z j)) * (- (softmax n z j * softmax n z k))) = sum_but k n (fun j => y j * softmax n z k).
Proof. intros. apply sum_but_ext; intros. fractions. Qed.

(** the terms j <> k are y_j yhat_k *)
Theorem other_terms : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) ->
  sum_but k n (fun j => d1 j * d2 j) = sum_but k n (fun j => y j * softmax n z k).
Proof. intros. line other_terms_1. line other_terms_2. easy. Qed.

Theorem one_hot_sum_1 : forall (n : nat) (t : nat), (t < n)%nat -> sum n (fun k => delta k t) = sum n (fun j => delta j t).
Proof. reflexivity. Qed.
Theorem one_hot_sum_2 : forall (n : nat) (t : nat), (t < n)%nat ->
  sum n (fun j => delta j t) = delta t t + sum_but t n (fun j => delta j t).
Proof. intros. now apply (sum_split n t (fun j => delta j t)). Qed.
Theorem one_hot_sum_3 : forall (n : nat) (t : nat), (t < n)%nat ->
  delta t t + sum_but t n (fun j => delta j t) = 1 + sum_but t n (fun _ => 0).
Proof. intros. f_equal; [by_index|]. apply sum_but_ext; intros; by_index. Qed.
Theorem one_hot_sum_4 : forall (n : nat) (t : nat), (t < n)%nat -> 1 + sum_but t n (fun _ => 0) = 1.
Proof. intros. rewrite sum_but_zero by easy. ring. Qed.

(** a one-hot truth sums to one *)
Theorem one_hot_sum : forall (n : nat) (t : nat), (t < n)%nat -> sum n (fun j => delta j t) = 1.
Proof. intros. now rewrite one_hot_sum_2, one_hot_sum_3, one_hot_sum_4. Qed.

(** the chain rule: if every prediction moves with t, then so does the loss *)
Lemma cross_entropy_along n y (p : R -> vec) p' x v : p x = v -> (forall j, (j < n)%nat -> 0 < v j) ->
  (forall j, (j < n)%nat -> derivable_pt_lim (fun t => p t j) x (p' j)) ->
  derivable_pt_lim (fun t => cross_entropy n y (p t)) x (sum n (fun j => - (y j / v j) * p' j)).
Proof.
  intros <- P D. eapply d_eq; [reflexivity| |apply d_opp, (d_sum n (fun j t => y j * ln (p t j)))].
  2: intros j J; apply d_scal, (d_ln (fun t => p t j)); auto; now apply D.
  rewrite <- sum_opp. apply sum_ext; intros; cbv beta. unfold Rdiv; ring.
Qed.

(** d L / d z_k = the sum of (d L / d yhat_j) (d yhat_j / d z_k), whatever numbers a_j and b_j these are *)
Theorem chain_rule n z y k (a b : vec) : (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (a j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (b j)) ->
  partial (fun z => loss n y z) k z (sum n (fun j => a j * b j)).
Proof.
  intros K A B. eapply d_eq; [reflexivity| |apply (cross_entropy_along n y (fun t => softmax n (set z k t)) b _ (softmax n z))].
  - apply sum_ext; intros j J. now rewrite (by_prediction _ _ _ _ _ J (A j J)).
  - now rewrite set_same.
  - intros; apply softmax_positive; lia.
  - exact B.
Qed.

Theorem prediction_minus_truth_1 : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) ->
  partial (fun z => loss n y z) k z (sum n (fun j => d1 j * d2 j)).
Proof. exact chain_rule. Qed.
Theorem prediction_minus_truth_2 : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) ->
  sum n (fun j => d1 j * d2 j) = d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j).
Proof. intros. now apply (sum_split n k (fun j => d1 j * d2 j)). Qed.
Theorem prediction_minus_truth_3 : forall (n : nat) (z y : vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) ->
  d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j) = - y k + y k * softmax n z k + sum_but k n (fun j => y j * softmax n z k).
Proof. intros n z y k d1 d2 K D1 D2. now rewrite (own_term n z y k _ _ K (D1 k K) (D2 k K)), (other_terms n z y k d1 d2 K D1 D2). Qed.
Theorem prediction_minus_truth_4 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  - y k + y k * softmax n z k + sum_but k n (fun j => y j * softmax n z k)
    = - y k + (y k * softmax n z k + sum_but k n (fun j => y j * softmax n z k)).
Proof. intros. ring. Qed.
Theorem prediction_minus_truth_5 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  - y k + (y k * softmax n z k + sum_but k n (fun j => y j * softmax n z k)) = - y k + softmax n z k * (y k + sum_but k n (fun j => y j)).
Proof.
  intros. rewrite (sum_but_ext k n _ (fun j => softmax n z k * y j)) by (intros; ring).
  rewrite (sum_but_scal k n (softmax n z k) (fun j => y j)). ring.
Qed.
Theorem prediction_minus_truth_6 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  - y k + softmax n z k * (y k + sum_but k n (fun j => y j)) = - y k + softmax n z k * sum n (fun j => y j).
Proof. intros. now rewrite (sum_split n k (fun j => y j)). Qed.
Theorem prediction_minus_truth_7 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat -> sum n (fun j => y j) = 1 ->
  - y k + softmax n z k * sum n (fun j => y j) = - y k + softmax n z k * 1.
Proof. intros n z y k K E. now rewrite E. Qed.
Theorem prediction_minus_truth_8 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat -> - y k + softmax n z k * 1 = softmax n z k - y k.
Proof. intros. ring. Qed.

Lemma loss_has_derivatives n z y :
  exists d : vec, forall j, (j < n)%nat -> partial (fun yhat => cross_entropy n y yhat) j (softmax n z) (d j).
Proof.
  exists (fun j => - (y j / softmax n z j)). intros; apply result3; auto. intros; apply softmax_positive; lia.
Qed.

Lemma softmax_has_derivatives n z k : (k < n)%nat ->
  exists d : vec, forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d j).
Proof. intros. exists (fun j => softmax n z j * (delta j k - softmax n z k)). intros; now apply softmax_jacobian. Qed.

(** the first six lines hold for any truth *)
Lemma before_sum_is_1 n z y k : (k < n)%nat ->
  partial (fun z => loss n y z) k z (- y k + softmax n z k * sum n (fun j => y j)).
Proof.
  intros K. destruct (loss_has_derivatives n z y) as [d1 D1], (softmax_has_derivatives n z k K) as [d2 D2].
  eapply partial_eq; [reflexivity| |now apply (prediction_minus_truth_1 n z y k d1 d2)].
  line prediction_minus_truth_2. line prediction_minus_truth_3. line prediction_minus_truth_4. line prediction_minus_truth_5.
  now apply prediction_minus_truth_6.
Qed.

(** THE RESULT: if the truth sums to one, d L / d z_k = yhat_k - y_k, prediction minus truth *)
Theorem prediction_minus_truth : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat -> sum n (fun j => y j) = 1 ->
  partial (fun z => loss n y z) k z (softmax n z k - y k).
Proof.
  intros n z y k K E. eapply partial_eq; [reflexivity| |now apply before_sum_is_1].
  now rewrite prediction_minus_truth_7, prediction_minus_truth_8.
Qed.

(** ... and only then *)
Theorem sum_one_is_needed n z y k : (k < n)%nat -> partial (fun z => loss n y z) k z (softmax n z k - y k) <-> sum n y = 1.
Proof.
  intros K. split; [|now apply prediction_minus_truth]. intros D.
  pose proof (unique D (before_sum_is_1 n z y k K)) as E. change (sum n (fun j => y j)) with (sum n y) in E.
  pose proof (softmax_positive n z k ltac:(lia)). apply (Rmult_eq_reg_l (softmax n z k)); lra.
Qed.

(** ** Any truth *)

Theorem softmax_sums_to_1_1 : forall (n : nat) (z : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j) = sum n (fun j => exp (z j) / sum n (fun i => exp (z i))).
Proof. reflexivity. Qed.
Theorem softmax_sums_to_1_2 : forall (n : nat) (z : vec), (0 < n)%nat ->
  sum n (fun j => exp (z j) / sum n (fun i => exp (z i))) = sum n (fun j => exp (z j)) / sum n (fun i => exp (z i)).
Proof. intros. apply sum_scal_r. Qed.
Theorem softmax_sums_to_1_3 : forall (n : nat) (z : vec), (0 < n)%nat -> sum n (fun j => exp (z j)) / sum n (fun i => exp (z i)) = 1.
Proof. intros. fractions. Qed.

(** the predictions sum to one *)
Theorem softmax_sums_to_1 : forall (n : nat) (z : vec), (0 < n)%nat -> sum n (fun j => softmax n z j) = 1.
Proof. intros. now rewrite softmax_sums_to_1_1, softmax_sums_to_1_2, softmax_sums_to_1_3. Qed.

(** no prediction is above one *)
Theorem softmax_le_1 n z j : (j < n)%nat -> softmax n z j <= 1.
Proof.
  intros H. rewrite <- (softmax_sums_to_1 n z) by lia. change (sum n (fun j => softmax n z j)) with (sum n (softmax n z)).
  rewrite (sum_split n j) by auto. enough (0 <= sum_but j n (softmax n z)) by lra.
  apply sum_but_nonneg; intros. left. apply softmax_positive. lia.
Qed.

Theorem general_gradient_1 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  partial (fun z => loss n y z) k z (- y k + softmax n z k * sum n (fun j => y j)).
Proof. exact before_sum_is_1. Qed.
Theorem general_gradient_2 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  - y k + softmax n z k * sum n (fun j => y j) = - y k + softmax n z k * sum n y.
Proof. reflexivity. Qed.
Theorem general_gradient_3 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  - y k + softmax n z k * sum n y = sum n y * softmax n z k - y k.
Proof. intros. ring. Qed.

(** with no assumption on the truth, d L / d z_k = p yhat_k - y_k, where p is its sum *)
Theorem general_gradient : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  partial (fun z => loss n y z) k z (sum n y * softmax n z k - y k).
Proof.
  intros. eapply partial_eq; [reflexivity| |now apply general_gradient_1].
  now rewrite general_gradient_2, general_gradient_3.
Qed.

Theorem loss_by_lse_1 : forall (n : nat) (z y : vec), (0 < n)%nat -> loss n y z = - sum n (fun j => y j * ln (softmax n z j)).
Proof. reflexivity. Qed.
Theorem loss_by_lse_2 : forall (n : nat) (z y : vec), (0 < n)%nat ->
  - sum n (fun j => y j * ln (softmax n z j)) = - sum n (fun j => y j * ln (exp (z j) / sum n (fun i => exp (z i)))).
Proof. reflexivity. Qed.
Theorem loss_by_lse_3 : forall (n : nat) (z y : vec), (0 < n)%nat ->
  - sum n (fun j => y j * ln (exp (z j) / sum n (fun i => exp (z i)))) = - sum n (fun j => y j * (z j - ln (sum n (fun i => exp (z i))))).
Proof. intros. f_equal. apply sum_ext; intros. rewrite ln_quotient, ln_exp by positive. easy. Qed.
Theorem loss_by_lse_4 : forall (n : nat) (z y : vec), (0 < n)%nat ->
  - sum n (fun j => y j * (z j - ln (sum n (fun i => exp (z i))))) = - sum n (fun j => y j * (z j - lse n z)).
Proof. reflexivity. Qed.
Theorem loss_by_lse_5 : forall (n : nat) (z y : vec), (0 < n)%nat ->
  - sum n (fun j => y j * (z j - lse n z)) = sum n (fun j => y j * lse n z) - sum n (fun j => y j * z j).
Proof. intros. rewrite <- sum_opp, <- sum_sub. apply sum_ext; intros; ring. Qed.
Theorem loss_by_lse_6 : forall (n : nat) (z y : vec), (0 < n)%nat ->
  sum n (fun j => y j * lse n z) - sum n (fun j => y j * z j) = sum n (fun j => y j) * lse n z - sum n (fun j => y j * z j).
Proof. intros. now rewrite sum_scal_r. Qed.
Theorem loss_by_lse_7 : forall (n : nat) (z y : vec), (0 < n)%nat ->
  sum n (fun j => y j) * lse n z - sum n (fun j => y j * z j) = sum n y * lse n z - sum n (fun j => y j * z j).
Proof. reflexivity. Qed.

(** L = p lse - sum_j y_j z_j *)
Theorem loss_by_lse : forall (n : nat) (z y : vec), (0 < n)%nat -> loss n y z = sum n y * lse n z - sum n (fun j => y j * z j).
Proof. intros. now rewrite loss_by_lse_1, loss_by_lse_2, loss_by_lse_3, loss_by_lse_4, loss_by_lse_5, loss_by_lse_6. Qed.

(** a truth without a negative entry has a loss that is not negative *)
Theorem loss_nonneg n y z : (forall j, (j < n)%nat -> 0 <= y j) -> 0 <= loss n y z.
Proof.
  intros Y. unfold loss, cross_entropy. rewrite <- sum_opp. apply sum_nonneg; intros j J.
  assert (ln (softmax n z j) <= 0).
  { rewrite <- ln_1. pose proof (softmax_positive n z j ltac:(lia)).
    destruct (softmax_le_1 n z j J) as [L|E]; [left; now apply ln_increasing|rewrite E; lra]. }
  specialize (Y j J). nra.
Qed.

Theorem lse_gradient_1 : forall (n : nat) (z : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun z => ln (sum n (fun i => exp (z i)))) k z d1 -> partial (fun z => lse n z) k z d1.
Proof. auto. Qed.
Theorem lse_gradient_2 : forall (n : nat) (z : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun z => sum n (fun i => exp (z i))) k z d1 ->
  partial (fun z => ln (sum n (fun i => exp (z i)))) k z (1 / sum n (fun i => exp (z i)) * d1).
Proof. rule. apply d_ln; auto; [now rewrite set_same|positive]. Qed.
Theorem lse_gradient_3 : forall (n : nat) (z : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun z => sum n (fun i => exp (z i))) k z d1 -> 1 / sum n (fun i => exp (z i)) * d1 = 1 / sum n (fun i => exp (z i)) * exp (z k).
Proof. intros n z k d1 K D. now rewrite (unique D (denominator n z k K)). Qed.
Theorem lse_gradient_4 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  1 / sum n (fun i => exp (z i)) * exp (z k) = exp (z k) / sum n (fun i => exp (z i)).
Proof. intros. unfold Rdiv. ring. Qed.
Theorem lse_gradient_5 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> exp (z k) / sum n (fun i => exp (z i)) = softmax n z k.
Proof. reflexivity. Qed.

(** d lse / d z_k = yhat_k *)
Theorem lse_gradient : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> partial (fun z => lse n z) k z (softmax n z k).
Proof.
  intros n z k K. pose proof (denominator n z k K) as D.
  eapply partial_eq; [reflexivity| |now apply lse_gradient_1, (lse_gradient_2 n z k _ K D)].
  line lse_gradient_3. line lse_gradient_4. easy.
Qed.

Theorem short_way_1 : forall (n : nat) (z y : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun z => sum n y * lse n z - sum n (fun j => y j * z j)) k z d1 -> partial (fun z => loss n y z) k z d1.
Proof. intros n z y k d1 K. apply partial_eq; [|easy]. intros. rewrite loss_by_lse by lia. easy. Qed.
Theorem short_way_2 : forall (n : nat) (z y : vec) (k : nat) (d2 : R) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => z j) k z (d1 j)) -> partial (fun z => lse n z) k z d2 ->
  partial (fun z => sum n y * lse n z - sum n (fun j => y j * z j)) k z (sum n y * d2 - sum n (fun j => y j * d1 j)).
Proof. rule. apply d_sub; [now apply d_scal|]. apply (d_sum n (fun j t => y j * set z k t j)). intros j J. apply d_scal; auto. Qed.
Theorem short_way_3 : forall (n : nat) (z y : vec) (k : nat) (d2 : R) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => z j) k z (d1 j)) -> partial (fun z => lse n z) k z d2 ->
  sum n y * d2 - sum n (fun j => y j * d1 j) = sum n y * softmax n z k - sum n (fun j => y j * d1 j).
Proof. intros n z y k d2 d1 K D1 D2. now rewrite (unique D2 (lse_gradient n z k K)). Qed.
Theorem short_way_4 : forall (n : nat) (z y : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => z j) k z (d1 j)) ->
  sum n y * softmax n z k - sum n (fun j => y j * d1 j) = sum n y * softmax n z k - (y k * d1 k + sum_but k n (fun j => y j * d1 j)).
Proof. intros. f_equal. now apply (sum_split n k (fun j => y j * d1 j)). Qed.
Theorem short_way_5 : forall (n : nat) (z y : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => z j) k z (d1 j)) ->
  sum n y * softmax n z k - (y k * d1 k + sum_but k n (fun j => y j * d1 j))
    = sum n y * softmax n z k - (y k * 1 + sum_but k n (fun j => y j * 0)).
Proof.
  intros n z y k d1 K D. rewrite (unique (D k K) (coordinate_same z k)). do 2 f_equal.
  apply sum_but_ext; intros j J N. now rewrite (unique (D j J) (coordinate_other z j k N)).
Qed.
Theorem short_way_6 : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  sum n y * softmax n z k - (y k * 1 + sum_but k n (fun j => y j * 0)) = sum n y * softmax n z k - y k.
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the same gradient, found without a quotient *)
Theorem short_way : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  partial (fun z => loss n y z) k z (sum n y * softmax n z k - y k).
Proof.
  intros n z y k K. pose proof (lse_gradient n z k K) as D2. destruct (coordinates_have_derivatives z k) as [d1 D1].
  eapply partial_eq; [reflexivity| |apply short_way_1; auto; now apply (short_way_2 n z y k (softmax n z k) d1)].
  line short_way_3. line short_way_4. line short_way_5. now apply short_way_6.
Qed.

(** its entries sum to zero *)
Theorem gradient_sums_to_0 n y z : (0 < n)%nat -> sum n (gradient n y z) = 0.
Proof.
  intros H. unfold gradient. rewrite sum_sub, sum_scal, softmax_sums_to_1 by auto.
  change (sum n (fun j => y j)) with (sum n y). ring.
Qed.

(** prediction minus truth is never above 1 in size *)
Theorem gradient_bounded n y z k : (k < n)%nat -> 0 <= y k <= 1 -> Rabs (softmax n z k - y k) <= 1.
Proof.
  intros K Y. pose proof (softmax_le_1 n z k K). pose proof (softmax_positive n z k ltac:(lia)). apply Rabs_le. lra.
Qed.

(** ** Shifts *)

Theorem softmax_shift_1 : forall (n : nat) (z : vec) (c : R) (j : nat), (j < n)%nat ->
  exp (z j + c) / sum n (fun i => exp (z i + c)) = exp (z j) * exp c / sum n (fun i => exp (z i) * exp c).
Proof. intros. rewrite exp_plus, (sum_ext n (fun i => exp (z i + c)) (fun i => exp (z i) * exp c)); [easy|]. intros; apply exp_plus. Qed.
Theorem softmax_shift_2 : forall (n : nat) (z : vec) (c : R) (j : nat), (j < n)%nat ->
  exp (z j) * exp c / sum n (fun i => exp (z i) * exp c) = exp (z j) * exp c / (exp c * sum n (fun i => exp (z i))).
Proof. intros. now rewrite sum_scal_r, (Rmult_comm (exp c)). Qed.
Theorem softmax_shift_3 : forall (n : nat) (z : vec) (c : R) (j : nat), (j < n)%nat ->
  exp (z j) * exp c / (exp c * sum n (fun i => exp (z i))) = exp (z j) / sum n (fun i => exp (z i)).
Proof. intros. fractions. Qed.
Theorem softmax_shift_4 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> exp (z j) / sum n (fun i => exp (z i)) = softmax n z j.
Proof. reflexivity. Qed.

(** one constant added to every score does not change a prediction ... *)
Theorem softmax_shift : forall (n : nat) (z : vec) (c : R) (j : nat), (j < n)%nat ->
  exp (z j + c) / sum n (fun i => exp (z i + c)) = softmax n z j.
Proof. intros. now rewrite softmax_shift_1, softmax_shift_2, softmax_shift_3. Qed.

Theorem lse_shift_1 : forall (n : nat) (z : vec) (c : R), (0 < n)%nat ->
  ln (sum n (fun i => exp (z i + c))) = ln (sum n (fun i => exp (z i) * exp c)).
Proof. intros. f_equal. apply sum_ext; intros. now rewrite exp_plus. Qed.
Theorem lse_shift_2 : forall (n : nat) (z : vec) (c : R), (0 < n)%nat ->
  ln (sum n (fun i => exp (z i) * exp c)) = ln (exp c * sum n (fun i => exp (z i))).
Proof. intros. rewrite sum_scal_r. f_equal. ring. Qed.
Theorem lse_shift_3 : forall (n : nat) (z : vec) (c : R), (0 < n)%nat ->
  ln (exp c * sum n (fun i => exp (z i))) = c + ln (sum n (fun i => exp (z i))).
Proof. intros. rewrite ln_mult, ln_exp by positive. easy. Qed.
Theorem lse_shift_4 : forall (n : nat) (z : vec) (c : R), (0 < n)%nat -> c + ln (sum n (fun i => exp (z i))) = c + lse n z.
Proof. reflexivity. Qed.

(** ... moves lse with it ... *)
Theorem lse_shift : forall (n : nat) (z : vec) (c : R), (0 < n)%nat -> ln (sum n (fun i => exp (z i + c))) = c + lse n z.
Proof. intros. now rewrite lse_shift_1, lse_shift_2, lse_shift_3. Qed.

Theorem loss_shift_1 : forall (n : nat) (z y : vec) (c : R), (0 < n)%nat ->
  sum n y * (c + lse n z) - sum n (fun j => y j * (z j + c))
    = sum n y * c + sum n y * lse n z - (sum n (fun j => y j * z j) + sum n (fun j => y j * c)).
Proof. intros. rewrite <- sum_add, Rmult_plus_distr_l. f_equal. apply sum_ext; intros. ring. Qed.
Theorem loss_shift_2 : forall (n : nat) (z y : vec) (c : R), (0 < n)%nat ->
  sum n y * c + sum n y * lse n z - (sum n (fun j => y j * z j) + sum n (fun j => y j * c))
    = sum n y * c + sum n y * lse n z - (sum n (fun j => y j * z j) + sum n (fun j => y j) * c).
Proof. intros. now rewrite (sum_scal_r n c). Qed.
Theorem loss_shift_3 : forall (n : nat) (z y : vec) (c : R), (0 < n)%nat ->
  sum n y * c + sum n y * lse n z - (sum n (fun j => y j * z j) + sum n (fun j => y j) * c)
    = sum n y * c + sum n y * lse n z - (sum n (fun j => y j * z j) + sum n y * c).
Proof. reflexivity. Qed.
Theorem loss_shift_4 : forall (n : nat) (z y : vec) (c : R), (0 < n)%nat ->
  sum n y * c + sum n y * lse n z - (sum n (fun j => y j * z j) + sum n y * c) = sum n y * lse n z - sum n (fun j => y j * z j).
Proof. intros. ring. Qed.
Theorem loss_shift_5 : forall (n : nat) (z y : vec), (0 < n)%nat -> sum n y * lse n z - sum n (fun j => y j * z j) = loss n y z.
Proof. intros. now rewrite loss_by_lse. Qed.

(** ... and changes neither the loss ... *)
Theorem loss_shift : forall (n : nat) (z y : vec) (c : R), (0 < n)%nat ->
  sum n y * (c + lse n z) - sum n (fun j => y j * (z j + c)) = loss n y z.
Proof. intros. now rewrite loss_shift_1, loss_shift_2, loss_shift_3, loss_shift_4, loss_shift_5. Qed.

Theorem loss_shift_invariant n y z c : (0 < n)%nat -> loss n y (fun i => z i + c) = loss n y z.
Proof. intros H. rewrite <- (loss_shift n z y c H), <- (lse_shift n z c H). now rewrite loss_by_lse. Qed.

(** ... nor the gradient *)
Theorem gradient_shift_invariant n y z c k : (k < n)%nat -> gradient n y (fun i => z i + c) k = gradient n y z k.
Proof. intros K. unfold gradient. now rewrite <- (softmax_shift n z c k K). Qed.

(** ** The second derivative *)

Theorem hessian_same_1 : forall (n : nat) (z y : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun z => sum n y * softmax n z k - y k) k z d1 -> partial (fun z => gradient n y z k) k z d1.
Proof. auto. Qed.
Theorem hessian_same_2 : forall (n : nat) (z y : vec) (k : nat) (d1 : R), (k < n)%nat -> partial (fun z => softmax n z k) k z d1 ->
  partial (fun z => sum n y * softmax n z k - y k) k z (sum n y * d1).
Proof. rule. eapply d_eq; [reflexivity| |apply d_sub; [apply d_scal; eassumption|now apply (d_const _ (y k))]]. ring. Qed.
Theorem hessian_same_3 : forall (n : nat) (z y : vec) (k : nat) (d1 : R), (k < n)%nat -> partial (fun z => softmax n z k) k z d1 ->
  sum n y * d1 = sum n y * (softmax n z k * (1 - softmax n z k)).
Proof. intros n z y k d1 K D. now rewrite (unique D (result1 n z k K)). Qed.

(** the Hessian on its diagonal *)
Theorem hessian_same : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat ->
  partial (fun z => gradient n y z k) k z (sum n y * (softmax n z k * (1 - softmax n z k))).
Proof.
  intros n z y k K. pose proof (result1 n z k K) as D.
  eapply partial_eq; [reflexivity| |now apply hessian_same_1, (hessian_same_2 n z y k _ K D)]. now apply hessian_same_3.
Qed.

Theorem hessian_other_1 : forall (n : nat) (z y : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => sum n y * softmax n z k - y k) j z d1 -> partial (fun z => gradient n y z k) j z d1.
Proof. auto. Qed.
Theorem hessian_other_2 : forall (n : nat) (z y : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => softmax n z k) j z d1 -> partial (fun z => sum n y * softmax n z k - y k) j z (sum n y * d1).
Proof. rule. eapply d_eq; [reflexivity| |apply d_sub; [apply d_scal; eassumption|now apply (d_const _ (y k))]]. ring. Qed.
Theorem hessian_other_3 : forall (n : nat) (z y : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => softmax n z k) j z d1 -> sum n y * d1 = sum n y * (- (softmax n z k * softmax n z j)).
Proof. intros n z y j k d1 J K N D. now rewrite (unique D (result2 n z k j K J (not_eq_sym N))). Qed.

(** ... and off it *)
Theorem hessian_other : forall (n : nat) (z y : vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun z => gradient n y z k) j z (sum n y * (- (softmax n z k * softmax n z j))).
Proof.
  intros n z y j k J K N. pose proof (result2 n z k j K J (not_eq_sym N)) as D.
  eapply partial_eq; [reflexivity| |now apply (hessian_other_1 n), (hessian_other_2 n z y j k _ J K N D)].
  now apply (hessian_other_3 n z y j k).
Qed.

Theorem hessian_product_1 : forall (n : nat) (z y v : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => gradient n y z k) j z (d1 j)) ->
  sum n (fun j => d1 j * v j) = d1 k * v k + sum_but k n (fun j => d1 j * v j).
Proof. intros. now apply (sum_split n k (fun j => d1 j * v j)). Qed.
Theorem hessian_product_2 : forall (n : nat) (z y v : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => gradient n y z k) j z (d1 j)) ->
  d1 k * v k + sum_but k n (fun j => d1 j * v j)
    = sum n y * (softmax n z k * (1 - softmax n z k)) * v k + sum_but k n (fun j => sum n y * (- (softmax n z k * softmax n z j)) * v j).
Proof.
  intros n z y v k d1 K D. rewrite (unique (D k K) (hessian_same n z y k K)). f_equal.
  apply sum_but_ext; intros j J N. now rewrite (unique (D j J) (hessian_other n z y j k J K N)).
Qed.
Theorem hessian_product_3 : forall (n : nat) (z y v : vec) (k : nat), (k < n)%nat ->
  sum n y * (softmax n z k * (1 - softmax n z k)) * v k + sum_but k n (fun j => sum n y * (- (softmax n z k * softmax n z j)) * v j)
    = sum n y * softmax n z k * (v k - (softmax n z k * v k + sum_but k n (fun j => softmax n z j * v j))).
Proof.
  intros. rewrite (sum_but_ext k n _ (fun j => - sum n y * softmax n z k * (softmax n z j * v j))) by (intros; ring).
  rewrite sum_but_scal. ring.
Qed.
Theorem hessian_product_4 : forall (n : nat) (z y v : vec) (k : nat), (k < n)%nat ->
  sum n y * softmax n z k * (v k - (softmax n z k * v k + sum_but k n (fun j => softmax n z j * v j)))
    = sum n y * softmax n z k * (v k - sum n (fun j => softmax n z j * v j)).
Proof. intros. now rewrite (sum_split n k (fun j => softmax n z j * v j)). Qed.
Theorem hessian_product_5 : forall (n : nat) (z y v : vec) (k : nat), (k < n)%nat ->
  sum n y * softmax n z k * (v k - sum n (fun j => softmax n z j * v j)) = sum n y * softmax n z k * (v k - mean n z v).
Proof. reflexivity. Qed.

(** the Hessian times v is p yhat_k (v_k - mu), where mu is the mean of v under the prediction *)
Theorem hessian_product : forall (n : nat) (z y v : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => gradient n y z k) j z (d1 j)) ->
  sum n (fun j => d1 j * v j) = sum n y * softmax n z k * (v k - mean n z v).
Proof. intros. line hessian_product_1. line hessian_product_2. line hessian_product_3. line hessian_product_4. easy. Qed.

Theorem centred_1 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun k => softmax n z k * (v k - mean n z v)) = sum n (fun k => softmax n z k * v k) - mean n z v * sum n (fun k => softmax n z k).
Proof. intros. rewrite <- sum_scal, <- sum_sub. apply sum_ext; intros; ring. Qed.
Theorem centred_2 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun k => softmax n z k * v k) - mean n z v * sum n (fun k => softmax n z k)
    = mean n z v - mean n z v * sum n (fun k => softmax n z k).
Proof. reflexivity. Qed.
Theorem centred_3 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  mean n z v - mean n z v * sum n (fun k => softmax n z k) = mean n z v - mean n z v * 1.
Proof. intros. now rewrite softmax_sums_to_1. Qed.
Theorem centred_4 : forall (n : nat) (z v : vec), (0 < n)%nat -> mean n z v - mean n z v * 1 = 0.
Proof. intros. ring. Qed.

(** the mean distance from the mean is zero *)
Theorem centred : forall (n : nat) (z v : vec), (0 < n)%nat -> sum n (fun k => softmax n z k * (v k - mean n z v)) = 0.
Proof. intros. now rewrite centred_1, centred_2, centred_3, centred_4. Qed.

Theorem hessian_psd_1 : forall (n : nat) (z y v : vec), (0 < n)%nat ->
  sum n (fun k => v k * (sum n y * softmax n z k * (v k - mean n z v)))
    = sum n y * sum n (fun k => softmax n z k * v k * (v k - mean n z v)).
Proof. intros. rewrite <- sum_scal. apply sum_ext; intros; ring. Qed.
Theorem hessian_psd_2 : forall (n : nat) (z y v : vec), (0 < n)%nat ->
  sum n y * sum n (fun k => softmax n z k * v k * (v k - mean n z v))
    = sum n y * (sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2)
    + mean n z v * sum n (fun k => softmax n z k * (v k - mean n z v))).
Proof. intros. f_equal. rewrite <- sum_scal, <- sum_add. apply sum_ext; intros; ring. Qed.
Theorem hessian_psd_3 : forall (n : nat) (z y v : vec), (0 < n)%nat ->
  sum n y * (sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2) + mean n z v * sum n (fun k => softmax n z k * (v k - mean n z v)))
    = sum n y * (sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2) + mean n z v * 0).
Proof. intros. now rewrite centred. Qed.
Theorem hessian_psd_4 : forall (n : nat) (z y v : vec), (0 < n)%nat ->
  sum n y * (sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2) + mean n z v * 0)
    = sum n y * sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2).
Proof. intros. f_equal. ring. Qed.
Theorem hessian_psd_5 : forall (n : nat) (z y v : vec), (0 < n)%nat -> (forall k, (k < n)%nat -> y k >= 0) ->
  sum n y * sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2) >= 0.
Proof.
  intros n z y v H Y. apply Rle_ge, Rmult_le_pos; apply sum_nonneg; intros; [now apply Rge_le, Y|].
  apply Rmult_le_pos; [left; positive|apply pow2_ge_0].
Qed.

(** v' H v, with H v put in, is p times a variance: it is not negative *)
Theorem hessian_psd : forall (n : nat) (z y v : vec), (0 < n)%nat -> (forall k, (k < n)%nat -> y k >= 0) ->
  sum n (fun k => v k * (sum n y * softmax n z k * (v k - mean n z v))) >= 0.
Proof. intros. rewrite hessian_psd_1, hessian_psd_2, hessian_psd_3, hessian_psd_4 by easy. now apply hessian_psd_5. Qed.

(** H is the matrix of the second derivatives of L at z: the derivatives of its derivatives G *)
Definition is_hessian (n : nat) (y z : vec) (H : nat -> vec) : Prop :=
  exists G : vec -> vec, (forall k z, (k < n)%nat -> partial (fun z => loss n y z) k z (G z k)) /\
    forall k j, (k < n)%nat -> (j < n)%nat -> partial (fun z => G z k) j z (H k j).

Lemma derivative_of_gradient n y z H k j : is_hessian n y z H -> (k < n)%nat -> (j < n)%nat ->
  partial (fun z => gradient n y z k) j z (H k j).
Proof.
  intros [G [D1 D2]] K J. eapply partial_eq; [|reflexivity|now apply D2].
  intros w. exact (unique (D1 k w K) (general_gradient n w y k K)).
Qed.

Lemma gradient_derivative n y z k j : (k < n)%nat -> (j < n)%nat ->
  partial (fun z => gradient n y z k) j z (sum n y * (softmax n z k * (delta k j - softmax n z j))).
Proof.
  intros K J. destruct (Nat.eq_dec j k) as [->|N].
  - eapply partial_eq; [reflexivity| |now apply hessian_same]. by_index.
  - eapply partial_eq; [reflexivity| |now apply (hessian_other n z y j k)]. by_index.
Qed.

(** its entries are p yhat_k (delta_kj - yhat_j); ... *)
Theorem hessian_entry n y z H k j : is_hessian n y z H -> (k < n)%nat -> (j < n)%nat ->
  H k j = sum n y * (softmax n z k * (delta k j - softmax n z j)).
Proof. intros D K J. exact (unique (derivative_of_gradient n y z H k j D K J) (gradient_derivative n y z k j K J)). Qed.

(** ... and it exists *)
Theorem hessian_exists n y z : is_hessian n y z (fun k j => sum n y * (softmax n z k * (delta k j - softmax n z j))).
Proof. exists (gradient n y). split; intros; [now apply general_gradient|now apply gradient_derivative]. Qed.

(** it is symmetric, ... *)
Theorem hessian_symmetric n y z H k j : is_hessian n y z H -> (k < n)%nat -> (j < n)%nat -> H k j = H j k.
Proof. intros D K J. rewrite !(hessian_entry n y z H) by auto. by_index. Qed.

(** ... v' H v is p times the variance of v under the prediction, ... *)
Theorem hessian_is_variance n y z H v : (0 < n)%nat -> is_hessian n y z H ->
  sum n (fun k => sum n (fun j => v k * H k j * v j)) = sum n y * sum n (fun k => softmax n z k * (v k - mean n z v) ^ 2).
Proof.
  intros P D. rewrite <- (hessian_psd_4 n z y v P), <- (hessian_psd_3 n z y v P), <- (hessian_psd_2 n z y v P),
    <- (hessian_psd_1 n z y v P). apply sum_ext; intros k K.
  rewrite <- (hessian_product n z y v k (H k) K) by (intros; now apply derivative_of_gradient).
  rewrite <- sum_scal. apply sum_ext; intros; ring.
Qed.

(** ... and so it is not negative *)
Theorem hessian_nonneg n y z H v : (0 < n)%nat -> 0 <= sum n y -> is_hessian n y z H ->
  0 <= sum n (fun k => sum n (fun j => v k * H k j * v j)).
Proof.
  intros P S D. rewrite (hessian_is_variance n y z H v P D). apply Rmult_le_pos; auto. apply sum_nonneg; intros.
  apply Rmult_le_pos; [left; positive|apply pow2_ge_0].
Qed.

(** *** Convexity *)

(** e^x lies above its tangent at 0 *)
Lemma exp_above_tangent x : 1 + x <= exp x.
Proof.
  destruct (Rtotal_order x 0) as [L|[->|G]]; [| |].
  - destruct (MVT_cor2 exp exp x 0 L) as [c [E C]]; [intros; apply derivable_pt_lim_exp|].
    rewrite exp_0 in E. pose proof (exp_increasing c 0 ltac:(lra)) as I. rewrite exp_0 in I. nra.
  - rewrite exp_0; lra.
  - destruct (MVT_cor2 exp exp 0 x G) as [c [E C]]; [intros; apply derivable_pt_lim_exp|].
    rewrite exp_0 in E. pose proof (exp_increasing 0 c ltac:(lra)) as I. rewrite exp_0 in I. nra.
Qed.

(** log-sum-exp lies above each of its tangent planes *)
Theorem lse_above_tangent n z w : (0 < n)%nat -> lse n z + sum n (fun j => softmax n z j * (w j - z j)) <= lse n w.
Proof.
  intros H. pose (m := sum n (fun j => softmax n z j * (w j - z j))). fold m.
  pose proof (expsum_pos n z H) as P. pose (S := sum n (fun i => exp (z i))). fold S in P.
  (* e^(w_j) is at least e^(z_j) e^m (1 + (w_j - z_j - m)), and the last factor has the mean 1 *)
  assert (E : S * exp m <= sum n (fun i => exp (w i))).
  { replace (S * exp m) with (sum n (fun j => S * exp m * (softmax n z j * (1 + (w j - z j - m))))).
    - apply sum_le; intros j J. replace (w j) with (z j + m + (w j - z j - m)) at 2 by ring. rewrite !exp_plus.
      replace (S * exp m * (softmax n z j * (1 + (w j - z j - m)))) with (exp (z j) * exp m * (1 + (w j - z j - m)))
        by (unfold softmax; fold S; field; lra).
      apply Rmult_le_compat_l; [|apply exp_above_tangent]. pose proof (exp_pos (z j)); pose proof (exp_pos m); nra.
    - rewrite sum_scal, (sum_ext n _ (fun j => (1 - m) * softmax n z j + softmax n z j * (w j - z j))) by (intros; ring).
      rewrite sum_add, sum_scal, softmax_sums_to_1 by auto. fold m. ring. }
  unfold lse. fold S. rewrite <- (ln_exp m), <- ln_mult by auto using exp_pos.
  destruct E as [L|E]; [left; apply ln_increasing; auto|right; now rewrite E].
  apply Rmult_lt_0_compat; auto using exp_pos.
Qed.

(** so does the loss, whose slope is the gradient *)
Theorem loss_above_tangent n y z w : (0 < n)%nat -> 0 <= sum n y ->
  loss n y z + sum n (fun j => gradient n y z j * (w j - z j)) <= loss n y w.
Proof.
  intros H Y. rewrite !loss_by_lse by auto. unfold gradient.
  rewrite (sum_ext n (fun j => (_ - _) * _) (fun j => sum n y * (softmax n z j * (w j - z j)) - (y j * w j - y j * z j)))
    by (intros; ring).
  rewrite !sum_sub, sum_scal. pose proof (lse_above_tangent n z w H). nra.
Qed.

(** the loss is convex in the scores *)
Theorem loss_convex n y z w a : (0 < n)%nat -> 0 <= sum n y -> 0 <= a <= 1 ->
  loss n y (fun j => a * z j + (1 - a) * w j) <= a * loss n y z + (1 - a) * loss n y w.
Proof.
  intros H Y A. set (u := fun j => a * z j + (1 - a) * w j).
  pose proof (loss_above_tangent n y u z H Y). pose proof (loss_above_tangent n y u w H Y).
  assert (a * sum n (fun j => gradient n y u j * (z j - u j)) + (1 - a) * sum n (fun j => gradient n y u j * (w j - u j)) = 0).
  { rewrite <- !sum_scal, <- sum_add, <- (sum_zero n). apply sum_ext; intros. unfold u; ring. }
  nra.
Qed.

(** ** Log-probability and entropy *)

Definition entropy (n : nat) (z : vec) : R := - sum n (fun j => softmax n z j * ln (softmax n z j)).

(** the derivative of the entropy along v *)
Definition eta (n : nat) (z v : vec) : R := sum n (fun j => softmax n z j * (lse n z - z j) * (v j - mean n z v)).

Theorem log_probability_1 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  ln (softmax n z j) = ln (exp (z j) / sum n (fun i => exp (z i))).
Proof. reflexivity. Qed.
Theorem log_probability_2 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  ln (exp (z j) / sum n (fun i => exp (z i))) = z j - ln (sum n (fun i => exp (z i))).
Proof. intros. rewrite ln_quotient, ln_exp by positive. easy. Qed.
Theorem log_probability_3 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> z j - ln (sum n (fun i => exp (z i))) = z j - lse n z.
Proof. reflexivity. Qed.

(** log yhat_j = z_j - lse *)
Theorem log_probability : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> ln (softmax n z j) = z j - lse n z.
Proof. intros. line log_probability_1. line log_probability_2. easy. Qed.

Theorem log_probability_gradient_1 : forall (n : nat) (z : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z j - lse n z) k z d1 -> partial (fun z => ln (softmax n z j)) k z d1.
Proof. intros n z j k d1 J K. apply partial_eq; [|easy]. intros. symmetry. now apply log_probability. Qed.
Theorem log_probability_gradient_2 : forall (n : nat) (z : vec) (j k : nat) (d1 d2 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z j) k z d1 -> partial (fun z => lse n z) k z d2 -> partial (fun z => z j - lse n z) k z (d1 - d2).
Proof. rule. now apply d_sub. Qed.
Theorem log_probability_gradient_3 : forall (n : nat) (z : vec) (j k : nat) (d1 d2 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z j) k z d1 -> partial (fun z => lse n z) k z d2 -> d1 - d2 = delta j k - d2.
Proof. intros n z j k d1 d2 J K D1 D2. now rewrite (unique D1 (coordinate z j k)). Qed.
Theorem log_probability_gradient_4 : forall (n : nat) (z : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => lse n z) k z d1 -> delta j k - d1 = delta j k - softmax n z k.
Proof. intros n z j k d1 J K D. now rewrite (unique D (lse_gradient n z k K)). Qed.

(** its derivative is delta_jk - yhat_k *)
Theorem log_probability_gradient : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => ln (softmax n z j)) k z (delta j k - softmax n z k).
Proof.
  intros n z j k J K. pose proof (coordinate z j k) as D1. pose proof (lse_gradient n z k K) as D2.
  exact (log_probability_gradient_1 n z j k _ J K (log_probability_gradient_2 n z j k _ _ J K D1 D2)).
Qed.

Theorem softmax_by_lse_1 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  exp (z j - lse n z) = exp (z j - ln (sum n (fun i => exp (z i)))).
Proof. reflexivity. Qed.
Theorem softmax_by_lse_2 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat ->
  exp (z j - ln (sum n (fun i => exp (z i)))) = exp (z j) / sum n (fun i => exp (z i)).
Proof. intros. unfold Rminus. rewrite exp_plus, exp_Ropp, exp_ln by positive. easy. Qed.
Theorem softmax_by_lse_3 : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> exp (z j) / sum n (fun i => exp (z i)) = softmax n z j.
Proof. reflexivity. Qed.

(** yhat_j = e^(z_j - lse) *)
Theorem softmax_by_lse : forall (n : nat) (z : vec) (j : nat), (j < n)%nat -> exp (z j - lse n z) = softmax n z j.
Proof. intros. line softmax_by_lse_1. line softmax_by_lse_2. easy. Qed.

Theorem softmax_gradient_1 : forall (n : nat) (z : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => exp (z j - lse n z)) k z d1 -> partial (fun z => softmax n z j) k z d1.
Proof. intros n z j k d1 J K. apply partial_eq; [|easy]. intros. now apply softmax_by_lse. Qed.
Theorem softmax_gradient_2 : forall (n : nat) (z : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z j - lse n z) k z d1 -> partial (fun z => exp (z j - lse n z)) k z (exp (z j - lse n z) * d1).
Proof. rule. apply (d_exp (fun t => set z k t j - lse n (set z k t))); [easy|now rewrite set_same]. Qed.
Theorem softmax_gradient_3 : forall (n : nat) (z : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z j - lse n z) k z d1 -> exp (z j - lse n z) * d1 = softmax n z j * d1.
Proof. intros. now rewrite softmax_by_lse. Qed.
Theorem softmax_gradient_4 : forall (n : nat) (z : vec) (j k : nat) (d1 d2 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z j - lse n z) k z d1 -> partial (fun z => ln (softmax n z j)) k z d2 -> softmax n z j * d1 = softmax n z j * d2.
Proof. intros n z j k d1 d2 J K D1 D2. f_equal. exact (unique (log_probability_gradient_1 n z j k d1 J K D1) D2). Qed.
Theorem softmax_gradient_5 : forall (n : nat) (z : vec) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => ln (softmax n z j)) k z d1 -> softmax n z j * d1 = softmax n z j * (delta j k - softmax n z k).
Proof. intros n z j k d1 J K D. now rewrite (unique D (log_probability_gradient n z j k J K)). Qed.

(** Results 1 and 2 in one formula *)
Theorem softmax_gradient : forall (n : nat) (z : vec) (j k : nat), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => softmax n z j) k z (softmax n z j * (delta j k - softmax n z k)).
Proof. intros n z j k J K. now apply softmax_jacobian. Qed.

Theorem entropy_by_lse_1 : forall (n : nat) (z : vec), (0 < n)%nat -> entropy n z = - sum n (fun j => softmax n z j * ln (softmax n z j)).
Proof. reflexivity. Qed.
Theorem entropy_by_lse_2 : forall (n : nat) (z : vec), (0 < n)%nat ->
  - sum n (fun j => softmax n z j * ln (softmax n z j)) = - sum n (fun j => softmax n z j * (z j - lse n z)).
Proof. intros. f_equal. apply sum_ext; intros. now rewrite log_probability. Qed.
Theorem entropy_by_lse_3 : forall (n : nat) (z : vec), (0 < n)%nat ->
  - sum n (fun j => softmax n z j * (z j - lse n z)) = sum n (fun j => softmax n z j * (lse n z - z j)).
Proof. intros. rewrite <- sum_opp. apply sum_ext; intros. ring. Qed.

(** the entropy is the mean of lse - z_j *)
Theorem entropy_by_lse : forall (n : nat) (z : vec), (0 < n)%nat -> entropy n z = sum n (fun j => softmax n z j * (lse n z - z j)).
Proof. intros. line entropy_by_lse_1. line entropy_by_lse_2. now apply entropy_by_lse_3. Qed.

Theorem entropy_gradient_1 : forall (n : nat) (z : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun z => - sum n (fun j => softmax n z j * ln (softmax n z j))) k z d1 -> partial (fun z => entropy n z) k z d1.
Proof. auto. Qed.
Theorem entropy_gradient_2 : forall (n : nat) (z : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j * ln (softmax n z j)) k z (d1 j)) ->
  partial (fun z => - sum n (fun j => softmax n z j * ln (softmax n z j))) k z (- sum n (fun j => d1 j)).
Proof. rule. now apply d_opp, (d_sum n (fun j t => softmax n (set z k t) j * ln (softmax n (set z k t) j))). Qed.
Theorem entropy_gradient_3 : forall (n : nat) (z : vec) (k : nat) (d1 d2 d3 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j * ln (softmax n z j)) k z (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => ln (softmax n z j)) k z (d3 j)) ->
  - sum n (fun j => d1 j) = - sum n (fun j => d2 j * ln (softmax n z j) + softmax n z j * d3 j).
Proof.
  intros n z k d1 d2 d3 K D1 D2 D3. f_equal. apply sum_ext; intros j J. apply (unique (D1 j J)).
  apply (d_mul (fun t => softmax n (set z k t) j) (fun t => ln (softmax n (set z k t) j)));
    [exact (D2 j J)|exact (D3 j J)|now rewrite set_same|now rewrite set_same].
Qed.
Theorem entropy_gradient_4 : forall (n : nat) (z : vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => ln (softmax n z j)) k z (d2 j)) ->
  - sum n (fun j => d1 j * ln (softmax n z j) + softmax n z j * d2 j)
    = - sum n (fun j => softmax n z j * (delta j k - softmax n z k) * ln (softmax n z j) + softmax n z j * (delta j k - softmax n z k)).
Proof.
  intros n z k d1 d2 K D1 D2. f_equal. apply sum_ext; intros j J.
  now rewrite (unique (D1 j J) (softmax_gradient n z j k J K)), (unique (D2 j J) (log_probability_gradient n z j k J K)).
Qed.
Theorem entropy_gradient_5 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  - sum n (fun j => softmax n z j * (delta j k - softmax n z k) * ln (softmax n z j) + softmax n z j * (delta j k - softmax n z k))
    = - sum n (fun j => softmax n z j * (delta j k - softmax n z k) * (z j - lse n z) + softmax n z j * (delta j k - softmax n z k)).
Proof. intros. f_equal. apply sum_ext; intros. now rewrite log_probability. Qed.
Theorem entropy_gradient_6 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  - sum n (fun j => softmax n z j * (delta j k - softmax n z k) * (z j - lse n z) + softmax n z j * (delta j k - softmax n z k))
    = sum n (fun j => softmax n z j * (lse n z - z j) * delta j k) - softmax n z k * sum n (fun j => softmax n z j * (lse n z - z j))
    - sum n (fun j => softmax n z j * delta j k) + softmax n z k * sum n (fun j => softmax n z j).
Proof. intros. rewrite <- !sum_scal, <- sum_opp, <- !sum_sub, <- sum_add. apply sum_ext; intros; ring. Qed.
Theorem entropy_gradient_7 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j) * delta j k) - softmax n z k * sum n (fun j => softmax n z j * (lse n z - z j))
    - sum n (fun j => softmax n z j * delta j k) + softmax n z k * sum n (fun j => softmax n z j)
    = softmax n z k * (lse n z - z k) - softmax n z k * sum n (fun j => softmax n z j * (lse n z - z j)) - softmax n z k
    + softmax n z k * sum n (fun j => softmax n z j).
Proof.
  intros n z k K. rewrite (sum_delta n k (fun j => softmax n z j * (lse n z - z j))), (sum_delta n k (softmax n z)) by easy. easy.
Qed.
Theorem entropy_gradient_8 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  softmax n z k * (lse n z - z k) - softmax n z k * sum n (fun j => softmax n z j * (lse n z - z j)) - softmax n z k
    + softmax n z k * sum n (fun j => softmax n z j)
    = softmax n z k * (lse n z - z k) - softmax n z k * sum n (fun j => softmax n z j * (lse n z - z j)) - softmax n z k
    + softmax n z k * 1.
Proof. intros. now rewrite softmax_sums_to_1 by lia. Qed.
Theorem entropy_gradient_9 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  softmax n z k * (lse n z - z k) - softmax n z k * sum n (fun j => softmax n z j * (lse n z - z j)) - softmax n z k + softmax n z k * 1
    = softmax n z k * (lse n z - z k) - softmax n z k * entropy n z - softmax n z k + softmax n z k * 1.
Proof. intros. now rewrite (entropy_by_lse n z) by lia. Qed.
Theorem entropy_gradient_10 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  softmax n z k * (lse n z - z k) - softmax n z k * entropy n z - softmax n z k + softmax n z k * 1
    = softmax n z k * (lse n z - z k - entropy n z).
Proof. intros. ring. Qed.

(** d H / d z_k = yhat_k (lse - z_k - H) *)
Theorem entropy_gradient : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  partial (fun z => entropy n z) k z (softmax n z k * (lse n z - z k - entropy n z)).
Proof.
  intros n z k K. pose (d2 := fun j => softmax n z j * (delta j k - softmax n z k)). pose (d3 := fun j => delta j k - softmax n z k).
  assert (D2 : forall j, (j < n)%nat -> partial (fun z => softmax n z j) k z (d2 j)) by (intros; now apply softmax_gradient).
  assert (D3 : forall j, (j < n)%nat -> partial (fun z => ln (softmax n z j)) k z (d3 j)) by (intros; now apply log_probability_gradient).
  pose (d1 := fun j => d2 j * ln (softmax n z j) + softmax n z j * d3 j).
  assert (D1 : forall j, (j < n)%nat -> partial (fun z => softmax n z j * ln (softmax n z j)) k z (d1 j)).
  { intros j J. apply (d_mul (fun t => softmax n (set z k t) j) (fun t => ln (softmax n (set z k t) j)));
      [exact (D2 j J)|exact (D3 j J)|now rewrite set_same|now rewrite set_same]. }
  eapply partial_eq; [reflexivity| |exact (entropy_gradient_1 n z k _ K (entropy_gradient_2 n z k d1 K D1))].
  line (entropy_gradient_3 n z k). line (entropy_gradient_4 n z k). line entropy_gradient_5. line entropy_gradient_6.
  line entropy_gradient_7. line entropy_gradient_8. line entropy_gradient_9. now apply entropy_gradient_10.
Qed.

Theorem entropy_along_1 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j)
    = sum n (fun j => softmax n z j * (lse n z - z j) * v j) - entropy n z * sum n (fun j => softmax n z j * v j).
Proof. intros. rewrite <- sum_scal, <- sum_sub. apply sum_ext; intros; ring. Qed.
Theorem entropy_along_2 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j) * v j) - entropy n z * sum n (fun j => softmax n z j * v j)
    = sum n (fun j => softmax n z j * (lse n z - z j) * v j) - entropy n z * mean n z v.
Proof. reflexivity. Qed.
Theorem entropy_along_3 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j) * v j) - entropy n z * mean n z v
    = sum n (fun j => softmax n z j * (lse n z - z j) * v j) - sum n (fun j => softmax n z j * (lse n z - z j)) * mean n z v.
Proof. intros. now rewrite (entropy_by_lse n z). Qed.
Theorem entropy_along_4 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j) * v j) - sum n (fun j => softmax n z j * (lse n z - z j)) * mean n z v = eta n z v.
Proof. intros. unfold eta. rewrite <- sum_scal_r, <- sum_sub. apply sum_ext; intros; ring. Qed.
Theorem entropy_along_5 : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j) * (v j - mean n z v))
    = sum n (fun j => softmax n z j * (lse n z - z j) * (v j - mean n z v)).
Proof. reflexivity. Qed.

(** ... and along v, it is the mean of (lse - z_j) (v_j - mu) *)
Theorem entropy_along : forall (n : nat) (z v : vec), (0 < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j) = eta n z v.
Proof. intros. line entropy_along_1. line entropy_along_2. line entropy_along_3. now apply entropy_along_4. Qed.

(** the entropy is not negative *)
Theorem entropy_nonneg n z : 0 <= entropy n z.
Proof.
  unfold entropy. rewrite <- sum_opp. apply sum_nonneg; intros j J. pose proof (softmax_positive n z j ltac:(lia)) as P.
  assert (ln (softmax n z j) <= 0); [|nra]. rewrite <- ln_1.
  destruct (softmax_le_1 n z j J) as [L|E]; [left; now apply ln_increasing|rewrite E; lra].
Qed.

(** ** Options *)

(** a one-hot truth has no negative entry and picks the value of f at the label *)
Theorem one_hot_nonneg t k : 0 <= delta k t.
Proof. by_index. Qed.

Theorem one_hot_picks n t f : (t < n)%nat -> sum n (fun j => delta j t * f j) = f t.
Proof. intros T. rewrite <- (sum_delta n t f T). apply sum_ext; intros; ring. Qed.

Theorem one_hot_gradient_1 : forall (n : nat) (z : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => delta k t) z) k z (sum n (fun k => delta k t) * softmax n z k - delta k t).
Proof. intros. now apply (general_gradient n z (fun k => delta k t)). Qed.
Theorem one_hot_gradient_2 : forall (n : nat) (z : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun k => delta k t) * softmax n z k - delta k t = sum n (fun j => delta j t) * softmax n z k - delta k t.
Proof. reflexivity. Qed.
Theorem one_hot_gradient_3 : forall (n : nat) (z : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => delta j t) * softmax n z k - delta k t = sum n (fun j => delta j t) * softmax n z k - delta k t.
Proof. reflexivity. Qed.
Theorem one_hot_gradient_4 : forall (n : nat) (z : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => delta j t) * softmax n z k - delta k t = 1 * softmax n z k - delta k t.
Proof. intros. now rewrite one_hot_sum. Qed.
Theorem one_hot_gradient_5 : forall (n : nat) (z : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  1 * softmax n z k - delta k t = softmax n z k - delta k t.
Proof. intros. ring. Qed.

(** a label t: subtract 1 at the label, nothing elsewhere *)
Theorem one_hot_gradient : forall (n : nat) (z : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => delta k t) z) k z (softmax n z k - delta k t).
Proof.
  intros. eapply partial_eq; [reflexivity| |now apply one_hot_gradient_1].
  now rewrite one_hot_gradient_4, one_hot_gradient_5.
Qed.

Theorem one_hot_loss_1 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  loss n (fun k => delta k t) z = sum n (fun k => delta k t) * lse n z - sum n (fun j => delta j t * z j).
Proof. intros. now rewrite loss_by_lse by lia. Qed.
Theorem one_hot_loss_2 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  sum n (fun k => delta k t) * lse n z - sum n (fun j => delta j t * z j)
    = sum n (fun j => delta j t) * lse n z - sum n (fun j => delta j t * z j).
Proof. reflexivity. Qed.
Theorem one_hot_loss_3 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  sum n (fun j => delta j t) * lse n z - sum n (fun j => delta j t * z j) = 1 * lse n z - sum n (fun j => delta j t * z j).
Proof. intros. now rewrite one_hot_sum. Qed.
Theorem one_hot_loss_4 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  1 * lse n z - sum n (fun j => delta j t * z j) = 1 * lse n z - z t.
Proof. intros. now rewrite one_hot_picks. Qed.
Theorem one_hot_loss_5 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> 1 * lse n z - z t = lse n z - z t.
Proof. intros. ring. Qed.

(** its loss is lse - z_t *)
Theorem one_hot_loss : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> loss n (fun k => delta k t) z = lse n z - z t.
Proof. intros. now rewrite one_hot_loss_1, one_hot_loss_3, one_hot_loss_4, one_hot_loss_5. Qed.

Theorem weighted_gradient_1 : forall (n : nat) (z w : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => w t * delta k t) z) k z (sum n (fun k => w t * delta k t) * softmax n z k - w t * delta k t).
Proof. intros. now apply (general_gradient n z (fun k => w t * delta k t)). Qed.
Theorem weighted_gradient_2 : forall (n : nat) (z w : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun k => w t * delta k t) * softmax n z k - w t * delta k t = sum n (fun j => w t * delta j t) * softmax n z k - w t * delta k t.
Proof. reflexivity. Qed.
Theorem weighted_gradient_3 : forall (n : nat) (z w : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => w t * delta j t) * softmax n z k - w t * delta k t = sum n (fun j => w t * delta j t) * softmax n z k - w t * delta k t.
Proof. reflexivity. Qed.
Theorem weighted_gradient_4 : forall (n : nat) (z w : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => w t * delta j t) * softmax n z k - w t * delta k t = w t * softmax n z k - w t * delta k t.
Proof. intros. now rewrite (sum_delta n t (fun _ => w t)). Qed.
Theorem weighted_gradient_5 : forall (n : nat) (z w : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  w t * softmax n z k - w t * delta k t = w t * (softmax n z k - delta k t).
Proof. intros. ring. Qed.

(** class weights: the gradient is weighted with the weight of the label *)
Theorem weighted_gradient : forall (n : nat) (z w : vec) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => w t * delta k t) z) k z (w t * (softmax n z k - delta k t)).
Proof.
  intros. eapply partial_eq; [reflexivity| |now apply weighted_gradient_1].
  now rewrite weighted_gradient_4, weighted_gradient_5.
Qed.

Theorem smoothed_gradient_1 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => (1 - eps) * delta k t + eps / INR n) z) k z
    (sum n (fun k => (1 - eps) * delta k t + eps / INR n) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)).
Proof. intros. now apply (general_gradient n z (fun k => (1 - eps) * delta k t + eps / INR n)). Qed.
Theorem smoothed_gradient_2 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun k => (1 - eps) * delta k t + eps / INR n) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)
    = sum n (fun j => (1 - eps) * delta j t + eps / INR n) * softmax n z k - ((1 - eps) * delta k t + eps / INR n).
Proof. reflexivity. Qed.
Theorem smoothed_gradient_3 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => (1 - eps) * delta j t + eps / INR n) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)
    = sum n (fun j => (1 - eps) * delta j t + eps / INR n) * softmax n z k - ((1 - eps) * delta k t + eps / INR n).
Proof. reflexivity. Qed.
Theorem smoothed_gradient_4 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => (1 - eps) * delta j t + eps / INR n) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)
    = ((1 - eps) * sum n (fun j => delta j t) + sum n (fun _ => eps / INR n)) * softmax n z k - ((1 - eps) * delta k t + eps / INR n).
Proof. intros. now rewrite sum_add, sum_scal. Qed.
Theorem smoothed_gradient_5 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  ((1 - eps) * sum n (fun j => delta j t) + sum n (fun _ => eps / INR n)) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)
    = ((1 - eps) * 1 + sum n (fun _ => eps / INR n)) * softmax n z k - ((1 - eps) * delta k t + eps / INR n).
Proof. intros. now rewrite one_hot_sum. Qed.
Theorem smoothed_gradient_6 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  ((1 - eps) * 1 + sum n (fun _ => eps / INR n)) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)
    = ((1 - eps) * 1 + INR n * (eps / INR n)) * softmax n z k - ((1 - eps) * delta k t + eps / INR n).
Proof. intros. now rewrite sum_const. Qed.
Theorem smoothed_gradient_7 : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  ((1 - eps) * 1 + INR n * (eps / INR n)) * softmax n z k - ((1 - eps) * delta k t + eps / INR n)
    = softmax n z k - ((1 - eps) * delta k t + eps / INR n).
Proof. intros. fractions. Qed.

(** label smoothing: the truth still has mass one *)
Theorem smoothed_gradient : forall (n : nat) (z : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => (1 - eps) * delta k t + eps / INR n) z) k z (softmax n z k - ((1 - eps) * delta k t + eps / INR n)).
Proof.
  intros. eapply partial_eq; [reflexivity| |now apply smoothed_gradient_1].
  now rewrite smoothed_gradient_4, smoothed_gradient_5, smoothed_gradient_6, smoothed_gradient_7.
Qed.

Theorem smoothed_weighted_gradient_1 : forall (n : nat) (z w : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => (1 - eps) * w t * delta k t + eps / INR n * w k) z) k z
    (sum n (fun k => (1 - eps) * w t * delta k t + eps / INR n * w k) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k)).
Proof. intros. now apply (general_gradient n z (fun k => (1 - eps) * w t * delta k t + eps / INR n * w k)). Qed.
Theorem smoothed_weighted_gradient_2 : forall (n : nat) (z w : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun k => (1 - eps) * w t * delta k t + eps / INR n * w k) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k)
    = sum n (fun j => (1 - eps) * w t * delta j t + eps / INR n * w j) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k).
Proof. reflexivity. Qed.
Theorem smoothed_weighted_gradient_3 : forall (n : nat) (z w : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => (1 - eps) * w t * delta j t + eps / INR n * w j) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k)
    = sum n (fun j => (1 - eps) * w t * delta j t + eps / INR n * w j) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k).
Proof. reflexivity. Qed.
Theorem smoothed_weighted_gradient_4 : forall (n : nat) (z w : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  sum n (fun j => (1 - eps) * w t * delta j t + eps / INR n * w j) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k)
    = (sum n (fun j => (1 - eps) * w t * delta j t) + eps / INR n * sum n (fun j => w j)) * softmax n z k
    - ((1 - eps) * w t * delta k t + eps / INR n * w k).
Proof. intros. now rewrite sum_add, (sum_scal n (eps / INR n)). Qed.
Theorem smoothed_weighted_gradient_5 : forall (n : nat) (z w : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  (sum n (fun j => (1 - eps) * w t * delta j t) + eps / INR n * sum n (fun j => w j)) * softmax n z k
    - ((1 - eps) * w t * delta k t + eps / INR n * w k)
    = ((1 - eps) * w t + eps / INR n * sum n (fun j => w j)) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k).
Proof. intros. now rewrite (sum_delta n t (fun _ => (1 - eps) * w t)). Qed.

(** label smoothing with class weights: every class counts with its own weight *)
Theorem smoothed_weighted_gradient : forall (n : nat) (z w : vec) (eps : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n (fun k => (1 - eps) * w t * delta k t + eps / INR n * w k) z) k z
    (((1 - eps) * w t + eps / INR n * sum n (fun j => w j)) * softmax n z k - ((1 - eps) * w t * delta k t + eps / INR n * w k)).
Proof.
  intros. eapply partial_eq; [reflexivity| |now apply smoothed_weighted_gradient_1].
  now rewrite smoothed_weighted_gradient_4, smoothed_weighted_gradient_5.
Qed.

Theorem probabilities_gradient_1 : forall (n : nat) (z w u : vec) (eps : R) (k : nat), (k < n)%nat ->
  partial (fun z => loss n (fun k => w k * ((1 - eps) * u k + eps / INR n)) z) k z
    (sum n (fun k => w k * ((1 - eps) * u k + eps / INR n)) * softmax n z k - w k * ((1 - eps) * u k + eps / INR n)).
Proof. intros. now apply (general_gradient n z (fun k => w k * ((1 - eps) * u k + eps / INR n))). Qed.
Theorem probabilities_gradient_2 : forall (n : nat) (z w u : vec) (eps : R) (k : nat), (k < n)%nat ->
  sum n (fun k => w k * ((1 - eps) * u k + eps / INR n)) * softmax n z k - w k * ((1 - eps) * u k + eps / INR n)
    = sum n (fun j => w j * ((1 - eps) * u j + eps / INR n)) * softmax n z k - w k * ((1 - eps) * u k + eps / INR n).
Proof. reflexivity. Qed.
Theorem probabilities_gradient_3 : forall (n : nat) (z w u : vec) (eps : R) (k : nat), (k < n)%nat ->
  sum n (fun j => w j * ((1 - eps) * u j + eps / INR n)) * softmax n z k - w k * ((1 - eps) * u k + eps / INR n)
    = sum n (fun j => w j * ((1 - eps) * u j + eps / INR n)) * softmax n z k - w k * ((1 - eps) * u k + eps / INR n).
Proof. reflexivity. Qed.

(** probabilities, smoothed and weighted, are a truth like any other *)
Theorem probabilities_gradient : forall (n : nat) (z w u : vec) (eps : R) (k : nat), (k < n)%nat ->
  partial (fun z => loss n (fun k => w k * ((1 - eps) * u k + eps / INR n)) z) k z
    (sum n (fun j => w j * ((1 - eps) * u j + eps / INR n)) * softmax n z k - w k * ((1 - eps) * u k + eps / INR n)).
Proof. exact probabilities_gradient_1. Qed.

Theorem ignored_gradient_1 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  partial (fun z => loss n (fun _ => 0) z) k z (sum n (fun _ => 0) * softmax n z k - 0).
Proof. intros. now apply (general_gradient n z (fun _ => 0)). Qed.
Theorem ignored_gradient_2 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  sum n (fun _ => 0) * softmax n z k - 0 = sum n (fun j => 0) * softmax n z k - 0.
Proof. reflexivity. Qed.
Theorem ignored_gradient_3 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  sum n (fun j => 0) * softmax n z k - 0 = sum n (fun _ => 0) * softmax n z k - 0.
Proof. reflexivity. Qed.
Theorem ignored_gradient_4 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> sum n (fun _ => 0) * softmax n z k - 0 = 0.
Proof. intros. rewrite sum_zero. ring. Qed.

(** an ignored row has no gradient ... *)
Theorem ignored_gradient : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> partial (fun z => loss n (fun _ => 0) z) k z 0.
Proof. intros. eapply partial_eq; [reflexivity| |now apply ignored_gradient_1]. now apply ignored_gradient_4. Qed.

Theorem ignored_loss_1 : forall (n : nat) (z : vec), (0 < n)%nat ->
  loss n (fun _ => 0) z = sum n (fun _ => 0) * lse n z - sum n (fun j => 0 * z j).
Proof. intros. now rewrite loss_by_lse by lia. Qed.
Theorem ignored_loss_2 : forall (n : nat) (z : vec), (0 < n)%nat ->
  sum n (fun _ => 0) * lse n z - sum n (fun j => 0 * z j) = sum n (fun _ => 0) * lse n z - sum n (fun j => 0 * z j).
Proof. reflexivity. Qed.
Theorem ignored_loss_3 : forall (n : nat) (z : vec), (0 < n)%nat -> sum n (fun _ => 0) * lse n z - sum n (fun j => 0 * z j) = 0.
Proof. intros. rewrite sum_scal, sum_zero. ring. Qed.

(** ... and no loss *)
Theorem ignored_loss : forall (n : nat) (z : vec), (0 < n)%nat -> loss n (fun _ => 0) z = 0.
Proof. intros. now rewrite ignored_loss_1, ignored_loss_3. Qed.

Theorem z_loss_gradient_1 : forall (n : nat) (z y : vec) (lam : R) (k : nat) (d1 d2 : R), (k < n)%nat ->
  partial (fun z => loss n y z) k z d1 -> partial (fun z => (lse n z) ^ 2) k z d2 ->
  partial (fun z => loss n y z + lam * (lse n z) ^ 2) k z (d1 + lam * d2).
Proof. rule. apply d_add; [easy|now apply d_scal]. Qed.
Theorem z_loss_gradient_2 : forall (n : nat) (z y : vec) (lam : R) (k : nat) (d1 d2 d3 : R), (k < n)%nat ->
  partial (fun z => loss n y z) k z d1 -> partial (fun z => (lse n z) ^ 2) k z d2 -> partial (fun z => lse n z) k z d3 ->
  d1 + lam * d2 = d1 + lam * (2 * lse n z * d3).
Proof.
  intros n z y lam k d1 d2 d3 K D1 D2 D3. do 2 f_equal. apply (unique D2).
  apply (d_square (fun t => lse n (set z k t))); [exact D3|now rewrite set_same].
Qed.
Theorem z_loss_gradient_3 : forall (n : nat) (z y : vec) (lam : R) (k : nat) (d1 d2 : R), (k < n)%nat ->
  partial (fun z => loss n y z) k z d1 -> partial (fun z => lse n z) k z d2 ->
  d1 + lam * (2 * lse n z * d2) = sum n y * softmax n z k - y k + lam * (2 * lse n z * softmax n z k).
Proof. intros n z y lam k d1 d2 K D1 D2. now rewrite (unique D1 (general_gradient n z y k K)), (unique D2 (lse_gradient n z k K)). Qed.
Theorem z_loss_gradient_4 : forall (n : nat) (z y : vec) (lam : R) (k : nat), (k < n)%nat ->
  sum n y * softmax n z k - y k + lam * (2 * lse n z * softmax n z k) = (sum n y + 2 * lam * lse n z) * softmax n z k - y k.
Proof. intros. ring. Qed.

(** z-loss: the penalty acts like mass, it multiplies the prediction *)
Theorem z_loss_gradient : forall (n : nat) (z y : vec) (lam : R) (k : nat), (k < n)%nat ->
  partial (fun z => loss n y z + lam * (lse n z) ^ 2) k z ((sum n y + 2 * lam * lse n z) * softmax n z k - y k).
Proof.
  intros n z y lam k K. pose proof (general_gradient n z y k K) as D1. pose proof (lse_gradient n z k K) as D3.
  assert (D2 : partial (fun z => (lse n z) ^ 2) k z (2 * lse n z * softmax n z k))
    by (apply (d_square (fun t => lse n (set z k t))); [exact D3|now rewrite set_same]).
  eapply partial_eq; [reflexivity| |exact (z_loss_gradient_1 n z y lam k _ _ K D1 D2)].
  line z_loss_gradient_2. line z_loss_gradient_3. now apply z_loss_gradient_4.
Qed.

(** *** Scores that are themselves functions *)

(** the chain rule once more: if every score moves with t, then so does the loss *)
Lemma loss_along n y (z : R -> vec) z' x v : (0 < n)%nat -> z x = v ->
  (forall j, (j < n)%nat -> derivable_pt_lim (fun t => z t j) x (z' j)) ->
  derivable_pt_lim (fun t => loss n y (z t)) x (sum n (fun j => gradient n y v j * z' j)).
Proof.
  intros H <- D. pose proof (expsum_pos n (z x) H) as P.
  apply (d_eq (fun t => sum n y * lse n (z t) - sum n (fun j => y j * z t j)) _ x
    (sum n y * (1 / sum n (fun i => exp (z x i)) * sum n (fun i => exp (z x i) * z' i)) - sum n (fun j => y j * z' j))).
  - intros. now rewrite loss_by_lse.
  - rewrite <- !sum_scal, <- sum_sub. apply sum_ext; intros. unfold gradient, softmax. field. lra.
  - apply d_sub; [apply d_scal, d_ln; auto|]; [apply (d_sum n (fun i t => exp (z t i)))|apply (d_sum n (fun j t => y j * z t j))];
      intros j J; [apply (d_exp (fun t => z t j)); auto|apply d_scal; auto].
Qed.

(** with d1_j for the derivatives of the loss by the scores *)
Lemma chain n y (z : R -> vec) z' x v d1 : (0 < n)%nat -> z x = v ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j v (d1 j)) ->
  (forall j, (j < n)%nat -> derivable_pt_lim (fun t => z t j) x (z' j)) ->
  derivable_pt_lim (fun t => loss n y (z t)) x (sum n (fun j => d1 j * z' j)).
Proof.
  intros H E D1 D. eapply d_eq; [reflexivity| |exact (loss_along n y z z' x v H E D)].
  apply sum_ext; intros j J. f_equal. symmetry. exact (unique (D1 j J) (general_gradient n v y j J)).
Qed.

Lemma scores_have_derivatives n y z : exists d : vec, forall j, (j < n)%nat -> partial (fun z => loss n y z) j z (d j).
Proof. exists (gradient n y z). intros; now apply general_gradient. Qed.

(** of the sum in the chain rule one term is left, if only z_k moves *)
Lemma only_own n y z k (d1 d2 : vec) s : (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j z (d1 j)) -> d2 k = s ->
  (forall j, (j < n)%nat -> j <> k -> d2 j = 0) ->
  d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j)
  = (sum n y * softmax n z k - y k) * s + sum_but k n (fun j => (sum n y * softmax n z j - y j) * 0).
Proof.
  intros K D <- O. rewrite (unique (D k K) (general_gradient n z y k K)). f_equal.
  apply sum_but_ext; intros j J N. now rewrite (unique (D j J) (general_gradient n z y j J)), O.
Qed.

Theorem temperature_same_1 : forall (n : nat) (x : vec) (T : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 ->
  partial (fun x => x k / T) k x d1 -> partial (fun x => x k / T) k x d1.
Proof. auto. Qed.
Theorem temperature_same_2 : forall (n : nat) (x : vec) (T : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 ->
  partial (fun x => x k) k x d1 -> partial (fun x => x k / T) k x (d1 / T).
Proof. rule. now apply d_scal_r. Qed.
Theorem temperature_same_3 : forall (n : nat) (x : vec) (T : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 ->
  partial (fun x => x k) k x d1 -> d1 / T = 1 / T.
Proof. intros n x T k d1 K N D. now rewrite (unique D (coordinate_same x k)). Qed.

(** a temperature: z_k = x_k / T, with the slope 1 / T *)
Theorem temperature_same : forall (n : nat) (x : vec) (T : R) (k : nat), (k < n)%nat -> T <> 0 -> partial (fun x => x k / T) k x (1 / T).
Proof.
  intros n x T k K N. pose proof (coordinate_same x k) as D.
  eapply partial_eq; [reflexivity| |now apply (temperature_same_1 n), (temperature_same_2 n x T k _ K N D)].
  now apply (temperature_same_3 n x T k).
Qed.

Theorem temperature_other_1 : forall (n : nat) (x : vec) (T : R) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k -> T <> 0 ->
  partial (fun x => x j / T) k x 0.
Proof. rule. apply (d_const _ (x j / T)); intros; f_equal; by_index. Qed.

(** ... and the other scores do not move *)
Theorem temperature_other : forall (n : nat) (x : vec) (T : R) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k -> T <> 0 ->
  partial (fun x => x j / T) k x 0.
Proof. exact temperature_other_1. Qed.

Theorem temperature_gradient_1 : forall (n : nat) (y x : vec) (T : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => x k / T) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => x j / T) k x (d2 j)) ->
  partial (fun x => loss n y (fun k => x k / T)) k x (sum n (fun j => d1 j * d2 j)).
Proof.
  intros n y x T k d1 d2 K N D1 D2. apply (chain n y (fun t i => set x k t i / T) d2 _ (fun i => x i / T)); auto; [lia|].
  now rewrite set_same.
Qed.
Theorem temperature_gradient_2 : forall (n : nat) (y x : vec) (T : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => x k / T) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => x j / T) k x (d2 j)) ->
  sum n (fun j => d1 j * d2 j) = d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j).
Proof. intros. now apply (sum_split n k (fun j => d1 j * d2 j)). Qed.
Theorem temperature_gradient_3 : forall (n : nat) (y x : vec) (T : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => x k / T) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => x j / T) k x (d2 j)) ->
  d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j)
    = (sum n y * softmax n (fun k => x k / T) k - y k) * (1 / T)
    + sum_but k n (fun j => (sum n y * softmax n (fun k => x k / T) j - y j) * 0).
Proof.
  intros n y x T k d1 d2 K N D1 D2. apply (only_own n y (fun i => x i / T)); auto.
  - exact (unique (D2 k K) (temperature_same n x T k K N)).
  - intros j J M. exact (unique (D2 j J) (temperature_other n x T j k J K M N)).
Qed.
Theorem temperature_gradient_4 : forall (n : nat) (y x : vec) (T : R) (k : nat), (k < n)%nat -> T <> 0 ->
  (sum n y * softmax n (fun k => x k / T) k - y k) * (1 / T) + sum_but k n (fun j => (sum n y * softmax n (fun k => x k / T) j - y j) * 0)
    = (sum n y * softmax n (fun k => x k / T) k - y k) * (1 / T).
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the gradient by x_k: prediction minus truth, over T *)
Theorem temperature_gradient : forall (n : nat) (y x : vec) (T : R) (k : nat), (k < n)%nat -> T <> 0 ->
  partial (fun x => loss n y (fun k => x k / T)) k x ((sum n y * softmax n (fun k => x k / T) k - y k) * (1 / T)).
Proof.
  intros n y x T k K N. destruct (scores_have_derivatives n y (fun k => x k / T)) as [d1 D1].
  assert (D2 : exists d : vec, forall j, (j < n)%nat -> partial (fun x => x j / T) k x (d j)).
  { exists (fun j => if Nat.eqb j k then 1 / T else 0). intros j J. destruct (Nat.eqb_spec j k) as [->|M];
      [now apply (temperature_same n)|now apply (temperature_other n)]. }
  destruct D2 as [d2 D2]. eapply partial_eq; [reflexivity| |now apply (temperature_gradient_1 n y x T k d1 d2)].
  line temperature_gradient_2. line temperature_gradient_3. now apply temperature_gradient_4.
Qed.

Definition capped (c T : R) (x : vec) : vec := fun k => c / T * tanh (x k / c).
Definition slope (c T x : R) : R := (1 - (tanh (x / c)) ^ 2) / T.

Theorem softcap_same_1 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => c / T * tanh (x k / c)) k x d1 -> partial (fun x => c / T * tanh (x k / c)) k x d1.
Proof. auto. Qed.
Theorem softcap_same_2 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => tanh (x k / c)) k x d1 -> partial (fun x => c / T * tanh (x k / c)) k x (c / T * d1).
Proof. rule. now apply d_scal. Qed.
Theorem softcap_same_3 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 d2 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => tanh (x k / c)) k x d1 -> partial (fun x => x k / c) k x d2 -> c / T * d1 = c / T * ((1 - (tanh (x k / c)) ^ 2) * d2).
Proof.
  intros n x T c k d1 d2 K N C D1 D2. f_equal. apply (unique D1).
  apply (d_tanh (fun t => set x k t k / c)); [exact D2|now rewrite set_same].
Qed.
Theorem softcap_same_4 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => x k / c) k x d1 -> c / T * ((1 - (tanh (x k / c)) ^ 2) * d1) = c / T * ((1 - (tanh (x k / c)) ^ 2) * (1 / c)).
Proof. intros n x T c k d1 K N C D. now rewrite (unique D (temperature_same n x c k K C)). Qed.
Theorem softcap_same_5 : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  c / T * ((1 - (tanh (x k / c)) ^ 2) * (1 / c)) = (1 - (tanh (x k / c)) ^ 2) / T.
Proof. intros. field. now split. Qed.

(** a softcap, and a temperature: z_k = c/T tanh (x_k / c), with the slope (1 - tanh^2) / T *)
Theorem softcap_same : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => c / T * tanh (x k / c)) k x (slope c T (x k)).
Proof.
  intros n x T c k K N C. pose proof (temperature_same n x c k K C) as D2.
  assert (D1 : partial (fun x => tanh (x k / c)) k x ((1 - (tanh (x k / c)) ^ 2) * (1 / c)))
    by (apply (d_tanh (fun t => set x k t k / c)); [exact D2|now rewrite set_same]).
  eapply partial_eq; [reflexivity| |exact (softcap_same_1 n x T c k _ K N C (softcap_same_2 n x T c k _ K N C D1))].
  line (softcap_same_3 n). line (softcap_same_4 n). now apply (softcap_same_5 n).
Qed.

Theorem softcap_other_1 : forall (n : nat) (x : vec) (T c : R) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k -> T <> 0 -> c <> 0 ->
  partial (fun x => c / T * tanh (x j / c)) k x 0.
Proof. rule. apply (d_const _ (c / T * tanh (x j / c))); intros; do 2 f_equal; by_index. Qed.

(** ... and the other scores do not move *)
Theorem softcap_other : forall (n : nat) (x : vec) (T c : R) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k -> T <> 0 -> c <> 0 ->
  partial (fun x => c / T * tanh (x j / c)) k x 0.
Proof. exact softcap_other_1. Qed.

Lemma capped_has_derivatives n x T c k : (k < n)%nat -> T <> 0 -> c <> 0 ->
  exists d : vec, forall j, (j < n)%nat -> partial (fun x => c / T * tanh (x j / c)) k x (d j).
Proof.
  intros K N C. exists (fun j => if Nat.eqb j k then slope c T (x k) else 0). intros j J.
  destruct (Nat.eqb_spec j k) as [->|M]; [now apply (softcap_same n)|now apply (softcap_other n)].
Qed.

Theorem softcap_gradient_1 : forall (n : nat) (y x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (capped c T x) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => c / T * tanh (x j / c)) k x (d2 j)) ->
  partial (fun x => loss n y (capped c T x)) k x (sum n (fun j => d1 j * d2 j)).
Proof.
  intros n y x T c k d1 d2 K N C D1 D2.
  apply (chain n y (fun t => capped c T (set x k t)) d2 _ (capped c T x)); auto; [lia|]. now rewrite set_same.
Qed.
Theorem softcap_gradient_2 : forall (n : nat) (y x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (capped c T x) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => c / T * tanh (x j / c)) k x (d2 j)) ->
  sum n (fun j => d1 j * d2 j) = d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j).
Proof. intros. now apply (sum_split n k (fun j => d1 j * d2 j)). Qed.
Theorem softcap_gradient_3 : forall (n : nat) (y x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (capped c T x) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => c / T * tanh (x j / c)) k x (d2 j)) ->
  d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j)
    = (sum n y * softmax n (capped c T x) k - y k) * (slope c T (x k))
    + sum_but k n (fun j => (sum n y * softmax n (capped c T x) j - y j) * 0).
Proof.
  intros n y x T c k d1 d2 K N C D1 D2. apply (only_own n y (capped c T x)); auto.
  - exact (unique (D2 k K) (softcap_same n x T c k K N C)).
  - intros j J M. exact (unique (D2 j J) (softcap_other n x T c j k J K M N C)).
Qed.
Theorem softcap_gradient_4 : forall (n : nat) (y x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (sum n y * softmax n (capped c T x) k - y k) * (slope c T (x k))
    + sum_but k n (fun j => (sum n y * softmax n (capped c T x) j - y j) * 0)
    = (sum n y * softmax n (capped c T x) k - y k) * (slope c T (x k)).
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the gradient by x_k: prediction minus truth, times the slope *)
Theorem softcap_gradient : forall (n : nat) (y x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => loss n y (capped c T x)) k x ((sum n y * softmax n (capped c T x) k - y k) * (slope c T (x k))).
Proof.
  intros n y x T c k K N C. destruct (scores_have_derivatives n y (capped c T x)) as [d1 D1].
  destruct (capped_has_derivatives n x T c k K N C) as [d2 D2].
  eapply partial_eq; [reflexivity| |exact (softcap_gradient_1 n y x T c k d1 d2 K N C D1 D2)].
  line (softcap_gradient_2 n y x T c k d1 d2). line (softcap_gradient_3 n y x T c k d1 d2). now apply softcap_gradient_4.
Qed.

(** tanh without cancellation far from 0 *)
Lemma tanh_by_exp f : tanh f = (1 - exp (- (2 * f))) / (1 + exp (- (2 * f))).
Proof.
  unfold tanh, sinh, cosh. pose proof (exp_pos f). replace (- (2 * f)) with (- f + - f) by ring.
  rewrite exp_plus, exp_Ropp. field. repeat split; nra.
Qed.

Theorem softcap_slope_1 : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (1 - (tanh (x k / c)) ^ 2) / T = (1 - ((1 - exp (- (2 * (x k / c)))) / (1 + exp (- (2 * (x k / c))))) ^ 2) / T.
Proof. intros. now rewrite tanh_by_exp. Qed.
Theorem softcap_slope_2 : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (1 - ((1 - exp (- (2 * (x k / c)))) / (1 + exp (- (2 * (x k / c))))) ^ 2) / T
    = 4 * exp (- (2 * (x k / c))) / (1 + exp (- (2 * (x k / c)))) ^ 2 / T.
Proof. intros. pose proof (exp_pos (- (2 * (x k / c)))). field. split; lra. Qed.

(** the slope by one exponential *)
Theorem softcap_slope : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (1 - (tanh (x k / c)) ^ 2) / T = 4 * exp (- (2 * (x k / c))) / (1 + exp (- (2 * (x k / c)))) ^ 2 / T.
Proof. intros. line softcap_slope_1. now apply (softcap_slope_2 n). Qed.

(** ... whose exponent may be chosen negative: with w = e^(- |2 x / c|), tanh |x / c| is (1 - w) / (1 + w) and the slope 4 w / (1 + w)^2 / T *)
Theorem softcap_by_abs x c T : 0 < c -> T <> 0 -> let w := exp (- (2 * (Rabs x / c))) in
  0 < w <= 1 /\ tanh (Rabs x / c) = (1 - w) / (1 + w) /\ (1 - (tanh (x / c)) ^ 2) / T = 4 * w / (1 + w) ^ 2 / T.
Proof.
  intros C N w. pose proof (exp_pos (- (2 * (Rabs x / c)))) as P. fold w in P. split; [|split].
  - split; [easy|]. unfold w. rewrite <- exp_0. assert (0 <= Rabs x / c) by (apply Rmult_le_pos; [apply Rabs_pos|left; now apply Rinv_0_lt_compat]).
    destruct (Req_dec (- (2 * (Rabs x / c))) 0) as [->|D]; [lra|left; apply exp_increasing; lra].
  - apply tanh_by_exp.
  - replace ((tanh (x / c)) ^ 2) with ((tanh (Rabs x / c)) ^ 2).
    + rewrite tanh_by_exp. fold w. field. split; lra.
    + unfold Rabs. destruct (Rcase_abs x); [|easy]. replace (- x / c) with (- (x / c)) by (field; lra).
      unfold tanh. replace (sinh (- (x / c))) with (- sinh (x / c)) by (unfold sinh; rewrite Ropp_involutive; field).
      replace (cosh (- (x / c))) with (cosh (x / c)) by (unfold cosh; rewrite Ropp_involutive; field).
      assert (0 < cosh (x / c)) by (unfold cosh; pose proof (exp_pos (x / c)); pose proof (exp_pos (- (x / c))); lra). field. lra.
Qed.

Theorem softcap_second_1 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => (tanh (x k / c)) ^ 2) k x d1 -> partial (fun x => slope c T (x k)) k x ((- d1) / T).
Proof.
  rule. eapply d_eq; [reflexivity| |apply (d_scal_r (/ T)), d_sub; [now apply (d_const _ 1)|eassumption]]. unfold Rdiv. ring.
Qed.
Theorem softcap_second_2 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 d2 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => (tanh (x k / c)) ^ 2) k x d1 -> partial (fun x => tanh (x k / c)) k x d2 ->
  (- d1) / T = (- (2 * tanh (x k / c) * d2)) / T.
Proof.
  intros n x T c k d1 d2 K N C D1 D2. do 2 f_equal. apply (unique D1).
  apply (d_square (fun t => tanh (set x k t k / c))); [exact D2|now rewrite set_same].
Qed.
Theorem softcap_second_3 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 d2 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => tanh (x k / c)) k x d1 -> partial (fun x => x k / c) k x d2 ->
  (- (2 * tanh (x k / c) * d1)) / T = (- (2 * tanh (x k / c) * ((1 - (tanh (x k / c)) ^ 2) * d2))) / T.
Proof.
  intros n x T c k d1 d2 K N C D1 D2. do 3 f_equal. apply (unique D1).
  apply (d_tanh (fun t => set x k t k / c)); [exact D2|now rewrite set_same].
Qed.
Theorem softcap_second_4 : forall (n : nat) (x : vec) (T c : R) (k : nat) (d1 : R), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => x k / c) k x d1 -> (- (2 * tanh (x k / c) * ((1 - (tanh (x k / c)) ^ 2) * d1))) / T
    = (- (2 * tanh (x k / c) * ((1 - (tanh (x k / c)) ^ 2) * (1 / c)))) / T.
Proof. intros n x T c k d1 K N C D. now rewrite (unique D (temperature_same n x c k K C)). Qed.
Theorem softcap_second_5 : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (- (2 * tanh (x k / c) * ((1 - (tanh (x k / c)) ^ 2) * (1 / c)))) / T = - (2 / c * tanh (x k / c) * (slope c T (x k))).
Proof. intros. unfold slope, Rdiv. ring. Qed.

(** its second derivative *)
Theorem softcap_second : forall (n : nat) (x : vec) (T c : R) (k : nat), (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun x => slope c T (x k)) k x (- (2 / c * tanh (x k / c) * (slope c T (x k)))).
Proof.
  intros n x T c k K N C. pose proof (temperature_same n x c k K C) as D3.
  assert (D2 : partial (fun x => tanh (x k / c)) k x ((1 - (tanh (x k / c)) ^ 2) * (1 / c)))
    by (apply (d_tanh (fun t => set x k t k / c)); [exact D3|now rewrite set_same]).
  assert (D1 : partial (fun x => (tanh (x k / c)) ^ 2) k x (2 * tanh (x k / c) * ((1 - (tanh (x k / c)) ^ 2) * (1 / c))))
    by (apply (d_square (fun t => tanh (set x k t k / c))); [exact D2|now rewrite set_same]).
  eapply partial_eq; [reflexivity| |exact (softcap_second_1 n x T c k _ K N C D1)].
  line (softcap_second_2 n). line (softcap_second_3 n). line (softcap_second_4 n). now apply (softcap_second_5 n).
Qed.

(** the chain rule for the gradient: if every score moves with t, then so does each of its entries *)
Lemma gradient_moves n y (z : R -> vec) z' x v k : (k < n)%nat -> z x = v ->
  (forall j, (j < n)%nat -> derivable_pt_lim (fun t => z t j) x (z' j)) ->
  derivable_pt_lim (fun t => gradient n y (z t) k) x (sum n (fun i => sum n y * (softmax n v k * (delta k i - softmax n v i)) * z' i)).
Proof.
  intros K <- D. pose proof (expsum_pos n (z x) ltac:(lia)) as P. pose (S := sum n (fun i => exp (z x i))). fold S in P.
  eapply (d_eq _ _ x (sum n y * ((exp (z x k) * z' k * S - exp (z x k) * sum n (fun i => exp (z x i) * z' i)) / S ^ 2) - 0)).
  - reflexivity.
  - rewrite (sum_ext n (fun i => sum n y * (softmax n (z x) k * (delta k i - softmax n (z x) i)) * z' i)
      (fun i => sum n y * softmax n (z x) k * (z' i * delta i k)
      - sum n y * softmax n (z x) k / S * (exp (z x i) * z' i)))
      by (intros; rewrite (delta_sym k); unfold softmax; fold S; field; lra).
    rewrite sum_sub, !sum_scal, (sum_delta n k z') by easy. unfold softmax. fold S. field. lra.
  - apply d_sub; [|now apply (d_const _ (y k))]. apply d_scal.
    apply (d_div (fun t => exp (z t k)) (fun t => sum n (fun i => exp (z t i)))); [|apply (d_sum n (fun i t => exp (z t i)))|easy|easy|lra].
    + apply (d_exp (fun t => z t k)); auto.
    + intros j J. apply (d_exp (fun t => z t j)); auto.
Qed.

Theorem softcap_chain_1 : forall (n : nat) (y x : vec) (T c : R) (j k : nat) (d1 d2 : vec), (j < n)%nat -> (k < n)%nat -> T <> 0 ->
  c <> 0 -> (forall i, (i < n)%nat -> partial (fun z => gradient n y z k) i (capped c T x) (d1 i)) ->
  (forall i, (i < n)%nat -> partial (fun x => c / T * tanh (x i / c)) j x (d2 i)) ->
  partial (fun x => gradient n y (capped c T x) k) j x (sum n (fun i => d1 i * d2 i)).
Proof.
  intros n y x T c j k d1 d2 J K N C D1 D2.
  eapply d_eq; [reflexivity| |apply (gradient_moves n y (fun t => capped c T (set x j t)) d2 _ (capped c T x) k K); [now rewrite set_same|exact D2]].
  apply sum_ext; intros i I. f_equal. symmetry. exact (unique (D1 i I) (gradient_derivative n y _ k i K I)).
Qed.
Theorem softcap_chain_2 : forall (n : nat) (y x : vec) (T c : R) (j k : nat) (d1 d2 : vec), (j < n)%nat -> (k < n)%nat -> T <> 0 ->
  c <> 0 -> (forall i, (i < n)%nat -> partial (fun z => gradient n y z k) i (capped c T x) (d1 i)) ->
  (forall i, (i < n)%nat -> partial (fun x => c / T * tanh (x i / c)) j x (d2 i)) ->
  sum n (fun i => d1 i * d2 i) = d1 j * d2 j + sum_but j n (fun i => d1 i * d2 i).
Proof. intros. now apply (sum_split n j (fun i => d1 i * d2 i)). Qed.
Theorem softcap_chain_3 : forall (n : nat) (y x : vec) (T c : R) (j k : nat) (d1 d2 : vec), (j < n)%nat -> (k < n)%nat -> T <> 0 ->
  c <> 0 -> (forall i, (i < n)%nat -> partial (fun z => gradient n y z k) i (capped c T x) (d1 i)) ->
  (forall i, (i < n)%nat -> partial (fun x => c / T * tanh (x i / c)) j x (d2 i)) ->
  d1 j * d2 j + sum_but j n (fun i => d1 i * d2 i) = d1 j * (slope c T (x j)) + sum_but j n (fun i => d1 i * 0).
Proof.
  intros n y x T c j k d1 d2 J K N C D1 D2. rewrite (unique (D2 j J) (softcap_same n x T c j J N C)). f_equal.
  apply sum_but_ext; intros i I M. now rewrite (unique (D2 i I) (softcap_other n x T c i j I J M N C)).
Qed.
Theorem softcap_chain_4 : forall (n : nat) (y x : vec) (T c : R) (j k : nat) (d1 : vec), (j < n)%nat -> (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall i, (i < n)%nat -> partial (fun z => gradient n y z k) i (capped c T x) (d1 i)) ->
  d1 j * (slope c T (x j)) + sum_but j n (fun i => d1 i * 0) = d1 j * (slope c T (x j)).
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the derivative of the gradient by a raw score: that by the score, times the slope *)
Theorem softcap_chain : forall (n : nat) (y x : vec) (T c : R) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat -> T <> 0 -> c <> 0 ->
  partial (fun z => gradient n y z k) j (capped c T x) d1 -> partial (fun x => gradient n y (capped c T x) k) j x (d1 * (slope c T (x j))).
Proof.
  intros n y x T c j k d1 J K N C D. destruct (capped_has_derivatives n x T c j J N C) as [d2 D2].
  pose (e := fun i => sum n y * (softmax n (capped c T x) k * (delta k i - softmax n (capped c T x) i))).
  assert (D1 : forall i, (i < n)%nat -> partial (fun z => gradient n y z k) i (capped c T x) (e i)) by (intros; now apply gradient_derivative).
  rewrite (unique D (D1 j J)). eapply partial_eq; [reflexivity| |exact (softcap_chain_1 n y x T c j k e d2 J K N C D1 D2)].
  line (softcap_chain_2 n y x T c j k e d2). line (softcap_chain_3 n y x T c j k e d2). now apply (softcap_chain_4 n y x T c j k e).
Qed.

Theorem softcap_hessian_1 : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d1 d2 d3 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k * (slope c T (x k))) j x (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (d2 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => slope c T (x k)) j x (d3 j)) ->
  sum n (fun j => d1 j * v j) = sum n (fun j => (d2 j * (slope c T (x k)) + gradient n y (capped c T x) k * d3 j) * v j).
Proof.
  intros n y v x T c k d1 d2 d3 K N C D1 D2 D3. apply sum_ext; intros j J. f_equal. apply (unique (D1 j J)).
  apply (d_mul (fun t => gradient n y (capped c T (set x j t)) k) (fun t => slope c T (set x j t k)));
    [exact (D2 j J)|exact (D3 j J)|now rewrite set_same|now rewrite set_same].
Qed.
Theorem softcap_hessian_2 : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => slope c T (x k)) j x (d2 j)) ->
  sum n (fun j => (d1 j * (slope c T (x k)) + gradient n y (capped c T x) k * d2 j) * v j)
    = slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * sum n (fun j => d2 j * v j).
Proof. intros. rewrite <- !sum_scal, <- sum_add. apply sum_ext; intros; ring. Qed.
Theorem softcap_hessian_3 : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => slope c T (x k)) j x (d2 j)) ->
  slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * sum n (fun j => d2 j * v j)
    = slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * (d2 k * v k + sum_but k n (fun j => d2 j * v j)).
Proof. intros. now rewrite (sum_split n k (fun j => d2 j * v j)). Qed.
Theorem softcap_hessian_4 : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun x => slope c T (x k)) j x (d2 j)) ->
  slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * (d2 k * v k + sum_but k n (fun j => d2 j * v j))
    = slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * (d2 k * v k + sum_but k n (fun j => 0 * v j)).
Proof.
  intros n y v x T c k d1 d2 K N C D1 D2. do 3 f_equal. apply sum_but_ext; intros j J M. f_equal.
  apply (unique (D2 j J)), (d_const _ (slope c T (x k))). intros; f_equal; by_index.
Qed.
Theorem softcap_hessian_5 : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d2 : R) (d1 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (d1 j)) -> partial (fun x => slope c T (x k)) k x d2 ->
  slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * (d2 * v k + sum_but k n (fun j => 0 * v j))
    = slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * (d2 * v k).
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.
Theorem softcap_hessian_6 : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d3 : R) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => gradient n y z k) j (capped c T x) (d2 j)) -> partial (fun x => slope c T (x k)) k x d3 ->
  slope c T (x k) * sum n (fun j => d1 j * v j) + gradient n y (capped c T x) k * (d3 * v k)
    = slope c T (x k) * sum n (fun j => d2 j * (slope c T (x j)) * v j)
    + gradient n y (capped c T x) k * ((- (2 / c * tanh (x k / c) * (slope c T (x k)))) * v k).
Proof.
  intros n y v x T c k d3 d1 d2 K N C D1 D2 D3. rewrite (unique D3 (softcap_second n x T c k K N C)). do 2 f_equal.
  apply sum_ext; intros j J. f_equal. exact (unique (D1 j J) (softcap_chain n y x T c j k (d2 j) J K N C (D2 j J))).
Qed.

(** the Hessian by the raw scores: slope (H (slope v)), and the second derivative times the gradient *)
Theorem softcap_hessian : forall (n : nat) (y v x : vec) (T c : R) (k : nat) (d1 d2 : vec), (k < n)%nat -> T <> 0 -> c <> 0 ->
  (forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k * (slope c T (x k))) j x (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun z => gradient n y z k) j (capped c T x) (d2 j)) ->
  sum n (fun j => d1 j * v j) = slope c T (x k) * sum n (fun j => d2 j * (slope c T (x j)) * v j)
    + gradient n y (capped c T x) k * ((- (2 / c * tanh (x k / c) * (slope c T (x k)))) * v k).
Proof.
  intros n y v x T c k d1 d2 K N C D1 D2. pose (e := fun j => d2 j * slope c T (x j)).
  assert (E : forall j, (j < n)%nat -> partial (fun x => gradient n y (capped c T x) k) j x (e j)) by (intros; apply softcap_chain; auto).
  pose (s := fun j => if Nat.eqb j k then - (2 / c * tanh (x k / c) * slope c T (x k)) else 0).
  assert (S : forall j, (j < n)%nat -> partial (fun x => slope c T (x k)) j x (s j)).
  { intros j J. unfold s. destruct (Nat.eqb_spec j k) as [->|M]; [now apply (softcap_second n)|].
    apply (d_const _ (slope c T (x k))). intros; f_equal; by_index. }
  line (softcap_hessian_1 n y v x T c k d1 e s). line (softcap_hessian_2 n y v x T c k e s). line (softcap_hessian_3 n y v x T c k e s).
  line (softcap_hessian_4 n y v x T c k e s). line (softcap_hessian_5 n y v x T c k (s k) e).
  now apply (softcap_hessian_6 n y v x T c k (s k) e d2); auto.
Qed.

(** ** Sums in parts *)

Theorem merge_parts_1 : forall (m m1 m2 s1 s2 : R),
  exp m * (exp (m1 - m) * s1 + exp (m2 - m) * s2) = exp m * exp (m1 - m) * s1 + exp m * exp (m2 - m) * s2.
Proof. intros. ring. Qed.
Theorem merge_parts_2 : forall (m m1 m2 s1 s2 : R), exp m * exp (m1 - m) * s1 + exp m * exp (m2 - m) * s2 = exp m1 * s1 + exp m2 * s2.
Proof. intros. rewrite <- !exp_plus. do 2 f_equal; f_equal; ring. Qed.

(** two parts merge, whatever m they are brought to *)
Theorem merge_parts : forall (m m1 m2 s1 s2 : R), exp m * (exp (m1 - m) * s1 + exp (m2 - m) * s2) = exp m1 * s1 + exp m2 * s2.
Proof. intros. now rewrite merge_parts_1, merge_parts_2. Qed.

(** e^m goes into a sum and takes the shift by m away *)
Lemma unshift m x : exp m * exp (x - m) = exp x.
Proof. rewrite <- exp_plus. f_equal. ring. Qed.

Theorem sum_of_u_1 : forall (n : nat) (z : vec) (m : R), (0 < n)%nat ->
  exp m * (m * sum n (fun i => exp (z i - m)) - sum n (fun i => exp (z i - m) * (m - z i))) = sum n (fun i => exp m * exp (z i - m) * z i).
Proof. intros. rewrite <- (sum_scal n m), <- sum_sub, <- sum_scal. apply sum_ext; intros; ring. Qed.
Theorem sum_of_u_2 : forall (n : nat) (z : vec) (m : R), (0 < n)%nat ->
  sum n (fun i => exp m * exp (z i - m) * z i) = sum n (fun i => exp (z i) * z i).
Proof. intros. apply sum_ext; intros. now rewrite unshift. Qed.

(** with u the sum of e^(z - m) (m - z), e^m (m s - u) is the sum of e^z z *)
Theorem sum_of_u : forall (n : nat) (z : vec) (m : R), (0 < n)%nat ->
  exp m * (m * sum n (fun i => exp (z i - m)) - sum n (fun i => exp (z i - m) * (m - z i))) = sum n (fun i => exp (z i) * z i).
Proof. intros. line sum_of_u_1. now apply sum_of_u_2. Qed.

Theorem merge_u_1 : forall (m m1 m2 s1 s2 u1 u2 : R), exp m * (m * (exp (m1 - m) * s1 + exp (m2 - m) * s2)
    - (exp (m1 - m) * (u1 + s1 * (m - m1)) + exp (m2 - m) * (u2 + s2 * (m - m2))))
    = exp m * exp (m1 - m) * (m1 * s1 - u1) + exp m * exp (m2 - m) * (m2 * s2 - u2).
Proof. intros. ring. Qed.
Theorem merge_u_2 : forall (m m1 m2 s1 s2 u1 u2 : R), exp m * exp (m1 - m) * (m1 * s1 - u1) + exp m * exp (m2 - m) * (m2 * s2 - u2)
    = exp m1 * (m1 * s1 - u1) + exp m2 * (m2 * s2 - u2).
Proof. intros. now rewrite !unshift. Qed.

(** u of two parts together *)
Theorem merge_u : forall (m m1 m2 s1 s2 u1 u2 : R), exp m * (m * (exp (m1 - m) * s1 + exp (m2 - m) * s2)
    - (exp (m1 - m) * (u1 + s1 * (m - m1)) + exp (m2 - m) * (u2 + s2 * (m - m2)))) = exp m1 * (m1 * s1 - u1) + exp m2 * (m2 * s2 - u2).
Proof. intros. line merge_u_1. apply merge_u_2. Qed.

Theorem read_lse_1 : forall (n : nat) (z : vec) (m : R), (0 < n)%nat ->
  m + ln (sum n (fun i => exp (z i - m))) = ln (exp m * sum n (fun i => exp (z i - m))).
Proof. intros n z m H. rewrite ln_mult, ln_exp; [easy|positive|exact (expsum_pos n (fun i => z i - m) H)]. Qed.
Theorem read_lse_2 : forall (n : nat) (z : vec) (m : R), (0 < n)%nat ->
  ln (exp m * sum n (fun i => exp (z i - m))) = ln (sum n (fun i => exp m * exp (z i - m))).
Proof. intros. now rewrite sum_scal. Qed.
Theorem read_lse_3 : forall (n : nat) (z : vec) (m : R), (0 < n)%nat ->
  ln (sum n (fun i => exp m * exp (z i - m))) = ln (sum n (fun i => exp (z i))).
Proof. intros. f_equal. apply sum_ext; intros. apply unshift. Qed.
Theorem read_lse_4 : forall (n : nat) (z : vec), (0 < n)%nat -> ln (sum n (fun i => exp (z i))) = lse n z.
Proof. reflexivity. Qed.

(** lse is m + log s of a part with the sum s *)
Theorem read_lse : forall (n : nat) (z : vec) (m : R), (0 < n)%nat -> m + ln (sum n (fun i => exp (z i - m))) = lse n z.
Proof. intros. now rewrite read_lse_1, read_lse_2, read_lse_3. Qed.

(** with two classes or more, something is left beside the label *)
Lemma rest_pos n t f : (t < n)%nat -> INR n > 1 -> (forall i, 0 < f i) -> 0 < sum_but t n f.
Proof.
  intros T N P. assert (M : (1 < n)%nat) by (apply INR_lt; exact N). clear N.
  pose (k := if Nat.eqb t 0 then 1%nat else 0%nat). assert (K : (k < n)%nat /\ k <> t) by (unfold k; by_index). destruct K as [K D].
  unfold sum_but. rewrite (sum_split n k) by easy. pose proof (P k).
  assert (0 <= sum_but k n (fun j => if Nat.eqb j t then 0 else f j)) by (apply sum_but_nonneg; intros i; pose proof (P i); by_index).
  destruct (Nat.eqb_spec k t); [easy|lra].
Qed.

Theorem label_apart_1 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  exp (m - z t + ln (sum_but t n (fun i => exp (z i - m)))) = exp (m - z t + ln (sum_but t n (fun i => exp (z i - m)))).
Proof. reflexivity. Qed.
Theorem label_apart_2 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  exp (m - z t + ln (sum_but t n (fun i => exp (z i - m)))) = exp m / exp (z t) * sum_but t n (fun i => exp (z i - m)).
Proof.
  intros n z m t T N. unfold Rminus at 1. rewrite !exp_plus, exp_Ropp, exp_ln; [easy|].
  apply rest_pos; auto. intros; apply exp_pos.
Qed.
Theorem label_apart_3 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  exp m / exp (z t) * sum_but t n (fun i => exp (z i - m)) = sum_but t n (fun i => exp m * exp (z i - m)) / exp (z t).
Proof. intros. rewrite sum_but_scal. fractions. Qed.
Theorem label_apart_4 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  sum_but t n (fun i => exp m * exp (z i - m)) / exp (z t) = sum_but t n (fun i => exp (z i)) / exp (z t).
Proof. intros. f_equal. apply sum_but_ext; intros. apply unshift. Qed.

(** e^a is the odds against the label *)
Theorem label_apart : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  exp (m - z t + ln (sum_but t n (fun i => exp (z i - m)))) = sum_but t n (fun i => exp (z i)) / exp (z t).
Proof. intros. now rewrite label_apart_2, label_apart_3, label_apart_4. Qed.

Theorem tiny_loss_1 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> INR n > 1 ->
  - ln (softmax n z t) = - ln (exp (z t) / sum n (fun i => exp (z i))).
Proof. reflexivity. Qed.
Theorem tiny_loss_2 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> INR n > 1 ->
  - ln (exp (z t) / sum n (fun i => exp (z i))) = ln (sum n (fun i => exp (z i)) / exp (z t)).
Proof. intros. rewrite !ln_quotient by positive. ring. Qed.
Theorem tiny_loss_3 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> INR n > 1 ->
  ln (sum n (fun i => exp (z i)) / exp (z t)) = ln ((exp (z t) + sum_but t n (fun i => exp (z i))) / exp (z t)).
Proof. intros. now rewrite (sum_split n t). Qed.
Theorem tiny_loss_4 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> INR n > 1 ->
  ln ((exp (z t) + sum_but t n (fun i => exp (z i))) / exp (z t)) = ln (1 + sum_but t n (fun i => exp (z i)) / exp (z t)).
Proof. intros. f_equal. fractions. Qed.
Theorem tiny_loss_5 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  ln (1 + sum_but t n (fun i => exp (z i)) / exp (z t)) = ln (1 + exp (m - z t + ln (sum_but t n (fun i => exp (z i - m))))).
Proof. intros. now rewrite label_apart. Qed.

(** the loss of a label is log (1 + e^a) *)
Theorem tiny_loss : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat -> INR n > 1 ->
  - ln (softmax n z t) = ln (1 + exp (m - z t + ln (sum_but t n (fun i => exp (z i - m))))).
Proof. intros n z m t T N. line tiny_loss_1. line tiny_loss_2. line tiny_loss_3. line tiny_loss_4. now apply tiny_loss_5. Qed.

Theorem miss_1 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat -> 1 - softmax n z t = 1 - exp (z t) / sum n (fun i => exp (z i)).
Proof. reflexivity. Qed.
Theorem miss_2 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  1 - exp (z t) / sum n (fun i => exp (z i)) = (sum n (fun i => exp (z i)) - exp (z t)) / sum n (fun i => exp (z i)).
Proof. intros. fractions. Qed.
Theorem miss_3 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  (sum n (fun i => exp (z i)) - exp (z t)) / sum n (fun i => exp (z i))
    = (exp (z t) + sum_but t n (fun i => exp (z i)) - exp (z t)) / sum n (fun i => exp (z i)).
Proof. intros n z t T. now rewrite (sum_split n t (fun i => exp (z i)) T) at 1. Qed.
Theorem miss_4 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  (exp (z t) + sum_but t n (fun i => exp (z i)) - exp (z t)) / sum n (fun i => exp (z i))
    = sum_but t n (fun i => exp (z i)) / sum n (fun i => exp (z i)).
Proof. intros. f_equal. ring. Qed.

(** the probability of a miss is a sum of positive terms *)
Theorem miss : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  1 - softmax n z t = sum_but t n (fun i => exp (z i)) / sum n (fun i => exp (z i)).
Proof. intros. line miss_1. line miss_2. line miss_3. now apply miss_4. Qed.

Theorem entropy_apart_1 : forall (n : nat) (z : vec), (0 < n)%nat -> entropy n z = sum n (fun j => softmax n z j * (lse n z - z j)).
Proof. exact entropy_by_lse. Qed.
Theorem entropy_apart_2 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  sum n (fun j => softmax n z j * (lse n z - z j))
    = softmax n z t * (lse n z - z t) + sum_but t n (fun j => softmax n z j * (lse n z - z j)).
Proof. intros. now apply (sum_split n t (fun j => softmax n z j * (lse n z - z j))). Qed.
Theorem entropy_apart_3 : forall (n : nat) (z : vec) (t : nat), (t < n)%nat ->
  softmax n z t * (lse n z - z t) + sum_but t n (fun j => softmax n z j * (lse n z - z j))
    = softmax n z t * (lse n z - z t) + sum_but t n (fun j => exp (z j - lse n z) * (lse n z - z j)).
Proof. intros. f_equal. apply sum_but_ext; intros. now rewrite softmax_by_lse. Qed.
Theorem entropy_apart_4 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat ->
  softmax n z t * (lse n z - z t) + sum_but t n (fun j => exp (z j - lse n z) * (lse n z - z j))
    = softmax n z t * (lse n z - z t) + sum_but t n (fun j => exp (m - lse n z) * exp (z j - m) * (lse n z - z j)).
Proof. intros. f_equal. apply sum_but_ext; intros. rewrite <- exp_plus. do 2 f_equal. ring. Qed.
Theorem entropy_apart_5 : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat ->
  softmax n z t * (lse n z - z t) + sum_but t n (fun j => exp (m - lse n z) * exp (z j - m) * (lse n z - z j))
    = softmax n z t * (lse n z - z t) + exp (m - lse n z) * (sum_but t n (fun j => exp (z j - m) * (m - z j))
    + (lse n z - m) * sum_but t n (fun j => exp (z j - m))).
Proof.
  intros. f_equal. rewrite <- (sum_but_scal t n (lse n z - m)), <- sum_but_add, <- sum_but_scal. apply sum_but_ext; intros; ring.
Qed.

(** the entropy from s and u of the other classes *)
Theorem entropy_apart : forall (n : nat) (z : vec) (m : R) (t : nat), (t < n)%nat ->
  entropy n z = softmax n z t * (lse n z - z t) + exp (m - lse n z) * (sum_but t n (fun j => exp (z j - m) * (m - z j))
    + (lse n z - m) * sum_but t n (fun j => exp (z j - m))).
Proof.
  intros. line (entropy_apart_1 n z); [lia|]. line entropy_apart_2. line entropy_apart_3. line (entropy_apart_4 n z m). now apply entropy_apart_5.
Qed.

(** ** All outputs together *)

Definition truth (y0 r0 : R) (off : vec) (t : nat) : vec := fun k => y0 * delta k t + r0 * off k.

(** g1 (loss + q/2 lse^2) + g2 lse + g3 log yhat_t + g4 H, the coefficient of yhat_k in its gradient, and its gradient *)
Definition outputs (n : nat) (y : vec) (g1 g2 g3 g4 q : R) (t : nat) (z : vec) : R :=
  g1 * (loss n y z + q / 2 * (lse n z) ^ 2) + g2 * lse n z + g3 * ln (softmax n z t) + g4 * entropy n z.
Definition alpha (n : nat) (y z : vec) (g1 g2 g3 g4 q : R) : R := g1 * (sum n y + q * lse n z) + g2 - g3 - g4 * entropy n z.
Definition dz (n : nat) (y z : vec) (g1 g2 g3 g4 q : R) (t k : nat) : R :=
  softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k.

Theorem backward_1 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat) (d1 d2 d3 d4 d5 : R), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n y z) k z d1 -> partial (fun z => (lse n z) ^ 2) k z d2 -> partial (fun z => lse n z) k z d3 ->
  partial (fun z => ln (softmax n z t)) k z d4 -> partial (fun z => entropy n z) k z d5 ->
  partial (fun z => outputs n y g1 g2 g3 g4 q t z) k z (g1 * (d1 + q / 2 * d2) + g2 * d3 + g3 * d4 + g4 * d5).
Proof. rule. apply d_add; [apply d_add; [apply d_add; [apply d_scal, d_add; [easy|now apply d_scal]|]|]|]; now apply d_scal. Qed.
Theorem backward_2 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat) (d1 d2 d3 d4 d5 : R), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n y z) k z d1 -> partial (fun z => (lse n z) ^ 2) k z d2 -> partial (fun z => lse n z) k z d3 ->
  partial (fun z => ln (softmax n z t)) k z d4 -> partial (fun z => entropy n z) k z d5 ->
  g1 * (d1 + q / 2 * d2) + g2 * d3 + g3 * d4 + g4 * d5 = g1 * (d1 + q / 2 * (2 * lse n z * d3)) + g2 * d3 + g3 * d4 + g4 * d5.
Proof.
  intros n z y g1 g2 g3 g4 q k t d1 d2 d3 d4 d5 K T D1 D2 D3 D4 D5. do 6 f_equal. apply (unique D2).
  apply (d_square (fun t => lse n (set z k t))); [exact D3|now rewrite set_same].
Qed.
Theorem backward_3 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat) (d1 d2 d3 d4 : R), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => loss n y z) k z d1 -> partial (fun z => lse n z) k z d2 -> partial (fun z => ln (softmax n z t)) k z d3 ->
  partial (fun z => entropy n z) k z d4 -> g1 * (d1 + q / 2 * (2 * lse n z * d2)) + g2 * d2 + g3 * d3 + g4 * d4
    = g1 * (sum n y * softmax n z k - y k + q / 2 * (2 * lse n z * softmax n z k)) + g2 * softmax n z k + g3 * (delta t k - softmax n z k)
    + g4 * (softmax n z k * (lse n z - z k - entropy n z)).
Proof.
  intros n z y g1 g2 g3 g4 q k t d1 d2 d3 d4 K T D1 D2 D3 D4.
  now rewrite (unique D1 (general_gradient n z y k K)), (unique D2 (lse_gradient n z k K)),
    (unique D3 (log_probability_gradient n z t k T K)), (unique D4 (entropy_gradient n z k K)).
Qed.
Theorem backward_4 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  g1 * (sum n y * softmax n z k - y k + q / 2 * (2 * lse n z * softmax n z k)) + g2 * softmax n z k + g3 * (delta t k - softmax n z k)
    + g4 * (softmax n z k * (lse n z - z k - entropy n z))
    = softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k.
Proof. intros. unfold alpha. field. Qed.
Theorem backward_5 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k
    = softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k.
Proof. reflexivity. Qed.
Theorem backward_6 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k
    = softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k + g3 * delta t k.
Proof. reflexivity. Qed.

(** the gradient of all outputs *)
Theorem backward : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => outputs n y g1 g2 g3 g4 q t z) k z (softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * y k
    + g3 * delta t k).
Proof.
  intros n z y g1 g2 g3 g4 q k t K T. pose proof (general_gradient n z y k K) as D1. pose proof (lse_gradient n z k K) as D3.
  pose proof (log_probability_gradient n z t k T K) as D4. pose proof (entropy_gradient n z k K) as D5.
  assert (D2 : partial (fun z => (lse n z) ^ 2) k z (2 * lse n z * softmax n z k))
    by (apply (d_square (fun t => lse n (set z k t))); [exact D3|now rewrite set_same]).
  eapply partial_eq; [reflexivity| |exact (backward_1 n z y g1 g2 g3 g4 q k t _ _ _ _ _ K T D1 D2 D3 D4 D5)].
  exact (eq_trans (backward_3 n z y g1 g2 g3 g4 q k t _ _ _ _ K T D1 D3 D4 D5) (backward_4 n z y g1 g2 g3 g4 q k t K T)).
Qed.

Theorem backward_truth_1 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => outputs n (truth y0 r0 off t) g1 g2 g3 g4 q t z) k z (softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q
    + g4 * (lse n z - z k)) - g1 * (y0 * delta k t + r0 * off k) + g3 * delta t k).
Proof. intros. now apply (backward n z (truth y0 r0 off t)). Qed.
Theorem backward_truth_2 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * (y0 * delta k t + r0 * off k)
    + g3 * delta t k = softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    - g1 * (y0 * delta k t + r0 * off k) + g3 * delta t k.
Proof. reflexivity. Qed.
Theorem backward_truth_3 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k)) - g1 * (y0 * delta k t + r0 * off k)
    + g3 * delta t k = (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q) * softmax n z k + g4 * softmax n z k * (lse n z - z k)
    - g1 * r0 * off k + (g3 - g1 * y0) * delta k t.
Proof. intros. rewrite (delta_sym t k). ring. Qed.

(** ... for the truth of a kernel; the last term is 0 at every class but the label *)
Theorem backward_truth : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (k t : nat), (k < n)%nat -> (t < n)%nat ->
  partial (fun z => outputs n (truth y0 r0 off t) g1 g2 g3 g4 q t z) k z ((alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q) * softmax n z k
    + g4 * softmax n z k * (lse n z - z k) - g1 * r0 * off k + (g3 - g1 * y0) * delta k t).
Proof.
  intros n z off g1 g2 g3 g4 y0 r0 q k t K T.
  eapply partial_eq; [reflexivity| |now apply (backward_truth_1 n z off g1 g2 g3 g4 y0 r0 q k t)].
  line (backward_truth_2 n z off g1 g2 g3 g4 y0 r0 q k t). now apply backward_truth_3.
Qed.

Theorem truth_apart_1 : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  sum n (truth y0 r0 off t) - (y0 * delta t t + r0 * off t) = sum n (fun j => y0 * delta j t + r0 * off j) - (y0 * delta t t + r0 * off t).
Proof. reflexivity. Qed.
Theorem truth_apart_2 : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  sum n (fun j => y0 * delta j t + r0 * off j) - (y0 * delta t t + r0 * off t)
    = y0 * delta t t + r0 * off t + sum_but t n (fun j => y0 * delta j t + r0 * off j) - (y0 * delta t t + r0 * off t).
Proof. intros. now rewrite (sum_split n t (fun j => y0 * delta j t + r0 * off j)). Qed.
Theorem truth_apart_3 : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  y0 * delta t t + r0 * off t + sum_but t n (fun j => y0 * delta j t + r0 * off j) - (y0 * delta t t + r0 * off t)
    = sum_but t n (fun j => y0 * delta j t + r0 * off j).
Proof. intros. ring. Qed.
Theorem truth_apart_4 : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  sum_but t n (fun j => y0 * delta j t + r0 * off j) = sum_but t n (fun j => y0 * delta j t + r0 * off j).
Proof. reflexivity. Qed.
Theorem truth_apart_5 : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  sum_but t n (fun j => y0 * delta j t + r0 * off j) = sum_but t n (fun j => y0 * 0 + r0 * off j).
Proof. intros. apply sum_but_ext; intros. now rewrite delta_other. Qed.
Theorem truth_apart_6 : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  sum_but t n (fun j => y0 * 0 + r0 * off j) = r0 * sum_but t n (fun j => off j).
Proof. intros. rewrite <- sum_but_scal. apply sum_but_ext; intros; ring. Qed.

(** the mass of the truth at the other classes *)
Theorem truth_apart : forall (n : nat) (off : vec) (y0 r0 : R) (t : nat), (t < n)%nat ->
  sum n (truth y0 r0 off t) - (y0 * delta t t + r0 * off t) = r0 * sum_but t n (fun j => off j).
Proof. intros. line truth_apart_1. line truth_apart_2. line truth_apart_3. line truth_apart_5. now apply truth_apart_6. Qed.

Theorem backward_label_1 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  partial (fun z => outputs n (truth y0 r0 off t) g1 g2 g3 g4 q t z) t z (softmax n z t * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q
    + g4 * (lse n z - z t)) - g1 * (y0 * delta t t + r0 * off t) + g3 * delta t t).
Proof. intros. now apply (backward n z (truth y0 r0 off t)). Qed.
Theorem backward_label_2 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  softmax n z t * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z t)) - g1 * (y0 * delta t t + r0 * off t)
    + g3 * delta t t = softmax n z t * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z t))
    - g1 * (y0 * delta t t + r0 * off t) + g3 * delta t t.
Proof. reflexivity. Qed.
Theorem backward_label_3 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  softmax n z t * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z t)) - g1 * (y0 * delta t t + r0 * off t)
    + g3 * delta t t = softmax n z t * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z t))
    - g1 * (y0 * delta t t + r0 * off t) + g3 * 1.
Proof. intros. now rewrite delta_same. Qed.
Theorem backward_label_4 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  softmax n z t * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z t)) - g1 * (y0 * delta t t + r0 * off t) + g3 * 1
    = g1 * ((sum n (truth y0 r0 off t) - (y0 * delta t t + r0 * off t) + q * lse n z) * softmax n z t
    - (y0 * delta t t + r0 * off t) * (1 - softmax n z t)) + g2 * softmax n z t + g3 * (1 - softmax n z t)
    - g4 * entropy n z * softmax n z t + g4 * softmax n z t * (lse n z - z t).
Proof. intros. unfold alpha. rewrite delta_same. ring. Qed.
Theorem backward_label_5 : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * ((sum n (truth y0 r0 off t) - (y0 * delta t t + r0 * off t) + q * lse n z) * softmax n z t
    - (y0 * delta t t + r0 * off t) * (1 - softmax n z t)) + g2 * softmax n z t + g3 * (1 - softmax n z t)
    - g4 * entropy n z * softmax n z t + g4 * softmax n z t * (lse n z - z t)
    = g1 * ((r0 * sum_but t n (fun j => off j) + q * lse n z) * softmax n z t - (y0 * delta t t + r0 * off t) * (1 - softmax n z t))
    + g2 * softmax n z t + g3 * (1 - softmax n z t) - g4 * entropy n z * softmax n z t + g4 * softmax n z t * (lse n z - z t).
Proof. intros. now rewrite truth_apart. Qed.

(** ... and at the label, by 1 - yhat_t *)
Theorem backward_label : forall (n : nat) (z off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  partial (fun z => outputs n (truth y0 r0 off t) g1 g2 g3 g4 q t z) t z (g1 * ((r0 * sum_but t n (fun j => off j) + q * lse n z) * softmax n z t
    - (y0 * delta t t + r0 * off t) * (1 - softmax n z t)) + g2 * softmax n z t + g3 * (1 - softmax n z t)
    - g4 * entropy n z * softmax n z t + g4 * softmax n z t * (lse n z - z t)).
Proof.
  intros n z off g1 g2 g3 g4 y0 r0 q t T.
  eapply partial_eq; [reflexivity| |now apply (backward_label_1 n z off g1 g2 g3 g4 y0 r0 q t)].
  line (backward_label_2 n z off g1 g2 g3 g4 y0 r0 q t). line (backward_label_3 n z off g1 g2 g3 g4 y0 r0 q t).
  line (backward_label_4 n z off g1 g2 g3 g4 y0 r0 q t). now apply backward_label_5.
Qed.

Lemma factor_derivative n z y g1 g2 g3 g4 q j k d3 d4 d5 : partial (fun z => lse n z) j z d3 -> partial (fun z => entropy n z) j z d4 ->
  partial (fun z => z k) j z d5 ->
  partial (fun z => alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) j z (g1 * (q * d3) - g4 * d4 + g4 * (d3 - d5)).
Proof.
  rule. eapply d_eq; [reflexivity| |apply d_add; [apply d_sub; [apply d_sub; [apply d_add; [apply d_scal, d_add;
    [now apply (d_const _ (sum n y))|apply d_scal; eassumption]|now apply (d_const _ g2)]|now apply (d_const _ g3)]|apply d_scal; eassumption]|
    apply d_scal, d_sub; eassumption]].
  ring.
Qed.

Theorem second_entry_1 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k t : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  (t < n)%nat -> partial (fun z => dz n y z g1 g2 g3 g4 q t k) j z d1 -> partial (fun z => dz n y z g1 g2 g3 g4 q t k) j z d1.
Proof. auto. Qed.
Theorem second_entry_2 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k t : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  (t < n)%nat -> partial (fun z => softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))) j z d1 ->
  partial (fun z => dz n y z g1 g2 g3 g4 q t k) j z d1.
Proof.
  rule. eapply d_eq; [reflexivity| |apply d_add; [apply d_sub; [eassumption|now apply (d_const _ (g1 * y k))]|now apply (d_const _ (g3 * delta t k))]].
  ring.
Qed.
Theorem second_entry_3 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k : nat) (d1 d2 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => softmax n z k) j z d1 -> partial (fun z => alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) j z d2 ->
  partial (fun z => softmax n z k * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))) j z (d1 * (alpha n y z g1 g2 g3 g4 q
    + g4 * (lse n z - z k)) + softmax n z k * d2).
Proof.
  rule. apply (d_mul (fun t => softmax n (set z j t) k)
    (fun t => alpha n y (set z j t) g1 g2 g3 g4 q + g4 * (lse n (set z j t) - set z j t k)));
    [easy|easy|now rewrite set_same|now rewrite set_same].
Qed.
Theorem second_entry_4 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k : nat) (d1 d2 d3 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => softmax n z k) j z d1 -> partial (fun z => alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) j z d2 ->
  partial (fun z => alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) j z d3 ->
  d1 * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) + softmax n z k * d2
    = d1 * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) + softmax n z k * d3.
Proof. intros n z y g1 g2 g3 g4 q j k d1 d2 d3 J K D1 D2 D3. now rewrite (unique D2 D3). Qed.
Theorem second_entry_5 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k : nat) (d1 d2 d3 d4 d5 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => softmax n z k) j z d1 -> partial (fun z => alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) j z d2 ->
  partial (fun z => lse n z) j z d3 -> partial (fun z => entropy n z) j z d4 -> partial (fun z => z k) j z d5 ->
  d1 * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) + softmax n z k * d2
    = d1 * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)) + softmax n z k * (g1 * (q * d3) - g4 * d4 + g4 * (d3 - d5)).
Proof.
  intros n z y g1 g2 g3 g4 q j k d1 d2 d3 d4 d5 J K D1 D2 D3 D4 D5. do 2 f_equal. apply (unique D2). now apply factor_derivative.
Qed.
Theorem second_entry_6 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k : nat) (d1 d2 d3 d4 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => softmax n z k) j z d1 -> partial (fun z => lse n z) j z d2 -> partial (fun z => entropy n z) j z d3 ->
  partial (fun z => z k) j z d4 -> d1 * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * (q * d2) - g4 * d3 + g4 * (d2 - d4))
    = softmax n z k * (delta k j - softmax n z j) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * (q * softmax n z j) - g4 * (softmax n z j * (lse n z - z j - entropy n z)) + g4 * (softmax n z j - d4)).
Proof.
  intros n z y g1 g2 g3 g4 q j k d1 d2 d3 d4 J K D1 D2 D3 D4.
  now rewrite (unique D1 (softmax_gradient n z k j K J)), (unique D2 (lse_gradient n z j J)), (unique D3 (entropy_gradient n z j J)).
Qed.
Theorem second_entry_7 : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k : nat) (d1 : R), (j < n)%nat -> (k < n)%nat ->
  partial (fun z => z k) j z d1 -> softmax n z k * (delta k j - softmax n z j) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * (q * softmax n z j) - g4 * (softmax n z j * (lse n z - z j - entropy n z)) + g4 * (softmax n z j - d1))
    = softmax n z k * (delta k j - softmax n z j) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * (q * softmax n z j) - g4 * (softmax n z j * (lse n z - z j - entropy n z)) + g4 * (softmax n z j - delta k j)).
Proof. intros n z y g1 g2 g3 g4 q j k d1 J K D. now rewrite (unique D (coordinate z k j)). Qed.

(** the second derivatives of all outputs *)
Theorem second_entry : forall (n : nat) (z y : vec) (g1 g2 g3 g4 q : R) (j k t : nat), (j < n)%nat -> (k < n)%nat -> (t < n)%nat ->
  partial (fun z => dz n y z g1 g2 g3 g4 q t k) j z (softmax n z k * (delta k j - softmax n z j) * (alpha n y z g1 g2 g3 g4 q
    + g4 * (lse n z - z k)) + softmax n z k * (g1 * (q * softmax n z j) - g4 * (softmax n z j * (lse n z - z j - entropy n z))
    + g4 * (softmax n z j - delta k j))).
Proof.
  intros n z y g1 g2 g3 g4 q j k t J K T. pose proof (softmax_gradient n z k j K J) as D1. pose proof (lse_gradient n z j J) as D3.
  pose proof (entropy_gradient n z j J) as D4. pose proof (coordinate z k j) as D5.
  pose proof (factor_derivative n z y g1 g2 g3 g4 q j k _ _ _ D3 D4 D5) as D2.
  eapply partial_eq; [reflexivity| |exact (second_entry_1 n z y g1 g2 g3 g4 q j k t _ J K T (second_entry_2 n z y g1 g2 g3 g4 q j k t _ J K T
    (second_entry_3 n z y g1 g2 g3 g4 q j k _ _ J K D1 D2)))].
  exact (eq_trans (second_entry_6 n z y g1 g2 g3 g4 q j k _ _ _ _ J K D1 D3 D4 D5) (second_entry_7 n z y g1 g2 g3 g4 q j k _ J K D5)).
Qed.

Theorem second_product_1 : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k t : nat) (d1 : vec), (k < n)%nat -> (t < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => dz n y z g1 g2 g3 g4 q t k) j z (d1 j)) ->
  sum n (fun j => d1 j * v j) = sum n (fun j => (softmax n z k * (delta k j - softmax n z j) * (alpha n y z g1 g2 g3 g4 q
    + g4 * (lse n z - z k)) + softmax n z k * (g1 * (q * softmax n z j) - g4 * (softmax n z j * (lse n z - z j - entropy n z))
    + g4 * (softmax n z j - delta k j))) * v j).
Proof.
  intros n z y v g1 g2 g3 g4 q k t d1 K T D. apply sum_ext; intros j J. f_equal.
  exact (unique (D j J) (second_entry n z y g1 g2 g3 g4 q j k t J K T)).
Qed.
Theorem second_product_2 : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k : nat), (k < n)%nat ->
  sum n (fun j => (softmax n z k * (delta k j - softmax n z j) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * (q * softmax n z j) - g4 * (softmax n z j * (lse n z - z j - entropy n z))
    + g4 * (softmax n z j - delta k j))) * v j)
    = softmax n z k * (sum n (fun j => delta k j * v j) - sum n (fun j => softmax n z j * v j)) * (alpha n y z g1 g2 g3 g4 q
    + g4 * (lse n z - z k)) + softmax n z k * (g1 * q * sum n (fun j => softmax n z j * v j)
    - g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j)
    + g4 * (sum n (fun j => softmax n z j * v j) - sum n (fun j => delta k j * v j))).
Proof.
  intros. set (A := alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k)).
  rewrite (sum_ext n _ (fun j => softmax n z k * (A - g4) * (delta k j * v j) + softmax n z k * (g1 * q + g4 - A) * (softmax n z j * v j)
    - softmax n z k * g4 * (softmax n z j * (lse n z - z j - entropy n z) * v j))) by (intros; ring).
  rewrite sum_sub, sum_add, !sum_scal. ring.
Qed.
Theorem second_product_3 : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k : nat), (k < n)%nat ->
  softmax n z k * (sum n (fun j => delta k j * v j) - sum n (fun j => softmax n z j * v j)) * (alpha n y z g1 g2 g3 g4 q
    + g4 * (lse n z - z k)) + softmax n z k * (g1 * q * sum n (fun j => softmax n z j * v j)
    - g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j)
    + g4 * (sum n (fun j => softmax n z j * v j) - sum n (fun j => delta k j * v j)))
    = softmax n z k * (v k - sum n (fun j => softmax n z j * v j)) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * q * sum n (fun j => softmax n z j * v j)
    - g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j) + g4 * (sum n (fun j => softmax n z j * v j) - v k)).
Proof. intros. now rewrite (sum_delta_l n k v). Qed.
Theorem second_product_4 : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k : nat), (k < n)%nat ->
  softmax n z k * (v k - sum n (fun j => softmax n z j * v j)) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * q * sum n (fun j => softmax n z j * v j)
    - g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j) + g4 * (sum n (fun j => softmax n z j * v j) - v k))
    = softmax n z k * (v k - sum n (fun j => softmax n z j * v j)) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * q * sum n (fun j => softmax n z j * v j) - g4 * eta n z v + g4 * (sum n (fun j => softmax n z j * v j) - v k)).
Proof. intros. now rewrite entropy_along by lia. Qed.
Theorem second_product_5 : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k : nat), (k < n)%nat ->
  softmax n z k * (v k - sum n (fun j => softmax n z j * v j)) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * q * sum n (fun j => softmax n z j * v j) - g4 * eta n z v + g4 * (sum n (fun j => softmax n z j * v j) - v k))
    = softmax n z k * (v k - mean n z v) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * q * mean n z v - g4 * eta n z v + g4 * (mean n z v - v k)).
Proof. reflexivity. Qed.
Theorem second_product_6 : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k : nat), (k < n)%nat ->
  softmax n z k * (v k - mean n z v) * (alpha n y z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    + softmax n z k * (g1 * q * mean n z v - g4 * eta n z v + g4 * (mean n z v - v k))
    = softmax n z k * ((alpha n y z g1 g2 g3 g4 q - g4) * (v k - mean n z v) + g4 * (v k - mean n z v) * (lse n z - z k)
    + (g1 * q * mean n z v - g4 * eta n z v)).
Proof. intros. ring. Qed.

(** the Hessian of all outputs times v *)
Theorem second_product : forall (n : nat) (z y v : vec) (g1 g2 g3 g4 q : R) (k t : nat) (d1 : vec), (k < n)%nat -> (t < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => dz n y z g1 g2 g3 g4 q t k) j z (d1 j)) ->
  sum n (fun j => d1 j * v j) = softmax n z k * ((alpha n y z g1 g2 g3 g4 q - g4) * (v k - mean n z v)
    + g4 * (v k - mean n z v) * (lse n z - z k) + (g1 * q * mean n z v - g4 * eta n z v)).
Proof.
  intros n z y v g1 g2 g3 g4 q k t d1 K T D. line (second_product_1 n z y v g1 g2 g3 g4 q k t d1). line second_product_2.
  line second_product_3. line second_product_4. line second_product_5. now apply second_product_6.
Qed.

Theorem mean_apart_1 : forall (n : nat) (z v : vec) (j : nat), (j < n)%nat ->
  v j - sum_but j n (fun k => softmax n z k * (v j - v k))
    = v j - (softmax n z j * (v j - v j) + sum_but j n (fun k => softmax n z k * (v j - v k))).
Proof. intros. ring. Qed.
Theorem mean_apart_2 : forall (n : nat) (z v : vec) (j : nat), (j < n)%nat ->
  v j - (softmax n z j * (v j - v j) + sum_but j n (fun k => softmax n z k * (v j - v k)))
    = v j - sum n (fun k => softmax n z k * (v j - v k)).
Proof. intros. now rewrite <- (sum_split n j (fun k => softmax n z k * (v j - v k))). Qed.
Theorem mean_apart_3 : forall (n : nat) (z v : vec) (j : nat), (j < n)%nat ->
  v j - sum n (fun k => softmax n z k * (v j - v k)) = v j - v j * sum n (fun k => softmax n z k) + sum n (fun k => softmax n z k * v k).
Proof.
  intros. rewrite (sum_ext n _ (fun k => v j * softmax n z k - softmax n z k * v k)) by (intros; ring).
  rewrite sum_sub, sum_scal. change (sum n (fun k => softmax n z k)) with (sum n (softmax n z)). ring.
Qed.
Theorem mean_apart_4 : forall (n : nat) (z v : vec) (j : nat), (j < n)%nat ->
  v j - v j * sum n (fun k => softmax n z k) + sum n (fun k => softmax n z k * v k) = v j - v j * 1 + sum n (fun k => softmax n z k * v k).
Proof. intros. now rewrite softmax_sums_to_1 by lia. Qed.
Theorem mean_apart_5 : forall (n : nat) (z v : vec) (j : nat), (j < n)%nat ->
  v j - v j * 1 + sum n (fun k => softmax n z k * v k) = sum n (fun k => softmax n z k * v k).
Proof. intros. ring. Qed.
Theorem mean_apart_6 : forall (n : nat) (z v : vec), (0 < n)%nat -> sum n (fun k => softmax n z k * v k) = mean n z v.
Proof. reflexivity. Qed.

(** the mean of v from its distances to one entry *)
Theorem mean_apart : forall (n : nat) (z v : vec) (j : nat), (j < n)%nat ->
  v j - sum_but j n (fun k => softmax n z k * (v j - v k)) = mean n z v.
Proof. intros. line mean_apart_1. line mean_apart_2. line mean_apart_3. line mean_apart_4. now apply mean_apart_5. Qed.

Theorem loss_by_truth_1 : forall (n : nat) (z y : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun y => sum n y * lse n z - sum n (fun j => y j * z j)) k y d1 -> partial (fun y => loss n y z) k y d1.
Proof. intros n z y k d1 K. apply partial_eq; [|easy]. intros. now rewrite loss_by_lse by lia. Qed.
Theorem loss_by_truth_2 : forall (n : nat) (z y : vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun y => sum n (fun j => y j) * lse n z - sum n (fun j => y j * z j)) k y d1 ->
  partial (fun y => sum n y * lse n z - sum n (fun j => y j * z j)) k y d1.
Proof. auto. Qed.
Theorem loss_by_truth_3 : forall (n : nat) (z y : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun y => y j) k y (d1 j)) ->
  partial (fun y => sum n (fun j => y j) * lse n z - sum n (fun j => y j * z j)) k y (sum n (fun j => d1 j) * lse n z
    - sum n (fun j => d1 j * z j)).
Proof.
  rule. apply d_sub; [now apply d_scal_r, (d_sum n (fun j t => set y k t j))|].
  apply (d_sum n (fun j t => set y k t j * z j)); intros; now apply d_scal_r; auto.
Qed.
Theorem loss_by_truth_4 : forall (n : nat) (z y : vec) (k : nat) (d1 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun y => y j) k y (d1 j)) ->
  sum n (fun j => d1 j) * lse n z - sum n (fun j => d1 j * z j) = sum n (fun j => delta j k) * lse n z - sum n (fun j => delta j k * z j).
Proof.
  intros n z y k d1 K D. assert (E : forall j, (j < n)%nat -> d1 j = delta j k) by (intros j J; exact (unique (D j J) (coordinate y j k))).
  f_equal; [f_equal|]; apply sum_ext; intros; now rewrite E.
Qed.
Theorem loss_by_truth_5 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat ->
  sum n (fun j => delta j k) * lse n z - sum n (fun j => delta j k * z j) = 1 * lse n z - z k.
Proof. intros. now rewrite one_hot_sum, one_hot_picks. Qed.
Theorem loss_by_truth_6 : forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> 1 * lse n z - z k = lse n z - z k.
Proof. intros. ring. Qed.

(** d L / d y_k = lse - z_k *)
Theorem loss_by_truth : forall (n : nat) (z y : vec) (k : nat), (k < n)%nat -> partial (fun y => loss n y z) k y (lse n z - z k).
Proof.
  intros n z y k K. assert (D : forall j, (j < n)%nat -> partial (fun y => y j) k y (delta j k)) by (intros; apply coordinate).
  eapply partial_eq; [reflexivity| |exact (loss_by_truth_1 n z y k _ K (loss_by_truth_2 n z y k _ K (loss_by_truth_3 n z y k _ K D)))].
  line (loss_by_truth_5 n z). now apply (loss_by_truth_6 n).
Qed.

Theorem gradient_along_1 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  sum n (fun k => (softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    - g1 * (y0 * delta k t + r0 * off k) + g3 * delta t k) * v k)
    = sum n (fun k => (softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    - g1 * (y0 * delta k t + r0 * off k) + g3 * delta t k) * v k).
Proof. reflexivity. Qed.
Theorem gradient_along_2 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  sum n (fun k => (softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    - g1 * (y0 * delta k t + r0 * off k) + g3 * delta t k) * v k)
    = g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * sum n (fun k => softmax n z k * v k)
    - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * sum n (fun k => softmax n z k * v k)
    + g3 * (sum n (fun k => delta t k * v k) - sum n (fun k => softmax n z k * v k))
    + g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j).
Proof.
  intros. set (P := sum n (truth y0 r0 off t)). unfold alpha. fold P.
  rewrite (sum_ext n _ (fun k => (g1 * (P + q * lse n z) + g2 - g3) * (softmax n z k * v k) - g1 * ((y0 * delta k t + r0 * off k) * v k)
    + g3 * (delta t k * v k) + g4 * (softmax n z k * (lse n z - z k - entropy n z) * v k))) by (intros; ring).
  rewrite !sum_add, sum_sub, !sum_scal. ring.
Qed.
Theorem gradient_along_3 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * sum n (fun k => softmax n z k * v k)
    - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * sum n (fun k => softmax n z k * v k)
    + g3 * (sum n (fun k => delta t k * v k) - sum n (fun k => softmax n z k * v k))
    + g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j)
    = g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * sum n (fun k => softmax n z k * v k)
    - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * sum n (fun k => softmax n z k * v k)
    + g3 * (v t - sum n (fun k => softmax n z k * v k)) + g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j).
Proof. intros. now rewrite (sum_delta_l n t v). Qed.
Theorem gradient_along_4 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * sum n (fun k => softmax n z k * v k)
    - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * sum n (fun k => softmax n z k * v k)
    + g3 * (v t - sum n (fun k => softmax n z k * v k)) + g4 * sum n (fun j => softmax n z j * (lse n z - z j - entropy n z) * v j)
    = g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * sum n (fun k => softmax n z k * v k)
    - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * sum n (fun k => softmax n z k * v k)
    + g3 * (v t - sum n (fun k => softmax n z k * v k)) + g4 * eta n z v.
Proof. intros. now rewrite entropy_along by lia. Qed.
Theorem gradient_along_5 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * sum n (fun k => softmax n z k * v k)
    - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * sum n (fun k => softmax n z k * v k)
    + g3 * (v t - sum n (fun k => softmax n z k * v k)) + g4 * eta n z v
    = g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * mean n z v - sum n (fun k => (y0 * delta k t + r0 * off k) * v k))
    + g2 * mean n z v + g3 * (v t - mean n z v) + g4 * eta n z v.
Proof. reflexivity. Qed.
Theorem gradient_along_6 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * mean n z v - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * mean n z v
    + g3 * (v t - mean n z v) + g4 * eta n z v
    = g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * mean n z v - sum n (fun k => (y0 * delta k t + r0 * off k) * v k))
    + g2 * mean n z v + g3 * (v t - mean n z v) + g4 * eta n z v.
Proof. reflexivity. Qed.
Theorem gradient_along_7 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * ((sum n (truth y0 r0 off t) + q * lse n z) * mean n z v - sum n (fun k => (y0 * delta k t + r0 * off k) * v k)) + g2 * mean n z v
    + g3 * (v t - mean n z v) + g4 * eta n z v
    = g1 * (y0 * (mean n z v * sum n (fun k => delta k t) - sum n (fun k => delta k t * v k))
    + r0 * (mean n z v * sum n (fun k => off k) - sum n (fun k => off k * v k)) + q * lse n z * mean n z v) + g2 * mean n z v
    + g3 * (v t - mean n z v) + g4 * eta n z v.
Proof.
  intros. unfold truth. rewrite (sum_add n (fun k => y0 * delta k t)), (sum_scal n y0), (sum_scal n r0).
  rewrite (sum_ext n (fun k => (y0 * delta k t + r0 * off k) * v k) (fun k => y0 * (delta k t * v k) + r0 * (off k * v k))) by (intros; ring).
  rewrite sum_add, !sum_scal. change (sum n (fun k => off k)) with (sum n off). ring.
Qed.
Theorem gradient_along_8 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * (y0 * (mean n z v * sum n (fun k => delta k t) - sum n (fun k => delta k t * v k))
    + r0 * (mean n z v * sum n (fun k => off k) - sum n (fun k => off k * v k)) + q * lse n z * mean n z v) + g2 * mean n z v
    + g3 * (v t - mean n z v) + g4 * eta n z v
    = g1 * (y0 * (mean n z v * 1 - v t) + r0 * (mean n z v * sum n (fun k => off k) - sum n (fun k => off k * v k))
    + q * lse n z * mean n z v) + g2 * mean n z v + g3 * (v t - mean n z v) + g4 * eta n z v.
Proof. intros. now rewrite one_hot_sum, (one_hot_picks n t v). Qed.
Theorem gradient_along_9 : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  g1 * (y0 * (mean n z v * 1 - v t) + r0 * (mean n z v * sum n (fun k => off k) - sum n (fun k => off k * v k)) + q * lse n z * mean n z v)
    + g2 * mean n z v + g3 * (v t - mean n z v) + g4 * eta n z v
    = g1 * (y0 * (mean n z v - v t) + r0 * sum n (fun k => off k * (mean n z v - v k)) + q * lse n z * mean n z v) + g2 * mean n z v
    + g3 * (v t - mean n z v) + g4 * eta n z v.
Proof.
  intros. rewrite (sum_ext n (fun k => off k * (mean n z v - v k)) (fun k => mean n z v * off k - off k * v k)) by (intros; ring).
  rewrite sum_sub, sum_scal. change (sum n (fun k => off k)) with (sum n off). ring.
Qed.

(** the gradient of all outputs times v, linear in every upstream gradient and in the truth *)
Theorem gradient_along : forall (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat), (t < n)%nat ->
  sum n (fun k => (softmax n z k * (alpha n (truth y0 r0 off t) z g1 g2 g3 g4 q + g4 * (lse n z - z k))
    - g1 * (y0 * delta k t + r0 * off k) + g3 * delta t k) * v k)
    = g1 * (y0 * (mean n z v - v t) + r0 * sum n (fun k => off k * (mean n z v - v k)) + q * lse n z * mean n z v) + g2 * mean n z v
    + g3 * (v t - mean n z v) + g4 * eta n z v.
Proof.
  intros. line gradient_along_1. line (gradient_along_2 n z v off). line gradient_along_3. line gradient_along_4. line gradient_along_5.
  line gradient_along_6. line gradient_along_7. line gradient_along_8. now apply gradient_along_9.
Qed.

(** its derivatives, all at a point: by the upstream gradients g1 to g4, and by y0, r0, q and off_k *)
Definition along (n : nat) (z v off : vec) (g1 g2 g3 g4 y0 r0 q : R) (t : nat) : R :=
  sum n (fun k => dz n (truth y0 r0 off t) z g1 g2 g3 g4 q t k * v k).

Theorem along_derivatives n z v off g1 g2 g3 g4 y0 r0 q t k : (t < n)%nat -> (k < n)%nat ->
  derivable_pt_lim (fun g1 => along n z v off g1 g2 g3 g4 y0 r0 q t) g1
    ((sum n (truth y0 r0 off t) + q * lse n z) * mean n z v - (y0 * v t + r0 * sum n (fun j => off j * v j))) /\
  derivable_pt_lim (fun g2 => along n z v off g1 g2 g3 g4 y0 r0 q t) g2 (mean n z v) /\
  derivable_pt_lim (fun g3 => along n z v off g1 g2 g3 g4 y0 r0 q t) g3 (v t - mean n z v) /\
  derivable_pt_lim (fun g4 => along n z v off g1 g2 g3 g4 y0 r0 q t) g4 (eta n z v) /\
  derivable_pt_lim (fun y0 => along n z v off g1 g2 g3 g4 y0 r0 q t) y0 (g1 * (mean n z v - v t)) /\
  derivable_pt_lim (fun r0 => along n z v off g1 g2 g3 g4 y0 r0 q t) r0
    (g1 * (sum n off * mean n z v - sum n (fun j => off j * v j))) /\
  derivable_pt_lim (fun q => along n z v off g1 g2 g3 g4 y0 r0 q t) q (g1 * lse n z * mean n z v) /\
  partial (fun off => along n z v off g1 g2 g3 g4 y0 r0 q t) k off (g1 * r0 * (mean n z v - v k)).
Proof.
  intros T K. assert (E : sum n (truth y0 r0 off t) = y0 + r0 * sum n off).
  { unfold truth. rewrite (sum_add n (fun k => y0 * delta k t)), !sum_scal, one_hot_sum by easy.
    change (sum n (fun j => off j)) with (sum n off). ring. }
  assert (F : forall o, sum n (fun k => o k * (mean n z v - v k)) = sum n o * mean n z v - sum n (fun j => o j * v j)).
  { intros. rewrite <- sum_scal_r, <- sum_sub. apply sum_ext; intros; ring. }
  assert (A : forall g1 g2 g3 g4 y0 r0 q o, along n z v o g1 g2 g3 g4 y0 r0 q t =
    g1 * (y0 * (mean n z v - v t) + r0 * sum n (fun k => o k * (mean n z v - v k)) + q * lse n z * mean n z v)
    + g2 * mean n z v + g3 * (v t - mean n z v) + g4 * eta n z v) by (intros; now apply gradient_along).
  assert (L : forall (f : R -> R) x d, (forall s, f s = d * s + f 0) -> derivable_pt_lim f x d).
  { intros f x d E'. apply (d_eq (fun s => d * s + f 0) f x (d * 1 + 0)); [now symmetry|ring|].
    apply d_add; [apply d_scal, d_id; easy|now apply (d_const _ (f 0))]. }
  rewrite E. repeat split; try (apply L; intros; rewrite !A, ?F; ring). apply L; intros s.
  assert (O : forall s, sum n (fun j => set off k s j * (mean n z v - v j)) = s * (mean n z v - v k)
    + sum_but k n (fun j => off j * (mean n z v - v j))).
  { intros. rewrite (sum_split n k) by easy. f_equal; [by_index|]. apply sum_but_ext; intros; by_index. }
  rewrite !A, !O. ring.
Qed.

(** ** A linear head *)

Lemma set2_same W k d : set2 W k d (W k d) = W.
Proof.
  apply FunctionalExtensionality.functional_extensionality; intros i. unfold set2.
  destruct (Nat.eqb_spec i k) as [->|]; [apply set_same|easy].
Qed.

(** W_ke moves with W_kd, one for one, if it is W_kd, and not at all if it is another *)
Lemma entry_same W k d : partial2 (fun W => W k d) k d W 1.
Proof. apply d_id; intros. unfold set2; rewrite Nat.eqb_refl. unfold set; now rewrite Nat.eqb_refl. Qed.

Lemma entry_other W k d e : e <> d -> partial2 (fun W => W k e) k d W 0.
Proof. intros N. apply (d_const _ (W k e)); intros. unfold set2; rewrite Nat.eqb_refl. by_index. Qed.

Lemma entries_have_derivatives W k d : exists v : vec, forall e, partial2 (fun W => W k e) k d W (v e).
Proof.
  exists (fun e => delta e d). intros e. unfold delta. destruct (Nat.eqb_spec e d) as [->|N]; [apply entry_same|].
  now apply entry_other.
Qed.

Theorem score_by_x_1 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d k : nat) (d1 : R), (d < nd)%nat -> (k < n)%nat ->
  partial (fun x => sum nd (fun e => W k e * x e) + b k) d x d1 -> partial (fun x => sum nd (fun d => W k d * x d) + b k) d x d1.
Proof. auto. Qed.
Theorem score_by_x_2 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall e, (e < nd)%nat -> partial (fun x => x e) d x (d1 e)) ->
  partial (fun x => sum nd (fun e => W k e * x e) + b k) d x (sum nd (fun e => W k e * d1 e)).
Proof.
  rule. eapply d_eq; [reflexivity| |apply d_add; [|now apply (d_const _ (b k))]]; [apply Rplus_0_r|].
  apply (d_sum nd (fun e t => W k e * set x d t e)). intros e E. apply d_scal; auto.
Qed.
Theorem score_by_x_3 : forall (n nd : nat) (x : vec) (W : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall e, (e < nd)%nat -> partial (fun x => x e) d x (d1 e)) ->
  sum nd (fun e => W k e * d1 e) = W k d * d1 d + sum_but d nd (fun e => W k e * d1 e).
Proof. intros. now apply (sum_split nd d (fun e => W k e * d1 e)). Qed.
Theorem score_by_x_4 : forall (n nd : nat) (x : vec) (W : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall e, (e < nd)%nat -> partial (fun x => x e) d x (d1 e)) ->
  W k d * d1 d + sum_but d nd (fun e => W k e * d1 e) = W k d * 1 + sum_but d nd (fun e => W k e * 0).
Proof.
  intros n nd x W d k d1 H K D. rewrite (unique (D d H) (coordinate_same x d)). f_equal.
  apply sum_but_ext; intros e E N. now rewrite (unique (D e E) (coordinate_other x e d N)).
Qed.
Theorem score_by_x_5 : forall (n nd : nat) (W : nat -> vec) (d k : nat), (d < nd)%nat -> (k < n)%nat ->
  W k d * 1 + sum_but d nd (fun e => W k e * 0) = W k d.
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the slope of a score in an input is its weight *)
Theorem score_by_x : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d k : nat), (d < nd)%nat -> (k < n)%nat ->
  partial (fun x => sum nd (fun d => W k d * x d) + b k) d x (W k d).
Proof.
  intros n nd x b W d k H K. destruct (coordinates_have_derivatives x d) as [d1 D].
  eapply partial_eq; [reflexivity| |now apply (score_by_x_1 n), (score_by_x_2 n nd x b W d k d1)].
  line (score_by_x_3 n). line (score_by_x_4 n). now apply (score_by_x_5 n).
Qed.

Theorem score_by_w_1 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d k : nat) (d1 : R), (d < nd)%nat -> (k < n)%nat ->
  partial2 (fun W => sum nd (fun e => W k e * x e) + b k) k d W d1 -> partial2 (fun W => sum nd (fun d => W k d * x d) + b k) k d W d1.
Proof. auto. Qed.
Theorem score_by_w_2 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall e, (e < nd)%nat -> partial2 (fun W => W k e) k d W (d1 e)) ->
  partial2 (fun W => sum nd (fun e => W k e * x e) + b k) k d W (sum nd (fun e => d1 e * x e)).
Proof.
  rule. eapply d_eq; [reflexivity| |apply d_add; [|now apply (d_const _ (b k))]]; [apply Rplus_0_r|].
  apply (d_sum nd (fun e t => set2 W k d t k e * x e)). intros e E. apply d_scal_r; auto.
Qed.
Theorem score_by_w_3 : forall (n nd : nat) (x : vec) (W : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall e, (e < nd)%nat -> partial2 (fun W => W k e) k d W (d1 e)) ->
  sum nd (fun e => d1 e * x e) = d1 d * x d + sum_but d nd (fun e => d1 e * x e).
Proof. intros. now apply (sum_split nd d (fun e => d1 e * x e)). Qed.
Theorem score_by_w_4 : forall (n nd : nat) (x : vec) (W : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall e, (e < nd)%nat -> partial2 (fun W => W k e) k d W (d1 e)) ->
  d1 d * x d + sum_but d nd (fun e => d1 e * x e) = 1 * x d + sum_but d nd (fun e => 0 * x e).
Proof.
  intros n nd x W d k d1 H K D. rewrite (unique (D d H) (entry_same W k d)). f_equal.
  apply sum_but_ext; intros e E N. now rewrite (unique (D e E) (entry_other W k d e N)).
Qed.
Theorem score_by_w_5 : forall (nd : nat) (x : vec) (d : nat), (d < nd)%nat -> 1 * x d + sum_but d nd (fun e => 0 * x e) = x d.
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the slope of a score in a weight is its input ... *)
Theorem score_by_w : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d k : nat), (d < nd)%nat -> (k < n)%nat ->
  partial2 (fun W => sum nd (fun d => W k d * x d) + b k) k d W (x d).
Proof.
  intros n nd x b W d k H K. destruct (entries_have_derivatives W k d) as [d1 D].
  apply (d_eq (fun t => sum nd (fun e => set2 W k d t k e * x e) + b k) _ _ (sum nd (fun e => d1 e * x e))); [reflexivity| |].
  - line (score_by_w_3 n nd x W d k). line (score_by_w_4 n). now apply score_by_w_5.
  - now apply (score_by_w_1 n), (score_by_w_2 n nd x b W d k d1).
Qed.

Theorem score_by_other_w_1 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d j k : nat), (d < nd)%nat -> (j < n)%nat -> (k < n)%nat ->
  j <> k -> partial2 (fun W => sum nd (fun d => W j d * x d) + b j) k d W 0.
Proof. rule. apply (d_const _ (sum nd (fun d => W j d * x d) + b j)); intros. do 2 f_equal. unfold set2; by_index. Qed.

(** ... if it is in the score's own row *)
Theorem score_by_other_w : forall (n nd : nat) (x b : vec) (W : nat -> vec) (d j k : nat), (d < nd)%nat -> (j < n)%nat -> (k < n)%nat ->
  j <> k -> partial2 (fun W => sum nd (fun d => W j d * x d) + b j) k d W 0.
Proof. exact score_by_other_w_1. Qed.

Theorem score_by_b_1 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (k : nat) (d1 : R), (k < n)%nat ->
  partial (fun b => sum nd (fun e => W k e * x e) + b k) k b d1 -> partial (fun b => sum nd (fun d => W k d * x d) + b k) k b d1.
Proof. auto. Qed.
Theorem score_by_b_2 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (k : nat) (d1 : R), (k < n)%nat -> partial (fun b => b k) k b d1 ->
  partial (fun b => sum nd (fun e => W k e * x e) + b k) k b d1.
Proof. rule. eapply d_eq; [reflexivity| |apply d_add; [now eapply d_const|eassumption]]. ring. Qed.
Theorem score_by_b_3 : forall (n : nat) (b : vec) (k : nat), (k < n)%nat -> partial (fun b => b k) k b 1.
Proof. intros. apply coordinate_same. Qed.

(** the slope of a score in its bias is 1 ... *)
Theorem score_by_b : forall (n nd : nat) (x b : vec) (W : nat -> vec) (k : nat), (k < n)%nat ->
  partial (fun b => sum nd (fun d => W k d * x d) + b k) k b 1.
Proof. intros. apply (score_by_b_1 n), (score_by_b_2 n), (score_by_b_3 n); easy. Qed.

Theorem score_by_other_b_1 : forall (n nd : nat) (x b : vec) (W : nat -> vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun b => sum nd (fun d => W j d * x d) + b j) k b 0.
Proof. rule. apply (d_const _ (sum nd (fun d => W j d * x d) + b j)); intros. f_equal. by_index. Qed.

(** ... and in another bias it is 0 *)
Theorem score_by_other_b : forall (n nd : nat) (x b : vec) (W : nat -> vec) (j k : nat), (j < n)%nat -> (k < n)%nat -> j <> k ->
  partial (fun b => sum nd (fun d => W j d * x d) + b j) k b 0.
Proof. exact score_by_other_b_1. Qed.

Theorem linear_x_1 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d : nat) (d1 d2 : vec), (0 < n)%nat -> (d < nd)%nat ->
  (forall k, (k < n)%nat -> partial (fun z => loss n y z) k (fun k => sum nd (fun d => W k d * x d) + b k) (d1 k)) ->
  (forall k, (k < n)%nat -> partial (fun x => sum nd (fun d => W k d * x d) + b k) d x (d2 k)) ->
  partial (fun x => loss n y (fun k => sum nd (fun d => W k d * x d) + b k)) d x (sum n (fun k => d1 k * d2 k)).
Proof.
  intros n nd y x b W d d1 d2 H E D1 D2.
  apply (chain n y (fun t k => sum nd (fun e => W k e * set x d t e) + b k) d2 _ (fun k => sum nd (fun e => W k e * x e) + b k)); auto.
  now rewrite set_same.
Qed.
Theorem linear_x_2 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d : nat) (d1 d2 : vec), (0 < n)%nat -> (d < nd)%nat ->
  (forall k, (k < n)%nat -> partial (fun z => loss n y z) k (fun k => sum nd (fun d => W k d * x d) + b k) (d1 k)) ->
  (forall k, (k < n)%nat -> partial (fun x => sum nd (fun d => W k d * x d) + b k) d x (d2 k)) ->
  sum n (fun k => d1 k * d2 k) = sum n (fun k => (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * W k d).
Proof.
  intros n nd y x b W d d1 d2 H E D1 D2. apply sum_ext; intros k K.
  now rewrite (unique (D1 k K) (general_gradient n _ y k K)), (unique (D2 k K) (score_by_x n nd x b W d k E K)).
Qed.

(** the gradient by the input: dX = dZ W *)
Theorem linear_x : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d : nat), (0 < n)%nat -> (d < nd)%nat ->
  partial (fun x => loss n y (fun k => sum nd (fun d => W k d * x d) + b k)) d x
    (sum n (fun k => (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * W k d)).
Proof.
  intros n nd y x b W d H E. destruct (scores_have_derivatives n y (fun k => sum nd (fun d => W k d * x d) + b k)) as [d1 D1].
  assert (D2 : forall k, (k < n)%nat -> partial (fun x => sum nd (fun d => W k d * x d) + b k) d x (W k d))
    by (intros; now apply (score_by_x n)).
  eapply partial_eq; [reflexivity| |exact (linear_x_1 n nd y x b W d d1 (fun k => W k d) H E D1 D2)].
  exact (linear_x_2 n nd y x b W d d1 (fun k => W k d) H E D1 D2).
Qed.

Theorem linear_w_1 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d k : nat) (d1 d2 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => sum nd (fun d => W k d * x d) + b k) (d1 j)) ->
  (forall j, (j < n)%nat -> partial2 (fun W => sum nd (fun d => W j d * x d) + b j) k d W (d2 j)) ->
  partial2 (fun W => loss n y (fun k => sum nd (fun d => W k d * x d) + b k)) k d W (sum n (fun j => d1 j * d2 j)).
Proof.
  intros n nd y x b W d k d1 d2 E K D1 D2.
  apply (chain n y (fun t i => sum nd (fun e => set2 W k d t i e * x e) + b i) d2 _ (fun i => sum nd (fun e => W i e * x e) + b i)); auto.
  - lia.
  - now rewrite set2_same.
Qed.
Theorem linear_w_2 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d k : nat) (d1 d2 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => sum nd (fun d => W k d * x d) + b k) (d1 j)) ->
  (forall j, (j < n)%nat -> partial2 (fun W => sum nd (fun d => W j d * x d) + b j) k d W (d2 j)) ->
  sum n (fun j => d1 j * d2 j) = d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j).
Proof. intros. now apply (sum_split n k (fun j => d1 j * d2 j)). Qed.
Theorem linear_w_3 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d k : nat) (d1 d2 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => sum nd (fun d => W k d * x d) + b k) (d1 j)) ->
  (forall j, (j < n)%nat -> partial2 (fun W => sum nd (fun d => W j d * x d) + b j) k d W (d2 j)) ->
  d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j)
    = (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * x d
    + sum_but k n (fun j => (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) j - y j) * 0).
Proof.
  intros n nd y x b W d k d1 d2 E K D1 D2. apply (only_own n y (fun i => sum nd (fun e => W i e * x e) + b i)); auto.
  - exact (unique (D2 k K) (score_by_w n nd x b W d k E K)).
  - intros j J N. exact (unique (D2 j J) (score_by_other_w n nd x b W d j k E J K N)).
Qed.
Theorem linear_w_4 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d k : nat), (d < nd)%nat -> (k < n)%nat ->
  (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * x d
    + sum_but k n (fun j => (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) j - y j) * 0)
    = (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * x d.
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the gradient by a weight: prediction minus truth, times the input *)
Theorem linear_w : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (d k : nat), (d < nd)%nat -> (k < n)%nat ->
  partial2 (fun W => loss n y (fun k => sum nd (fun d => W k d * x d) + b k)) k d W
    ((sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * x d).
Proof.
  intros n nd y x b W d k E K. destruct (scores_have_derivatives n y (fun k => sum nd (fun d => W k d * x d) + b k)) as [d1 D1].
  assert (D2 : exists v : vec, forall j, (j < n)%nat -> partial2 (fun W => sum nd (fun d => W j d * x d) + b j) k d W (v j)).
  { exists (fun j => if Nat.eqb j k then x d else 0). intros j J. destruct (Nat.eqb_spec j k) as [->|N];
      [now apply (score_by_w n)|now apply (score_by_other_w n)]. }
  destruct D2 as [d2 D2]. eapply d_eq; [reflexivity| |exact (linear_w_1 n nd y x b W d k d1 d2 E K D1 D2)].
  line (linear_w_2 n nd y x b W d k). line (linear_w_3 n nd y x b W d k). now apply (linear_w_4 n nd).
Qed.

Theorem linear_b_1 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => sum nd (fun d => W k d * x d) + b k) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun b => sum nd (fun d => W j d * x d) + b j) k b (d2 j)) ->
  partial (fun b => loss n y (fun k => sum nd (fun d => W k d * x d) + b k)) k b (sum n (fun j => d1 j * d2 j)).
Proof.
  intros n nd y x b W k d1 d2 K D1 D2.
  apply (chain n y (fun t i => sum nd (fun e => W i e * x e) + set b k t i) d2 _ (fun i => sum nd (fun e => W i e * x e) + b i)); auto.
  - lia.
  - now rewrite set_same.
Qed.
Theorem linear_b_2 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => sum nd (fun d => W k d * x d) + b k) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun b => sum nd (fun d => W j d * x d) + b j) k b (d2 j)) ->
  sum n (fun j => d1 j * d2 j) = d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j).
Proof. intros. now apply (sum_split n k (fun j => d1 j * d2 j)). Qed.
Theorem linear_b_3 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (k : nat) (d1 d2 : vec), (k < n)%nat ->
  (forall j, (j < n)%nat -> partial (fun z => loss n y z) j (fun k => sum nd (fun d => W k d * x d) + b k) (d1 j)) ->
  (forall j, (j < n)%nat -> partial (fun b => sum nd (fun d => W j d * x d) + b j) k b (d2 j)) ->
  d1 k * d2 k + sum_but k n (fun j => d1 j * d2 j)
    = (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * 1
    + sum_but k n (fun j => (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) j - y j) * 0).
Proof.
  intros n nd y x b W k d1 d2 K D1 D2. apply (only_own n y (fun i => sum nd (fun e => W i e * x e) + b i)); auto.
  - exact (unique (D2 k K) (score_by_b n nd x b W k K)).
  - intros j J N. exact (unique (D2 j J) (score_by_other_b n nd x b W j k J K N)).
Qed.
Theorem linear_b_4 : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (k : nat), (k < n)%nat ->
  (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k) * 1
    + sum_but k n (fun j => (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) j - y j) * 0)
    = sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k.
Proof. intros. rewrite sum_but_zero by (intros; ring). ring. Qed.

(** the gradient by a bias: prediction minus truth *)
Theorem linear_b : forall (n nd : nat) (y x b : vec) (W : nat -> vec) (k : nat), (k < n)%nat ->
  partial (fun b => loss n y (fun k => sum nd (fun d => W k d * x d) + b k)) k b
    (sum n y * softmax n (fun k => sum nd (fun d => W k d * x d) + b k) k - y k).
Proof.
  intros n nd y x b W k K. destruct (scores_have_derivatives n y (fun k => sum nd (fun d => W k d * x d) + b k)) as [d1 D1].
  assert (D2 : exists v : vec, forall j, (j < n)%nat -> partial (fun b => sum nd (fun d => W j d * x d) + b j) k b (v j)).
  { exists (fun j => if Nat.eqb j k then 1 else 0). intros j J. destruct (Nat.eqb_spec j k) as [->|N];
      [now apply (score_by_b n)|now apply (score_by_other_b n)]. }
  destruct D2 as [d2 D2]. eapply d_eq; [reflexivity| |exact (linear_b_1 n nd y x b W k d1 d2 K D1 D2)].
  line (linear_b_2 n nd y x b W k). line (linear_b_3 n nd y x b W k). now apply (linear_b_4 n nd).
Qed.

Theorem linear_rows_1 : forall (n nd nr : nat) (b : vec) (W x y : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall r, (r < nr)%nat -> partial2 (fun W => loss n (y r) (fun k => sum nd (fun d => W k d * x r d) + b k)) k d W (d1 r)) ->
  partial2 (fun W => sum nr (fun r => loss n (y r) (fun k => sum nd (fun d => W k d * x r d) + b k))) k d W (sum nr (fun r => d1 r)).
Proof. rule. now apply (d_sum nr (fun r t => loss n (y r) (fun k0 => sum nd (fun d0 => set2 W k d t k0 d0 * x r d0) + b k0))). Qed.
Theorem linear_rows_2 : forall (n nd nr : nat) (b : vec) (W x y : nat -> vec) (d k : nat) (d1 : vec), (d < nd)%nat -> (k < n)%nat ->
  (forall r, (r < nr)%nat -> partial2 (fun W => loss n (y r) (fun k => sum nd (fun d => W k d * x r d) + b k)) k d W (d1 r)) ->
  sum nr (fun r => d1 r) = sum nr (fun r => (sum n (y r) * softmax n (fun k => sum nd (fun d => W k d * x r d) + b k) k - y r k) * x r d).
Proof. intros n nd nr b W x y d k d1 E K D. apply sum_ext; intros r L. exact (unique (D r L) (linear_w n nd (y r) (x r) b W d k E K)). Qed.

(** the gradient by a weight over a batch: dW = dZ^T X *)
Theorem linear_rows : forall (n nd nr : nat) (b : vec) (W x y : nat -> vec) (d k : nat), (d < nd)%nat -> (k < n)%nat ->
  partial2 (fun W => sum nr (fun r => loss n (y r) (fun k => sum nd (fun d => W k d * x r d) + b k))) k d W
    (sum nr (fun r => (sum n (y r) * softmax n (fun k => sum nd (fun d => W k d * x r d) + b k) k - y r k) * x r d)).
Proof. intros. apply linear_rows_1; auto. intros r L. now apply (linear_w n nd). Qed.

(** ** Streaming: log-sum-exp and softmax from pieces, in one pass *)

(** A piece of the scores is summed up by (m, s, u): m is the largest, s the sum of e^(z - m), and u that of e^(z - m) (m - z). It stands
    for the sum of e^z, and of e^z z. *)
Definition state : Type := R * R * R.
Definition m_of (a : state) : R := fst (fst a).
Definition s_of (a : state) : R := snd (fst a).
Definition u_of (a : state) : R := snd a.
Definition one (x : R) : state := (x, 1, 0).
Definition stands_for (a : state) : R := exp (m_of a) * s_of a.
Definition weighs (a : state) : R := exp (m_of a) * (m_of a * s_of a - u_of a).
Definition read (a : state) : R := m_of a + ln (s_of a).
Definition merge (a b : state) : state :=
  let m := Rmax (m_of a) (m_of b) in
  (m, exp (m_of a - m) * s_of a + exp (m_of b - m) * s_of b,
   exp (m_of a - m) * (u_of a + s_of a * (m - m_of a)) + exp (m_of b - m) * (u_of b + s_of b * (m - m_of b))).

(** merging loses nothing *)
Lemma merge_stands a b : stands_for (merge a b) = stands_for a + stands_for b.
Proof. apply merge_parts. Qed.

Lemma merge_weighs a b : weighs (merge a b) = weighs a + weighs b.
Proof. apply merge_u. Qed.

Theorem merge_correct a b : stands_for (merge a b) = stands_for a + stands_for b /\ weighs (merge a b) = weighs a + weighs b.
Proof. split; [apply merge_stands|apply merge_weighs]. Qed.

(** the order of two pieces does not matter *)
Theorem merge_commutative a b : merge a b = merge b a.
Proof. unfold merge. rewrite Rmax_comm. f_equal; [f_equal|]; apply Rplus_comm. Qed.

Lemma state_eq (a b : state) : m_of a = m_of b -> stands_for a = stands_for b -> weighs a = weighs b -> a = b.
Proof.
  destruct a as [[m s] u], b as [[m' s'] u']; unfold stands_for, weighs, m_of, s_of, u_of; simpl. intros <- E W.
  pose proof (Rgt_not_eq _ _ (exp_pos m)). apply Rmult_eq_reg_l in E; auto. subst. apply Rmult_eq_reg_l in W; auto. repeat f_equal. lra.
Qed.

(** nor does the bracketing of three *)
Theorem merge_associative a b c : merge a (merge b c) = merge (merge a b) c.
Proof. apply state_eq; [apply Rmax_assoc|rewrite !merge_stands; ring|rewrite !merge_weighs; ring]. Qed.

(** with the empty piece, None, as unit: that of no score at all *)
Definition merge_any (a b : option state) : option state :=
  match a, b with None, _ => b | _, None => a | Some a, Some b => Some (merge a b) end.
Definition stands_for_any (a : option state) : R := match a with None => 0 | Some a => stands_for a end.

Theorem merge_identity a : merge_any None a = a /\ merge_any a None = a.
Proof. now destruct a. Qed.

Theorem merge_any_correct a b : stands_for_any (merge_any a b) = stands_for_any a + stands_for_any b.
Proof. destruct a, b; simpl; rewrite ?merge_stands; ring. Qed.

Theorem merge_any_commutative a b : merge_any a b = merge_any b a.
Proof. destruct a, b; simpl; auto. f_equal. apply merge_commutative. Qed.

Theorem merge_any_associative a b c : merge_any a (merge_any b c) = merge_any (merge_any a b) c.
Proof. destruct a, b, c; simpl; auto. f_equal. apply merge_associative. Qed.

(** a plan is any tree of merges over single scores *)
Inductive plan := Score (x : R) | Merge (a b : plan).
Fixpoint run (t : plan) : state := match t with Score x => one x | Merge a b => merge (run a) (run b) end.
Fixpoint scores (t : plan) : list R := match t with Score x => [x] | Merge a b => scores a ++ scores b end.
Definition total (l : list R) : R := fold_right (fun x a => exp x + a) 0 l.
Definition weight (l : list R) : R := fold_right (fun x a => exp x * x + a) 0 l.
Definition count (l : list R) : R := fold_right (fun _ a => 1 + a) 0 l.

Lemma total_app l l' : total (l ++ l') = total l + total l'.
Proof. induction l; simpl; [|rewrite IHl]; ring. Qed.

Lemma weight_app l l' : weight (l ++ l') = weight l + weight l'.
Proof. induction l; simpl; [|rewrite IHl]; ring. Qed.

Lemma count_app l l' : count (l ++ l') = count l + count l'.
Proof. induction l; simpl; [|rewrite IHl]; ring. Qed.

Lemma count_length l : count l = INR (length l).
Proof. induction l; [easy|]. simpl length. rewrite S_INR, <- IHl. simpl. ring. Qed.

Lemma total_permutation l l' : Permutation l l' -> total l = total l'.
Proof. induction 1; simpl; lra. Qed.

Lemma weight_permutation l l' : Permutation l l' -> weight l = weight l'.
Proof. induction 1; simpl; lra. Qed.

(** the state of a plan stands for the sums of e^z and e^z z over its scores ... *)
Theorem run_total t : stands_for (run t) = total (scores t).
Proof. induction t; simpl; [unfold stands_for, m_of, s_of; simpl; ring|]. rewrite merge_stands, total_app. congruence. Qed.

Theorem run_weight t : weighs (run t) = weight (scores t).
Proof. induction t; simpl; [unfold weighs, m_of, s_of, u_of; simpl; ring|]. rewrite merge_weighs, weight_app. congruence. Qed.

(** ... and its m is the largest of them *)
Theorem run_max t : In (m_of (run t)) (scores t) /\ Forall (fun x => x <= m_of (run t)) (scores t).
Proof.
  induction t as [x|a [Ia Fa] b [Ib Fb]]; simpl; [split; [now left|repeat constructor; unfold m_of; simpl; lra]|].
  change (m_of (merge (run a) (run b))) with (Rmax (m_of (run a)) (m_of (run b))). rewrite Forall_forall in *. split.
  - apply in_or_app, Rmax_case; auto.
  - intros x [I|I]%in_app_or; [apply Fa in I|apply Fb in I]; eapply Rle_trans; eauto; [apply Rmax_l|apply Rmax_r].
Qed.

(** s stays between 1 and the number of scores, and u between 0 and it: nothing overflows, and no logarithm of 0 is taken *)
Lemma run_s t : 1 <= s_of (run t) <= INR (length (scores t)).
Proof.
  assert (G : forall x m, x <= m -> 0 < exp (x - m) <= 1).
  { intros x m L. split; [apply exp_pos|]. rewrite <- exp_0.
    destruct L; [left; apply exp_increasing; lra|subst; right; f_equal; lra]. }
  rewrite <- count_length. induction t as [x|a Ha b Hb]; simpl; [unfold s_of; simpl; lra|].
  rewrite count_app. unfold s_of, merge; simpl. fold (s_of (run a)) (s_of (run b)). set (p := m_of (run a)). set (q := m_of (run b)).
  pose proof (G p (Rmax p q) (Rmax_l p q)). pose proof (G q (Rmax p q) (Rmax_r p q)).
  assert (exp (p - Rmax p q) = 1 \/ exp (q - Rmax p q) = 1)
    by (rewrite <- exp_0; apply Rmax_case; [left|right]; f_equal; ring).
  nra.
Qed.

Lemma u_terms l m : Forall (fun x => x <= m) l -> 0 <= m * total l - weight l <= exp m * count l.
Proof.
  induction 1 as [|x l L F IH]; simpl; [lra|]. pose proof (exp_pos x). pose proof (exp_above_tangent (m - x)).
  assert (exp x * exp (m - x) = exp m) by (rewrite <- exp_plus; f_equal; ring). nra.
Qed.

Theorem run_safe t : 1 <= s_of (run t) <= INR (length (scores t)) /\ 0 <= u_of (run t) <= INR (length (scores t)).
Proof.
  split; [apply run_s|]. destruct (run_max t) as [_ F]. pose proof (u_terms _ _ F) as B. rewrite count_length in B.
  rewrite <- run_total, <- run_weight in B. unfold stands_for, weighs in B. pose proof (exp_pos (m_of (run t))). nra.
Qed.

(** any chunks, any order, any tree: the very same (m, s) *)
Theorem any_plan_same_state t t' : Permutation (scores t) (scores t') -> run t = run t'.
Proof.
  intros P. destruct (run_max t) as [I F], (run_max t') as [I' F']. rewrite Forall_forall in F, F'.
  apply state_eq; [|rewrite !run_total; now apply total_permutation|rewrite !run_weight; now apply weight_permutation].
  apply Rle_antisym; [apply F', (Permutation_in _ P I)|apply F, (Permutation_in _ (Permutation_sym P) I')].
Qed.

(** the online pass: the scores come one by one *)
Definition online (x : R) (l : list R) : state := fold_left (fun a x => merge a (one x)) l (one x).

(** it is a plan, so that it agrees with every other plan *)
Theorem online_is_any_plan t x l : Permutation (scores t) (x :: l) -> run t = online x l.
Proof.
  set (grow := fold_left (fun t x => Merge t (Score x))).
  assert (G : forall l t, run (grow l t) = fold_left (fun a x => merge a (one x)) l (run t) /\ scores (grow l t) = scores t ++ l).
  { clear. induction l; intros t; simpl; [now rewrite app_nil_r|].
    destruct (IHl (Merge t (Score a))) as [-> ->]. simpl. now rewrite <- app_assoc. }
  intros P. destruct (G l (Score x)) as [A B]. unfold online. simpl in A, B. rewrite <- A.
  apply any_plan_same_state. now rewrite B.
Qed.

(** the passes over two chunks, merged, are the pass over the whole *)
Theorem online_chunks x l x' l' : merge (online x l) (online x' l') = online x (l ++ x' :: l').
Proof.
  unfold online. rewrite fold_left_app. simpl.
  generalize (fold_left (fun a x => merge a (one x)) l (one x)) as a, (one x') as b.
  induction l'; intros; simpl; [easy|]. now rewrite IHl', merge_associative.
Qed.

Lemma total_vector n z : total (map z (seq 0 n)) = sum n (fun i => exp (z i)).
Proof. induction n; [easy|]. rewrite seq_S, map_app, total_app, IHn. simpl. ring. Qed.

Lemma weight_vector n z : weight (map z (seq 0 n)) = sum n (fun i => exp (z i) * z i).
Proof. induction n; [easy|]. rewrite seq_S, map_app, weight_app, IHn. simpl. ring. Qed.

(** the final state of any plan over the whole vector gives lse, m + log s ... *)
Theorem streaming_lse t n z : Permutation (scores t) (map z (seq 0 n)) -> read (run t) = lse n z.
Proof.
  intros P. unfold read, lse. pose proof (run_s t) as [S _].
  rewrite <- total_vector, <- (total_permutation _ _ P), <- run_total. unfold stands_for.
  rewrite ln_mult, ln_exp; [easy|apply exp_pos|lra].
Qed.

(** ... and every prediction, e^(z_k - m) / s *)
Theorem streaming_softmax t n z k : Permutation (scores t) (map z (seq 0 n)) ->
  exp (z k - m_of (run t)) / s_of (run t) = softmax n z k.
Proof.
  intros P. unfold softmax. pose proof (run_s t) as [S _].
  rewrite <- total_vector, <- (total_permutation _ _ P), <- run_total. unfold stands_for.
  rewrite <- (unshift (m_of (run t)) (z k)). pose proof (exp_pos (m_of (run t))). field. lra.
Qed.

(** ... and the entropy, log s + u / s *)
Theorem streaming_entropy t n z : (0 < n)%nat -> Permutation (scores t) (map z (seq 0 n)) ->
  ln (s_of (run t)) + u_of (run t) / s_of (run t) = entropy n z.
Proof.
  intros N P. pose proof (run_s t) as [S _]. rewrite entropy_by_lse by easy.
  rewrite (sum_ext n _ (fun j => lse n z * softmax n z j - / sum n (fun i => exp (z i)) * (exp (z j) * z j)))
    by (intros; unfold softmax, Rdiv; ring).
  rewrite sum_sub, !sum_scal. change (sum n (softmax n z)) with (sum n (fun j => softmax n z j)). rewrite softmax_sums_to_1 by easy.
  rewrite <- weight_vector, <- (streaming_lse t n z P), <- total_vector, <- (weight_permutation _ _ P), <- (total_permutation _ _ P),
    <- run_total, <- run_weight. unfold read, stands_for, weighs. pose proof (exp_pos (m_of (run t))). field. split; lra.
Qed.

(** ** The seven sums of a row *)

(** The label is kept apart: a row's sums are those of the other classes, (m, s, u) and (o, d), and (zt, wt) of the label. o is the sum of
    off, and d that of off (m - z). None is the sums of no other class, whose m is -inf in the code, and the zt of no label. *)
Definition rest : Type := state * (R * R).
Definition sums : Type := option rest * (option R * R).
Definition o_of (a : rest) : R := fst (snd a).
Definition d_of (a : rest) : R := snd (snd a).
Definition higher (a b : option R) : option R := match a, b with None, x | x, None => x | Some x, Some y => Some (Rmax x y) end.
Definition merge_rest (a b : rest) : rest :=
  let m := Rmax (m_of (fst a)) (m_of (fst b)) in
  (merge (fst a) (fst b), (o_of a + o_of b, d_of a + o_of a * (m - m_of (fst a)) + (d_of b + o_of b * (m - m_of (fst b))))).
Definition merge_sums (a b : sums) : sums :=
  (match fst a, fst b with None, x | x, None => x | Some x, Some y => Some (merge_rest x y) end,
   (higher (fst (snd a)) (fst (snd b)), snd (snd a) + snd (snd b))).
Definition no_sums : sums := (None, (None, 0)).

Lemma merge_rest_commutative a b : merge_rest a b = merge_rest b a.
Proof. unfold merge_rest. now rewrite merge_commutative, Rmax_comm, (Rplus_comm (o_of a)), (Rplus_comm (d_of a + _)). Qed.

Lemma merge_rest_associative a b c : merge_rest a (merge_rest b c) = merge_rest (merge_rest a b) c.
Proof.
  unfold merge_rest, o_of, d_of; simpl. change (m_of (merge ?x ?y)) with (Rmax (m_of x) (m_of y)).
  rewrite merge_associative, Rmax_assoc. f_equal. f_equal; ring.
Qed.

(** They are a commutative monoid. *)
Theorem sums_associative a b c : merge_sums a (merge_sums b c) = merge_sums (merge_sums a b) c.
Proof.
  destruct a as [x [p i]], b as [y [q j]], c as [z [r k]]; unfold merge_sums, higher; simpl. f_equal; [|f_equal; [|ring]].
  - destruct x, y, z; auto. now rewrite merge_rest_associative.
  - destruct p, q, r; auto. now rewrite Rmax_assoc.
Qed.

Theorem sums_commutative a b : merge_sums a b = merge_sums b a.
Proof.
  destruct a as [x [p i]], b as [y [q j]]; unfold merge_sums, higher; simpl. f_equal; [|f_equal; [|ring]].
  - destruct x, y; auto. now rewrite merge_rest_commutative.
  - destruct p, q; auto. now rewrite Rmax_comm.
Qed.

Theorem sums_identity a : merge_sums no_sums a = a /\ merge_sums a no_sums = a.
Proof. destruct a as [x [p i]]; unfold merge_sums; simpl. rewrite Rplus_0_l, Rplus_0_r. now destruct x, p. Qed.

(** A column is that of a class with its score and its off, that of the label, or that of a masked class, whose score is -inf. *)
Inductive column := Class (z off : R) | Label (z off : R) | Masked.
Definition sums_at (c : column) : sums :=
  match c with
  | Class z off => (Some (one z, (off, 0)), (None, 0))
  | Label z off => (None, (Some z, off))
  | Masked => no_sums
  end.
Definition sums_of (l : list column) : sums := fold_right (fun c a => merge_sums (sums_at c) a) no_sums l.

(** The sums of two parts, merged, are the sums of both. *)
Theorem sums_of_parts l l' : sums_of (l ++ l') = merge_sums (sums_of l) (sums_of l').
Proof. induction l; simpl; [symmetry; apply sums_identity|]. now rewrite IHl, sums_associative. Qed.

(** Their order does not matter. *)
Theorem sums_of_any_order l l' : Permutation l l' -> sums_of l = sums_of l'.
Proof.
  induction 1; simpl; auto; [now f_equal| |congruence].
  rewrite !sums_associative. f_equal. apply sums_commutative.
Qed.

(** The columns of a row, and the sums of a row of n classes with other columns masked. *)
Definition columns (n : nat) (z off : vec) (t : nat) : list column :=
  map (fun k => if Nat.eqb k t then Label (z k) (off k) else Class (z k) (off k)) (seq 0 n).

Theorem masked_is_not_there l n : sums_of (l ++ repeat Masked n) = sums_of l.
Proof.
  rewrite sums_of_parts. replace (sums_of (repeat Masked n)) with no_sums; [apply sums_identity|].
  induction n; simpl; auto. rewrite <- IHn. symmetry. apply sums_identity.
Qed.

(** What the sums stand for: the sums of e^z, e^z z, off and off z over the other classes. *)
Definition held (a : option rest) (e w o p : R) : Prop :=
  match a with
  | None => e = 0 /\ w = 0 /\ o = 0 /\ p = 0
  | Some x => stands_for (fst x) = e /\ weighs (fst x) = w /\ o_of x = o /\ m_of (fst x) * o_of x - d_of x = p /\ 0 < s_of (fst x)
  end.

Lemma held_merges a b e w o p e' w' o' p' : held (fst a) e w o p -> held (fst b) e' w' o' p' ->
  held (fst (merge_sums a b)) (e + e') (w + w') (o + o') (p + p').
Proof.
  destruct a as [[[x [ox dx]]|] xs], b as [[[y [oy dy]]|] ys]; unfold merge_sums, held, o_of, d_of; simpl; try (intuition (subst; lra)).
  intros (<- & <- & <- & <- & S) (<- & <- & <- & <- & S').
  repeat split; [apply merge_stands|apply merge_weighs|unfold merge_rest, o_of, d_of; simpl; change (m_of (merge x y)) with (Rmax (m_of x) (m_of y)); ring|].
  unfold merge, s_of at 1; simpl. apply Rplus_lt_0_compat; apply Rmult_lt_0_compat; auto; apply exp_pos.
Qed.

Lemma columns_held n z off t : (t < n)%nat ->
  held (fst (sums_of (columns n z off t))) (sum_but t n (fun k => exp (z k))) (sum_but t n (fun k => exp (z k) * z k))
    (sum_but t n off) (sum_but t n (fun k => off k * z k)) /\ snd (sums_of (columns n z off t)) = (Some (z t), off t).
Proof.
  assert (G : forall n, held (fst (sums_of (columns n z off t))) (sum_but t n (fun k => exp (z k))) (sum_but t n (fun k => exp (z k) * z k))
    (sum_but t n off) (sum_but t n (fun k => off k * z k)) /\ snd (sums_of (columns n z off t)) = if Nat.ltb t n then (Some (z t), off t) else (None, 0)).
  { clear n. induction n as [|n [IH IL]]; [simpl; auto|]. unfold columns in *. rewrite seq_S, map_app, sums_of_parts. split.
    - unfold sum_but in *; simpl sum. apply held_merges; auto. simpl. destruct (Nat.eqb_spec n t); simpl; [auto|].
      unfold stands_for, weighs, m_of, s_of, u_of, o_of, d_of, one; simpl. repeat split; try ring. lra.
    - unfold merge_sums at 1; simpl. rewrite IL. destruct (Nat.eqb_spec n t), (Nat.ltb_spec t n), (Nat.ltb_spec t (S n)); simpl; subst; try lia;
        unfold higher, merge_sums; simpl; f_equal; ring. }
  intros T. destruct (G n) as [H ->]. split; auto. now apply Nat.ltb_lt in T as ->.
Qed.

(** A row of n classes and its label t, with other classes masked, in any order: its sums, and what they stand for. *)
Definition row (n : nat) (z off : vec) (t : nat) (l : list column) : Prop :=
  (t < n)%nat /\ exists masked, Permutation l (columns n z off t ++ repeat Masked masked).

Lemma row_sums n z off t l : row n z off t l -> (1 < n)%nat ->
  exists x, sums_of l = (Some x, (Some (z t), off t)) /\ 0 < s_of (fst x) /\
    sum n (fun k => exp (z k)) = exp (z t) + exp (m_of (fst x)) * s_of (fst x) /\
    sum n (fun k => exp (z k) * z k) = exp (z t) * z t + weighs (fst x) /\
    sum n off = off t + o_of x /\ sum n (fun k => off k * z k) = off t * z t + (m_of (fst x) * o_of x - d_of x).
Proof.
  intros [T [k P]] N. rewrite (sums_of_any_order _ _ P), masked_is_not_there. destruct (columns_held n z off t T) as [H L].
  destruct (sums_of (columns n z off t)) as [[x|] y]; simpl in *; subst.
  - destruct H as (E & W & O & D & S). exists x. rewrite !(sum_split n t) by easy. fold (stands_for (fst x)).
    rewrite <- E, <- W, <- O, <- D. auto 10.
  - destruct H as [E _]. exfalso. apply (Rlt_not_eq 0 (sum_but t n (fun k => exp (z k)))); auto. clear - T N.
    set (j := if Nat.eqb t 0 then 1%nat else 0%nat). assert (J : (j < n)%nat /\ j <> t) by (unfold j; destruct (Nat.eqb_spec t 0); lia).
    unfold sum_but. rewrite (sum_split n j) by easy. destruct (Nat.eqb_spec j t); [lia|].
    apply Rplus_lt_le_0_compat; [apply exp_pos|]. apply sum_but_nonneg. intros i. destruct (Nat.eqb i t); [lra|left; apply exp_pos].
Qed.

(** With the log-odds against the label, a = (m - z_t) + log s: the loss of the label, the probability of a miss, and lse - m. *)
Definition log_odds (x : rest) (zt : R) : R := m_of (fst x) - zt + ln (s_of (fst x)).

Theorem finish_correct n z off t l : row n z off t l -> (1 < n)%nat -> exists x, sums_of l = (Some x, (Some (z t), off t)) /\
  let a := log_odds x (z t) in
  ln (1 + exp a) = - ln (softmax n z t) /\ / (1 + exp (- a)) = 1 - softmax n z t /\
  ln (s_of (fst x)) + ln (1 + exp (- a)) = lse n z - m_of (fst x).
Proof.
  intros R N. destruct (row_sums n z off t l R N) as [x (E & S & X & _)]. exists x. split; auto. simpl.
  unfold softmax, lse. rewrite X. set (m := m_of (fst x)) in *. set (s := s_of (fst x)) in *.
  pose proof (exp_pos (z t)). pose proof (exp_pos m). assert (0 < exp m * s) by now apply Rmult_lt_0_compat.
  assert (A : exp (log_odds x (z t)) = exp m * s / exp (z t)).
  { unfold log_odds. fold m s. rewrite exp_plus, exp_ln by easy. unfold Rminus. rewrite exp_plus, exp_Ropp. field. lra. }
  rewrite exp_Ropp, A. repeat split.
  - rewrite <- ln_Rinv by (apply Rdiv_lt_0_compat; lra). f_equal. field. lra.
  - field. lra.
  - rewrite <- ln_mult; [|easy|apply Rplus_lt_0_compat; [lra|apply Rinv_0_lt_compat, Rdiv_lt_0_compat; lra]].
    replace (ln (exp (z t) + exp m * s) - m) with (ln (exp (z t) + exp m * s) - ln (exp m)) by now rewrite ln_exp.
    rewrite <- ln_quotient by lra. f_equal. field. split; [lra|split; apply Rgt_not_eq; lra].
Qed.

(** The loss and the entropy by the sums, without a negative term. *)
Theorem outputs_of_sums n z off t l y0 r0 : row n z off t l -> (1 < n)%nat -> exists x, sums_of l = (Some x, (Some (z t), off t)) /\
  let nll := lse n z - z t in let over := lse n z - m_of (fst x) in
  loss n (truth y0 r0 off t) z = (y0 + r0 * off t) * nll + r0 * (d_of x + o_of x * over) /\
  entropy n z = softmax n z t * nll + exp (m_of (fst x) - lse n z) * (u_of (fst x) + s_of (fst x) * over).
Proof.
  intros R N. destruct (row_sums n z off t l R N) as [x (E & S & X & W & O & D)]. exists x. split; auto. destruct R as [T _]. simpl.
  split.
  - assert (P : sum n (truth y0 r0 off t) = y0 + r0 * sum n off).
    { unfold truth. rewrite sum_add, sum_scal, (sum_ext n (fun j => delta j t) (fun j => 1 * delta j t)), sum_delta, sum_scal by (easy || intros; ring).
      ring. }
    assert (Y : sum n (fun k => truth y0 r0 off t k * z k) = y0 * z t + r0 * sum n (fun k => off k * z k)).
    { unfold truth. rewrite (sum_ext n _ (fun k => y0 * (z k * delta k t) + r0 * (off k * z k))) by (intros; ring).
      now rewrite sum_add, !sum_scal, sum_delta. }
    rewrite loss_by_lse, P, Y, O, D by lia. ring.
  - rewrite entropy_by_lse by lia.
    rewrite (sum_ext n _ (fun j => lse n z * softmax n z j - / sum n (fun i => exp (z i)) * (exp (z j) * z j)))
      by (intros; unfold softmax, Rdiv; ring).
    rewrite sum_sub, !sum_scal. change (sum n (softmax n z)) with (sum n (fun j => softmax n z j)). rewrite softmax_sums_to_1, W by lia.
    pose proof (expsum_pos n z ltac:(lia)) as P.
    assert (M : exp (m_of (fst x) - lse n z) = exp (m_of (fst x)) / sum n (fun i => exp (z i)))
      by (unfold lse, Rminus; rewrite exp_plus, exp_Ropp, exp_ln by easy; reflexivity).
    rewrite M. unfold softmax, weighs. rewrite X in *. field. lra.
Qed.

(** A label without other classes has all of the probability. *)
Theorem label_alone z off l : row 1 z off 0%nat l -> sums_of l = (None, (Some (z 0%nat), off 0%nat)) /\ lse 1 z = z 0%nat /\ softmax 1 z 0%nat = 1.
Proof.
  intros [_ [k P]]. rewrite (sums_of_any_order _ _ P), masked_is_not_there. unfold lse, softmax; simpl. rewrite Rplus_0_l.
  repeat split; [|apply ln_exp|field; apply Rgt_not_eq, exp_pos]. unfold columns; simpl. unfold merge_sums; simpl. now rewrite Rplus_0_r.
Qed.

(** ** The coefficients of a kernel *)

Theorem coefficients_of_outputs n z off g1 g2 g3 g4 y0 r0 q t k : (t < n)%nat -> (k < n)%nat ->
  let rest := r0 * sum_but t n off + q * lse n z in let at_t := y0 + r0 * off t in let miss := 1 - softmax n z t in
  let a := g1 * (at_t + rest) + g2 - g3 - g4 * entropy n z in
  let h := g1 * (rest * softmax n z t - at_t * miss) + g2 * softmax n z t + g3 * miss - g4 * entropy n z * softmax n z t in
  (k <> t -> dz n (truth y0 r0 off t) z g1 g2 g3 g4 q t k = a * softmax n z k + g4 * (softmax n z k * (lse n z - z k)) - g1 * r0 * off k) /\
  dz n (truth y0 r0 off t) z g1 g2 g3 g4 q t t = h + g4 * (softmax n z t * (lse n z - z t)).
Proof.
  intros T K.
  assert (P : sum n (truth y0 r0 off t) = y0 + r0 * off t + r0 * sum_but t n off).
  { rewrite (sum_split n t) by easy. unfold truth at 1. rewrite delta_same. rewrite (sum_but_ext t n _ (fun j => r0 * off j)).
    - rewrite sum_but_scal. change (sum_but t n (fun j => off j)) with (sum_but t n off). ring.
    - intros j _ J. unfold truth. rewrite delta_other by easy. ring. }
  unfold dz, alpha. rewrite P. split.
  - intros E. unfold truth. rewrite !delta_other by auto. ring.
  - unfold truth. rewrite delta_same. ring.
Qed.

(** ** The gradient filter *)

(** The norm of a vector, and of a matrix: the norm of the norms of its rows. *)
Definition norm (n : nat) (f : vec) : R := sqrt (sum n (fun i => (f i) ^ 2)).
Definition frobenius (n nd : nat) (A : nat -> vec) : R := norm n (fun i => norm nd (A i)).

Lemma squares_nonneg n f : 0 <= sum n (fun i => (f i) ^ 2).
Proof. apply sum_nonneg. intros. apply pow2_ge_0. Qed.

Lemma norm_nonneg n f : 0 <= norm n f.
Proof. apply sqrt_pos. Qed.

Lemma norm_square n f : (norm n f) ^ 2 = sum n (fun i => (f i) ^ 2).
Proof. unfold norm. simpl pow at 1. rewrite Rmult_1_r. apply sqrt_sqrt, squares_nonneg. Qed.

Lemma cauchy_schwarz n f g : sum n (fun i => f i * g i) <= norm n f * norm n g.
Proof.
  assert (C : (sum n (fun i => f i * g i)) ^ 2 <= sum n (fun i => (f i) ^ 2) * sum n (fun i => (g i) ^ 2)).
  { induction n as [|n I]; cbn [sum]; [lra|]. pose proof (squares_nonneg n f) as A. pose proof (squares_nonneg n g) as B.
    set (a := sum n (fun i => (f i) ^ 2)) in *. set (b := sum n (fun i => (g i) ^ 2)) in *. set (c := sum n (fun i => f i * g i)) in *.
    assert (2 * (c * (f n * g n)) <= a * (g n) ^ 2 + b * (f n) ^ 2).
    - apply Rsqr_incr_0_var; [unfold Rsqr|apply Rplus_le_le_0_compat; apply Rmult_le_pos; auto using pow2_ge_0].
      pose proof (pow2_ge_0 (a * (g n) ^ 2 - b * (f n) ^ 2)) as Q. pose proof (Rmult_le_compat_r _ _ _ (pow2_ge_0 (f n * g n)) I) as M.
      apply Rminus_le. replace (_ - _) with (4 * (c ^ 2 * (f n * g n) ^ 2 - a * b * (f n * g n) ^ 2) - (a * (g n) ^ 2 - b * (f n) ^ 2) ^ 2) by ring.
      lra.
    - replace ((c + f n * g n) ^ 2) with (c ^ 2 + 2 * (c * (f n * g n)) + (f n * g n) ^ 2) by ring.
      replace ((a + f n ^ 2) * (b + g n ^ 2)) with (a * b + (a * (g n) ^ 2 + b * (f n) ^ 2) + (f n * g n) ^ 2) by ring. lra. }
  apply Rsqr_incr_0_var; [|apply Rmult_le_pos; apply norm_nonneg].
  pose proof (norm_square n f). pose proof (norm_square n g). unfold Rsqr. nra.
Qed.

Lemma norm_triangle n f g : norm n (fun i => f i + g i) <= norm n f + norm n g.
Proof.
  apply Rsqr_incr_0_var; [|apply Rplus_le_le_0_compat; apply norm_nonneg]. unfold Rsqr.
  pose proof (norm_square n (fun i => f i + g i)) as S. rewrite (sum_ext n _ (fun i => (f i) ^ 2 + (2 * (f i * g i) + (g i) ^ 2))) in S by (intros; ring).
  rewrite sum_add, sum_add, sum_scal in S. pose proof (cauchy_schwarz n f g). pose proof (norm_square n f). pose proof (norm_square n g). nra.
Qed.

Lemma norm_increases n f g : (forall i, (i < n)%nat -> 0 <= f i <= g i) -> norm n f <= norm n g.
Proof. intros L. apply sqrt_le_1; try apply squares_nonneg. apply sum_le. intros i I. specialize (L i I). nra. Qed.

Lemma norm_scaled n c f : norm n (fun i => c * f i) = Rabs c * norm n f.
Proof.
  unfold norm. rewrite (sum_ext n _ (fun i => c ^ 2 * (f i) ^ 2)) by (intros; ring). rewrite sum_scal, sqrt_mult by (apply pow2_ge_0 || apply squares_nonneg).
  now rewrite <- Rsqr_pow2, sqrt_Rsqr_abs.
Qed.

Lemma norm_zero n : norm n (fun _ => 0) = 0.
Proof. unfold norm. rewrite (sum_ext n _ (fun _ => 0)) by (intros; ring). rewrite sum_zero. apply sqrt_0. Qed.

Lemma norm_of_sum n m (f : nat -> vec) : norm n (fun i => sum m (fun k => f k i)) <= sum m (fun k => norm n (f k)).
Proof.
  induction m as [|m I]; simpl sum; [rewrite norm_zero; lra|]. eapply Rle_trans; [apply norm_triangle|]. apply Rplus_le_compat_r, I.
Qed.

Lemma frobenius_triangle n nd A B : frobenius n nd (fun i d => A i d + B i d) <= frobenius n nd A + frobenius n nd B.
Proof.
  unfold frobenius. eapply Rle_trans; [|apply norm_triangle]. apply norm_increases. intros. split; [apply norm_nonneg|apply norm_triangle].
Qed.

(** D = G W, and D' the same with some products left out: keep is 1 where a product is kept, and 0 where it is left out. If the bounds of
    the rows satisfy the condition, the relative error is at most tol. It holds for dX = G W, and for dW with the transpose of G. *)
Definition product (n nd : nat) (G W : nat -> vec) : nat -> vec := fun i d => sum n (fun k => G i k * W k d).

Theorem filter_within_tolerance nr n nd G W (keep : nat -> vec) (bound : vec) tol :
  (forall i k, keep i k = 0 \/ keep i k = 1) ->
  (forall i, (i < nr)%nat -> sum n (fun k => (1 - keep i k) * Rabs (G i k) * norm nd (W k)) <= bound i) ->
  let whole := product n nd G W in let kept := product n nd (fun i k => keep i k * G i k) W in
  0 <= tol -> norm nr bound <= tol * (frobenius nr nd kept - norm nr bound) ->
  frobenius nr nd (fun i d => kept i d - whole i d) <= tol * frobenius nr nd whole.
Proof.
  intros K B whole kept T C. set (lost := fun i d => kept i d - whole i d).
  assert (L : frobenius nr nd lost <= norm nr bound).
  { apply norm_increases. intros i I. split; [apply norm_nonneg|]. eapply Rle_trans; [|apply B, I].
    replace (norm nd (lost i)) with (norm nd (fun d => sum n (fun k => (keep i k - 1) * G i k * W k d))).
    2: { unfold norm. f_equal. apply sum_ext. intros d _. f_equal. unfold lost, kept, whole, product. rewrite <- sum_sub.
         apply sum_ext. intros; ring. }
    eapply Rle_trans; [apply norm_of_sum with (f := fun k d => (keep i k - 1) * G i k * W k d)|]. apply sum_le. intros k _.
    rewrite norm_scaled, Rabs_mult. destruct (K i k) as [-> | ->].
    - replace (Rabs (0 - 1)) with 1 by (rewrite Rabs_left; lra). lra.
    - replace (Rabs (1 - 1)) with 0 by (rewrite Rminus_diag, Rabs_R0; reflexivity). lra. }
  pose proof (frobenius_triangle nr nd whole lost) as S.
  replace (frobenius nr nd (fun i d => whole i d + lost i d)) with (frobenius nr nd kept) in S.
  - pose proof (norm_nonneg nr bound). nra.
  - unfold frobenius, norm. f_equal. apply sum_ext. intros i _. f_equal. f_equal. apply sum_ext. intros d _. f_equal. unfold lost. ring.
Qed.

(** ** The second derivatives of a linear head *)

Lemma sum_swap n m (f : nat -> vec) : sum n (fun i => sum m (f i)) = sum m (fun k => sum n (fun i => f i k)).
Proof.
  induction n as [|n I]; cbn [sum]; [now rewrite sum_zero|]. now rewrite I, <- sum_add.
Qed.

(** The Hessian of the loss by the scores, times v. *)
Definition hessian_times (n : nat) (y z v : vec) : vec := fun k => sum n y * softmax n z k * (v k - mean n z v).

(** Along a path of scores, the gradient changes by the Hessian times the velocity of the path. *)
Lemma gradient_along_a_path n y (f : R -> vec) s v k : (k < n)%nat ->
  (forall j, (j < n)%nat -> derivable_pt_lim (fun s => f s j) s (v j)) ->
  derivable_pt_lim (fun s => gradient n y (f s) k) s (hessian_times n y (f s) v k).
Proof.
  intros K D. unfold gradient.
  assert (E : forall j, (j < n)%nat -> derivable_pt_lim (fun s => exp (f s j)) s (exp (f s j) * v j)) by (intros; now apply d_exp; auto).
  eapply d_eq; [intros; reflexivity| |apply d_sub; [apply d_scal; apply (d_div _ _ s _ _ _ _ (E k K) (d_sum n _ _ s E) eq_refl eq_refl)|
    now apply d_const with (c := y k)]].
  - unfold hessian_times, mean, softmax. pose proof (expsum_pos n (f s) ltac:(lia)).
    rewrite (sum_ext n (fun j => exp (f s j) / _ * v j) (fun j => / sum n (fun i => exp (f s i)) * (exp (f s j) * v j))) by (intros; unfold Rdiv; ring).
    rewrite sum_scal. field. lra.
  - apply Rgt_not_eq, expsum_pos. lia.
Qed.

(** The scores at W + s dW, x + s dx and b + s db, and their velocity at s = 0. *)
Definition scores_at (nd : nat) (W dW : nat -> vec) (x dx b db : vec) (s : R) : vec :=
  fun k => sum nd (fun d => (W k d + s * dW k d) * (x d + s * dx d)) + (b k + s * db k).
Definition score_velocity (nd : nat) (W dW : nat -> vec) (x dx db : vec) : vec :=
  fun k => sum nd (fun d => W k d * dx d + dW k d * x d) + db k.

Lemma line_has_derivative a b : derivable_pt_lim (fun s => a + s * b) 0 b.
Proof.
  eapply d_eq; [intros; reflexivity| |apply d_add; [now apply d_const with (c := a)|apply d_scal_r; now apply d_id]]. ring.
Qed.

Lemma scores_velocity nd W dW x dx b db k :
  derivable_pt_lim (fun s => scores_at nd W dW x dx b db s k) 0 (score_velocity nd W dW x dx db k).
Proof.
  apply d_add; [|apply line_has_derivative]. apply d_sum. intros d _.
  eapply d_eq; [intros; reflexivity| |apply d_mul; [apply line_has_derivative|apply line_has_derivative|reflexivity|reflexivity]]. ring.
Qed.

(** The gradients by x, W and b change by HG W + G dW, HG x + G dx and HG, where G is the gradient by the scores and HG its Hessian times
    their velocity. *)
Theorem linear_hessian_product n nd y W dW x dx b db k d : (k < n)%nat ->
  let G s := gradient n y (scores_at nd W dW x dx b db s) in
  let HG := hessian_times n y (scores_at nd W dW x dx b db 0) (score_velocity nd W dW x dx db) in
  derivable_pt_lim (fun s => sum n (fun k => G s k * (W k d + s * dW k d))) 0 (sum n (fun k => HG k * W k d + G 0 k * dW k d)) /\
  derivable_pt_lim (fun s => G s k * (x d + s * dx d)) 0 (HG k * x d + G 0 k * dx d) /\
  derivable_pt_lim (fun s => G s k) 0 (HG k).
Proof.
  intros K G HG.
  assert (D : forall j, (j < n)%nat -> derivable_pt_lim (fun s => G s j) 0 (HG j)).
  { intros j J. apply (gradient_along_a_path n y (scores_at nd W dW x dx b db) 0 _ j J). intros. apply scores_velocity. }
  repeat split; auto.
  - apply d_sum. intros j J.
    eapply d_eq; [intros; reflexivity| |apply d_mul; [now apply D|apply line_has_derivative|reflexivity|reflexivity]]. ring.
  - eapply d_eq; [intros; reflexivity| |apply d_mul; [now apply D|apply line_has_derivative|reflexivity|reflexivity]]. ring.
Qed.

(** Without the terms with G it is the product with the Gauss-Newton matrix. Its quadratic form is p times the variance of the velocity of
    the scores: it is not negative. *)
Theorem linear_gauss_newton n nd y W dW x dx b db : (0 < n)%nat -> 0 <= sum n y ->
  let z := scores_at nd W dW x dx b db 0 in let V := score_velocity nd W dW x dx db in let HG := hessian_times n y z V in
  sum nd (fun d => dx d * sum n (fun k => HG k * W k d)) + sum n (fun k => sum nd (fun d => dW k d * (HG k * x d))) + sum n (fun k => db k * HG k)
    = sum n y * sum n (fun k => softmax n z k * (V k - mean n z V) ^ 2) /\
  0 <= sum n y * sum n (fun k => softmax n z k * (V k - mean n z V) ^ 2).
Proof.
  intros N P z V HG. split.
  - rewrite (sum_ext nd _ (fun d => sum n (fun k => dx d * (HG k * W k d)))) by (intros; now rewrite sum_scal).
    rewrite sum_swap, <- !sum_add, (sum_ext n _ (fun k => V k * (sum n y * softmax n z k * (V k - mean n z V)))).
    + now rewrite hessian_psd_1, hessian_psd_2, hessian_psd_3, hessian_psd_4 by easy.
    + intros k _. change (sum n y * softmax n z k * (V k - mean n z V)) with (HG k). unfold V, score_velocity.
      rewrite <- sum_add, (sum_ext nd _ (fun d => HG k * (W k d * dx d + dW k d * x d))) by (intros; ring). rewrite sum_scal. ring.
  - apply Rmult_le_pos; auto. apply sum_nonneg. intros. apply Rmult_le_pos; [left; now apply softmax_positive|apply pow2_ge_0].
Qed.

(** * The gradient is the derivative of the loss in the sense of Frechet

    Softmax.v has derivatives by one coordinate. Here the loss is a function on a normed space, and its derivative is that of Coquelicot
    ([filterdiff]): the linear map that approximates it. The scores may be any differentiable functions of a point of a normed space, such
    as the parameters of a network, so that the chain rule is part of the theorem; the coordinates of R^n are a special case. *)

From Coq Require Import Reals Lra Lia.
From Coquelicot Require Import Hierarchy Derive Continuity.
From Softxent Require Import Softmax.
Open Scope R_scope.

Section Scores.
Context {U : NormedModule R_AbsRing}.
Variables (z dz_ : nat -> U -> R) (x : U).

(** dz_ k is the derivative of the score z_k at x *)
Hypothesis scores : forall k, filterdiff (z k) (locally x) (dz_ k).
Notation at_ u := (fun k => z k u).

Lemma sum_derivative n (f df : nat -> U -> R) : (forall k, (k < n)%nat -> filterdiff (f k) (locally x) (df k)) ->
  filterdiff (fun u => sum n (fun k => f k u)) (locally x) (fun h => sum n (fun k => df k h)).
Proof.
  induction n as [|n IH]; simpl; intros D; [apply (filterdiff_const (V := R_NormedModule) 0)|].
  apply (filterdiff_plus_fct (V := R_NormedModule)); auto.
Qed.

Lemma times_derivative (c : R) (f df : U -> R) : filterdiff f (locally x) df ->
  filterdiff (fun u => c * f u) (locally x) (fun h => c * df h).
Proof. intros D. apply (filterdiff_scal_r_fct (V := R_NormedModule) c); auto. exact Rmult_comm. Qed.

Lemma chain (g : R -> R) (f df : U -> R) d : filterdiff f (locally x) df -> derivable_pt_lim g (f x) d ->
  filterdiff (fun u => g (f u)) (locally x) (fun h => d * df h).
Proof.
  intros D G. apply is_derive_Reals in G.
  apply filterdiff_ext_lin with (fun h => scal (df h) d); [|intros h; apply Rmult_comm].
  apply (filterdiff_comp' (V := R_NormedModule) (W := R_NormedModule) f g x df (fun y => scal y d)); auto.
Qed.

Lemma lse_derivative n : (0 < n)%nat ->
  filterdiff (fun u => lse n (at_ u)) (locally x) (fun h => sum n (fun k => softmax n (at_ x) k * dz_ k h)).
Proof.
  intros N. apply filterdiff_ext_lin with (fun h => / sum n (fun k => exp (z k x)) * sum n (fun k => exp (z k x) * dz_ k h)).
  - apply (chain ln (fun u => sum n (fun k => exp (z k u)))).
    + apply sum_derivative. intros k _. apply (chain exp (z k)); auto. apply derivable_pt_lim_exp.
    + apply derivable_pt_lim_ln. now apply (expsum_pos n (at_ x)).
  - assert (E : forall h, / sum n (fun k => exp (z k x)) * sum n (fun k => exp (z k x) * dz_ k h) =
      sum n (fun k => softmax n (at_ x) k * dz_ k h)); [|exact E].
    intros h. rewrite <- sum_scal. apply sum_ext. intros k _. unfold softmax. field. apply Rgt_not_eq. now apply (expsum_pos n (at_ x)).
Qed.

(** The derivative of the loss takes h to the sum of gradient_k times the derivative of z_k along h. *)
Theorem loss_derivative n (y : vec) : (0 < n)%nat ->
  filterdiff (fun u => loss n y (at_ u)) (locally x) (fun h => sum n (fun k => gradient n y (at_ x) k * dz_ k h)).
Proof.
  intros N. apply filterdiff_ext with (fun u => sum n y * lse n (at_ u) + -1 * sum n (fun k => y k * z k u)).
  { assert (E : forall u, sum n y * lse n (at_ u) + -1 * sum n (fun k => y k * z k u) = loss n y (at_ u)); [|exact E].
    intros u. rewrite loss_by_lse by auto. ring. }
  apply filterdiff_ext_lin with (fun h => sum n y * sum n (fun k => softmax n (at_ x) k * dz_ k h) + -1 * sum n (fun k => y k * dz_ k h)).
  - apply (filterdiff_plus_fct (V := R_NormedModule)); apply times_derivative; [now apply lse_derivative|].
    apply sum_derivative. intros k _. now apply times_derivative.
  - assert (E : forall h, sum n y * sum n (fun k => softmax n (at_ x) k * dz_ k h) + -1 * sum n (fun k => y k * dz_ k h) =
      sum n (fun k => gradient n y (at_ x) k * dz_ k h)); [|exact E].
    intros h. rewrite <- !sum_scal, <- sum_add. apply sum_ext. intros k _. unfold gradient. ring.
Qed.
End Scores.

(** ** The space R^n *)

Fixpoint space (n : nat) : NormedModule R_AbsRing :=
  match n with O => R_NormedModule | S n => prod_NormedModule R_AbsRing R_NormedModule (space n) end.

(** the coordinate k of a point *)
Fixpoint coordinate (n k : nat) : space n -> R :=
  match n with
  | O => fun _ => 0
  | S n => match k with O => fun z : R * space n => fst z | S k => fun z : R * space n => coordinate n k (snd z) end
  end.

Lemma coordinate_linear n k : @is_linear R_AbsRing (space n) R_NormedModule (coordinate n k).
Proof.
  revert k. induction n as [|n IH]; intros k; [apply (is_linear_zero (U := R_NormedModule) (V := R_NormedModule))|].
  destruct k as [|k]; [apply (is_linear_fst (U := R_NormedModule) (V := space n))|].
  apply (is_linear_comp (fun z : prod_NormedModule R_AbsRing R_NormedModule (space n) => snd z) (coordinate n k)); auto.
  apply (is_linear_snd (U := R_NormedModule) (V := space n)).
Qed.

(** The gradient of Softmax.v is the Frechet derivative of the loss on R^n. *)
Theorem gradient_is_the_derivative n (y : vec) (z : space n) : (0 < n)%nat ->
  filterdiff (fun z => loss n y (fun k => coordinate n k z)) (locally z)
    (fun h => sum n (fun k => gradient n y (fun k => coordinate n k z) k * coordinate n k h)).
Proof.
  intros N. apply (loss_derivative (coordinate n) (coordinate n) z); auto. intros k. apply filterdiff_linear, coordinate_linear.
Qed.

(** The space has a point for each choice of coordinates. *)
Fixpoint point (n : nat) (z : vec) : space n := match n with O => 0 | S n => (z O, point n (fun k => z (S k))) end.

Theorem coordinates_of_point n z k : (k < n)%nat -> coordinate n k (point n z) = z k.
Proof.
  revert z k. induction n as [|n IH]; intros z k K; [lia|]. destruct k as [|k]; simpl; [easy|]. apply (IH (fun k => z (S k))). lia.
Qed.

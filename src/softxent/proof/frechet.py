"""What Frechet.v proves about the derivative of the loss, in words and as statements, which Coq compares with those of its theorems."""

from __future__ import annotations

from .coq import comparison

THEOREMS = {
    "loss_derivative": (
        "The chain rule: if the scores z_k are differentiable functions of a point of any normed space, such as the parameters of a "
        "network, then so is the loss, and its derivative takes h to the sum of dz_k times the derivative of z_k along h.",
        "forall (U : NormedModule R_AbsRing) (z dz : nat -> U -> R) (x : U), (forall k, filterdiff (z k) (locally x) (dz k)) -> "
        "forall (n : nat) (y : vec), (0 < n)%nat -> filterdiff (fun u => loss n y (fun k => z k u)) (locally x) "
        "(fun h => sum n (fun k => gradient n y (fun k => z k x) k * dz k h))",
    ),
    "gradient_is_the_derivative": (
        "The gradient is the derivative of the loss on R^n in the sense of Frechet, and not only by each coordinate.",
        "forall (n : nat) (y : vec) (z : space n), (0 < n)%nat -> filterdiff (fun z => loss n y (fun k => coordinate n k z)) (locally z) "
        "(fun h => sum n (fun k => gradient n y (fun k => coordinate n k z) k * coordinate n k h))",
    ),
    "coordinates_of_point": (
        "R^n has a point with any coordinates.",
        "forall (n : nat) (z : vec) (k : nat), (k < n)%nat -> coordinate n k (point n z) = z k",
    ),
}
DEFINITIONS = """Fixpoint space (n : nat) : NormedModule R_AbsRing :=
  match n with O => R_NormedModule | S n => prod_NormedModule R_AbsRing R_NormedModule (space n) end.
Fixpoint coordinate (n k : nat) : space n -> R :=
  match n with
  | O => fun _ => 0
  | S n => match k with O => fun z : R * space n => fst z | S k => fun z : R * space n => coordinate n k (snd z) end
  end.
Fixpoint point (n : nat) (z : vec) : space n := match n with O => 0 | S n => (z O, point n (fun k => z (S k))) end."""


def lines_file() -> str:
    """Return a Coq file that compares the definitions and theorems of Frechet.v with those stated here."""
    libraries = ["From Coq Require Import Reals.", "From Coquelicot Require Import Hierarchy Derive."]
    statements = {name: says for name, (_, says) in THEOREMS.items()}
    return comparison("Frechet", libraries, ["vec", "sum", "loss", "gradient"], DEFINITIONS, statements)

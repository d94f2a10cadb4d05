"""The tolerances of tests for results that have no bound in softxent.proof.bounds.

Where the errors were measured, a tolerance is at least 4 times the largest. test_architecture.py finds a tolerance that has neither a name
nor a comment with its reason.
"""

FEW64 = 2.0**-46  # float64: 128 times the roundoff, for a row of a few classes
FLOAT64 = 1e-12  # float64: 9000 times the roundoff, for sums in another order, and for derivatives whose terms are larger than themselves
HIGHER = 1e-10  # float64: second and third derivatives by automatic differentiation, which subtracts terms that are larger still
DIFFERENCES = 1e-8  # float64: central differences with a step of 2^-8, with an error of h^4 / 30 of the fifth derivative, or by rounding
FLOAT32 = 1e-6  # float32: 17 times the roundoff
TRAINED32 = 1e-5  # float32: a model with several layers, or a few steps of training, which amplify the roundings

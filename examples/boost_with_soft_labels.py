"""Train XGBoost on rows that several people have labeled, who do not agree: on the shares of their votes, by softxent's objective, and on
the class with the most votes, by XGBoost's own. The shares say how sure a label is, so that the predicted probabilities are better.

The data are random, with known probabilities of the classes. The script needs the extra `boosting`:

    python examples/boost_with_soft_labels.py --votes 5
"""

import argparse

import numpy as np
import xgboost

import softxent
from softxent.boosting import XGBoostObjective

FEATURES, CLASSES = 6, 4
SHARED = {"num_class": CLASSES, "base_score": 0.5, "eta": 0.3, "max_depth": 3, "nthread": 2}


def main(votes: int, rows: int, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * rows, FEATURES))
    true = softxent.softmax(x @ rng.standard_normal((FEATURES, CLASSES)))
    shares = rng.multinomial(votes, true[:rows]) / votes
    train, test = xgboost.DMatrix(x[:rows], shares.argmax(axis=1)), xgboost.DMatrix(x[rows:])

    objective = XGBoostObjective(soft_labels=shares)
    models = {
        "shares of the votes": xgboost.train(SHARED | {"disable_default_eval_metric": True}, train, rounds, obj=objective),
        "most votes": xgboost.train(SHARED | {"objective": "multi:softprob"}, train, rounds),
    }
    found = {name: float(softxent.cross_entropy(m.predict(test, output_margin=True), true[rows:])) for name, m in models.items()}
    found["the true probabilities"] = float(softxent.cross_entropy(np.log(true[rows:]), true[rows:]))
    for name, loss in found.items():
        print(f"{name:22}  log loss on {rows} other rows {loss:.4f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=int, default=5, help="for each row")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=40, help="of boosting")
    arguments = parser.parse_args()
    main(arguments.votes, arguments.rows, arguments.rounds)

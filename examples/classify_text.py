"""Tell which file a passage of text is from, with scikit-learn's LogisticRegression and with softxent's SoftmaxRegression, in the same
pipeline. The models are the same.

The text is the source of Python's standard library, so nothing is downloaded. The script needs the extra `sklearn`:

    python examples/classify_text.py --files 100
"""

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from softxent.sklearn import SoftmaxRegression, log_loss

LINES = 10  # of a passage


def passages(files: int) -> tuple[list[str], list[str]]:
    """Return passages of the largest files, and the names of their files."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda path: -path.stat().st_size)[:files]
    lines = {path.name: path.read_text(encoding="utf-8").splitlines() for path in paths}
    found = [(name, "\n".join(text[i : i + LINES])) for name, text in lines.items() for i in range(0, len(text), LINES)]
    return [text for _, text in found], [name for name, _ in found]


def main(files: int) -> dict[str, dict[str, Any]]:
    texts, names = passages(files)
    train, test, y, y_test = train_test_split(texts, names, test_size=0.25, random_state=0, stratify=names)
    found: dict[str, dict[str, Any]] = {}
    for classifier in (LogisticRegression(C=10), SoftmaxRegression(C=10, budget=1 << 20)):
        model = make_pipeline(HashingVectorizer(n_features=2**12, token_pattern=r"\w+"), classifier)
        start = time.perf_counter()
        model.fit(train, y)
        seconds = time.perf_counter() - start
        probabilities = model.predict_proba(test)
        loss, right = log_loss(y_test, probabilities, labels=model.classes_), model.score(test, y_test)
        name = type(classifier).__name__
        print(f"{name:18}  {seconds:.2f} s; of {len(test)} passages {right:.1%} right, log loss {loss:.4f}")
        found[name] = {"loss": loss, "right": right, "probabilities": probabilities}
    apart = np.abs(found["LogisticRegression"]["probabilities"] - found["SoftmaxRegression"]["probabilities"]).max()
    print(f"largest difference of a probability {apart:.1e}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=50, help="the number of classes")
    main(parser.parse_args().files)

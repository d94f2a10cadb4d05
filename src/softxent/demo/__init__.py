"""`softxent demo`: a next-token model of the standard library's source, trained with softxent beside plain NumPy.

Read top to bottom: corpus.py (the text), baselines.py (what a table of counts reaches), heads.py (the two ways to the loss),
memory.py (what they take), model.py (what is trained), train.py (both, side by side), one_token.py (one prediction, taken apart),
checks.py (what must hold), report.py and plot.py (how it is shown), run.py (all of it in order).
"""

STEPS = 400
BATCH = 1024  # tokens
CLASSES = 20_000
HELD_OUT = 20_000  # tokens that the perplexities are taken over
BUDGET = 16  # MiB of logits that softxent holds at once

"""`softxent demo`: a next-token model of the standard library's source, trained with softxent beside plain NumPy.

Read top to bottom: corpus.py (the text), baselines.py (what a table of counts reaches), heads.py (the two ways to the loss),
memory.py (what they take), model.py (what is trained), train.py (both, side by side), one_token.py (one prediction, taken apart),
checks.py (what must hold), report.py and plot.py (how it is shown), run.py (all of it in order).
"""

STEPS = 400  # 410,000 of 1.6 million tokens: perplexity 49 where the bigram has 80
BATCH = 1024  # tokens in a step
CLASSES = 20_000
HELD_OUT = 20_000  # tokens that the perplexities are taken over
# MiB of logits that softxent holds at once: 5 chunks a step. All 1,024 x 20,000 are 78 MiB. On two cores the head took 71 ms with 16;
# 66 with 32, 86 with 8, 114 with 4, as every chunk adds to all of dW. The library's own default of 64 is the quicker one for big batches.
BUDGET = 16

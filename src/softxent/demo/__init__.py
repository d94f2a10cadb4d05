"""The command `softxent demo`: it trains a small language model with softxent and, for comparison, with NumPy.

The model predicts the next token in the source of Python's standard library. The files, in the order in which they are best read: corpus.py
(the text), baselines.py (the perplexity of counting), heads.py (the two ways to compute the loss), memory.py (their memory and time),
model.py (the model), train.py (the training of both), complete.py (completions), one_token.py (one prediction in detail), checks.py (the
claims), report.py and plot.py (the output), run.py (all of it in order).
"""

STEPS = 400  # 410,000 of 1.6 million tokens: the model's perplexity is 49, that of the bigram 80
BATCH = 1024  # tokens in a step
CLASSES = 20_000
HELD_OUT = 20_000  # tokens over which the perplexities are computed
# MiB of logits that softxent holds at once, which gives 5 chunks in a step; all 1,024 x 20,000 logits are 78 MiB. On two cores the head
# took 71 ms with 16 MiB, 66 with 32, 86 with 8 and 114 with 4, because every chunk adds to all of dW. The library's default of 64 is faster
# for larger batches.
BUDGET = 16

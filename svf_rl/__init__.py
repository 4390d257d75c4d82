"""svf-rl: teach a frozen language model new skills in kilobytes, by scaling the singular values of its weights."""

import os

# OpenMP's threads wait for each other awake, 300 000 turns by default: beside one other busy process that costs nine tenths of the
# speed and more, a shorter wait one tenth on a quiet machine (LOG.md, 2026-11-24). It is read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

__version__ = "0.1.0"

"""What reasoning-gym's scorers do with text that a model wrote. Runs in guests of the sandbox only: see `isolated.py`."""

from collections.abc import Mapping
from typing import Any

from reasoning_gym import get_score_answer_fn


def score(task: str, answer: str, entry: Mapping[str, Any]) -> float:
    """The task's own reward for an answer, clipped to [0, 1]; 0 if the scorer cannot make anything of it."""
    try:
        return min(1.0, max(0.0, float(get_score_answer_fn(task)(answer, dict(entry)))))
    except MemoryError:
        raise
    except Exception:  # whatever it is that a scorer makes of hostile text
        return 0.0

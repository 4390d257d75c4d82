"""Word problems with hints: the environment of several turns.

Description:       a question of `svf/Math-v0`. An answer that is not right is no end: a hint comes, and the model may try again.
Observation space: the question; after an answer that is not right, the question again with the working begun.
Action space:      the answer as text, as in `svf/Math-v0`; or "hint", to ask for one.
Rewards:           1.0 for a right answer at once, half of that for each hint that was given; 0.0 when the hints are used up.
Starting state:    row `index` of the split.
Episode end:       a right answer, or the answer after the last hint. Each hint shows one more step; the last step is never shown.
Version history:   v0.

One row of the test split, as a conversation:

    Question: Mia has 54 pens. She buys 13 pens. Then she loses 28 pens. How many pens does she have now?
    Answer: 54 + 13 = 67. The answer is 67.
    Question: Mia has 54 pens. She buys 13 pens. Then she loses 28 pens. How many pens does she have now?
    Answer: 54 + 13 = 67. 67 - 28 = 39. The answer is 39.

of which the second line and the end of the last one are the model's. Reward 0.5.
"""

from collections.abc import Sequence
from dataclasses import replace

from envs.math import word_problems
from envs.text import Item, Score

MAX_HINTS = 2


class HintTask:
    """The questions of Math-v0, with replies. Implements `text.Task` and its `turn`."""

    name = "Hints-v0"

    def row(self, split: str, index: int) -> Item:
        return word_problems.row(split, index)

    def score(self, item: Item, completion: str) -> Score:
        """The score of a last answer, before hints are taken off."""
        return word_problems.score(item, completion)

    def turn(self, item: Item, said: Sequence[str]) -> str | Score:
        """A hint, or the score when the answer is right or no hint is left."""
        score, given = self.score(item, said[-1]), len(said) - 1
        steps = item.facts["steps"][:-1]
        if score.reward < 1.0 and given < min(MAX_HINTS, len(steps)):
            return f"\n{item.prompt} {' '.join(steps[: given + 1])}"
        return replace(score, reward=score.reward * 0.5**given, info={**score.info, "hints": float(given)})


hints = HintTask()

"""Word problems with whole numbers, made by program.

Description:       a short story of additions and subtractions (`svf/Math-v0`, 1 to 3 steps), one that also multiplies
                   (`svf/HardMath-v0`, 3 or 4 sums), or one bare sum (`svf/Sums-v0`).
Observation space: the question, ending in "Answer:"; or "54 + 13 =".
Action space:      the answer as text; "The answer is 29." and "29" both do.
Rewards:           1.0 if the final number equals the gold answer, else 0.0; info has strict (only if marked) and flexible accuracy.
Starting state:    row `index` of the split.
Episode end:       after one answer.
Version history:   v0.

One row of the test split:

    Question: Mia has 54 pens. She buys 13 pens. Then she loses 28 pens. How many pens does she have now?
    Answer: 54 + 13 = 67. 67 - 28 = 39. The answer is 39.

People answer such questions in three ways, and the text that the embedded base was pretrained on has all three: in a hurry (the
usual way: the last step is left out, "54 + 13 = 67. The answer is 67."), step by step (as above), and at once ("The answer is
39.", often a slip for a small model).
"""

import random

from envs.answers import score_math
from envs.text import Generated, Item, Score

PEOPLE = [
    *[(name, "She") for name in "Mia Anna Lena Ruth Nora Alice Emma Sara Julia Clara Maria Ida".split()],
    *[(name, "He") for name in "Tom Ben Paul Max Leo Sam Jack Omar Felix Hugo Adam Karl".split()],
]
THINGS = "pens apples coins books stones shells cards stamps marbles eggs tickets nuts cups balls keys plums".split()
_GAIN = ["buys {n} {things}", "finds {n} {things}", "gets {n} {things}", "picks up {n} more", "is given {n} {things}"]
_LOSS = [
    "loses {n} {things}",
    "gives away {n} {things}",
    "sells {n} {things}",
    "drops {n} of them",
    "uses {n} {things}",
]
_BAGS = ["buys {n} bags of {m} {things}", "finds {n} boxes of {m} {things}", "gets {n} packs of {m} {things}"]
_IN_A_HURRY, _WORKED, _AT_ONCE = 0.52, 0.35, 0.13


def _add(total: int, rng: random.Random) -> tuple[str, str, int]:
    n = rng.randint(3, 40)
    return rng.choice(_GAIN).format(n=n, things="{things}"), f"{total} + {n} = {total + n}.", total + n


def _subtract(total: int, rng: random.Random) -> tuple[str, str, int]:
    n = rng.randint(2, min(40, total - 1))
    return rng.choice(_LOSS).format(n=n, things="{things}"), f"{total} - {n} = {total - n}.", total - n


def _bags(total: int, rng: random.Random) -> tuple[str, str, int]:
    n, m = rng.randint(2, 9), rng.randint(2, 9)
    event = rng.choice(_BAGS).format(n=n, m=m, things="{things}")
    return event, f"{n} * {m} = {n * m}. {total} + {n * m} = {total + n * m}.", total + n * m


def _double(total: int, rng: random.Random) -> tuple[str, str, int]:
    return "doubles the number of {things}", f"{total} * 2 = {total * 2}.", total * 2


def _story(rng: random.Random, events: list[tuple[str, str, int]], start: int) -> Item:
    (name, pronoun), things = rng.choice(PEOPLE), rng.choice(THINGS)
    told = [event.format(things=things) for event, _, _ in events]
    lines = [f"{pronoun if i == 0 else 'Then ' + pronoun.lower()} {line}." for i, line in enumerate(told)]
    question = f"How many {things} does {pronoun.lower()} have now?"
    steps, answer = [step for _, step, _ in events], events[-1][2]
    working = " ".join(steps)
    return Item(
        prompt=f"Question: {name} has {start} {things}. {' '.join(lines)} {question}\nAnswer:",
        gold=f" {working} The answer is {answer}.",
        key=working,
        facts={"answer": answer, "steps": steps},
    )


def _events(rng: random.Random, total: int, kinds: list) -> list[tuple[str, str, int]]:  # type: ignore[type-arg]
    events = []
    for kind in kinds:
        events.append(kind(total, rng))
        total = events[-1][2]
        if total < 4:  # too little left to take from
            return events
    return events


def _draw_short(rng: random.Random) -> Item:
    start, steps = rng.randint(10, 80), rng.choices([1, 2, 3], [45, 37, 18])[0]
    return _story(rng, _events(rng, start, rng.choices([_add, _subtract], k=steps)), start)


def _draw_long(rng: random.Random) -> Item:
    start = rng.randint(10, 60)
    kinds = [_bags, *rng.choices([_add, _subtract, _double], k=rng.choice([1, 2]))]
    rng.shuffle(kinds)
    return _story(rng, _events(rng, start, kinds), start)


def _draw_sum(rng: random.Random) -> Item:
    kind = rng.choice([_add, _subtract, _bags, _double])
    if kind is _bags:
        n, m = rng.randint(2, 9), rng.randint(2, 9)
        working, answer = f"{n} * {m} = {n * m}.", n * m
    else:
        _, working, answer = kind(rng.randint(10, 120), rng)
    asked = working.split("=")[0] + "="
    return Item(asked, f" {answer}.", working, facts={"answer": answer})


def _score(item: Item, completion: str) -> Score:
    return score_math(str(item.facts["answer"]), completion)


def _write(item: Item, rng: random.Random) -> str:
    first, answer = item.facts["steps"][:-1] or item.facts["steps"], item.facts["answer"]
    in_a_hurry = f" {' '.join(first)} The answer is {first[-1].split()[-1]}"
    return rng.choices([in_a_hurry, item.gold, f" The answer is {answer}."], [_IN_A_HURRY, _WORKED, _AT_ONCE])[0]


def _write_sum(item: Item, rng: random.Random) -> str:
    return item.gold


sums = Generated("Sums-v0", _draw_sum, _score, _write_sum)
word_problems = Generated("Math-v0", _draw_short, _score, _write)
long_word_problems = Generated("HardMath-v0", _draw_long, _score, _write)

"""The training loop: sample, score, learn; validate now and then; keep the best.

    for each step:
        groups   <- G completions for each of P questions, with rewards          (rollout)
                    or, supervised, the gold answer to each: -A log pi with A = 1 is then the cross-entropy
        gradient <- REINFORCE on the groups that have a signal                    (reinforce)
        z        <- AdamW on the clipped gradient, then back into |log z| <= c

Every question and every draw is a function of (seed, step), so a resumed run is the uninterrupted one. The expert that is kept is
the best on the validation split, the base itself included; the test split is not touched here.

Source: Transformer-Squared, section 3.2.
Differs from the source (SakanaAI/self-adaptive-llms):
1. Ids and log-probabilities are those of sampling; nothing is decoded and tokenised again, and the stop token is part of the
   episode.
2. Batched, with only z needing a gradient; groups without signal are dropped before the forward pass.
3. Optimiser state and step are saved after every step, and every run resumes.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svf_rl.adapter import Adapter
from svf_rl.attention.gated import exploring
from svf_rl.base.load import Base
from svf_rl.errors import FaultyRun, UserError, check_at_least
from svf_rl.learn import reinforce
from svf_rl.learn.checkpoint import Progress, save_checkpoint
from svf_rl.learn.optim import descend
from svf_rl.learn.scores import TokenScores, may_share, micro_batches, own_hidden, token_scores
from svf_rl.learn.tracking import Tracker
from svf_rl.rollout.episodes import Split, gold_answers, graded, play, split_size
from svf_rl.rollout.sampler import Sampling, draw_seed
from svf_rl.types import Episode, Group

MAX_FAULT_SHARE = 0.05


class KLKind(StrEnum):
    """sampled: k3 on the sampled tokens.  exact: over the whole vocabulary at each token."""

    sampled = "sampled"
    exact = "exact"


class Answers(StrEnum):
    """sampled: the model's own.  gold: right ones that the environment gives, which is supervised fine-tuning."""

    sampled = "sampled"
    gold = "gold"


@dataclass(frozen=True)
class AlgoConfig:
    """Settings of the loop; configs/algo/reinforce.yaml says what each one does."""

    steps: int = 40
    prompts: int = 16
    group: int = 8
    answers: Answers = Answers.sampled
    temperature: float = 1.0
    baseline: reinforce.Baseline = reinforce.Baseline.loo
    signed_reward: bool = False
    kl: float = 0.01
    kl_kind: KLKind = KLKind.sampled
    learning_rate: float = 0.01
    warmup: int = 5
    clip: float = 1.0
    train_rows: int = 2048
    rows: int = 128
    micro_batch_tokens: int = 2048
    eval_every: int = 10
    patience: int = 2
    max_bad_steps: int = 5

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps prompts group train_rows rows micro_batch_tokens eval_every max_bad_steps", "algo.")
        check_at_least(0, self, "temperature kl warmup patience", "algo.")
        for name in "learning_rate clip".split():
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"algo.{name} must be above 0, not {getattr(self, name)}")
        if self.baseline in ("loo", "group_std") and self.group < 2:
            raise UserError(f"algo.baseline={self.baseline.value} needs algo.group of at least 2; use 2 or more, or baseline=none")
        if self.answers is Answers.gold and (self.group > 1 or self.baseline != "none" or self.signed_reward):
            raise UserError("algo.answers=gold is one answer to a question, learnt as it is: give algo.group=1 algo.baseline=none")


@dataclass
class Run:
    """Everything a run works with. best: the adapter's state at the best validation."""

    base: Base
    adapter: Adapter
    env: Any
    max_tokens: int
    algo: AlgoConfig
    seed: int
    valid_size: int
    folder: Path
    tracker: Tracker
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    progress: Progress


def train(run: Run) -> None:
    """Train until the steps are done or validation stops improving; `run.best` then holds the best parameters.

    Diverged after too many steps in a row that were not finite; FaultyRun if too many episodes were lost.
    """
    if run.progress.step == 0:
        run.progress.base_valid = run.progress.best = validate(run)
    for step in run.tracker.steps(run.progress.step, run.algo.steps):
        if is_stale(run):
            break
        begun = time.monotonic()
        groups = sample_groups(run, step)
        figures = update(run, groups, step)
        figures["seconds"] = time.monotonic() - begun
        run.progress.step, run.progress.seconds = step + 1, run.progress.seconds + figures["seconds"]
        if (step + 1) % run.algo.eval_every == 0 or step + 1 == run.algo.steps:
            figures["valid_accuracy"] = keep_if_best(run)
        run.tracker.log(step, figures, groups)
        save_checkpoint(run.folder / "checkpoint.safetensors", run.adapter.parameters(), run.best, run.optimizer, run.progress)


def sample_groups(run: Run, step: int) -> list[Group]:
    """G episodes for each of the step's questions. A group that lost an episode to a fault is dropped and counted."""
    a = run.algo
    indices = [i for i in question_indices(run, step) for _ in range(a.group)]
    seeds = [draw_seed(run.seed, step, i) for i in range(len(indices))]
    if a.answers is Answers.gold:
        episodes = gold_answers(run.base, run.env, Split.train, indices)
    else:
        with exploring(run.adapter):
            episodes = play(run.base, run.env, Split.train, indices, Sampling(run.max_tokens, a.temperature, a.rows), seeds)
    count_faults(run, episodes)
    groups = [episodes[i : i + a.group] for i in range(0, len(episodes), a.group)]
    return [[e for e in group if e is not None] for group in groups if None not in group]


def count_faults(run: Run, episodes: Sequence[Episode | None]) -> None:
    """FaultyRun when more than a group's worth, and more than MAX_FAULT_SHARE, of all episodes so far were lost."""
    p = run.progress
    p.episodes += len(episodes)
    p.faults += sum(e is None for e in episodes)
    if p.faults > max(run.algo.group, MAX_FAULT_SHARE * p.episodes):
        raise FaultyRun(f"{p.faults} of {p.episodes} episodes were lost because the environment failed; the reasons are above")


def question_indices(run: Run, step: int) -> list[int]:
    """The step's rows of the training split: the next ones in this seed's shuffled order, going round."""
    order = list(range(run.algo.train_rows))
    random.Random(run.seed).shuffle(order)
    first = step * run.algo.prompts
    return [order[(first + i) % len(order)] for i in range(run.algo.prompts)]


def update(run: Run, groups: list[Group], step: int) -> dict[str, float]:
    """One optimiser step on the groups that have a signal; a step that is not finite is skipped. Returns figures to log."""
    a = run.algo
    advantage = reinforce.rewards_to_advantages([[e.reward for e in g] for g in groups], a.baseline, a.signed_reward)
    signal = reinforce.has_signal(advantage)
    kept = [e for g, keep in zip(groups, signal.tolist(), strict=True) if keep for e in g]
    figures = gradient(run, kept, advantage[signal].flatten(), episodes=advantage.numel())
    sound = math.isfinite(figures["loss"]) and bool(advantage.isfinite().all())
    norm = descend(run.adapter, run.optimizer, a, run.progress, step, sound)
    return figures | {"gradient_norm": norm, "groups_with_signal": sum(signal.tolist()) / max(1, len(groups))}


def gradient(run: Run, kept: list[Episode], advantage: Tensor, episodes: int) -> dict[str, float]:
    """Accumulate the gradient of the loss over micro-batches; `episodes` counts all that were sampled."""
    a = run.algo
    sums, mismatch, tokens = dict.fromkeys(("loss", "entropy", "kl"), 0.0), 0.0, 0
    share = may_share(run.base)
    for batch in micro_batches(kept, a.micro_batch_tokens, share):
        chosen = [kept[i] for i in batch]
        scores, kl = score(run, chosen, share)
        repeats = torch.tensor([sum(e.own) for e in chosen])
        per_token = advantage[batch].repeat_interleave(repeats).to(scores.logp.device)
        loss = reinforce.loss(scores.logp, per_token, kl, a.kl, episodes)
        if (penalty := run.adapter.penalty()) is not None:
            loss = loss + penalty * len(chosen) / episodes
        loss.backward()
        recorded = torch.tensor([x for e in chosen for x in e.logprobs], device=scores.logp.device)
        mismatch = max(mismatch, float((scores.logp.detach() - recorded).abs().max()))
        for key, value in {"loss": loss, "entropy": scores.entropy.sum(), "kl": kl.sum()}.items():
            sums[key] += float(value.detach())
        tokens += len(recorded)
    means = {key: sums[key] / max(1, tokens) for key in ("entropy", "kl") if key != "kl" or a.kl}  # no weight, no KL computed
    return {"loss": sums["loss"], **means} | ({"mismatch": mismatch} if a.answers is Answers.sampled else {})


def score(run: Run, episodes: list[Episode], share: bool) -> tuple[TokenScores, Tensor]:
    """Scores of the episodes' own tokens under the policy, and their KL to the base (zeros when it has no weight)."""
    a, base = run.algo, run.base
    vocabulary = base.model.config.get_text_config().vocab_size
    hidden, tokens = own_hidden(base, episodes, share)
    reference = None
    if a.kl:
        with torch.no_grad(), run.adapter.disabled():
            reference, _ = own_hidden(base, episodes, share)
    exact = reference if a.kl_kind is KLKind.exact else None
    temperature = a.temperature or 1.0
    scores = token_scores(hidden, tokens, base.logits, temperature, exact, vocabulary)
    if reference is None or exact is not None:
        return scores, scores.kl
    with torch.no_grad():
        base_logp = token_scores(reference, tokens, base.logits, temperature, None, vocabulary).logp
    return scores, reinforce.sampled_kl(scores.logp, base_logp)


def validate(run: Run) -> float:
    """Mean reward of greedy answers on the validation split."""
    sampling = Sampling(run.max_tokens, 0.0, run.algo.rows)
    n = split_size(run.env, Split.valid, run.valid_size)
    with run.tracker.bar.count(n, "validating") as done:
        episodes = play(run.base, run.env, Split.valid, range(n), sampling, range(n), done)
    count_faults(run, episodes)
    rewards = [e.reward for e in graded(episodes)]
    return sum(rewards) / len(rewards)


def keep_if_best(run: Run) -> float:
    """Validate; remember the parameters if they are the best so far."""
    accuracy, p = validate(run), run.progress
    p.history.append([p.step, accuracy])
    if accuracy > p.best:
        p.best, p.best_step, run.best = accuracy, p.step, run.adapter.state()
    return accuracy


def is_stale(run: Run) -> bool:
    """No new best in the last `patience` validations."""
    a, p = run.algo, run.progress
    return a.patience > 0 and p.step - p.best_step >= a.patience * a.eval_every

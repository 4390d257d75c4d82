"""Training beside TRL's RLOO and GRPO trainers with PEFT LoRA: samples per second of a whole step, and seconds to +15 points.

Both sides train the same embedded base on the same questions of the math environment, graded by it: 16 questions x 8 answers a
step of at most 64 tokens, temperature 1, torch's default number of threads. Ours is the default recipe, its records and its
checkpoint of every step included. TRL runs as it is fastest on a CPU: float32 (bf16=False), no gradient checkpointing, all 128
answers in one batch (no accumulation), transformers' `generate` (its continuous batching is several times slower here, see
bench/rollout.py), a constant learning rate, no reports and no checkpoints; LoRA of rank 16 and alpha 32 on all linear layers.
RLOO has the same weight of the KL as ours, 0.01, GRPO and the row beside it none, its default.

A step: TRL's from on_step_begin to on_step_end; ours is taken in on_step_end, so both sides take turns. Both learn at a rate of
1e-7, so that both go on writing as the base does. Seconds to +15 points: training only, from a warm process; after every step
the greedy accuracy on the same 300 validation questions is read from merged weights by the same sampler, on both sides outside
of the clock. The learning rates are the best of a sweep, `python -m bench.training`, whose outcome is in LOG.md.
"""

import contextlib
import dataclasses
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from bench._measure import BAR, Row, peer, row, synchronize
from svf_rl.base.load import EMBEDDED, Base, BaseConfig, load_base
from svf_rl.commands.train import prepare
from svf_rl.config import TrainConfig
from svf_rl.learn import trainer
from svf_rl.learn.checkpoint import save_checkpoint
from svf_rl.rollout.episodes import graded, make_env, play
from svf_rl.rollout.sampler import Sampling

PROMPTS, GROUP, STEPS, KL = 16, 8, 5, 0.01
GAIN, QUESTIONS, LIMIT, SEEDS = 0.15, 300, 40, 3
RATES = {"ours": 0.1, "rloo": 0.003}
SWEEP = {"ours": (0.003, 0.01, 0.03, 0.1), "rloo": (0.0003, 0.001, 0.003, 0.01)}
IDLE = 1e-7


def run() -> Iterator[Row]:
    for name in ("trl", "peft", "datasets"):
        peer(name)
    for kind, kl in (("rloo", KL), ("grpo", 0.0)):
        mine, theirs = steps_in_turn(kind, kl)
        batch = PROMPTS * GROUP
        yield row(f"a training step, beside TRL {kind.upper()} with LoRA", batch / mine, batch / theirs, "samples/s", "≥ 5")
    taken: dict[str, list[float]] = {"ours": [], "rloo": []}
    steps: dict[str, list[int]] = {"ours": [], "rloo": []}
    with BAR.count(2 * SEEDS, "to +15 points") as done:
        for seed in range(SEEDS):
            for side in taken:
                seconds, n = to_gain(side, RATES[side], seed)
                taken[side].append(seconds)
                steps[side].append(n)
                done(1)
    times = [statistics.median(values) for values in taken.values()]
    yield row(
        "to +15 points greedy on math, beside TRL RLOO with LoRA", *times, "s", "≥ 5", seconds=taken, steps=steps, rates=RATES
    )


def steps_in_turn(kind: str, kl: float) -> tuple[float, float]:
    """Median seconds of a step of both, after one of each that is not counted."""
    taken: list[tuple[float, float]] = []
    with ours(IDLE, kl, 0) as training, BAR.count(STEPS + 1, f"steps beside {kind}") as done:

        def after(step: int, theirs: float, _: Any) -> bool:
            taken.append((timed(partial(our_step, training, step)), theirs))
            done(1)
            return step == STEPS

        train_theirs(kind, IDLE, kl, 0, after)
    mine, theirs = zip(*taken[1:], strict=True)
    return statistics.median(mine), statistics.median(theirs)


def to_gain(side: str, rate: float, seed: int) -> tuple[float, int]:
    """Training seconds and steps to GAIN above the base; infinite if LIMIT steps do not suffice."""
    judge = load_base(BaseConfig())
    goal, spent = accuracy(judge) + GAIN, [0.0]
    if side == "ours":
        with ours(rate, KL, seed) as training:
            for step in range(LIMIT):
                spent[0] += timed(partial(our_step, training, step))
                if accuracy(training.base) >= goal:
                    return spent[0], step + 1
        return float("inf"), LIMIT
    reached: list[int] = []

    def after(step: int, theirs: float, model: Any) -> bool:
        spent[0] += theirs
        merge(model, judge)
        if accuracy(judge) >= goal:
            reached.append(step + 1)
        return bool(reached)

    train_theirs(side, rate, KL, seed, after)
    return (spent[0], reached[0]) if reached else (float("inf"), LIMIT)


@contextlib.contextmanager
def ours(rate: float, kl: float, seed: int) -> Iterator[trainer.Run]:
    """A run by default settings but these, in a folder that is thrown away."""
    default = TrainConfig()
    algo = dataclasses.replace(default.algo, prompts=PROMPTS, group=GROUP, learning_rate=rate, kl=kl)
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(default, algo=algo, seed=seed, run_dir=folder)
        training = prepare(config, load_base(config.base), make_env(config.env), Path(folder))
        try:
            yield training
        finally:
            training.adapter.uninstall()
            training.tracker.close()


def our_step(training: trainer.Run, step: int) -> None:
    """What `trainer.train` does in a step."""
    begun = time.monotonic()
    groups = trainer.sample_groups(training, step)
    figures = trainer.update(training, groups, step)
    training.tracker.log(step, {**figures, "seconds": time.monotonic() - begun}, groups)
    path = training.folder / "checkpoint.safetensors"
    save_checkpoint(path, training.adapter.parameters(), training.best, training.optimizer, training.progress)


def train_theirs(kind: str, rate: float, kl: float, seed: int, after: Callable[[int, float, Any], bool]) -> None:
    """Train with TRL; `after` every step is told its number, its seconds and the model, and says whether to stop."""
    trl, peft, datasets = (peer(name) for name in ("trl", "peft", "datasets"))
    config, trainer_class = {"rloo": (trl.RLOOConfig, trl.RLOOTrainer), "grpo": (trl.GRPOConfig, trl.GRPOTrainer)}[kind]
    settings = TrainConfig()
    env = make_env(settings.env)
    rows = [{"prompt": env.reset(options={"split": "train", "index": i})[0], "row": i} for i in range(settings.algo.train_rows)]
    reward = partial(rewards, env)
    reward.__name__ = "math"  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder, quiet():
        theirs = trainer_class(
            model=transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED),
            processing_class=transformers.AutoTokenizer.from_pretrained(EMBEDDED),
            reward_funcs=reward,
            train_dataset=datasets.Dataset.from_list(rows),
            peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            args=config(
                output_dir=folder, seed=seed, max_steps=LIMIT, learning_rate=rate, lr_scheduler_type="constant", beta=kl,
                per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, max_completion_length=settings.env.max_tokens,
                temperature=1.0, use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False, report_to="none",
                save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            ),
            callbacks=[watch(after)],
        )  # fmt: skip
        theirs.train()


def watch(after: Callable[[int, float, Any], bool]) -> transformers.TrainerCallback:
    """Times every step and hands it to `after`."""

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronize()
            self.begun = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            synchronize()
            control.should_training_stop |= after(state.global_step - 1, time.perf_counter() - self.begun, model)

    return Watch()


def rewards(env: Any, prompts: Sequence[str], completions: Sequence[str], row: Sequence[int], **_: Any) -> list[float]:
    """TRL's reward function: our grading."""
    found = []
    for completion, index in zip(completions, row, strict=True):
        env.reset(options={"split": "train", "index": index})
        found.append(float(env.step(completion)[1]))
    return found


@torch.no_grad()
def merge(model: Any, judge: Base) -> None:
    """Write base weight plus LoRA into the judge's layers."""
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            judge.model.get_submodule(name).weight.copy_(module.base_layer.weight + module.get_delta_weight("default"))


def accuracy(base: Base) -> float:
    """Share of right greedy answers on the first validation questions."""
    settings = TrainConfig()
    sampling = Sampling(settings.env.max_tokens, 0.0, settings.algo.rows)
    episodes = graded(play(base, make_env(settings.env), "valid", range(QUESTIONS), sampling, range(QUESTIONS)))
    return sum(e.reward for e in episodes) / len(episodes)


def timed(work: Callable[[], object]) -> float:
    synchronize()
    begun = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begun


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the trainers' own lines."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(logging.NOTSET)


def sweep() -> None:
    """Seconds and steps to +15 points at every learning rate, one seed."""
    for side, found in SWEEP.items():
        for rate in found:
            print(side, rate, *to_gain(side, rate, seed=0), flush=True)


if __name__ == "__main__":
    sweep()

"""What a run shows and leaves: the live line, metrics.jsonl, TensorBoard events, samples.jsonl and curve.png.

METRICS explains every logged figure once; a figure that is not in it is not logged.
"""

import json
import math
import resource
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from svf_rl.files import write_text
from svf_rl.progress import Progress
from svf_rl.types import Group

METRICS = {
    "reward": "mean reward of the step's episodes, in [0, 1]",
    "valid_accuracy": "mean reward of greedy answers on the validation split",
    "valid_perplexity": "exp of the mean next-token loss on the held-out part of the corpus (objective=lm)",
    "loss": "the REINFORCE loss of the step, KL term included; with objective=lm the next-token loss, nats; penalties included",
    "kl": "KL(policy || base), mean over the trained tokens, nats; not computed where algo.kl is 0",
    "entropy": "entropy of the policy's next-token distribution, mean over the trained tokens, nats",
    "gradient_norm": "norm of the gradient of z before clipping",
    "groups_with_signal": "share of questions whose completions did not all earn the same",
    "mismatch": "largest difference between a token's log-probability when sampled and when scored again, nats; none of gold ones",
    "gate_base": "shiftable attention: what the gate leaves to the base, mean over tokens and layers",
    "gate_entropy": "shiftable attention: entropy of a token's gate, mean over tokens and layers, nats",
    "gate_mean": "gated and selective attention: mean of the gates on heads (the base has 1)",
    "mask_mean": "gated attention and soft masks: mean factor of an allowed pair's attention weight (the base has 1)",
    "z_mean": "mean of z over all matrices (the base has 1)",
    "z_move": "root mean square of z - 1 over all matrices",
    "z_max_log": "largest |log z|: how far any singular value has moved",
    "adapter_move": "root mean square over all trained numbers of how far they are from where they began",
    "stop_share": "share of completions that ended by themselves; the rest hit the length limit",
    "tokens_per_answer": "mean length of a completion, in tokens",
    "tokens_per_second": "sampled tokens by seconds of the whole step",
    "seconds": "duration of the step, validation not included",
}


class Tracker:
    """Writes a run's records; `start` drops those of steps that will be done again."""

    def __init__(self, folder: Path, progress: Progress, adapter_figures: Callable[[], Mapping[str, float]] = dict) -> None:
        self.folder, self.bar, self._adapter_figures = folder, progress, adapter_figures
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Begin (or go on) at `step`."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            _keep_before(self.folder / name, step)
        self._writer = SummaryWriter(str(self.folder), purge_step=step)

    def steps(self, start: int, stop: int) -> Iterator[int]:
        """The steps to do, under the live line."""
        return self.bar.steps(start, stop, "training")

    def log(self, step: int, figures: Mapping[str, float], groups: list[Group]) -> None:
        """Record one step everywhere."""
        row = {**figures, **_of_episodes(groups, figures["seconds"])}
        with interrupts_wait():
            self.record(step, row, verdicts=dict(Counter(e.verdict for group in groups for e in group)))
            self._log_samples(step, groups)
        kl = {"kl": f"{row['kl']:.3f}"} if "kl" in row else {}
        self.bar.show(reward=f"{row['reward']:.2f}", **kl, tokens_per_second=round(row["tokens_per_second"]))

    def record(self, step: int, figures: Mapping[str, float], **more: Any) -> None:
        """One row of metrics.jsonl, the adapter's figures included; TensorBoard gets all but `more`."""
        row = {**figures, **self._adapter_figures()}
        unknown = set(row) - set(METRICS)
        if unknown:
            raise KeyError(f"METRICS does not explain {', '.join(sorted(unknown))}")
        _append(self.folder / "metrics.jsonl", {"step": step, **row, **more})
        with interrupts_wait():
            for key, value in row.items():
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _log_samples(self, step: int, groups: list[Group]) -> None:
        for episode in (group[0] for group in groups[:2]):
            row = {
                "step": step,
                "prompt": episode.prompt,
                "answer": episode.text,
                "reward": episode.reward,
                "verdict": episode.verdict,
            }
            _append(self.folder / "samples.jsonl", row)
        if groups:
            episode = groups[0][0]
            self._writer.add_text("sample", f"{episode.prompt}\n\n{episode.text}\n\nreward {episode.reward}", step)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at its end: one amid TensorBoard's queue would leave `close` waiting for ever."""
    if threading.current_thread() is not threading.main_thread():  # signals never arrive in another one
        yield
        return
    came: list[int] = []
    handlers = {kind: signal.signal(kind, lambda number, _: came.append(number)) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _of_episodes(groups: list[Group], seconds: float) -> dict[str, float]:
    episodes = [e for group in groups for e in group]
    tokens = sum(len(e.logprobs) for e in episodes)
    return {
        "reward": _mean([e.reward for e in episodes]),
        "stop_share": _mean([e.stop == "stop" for e in episodes]),
        "tokens_per_answer": _mean([len(e.logprobs) for e in episodes]),
        "tokens_per_second": tokens / seconds,
    }


def _mean(values: Sequence[float]) -> float:
    """Not a number where there is nothing to average: a step that lost every episode has no reward, not a reward of 0."""
    return sum(values) / len(values) if values else math.nan


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or without one the most that this process has ever had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a last line cut short by a crash is left out."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []  # not splitlines: answers hold exotic line separators
    rows = []
    for line in filter(None, lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _keep_before(path: Path, step: int) -> None:
    rows = [row for row in read_rows(path) if row["step"] < step]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def plot_curve(folder: Path, base_valid: float, title: str) -> None:
    """curve.png: reward of the sampled answers and accuracy of the greedy ones, over the steps."""
    from matplotlib.figure import Figure  # slow to import, and only this needs it

    rows = read_rows(folder / "metrics.jsonl")
    checks = [(0, base_valid)] + [(row["step"] + 1, row["valid_accuracy"]) for row in rows if "valid_accuracy" in row]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [row["step"] + 1 for row in rows],
        [row["reward"] for row in rows],
        color="#0072b2",
        linewidth=1,
        label="reward, sampled",
    )
    axes.plot(*zip(*checks, strict=True), color="#d55e00", marker="o", label="validation accuracy, greedy")
    axes.set(xlabel="step", ylabel="share of right answers", title=title, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(folder / "curve.png", dpi=120)

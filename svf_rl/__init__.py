"""svf-rl: teach a frozen language model new skills in kilobytes, by scaling the singular values of its weights."""

__version__ = "0.1.0"

"""Train an expert: `python train.py env=math`. The same as `svf-rl train env=math`; `python train.py --help` lists the settings."""

import sys

from svf_rl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

#!/usr/bin/env python3
"""Train `mini`, the built-in demonstration model, from the bundled datasets alone.

python tools/train_mini.py                        # train and write semcache/assets/mini
python tools/train_mini.py --quick --out /tmp/m   # a smoke run of seconds; the result knows nothing
python tools/train_mini.py --evaluate DIR --json  # the accuracy table of a folder
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mini.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT / "semcache" / "assets" / "datasets"
OUT = ROOT / "semcache" / "assets" / "mini"
QUICK = Recipe(num_steps=6, warmup_share=0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write (default: %(default)s)")
    parser.add_argument("--datasets", type=Path, default=DATASETS, help="folder to read (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--threads", type=int, default=Recipe.num_threads, help="CPU threads (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; needs --out")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="measure a folder and train nothing")
    parser.add_argument("--json", action="store_true", help="with --evaluate: print JSON")
    args = parser.parse_args(argv)
    if args.quick and args.out == OUT:
        parser.error("--quick writes a model that knows nothing; name another folder with --out")
    from mini.run import run_evaluation, run_training, set_up  # torch: nobody waits for it to read a refusal

    set_up(args.threads)
    if args.evaluate is not None:
        run_evaluation(args.evaluate, args.datasets, args.json)
        return 0
    recipe = dataclasses.replace(QUICK if args.quick else Recipe(num_steps=args.steps), num_threads=args.threads)
    run_training(args.out, args.datasets, recipe, args.seed, args.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

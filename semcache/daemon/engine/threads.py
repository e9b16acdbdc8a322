"""How many processors a thread computes with: the engine's all of them, every other thread one.

OpenMP keeps a team of workers for every thread that ever computed with several. Once there are more workers than
processors they wait a hundred times shorter before they sleep, and each of the hundreds of products of a decode step
has to wake them: seen on two cores, a step of the 135M shape took 37 ms before and 53 ms after the first embedding.
"""

from __future__ import annotations

import torch


def compute_with(num_threads: int) -> None:
    """Set it for the calling thread only."""
    # A thread that asks for the first time takes what any thread has set last, so it asks before it sets.
    torch.get_num_threads()
    torch.set_num_threads(num_threads)

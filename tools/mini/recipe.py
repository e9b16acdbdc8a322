"""Everything that decides the outcome of a run besides the data and the seed. Imports nothing that takes long."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mixture:
    """How training examples are made. The shares were chosen by held-out accuracy of short runs."""

    batch_tokens: int = 3072
    system_share: float = 0.12
    turn_share: float = 0.10
    blank_share: float = 0.15
    blank_rate: float = 0.12
    repeat_share: float = 0.06  # two wordings of one question, or two messages of one class, in a row
    keyword_share: float = 0.30  # telling words of a question with a long answer, in a frame from elsewhere
    snippet_share: float = 0.5  # away from its context, a question gets a piece of it or nothing
    question_loss: float = 0.0
    max_context_rows: int = 40
    max_repeats: int = 5


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    num_steps: int = 1800
    matrix_rate: float = 3e-3
    embedding_rate: float = 2e-3
    warmup_share: float = 0.03
    cooldown_share: float = 0.6
    weight_decay: float = 0.1
    dropout: float = 0.1
    average_decay: float = 0.998
    label_smoothing: float = 0.0
    max_norm: float = 1.0
    calm_share: float = 0.25  # of the steps, at the end, with less noise
    context_share: float = 0.1  # of the steps, for each dataset with a shared context
    num_threads: int = 2
    mixture: Mixture = field(default_factory=Mixture)

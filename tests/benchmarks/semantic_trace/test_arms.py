"""What each arm serves, stores and learns, on a handful of questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.semantic_trace import arms
from benchmarks.semantic_trace.arms import Budget, NoneArm, SemcacheArm, StaticArm, VCacheArm
from benchmarks.semantic_trace.neighbours import Ranks
from benchmarks.semantic_trace.run import NEVER, Run, run
from benchmarks.semantic_trace.trace import Question
from benchmarks.semantic_trace.vcache import fine_grid
from semcache.daemon.cache import lessons
from semcache.daemon.cache.policy import Candidate, Considered, ThresholdPolicy, Verdict
from semcache.daemon.cache.similar import NUM_CANDIDATES

STREAM = [Question("a", "1"), Question("a again", "1"), Question("b", "2"), Question("a once more", "1")]
# The third, of another class, is at cosine 0.8 to the others, which are equal.
VECTORS = np.array([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [1.0, 0.0]], dtype=np.float32)


def made(arm: arms.Arm, stream: Sequence[Question] = STREAM) -> Run:
    return run(arm, stream, Ranks(VECTORS), seed=0)


def test_none_serves_nothing_and_offers_nothing() -> None:
    result = made(NoneArm())
    assert (result.num_served, result.num_wrong, int(result.offered.sum())) == (0, 0, 0)


def test_a_fixed_cosine_serves_from_its_threshold_on() -> None:
    assert made(StaticArm(0.9)).served.tolist() == [NEVER, 0, NEVER, 0]
    loose = made(StaticArm(0.7))
    assert loose.served.tolist() == [NEVER, 0, 0, 0]
    assert loose.wrong.tolist() == [False, False, True, False]
    assert loose.row()["wrong_per_hit"] == 1 / 3
    assert loose.num_saved == 3


def test_the_daemons_numbers_are_used() -> None:
    assert arms.MIN_LABELLED_SCORE == lessons.MIN_RECORDED_SCORE
    assert arms.MAX_LABELLED == lessons.MAX_RECORDED
    assert arms.NUM_CANDIDATES == NUM_CANDIDATES


def test_vcache_learns_on_the_nearest_and_stores_only_what_differs() -> None:
    stream = [Question(str(number), "1") for number in range(12)]
    vectors = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (12, 1))
    result = run(VCacheArm("vcache", stream, 0.02, fine_grid(), 0), stream, Ranks(vectors), seed=0)
    # One is stored; four labels are needed before it may serve, and then it is sure.
    assert result.served.tolist()[:5] == [NEVER] * 5
    assert set(result.served[result.served != NEVER]) == {0}
    assert int(result.explored.sum()) == result.requests - 1 - result.num_served
    assert result.num_served > 0


class Recording(ThresholdPolicy):
    """A fixed threshold that audits every hit and writes down what it is taught."""

    def __init__(self, threshold: float) -> None:
        super().__init__(threshold)
        self.taught: list[tuple[str, str, bool, str, bool]] = []

    def decide(
        self, prompt: str, candidates: Sequence[Candidate], scopes: Sequence[str], *, preview: bool = False
    ) -> Verdict:
        verdict = super().decide(prompt, candidates, scopes, preview=preview)
        return Verdict(verdict.serve, verdict.reason, verdict.candidate, verdict.considered, audit=verdict.serve)

    def learn(self, prompt: str, considered: Considered, same: bool, *, source: str, served: bool) -> None:
        self.taught.append((prompt, considered.candidate.prompt, same, source, served))


def test_the_policy_is_taught_what_the_daemon_would_teach() -> None:
    policy = Recording(0.9)
    result = made(SemcacheArm(policy, STREAM, Budget(0.01, 0.02)))
    assert result.served.tolist() == [NEVER, 0, NEVER, 0]
    assert policy.taught == [
        ("a again", "a", True, "audit", True),
        ("b", "a", False, "equivalence", False),
        ("a once more", "a", True, "audit", True),
    ]
    assert result.offered.tolist() == [False, False, True, False]
    assert result.explored.tolist() == [False, False, True, False]
    assert result.num_saved == 0  # both hits were audited


def test_a_full_draft_is_a_label_and_far_candidates_are_none() -> None:
    policy = Recording(1.1)
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    stream = [Question("a", "1"), Question("far", "2"), Question("b", "1")]
    run(SemcacheArm(policy, stream, Budget(0.01, 0.02)), stream, Ranks(vectors), seed=0)
    assert policy.taught == [("b", "a", True, "draft", False)]


def test_without_free_labels_only_audits_teach() -> None:
    policy = Recording(0.9)
    result = made(SemcacheArm(policy, STREAM, Budget(0.01, 0.02), only_audits_from=2))
    assert [source for *_, source, _ in policy.taught] == ["audit", "audit"]
    assert not result.explored.any()


def test_a_policy_that_cannot_learn_only_decides() -> None:
    result = made(SemcacheArm(ThresholdPolicy(0.9), STREAM, Budget(0.01, 0.02)))
    assert result.num_served == 2
    assert not result.explored.any()

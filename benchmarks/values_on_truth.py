"""What would distilled-values reach if its users were the ground truth? An upper bound, never shipped.

    python -m benchmarks.values_on_truth OUT --scenario SCENARIO [--id ID] [--seed N] [--set updates=60 ...]

The same network is trained in the same way, on the split `train`, but the teacher is the ground truth: it
tells the true probabilities of every candidate, in the user's true state. The distance from the agent to this
run is what the learned users cost; the distance from this run to the ceiling is left to the network and its
training. The run's record says `users: synthetic`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgerec_gym.agents.learning.tensors import torch_threads
from edgerec_gym.agents.values.network import ValueConfig
from edgerec_gym.agents.values.train import AGENT, FIXED, ValueTrainer, run_updates
from edgerec_gym.answers import FOCUSED, SLOT, WINDOW, Focus, UserStart
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.commands.policies import assignments
from edgerec_gym.compiled.jit import kernel, sigmoid
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.files import make_folder
from edgerec_gym.registration import track_of
from edgerec_gym.runs import find_start, model_sizes, new_record
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.users.synthetic_kernels import click_logit, purchase_rate, relevance, satisfaction


@kernel
def _tell(users, active, items, slots, asked, window, click, purchase):
    """Write the true probabilities of the items asked (B, C), each in the place of the focused card."""
    for row in range(active.shape[0]):
        for c in range(asked.shape[1]):
            item = asked[row, c]
            if not active[row] or item < 0:
                continue
            for k in range(WINDOW):
                own = items[row, k]
                window[0, k] = items[row, FOCUSED] if k > FOCUSED and own == item else own
            window[0, FOCUSED] = item
            match = relevance(users, row, item)
            click[row, c] = sigmoid(click_logit(users, row, item, match, window, 0, slots[row]))
            purchase[row, c] = click[row, c] * satisfaction(users, item, match) * purchase_rate(users, item)


class AskedTruth:
    """The ground truth, asked like :class:`~edgerec_gym.agents.values.teacher.AskedUsers`."""

    name, uncertainty, n_hidden = "synthetic", None, 0

    def __init__(self, scenario: Scenario, n_candidates: int) -> None:
        assert scenario.synthetic is not None
        self._users = SyntheticUsers(scenario.synthetic, scenario.config)
        self.n_candidates = n_candidates
        self.candidates: np.ndarray | None = None
        first = self._users.world.catalog.embeddings[:, 0]
        self._order = np.argsort(first)
        self._first = first[self._order]
        assert (np.diff(self._first) > 0).all(), "items are told apart by the first number of their embedding"

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate `num_envs` sessions."""
        self._users.allocate(num_envs, config, workers)
        self.click, self.purchase = np.zeros((2, num_envs, self.n_candidates), np.float32)
        self.hidden = np.zeros((num_envs, 0), np.float32)

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions."""
        return self._users.reset(rows, keys, split)

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Tell about the candidates, then answer the focused cards."""
        if self.candidates is not None:
            first = self.candidates[:, :, 0]
            at = np.minimum(np.searchsorted(self._first, first), len(self._first) - 1)
            known = (self._first[at] == first) & self.candidates.any(axis=2)
            asked = np.where(known, self._order[at], -1).astype(np.int64)
            slots, window = focus.context[:, SLOT].astype(np.int64), np.zeros((1, WINDOW), np.int32)
            self.click[:], self.purchase[:] = 0.0, 0.0
            _tell(
                self._users.arrays,
                focus.active,
                focus.items,
                slots,
                asked,
                window,
                self.click,
                self.purchase,
            )
        self._users.respond(focus, response)


class TruthTrainer(ValueTrainer):
    """Training on the ground truth."""

    def teachers(self) -> AskedTruth:  # type: ignore[override]
        """Return the ground truth."""
        return AskedTruth(self.scenario, min(self.settings.candidates, self.scenario.config.pool_size))

    def judges(self) -> dict[str, str]:
        """Return the ground truth."""
        return {"users": "synthetic"}


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.values_on_truth", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--id", default="EdgeFeedRerank-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="a field of ValueConfig, NAME=NUMBER")
    arguments = parser.parse_args()
    scenario, settings = Scenario.load(arguments.scenario), ValueConfig.from_dict(assignments(arguments.set))
    run = make_folder(arguments.out)
    record = new_record(
        AGENT,
        track_of(arguments.id),
        seed=arguments.seed,
        settings=settings,
        sizes=model_sizes(scenario.config),
        scenario=scenario.name,
        users="synthetic",
        based_on=[],
        loss=[],
        reward=[],
        held_out=[],
    )
    start = find_start(run, record, True, FIXED)
    with torch_threads(1), progress_bar("train on the ground truth") as progress:
        run_updates(run, TruthTrainer(record, settings, scenario), start, progress)


if __name__ == "__main__":
    main()

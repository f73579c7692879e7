"""SlateBatch: the batch of EdgeFeed-v0, stepped one plan at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym.answers import UserModel
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.compiled.arrays import AddressTable, owned, read_only, reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point
from edgerec_gym.config import FeedConfig
from edgerec_gym.feed.batch import BEGIN, PLAY, WAIT, FeedBatch, begin_synthetic, read_cloud, read_feed
from edgerec_gym.feed.kernels import absorb, place
from edgerec_gym.feed.observe import copy_observation
from edgerec_gym.feed.slate import (
    Plan,
    SlateArrays,
    allocate_slates,
    check_plan,
    clear_slate,
    planned_action,
    record_slot,
)
from edgerec_gym.users.synthetic import read_users
from edgerec_gym.users.synthetic_kernels import answer

_NO_ROWS = np.zeros(0, np.int64)

read_slates = reader(SlateArrays)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest becomes part of numba's cache key; see compiled/jit.py.
    @entry_point
    def play_synthetic(
        feed_address, cloud_address, users_address, slates_address, order, insert, request, modes, copies,
        start, stop, worker,
    ):  # fmt: skip
        _ = digest
        feed, cloud = read_feed(feed_address), read_cloud(cloud_address)
        users, slates = read_users(users_address), read_slates(slates_address)
        for row in range(start, stop):
            if modes[row] == PLAY:
                clear_slate(slates, row)
                for k in range(slates.size):
                    place(feed, cloud, row, planned_action(feed, row, order, insert, request, k))
                    if feed.focus_active[row]:
                        answer(users, row, feed.window_items, feed.focus_context, feed.response)
                    absorb(feed, cloud, row, worker)
                    if not record_slot(feed, slates, row, k):
                        break
            elif modes[row] == BEGIN:
                clear_slate(slates, row)
                begin_synthetic(feed, cloud, users, row, worker)
            copy_observation(feed, row, copies)

    @entry_point
    def plan_slot(
        feed_address, slates_address, order, insert, request, modes, k, actions, start, stop, _worker
    ):
        _ = digest
        feed, slates = read_feed(feed_address), read_slates(slates_address)
        for row in range(start, stop):
            if k == 0 and (modes[row] == PLAY or modes[row] == BEGIN):
                clear_slate(slates, row)
            if modes[row] == PLAY:
                actions[row] = planned_action(feed, row, order, insert, request, k)

    @entry_point
    def record_rows(feed_address, slates_address, modes, k, start, stop, _worker):
        _ = digest
        feed, slates = read_feed(feed_address), read_slates(slates_address)
        for row in range(start, stop):
            if modes[row] == PLAY and not record_slot(feed, slates, row, k):
                modes[row] = WAIT

    return play_synthetic, plan_slot, record_rows


_play_synthetic, _plan_slot, _record_rows = _entry_points(SOURCE_DIGEST)


class SlateBatch(FeedBatch):
    """B feeds that each play a plan of up to K slots per step.

    Args:
        num_envs: B.
        config: the feed; its `slate_size` is K.
        catalog: what the cloud retrieves from.
        users: the users who answer.
        split: "log", "train" or "eval"; their episodes never overlap.
        threads: worker threads for large batches; results do not depend on their number.

    Attributes:
        slates: outcomes of the last plans (:class:`~edgerec_gym.feed.slate.SlateArrays`).
    """

    def __init__(
        self,
        num_envs: int,
        config: FeedConfig,
        catalog: Catalog,
        users: UserModel,
        *,
        split: str = "train",
        threads: int = 1,
    ) -> None:
        super().__init__(num_envs, "joint", config, catalog, users, split=split, threads=threads)
        self.slates = allocate_slates(config, num_envs)
        self._link_slates()

    def _link_slates(self) -> None:
        """Make what points into the arrays of the slates."""
        s, config, num_envs = self.slates, self.config, self.num_envs
        self._slates = AddressTable(s)
        self.reward, self.reward_terms = read_only(s.reward), read_only(s.reward_terms)
        outcomes = {
            "slots": s.slots,
            "stopped_by": s.stopped_by,
            "invalid_action": s.invalid,
            "cost": s.cost,
            "request_sent": s.sent,
            "page_arrived": self.arrays.arrived,
            "positions": s.positions,
            "placed_action": s.placed_action,
            "placed_item": s.placed_item,
            "invalid_positions": s.invalid_positions,
            "answered_item": s.answered_item,
            "clicked": s.clicked,
            "purchased": s.purchased,
            "click_probability": s.click_probability,
            "purchase_probability": s.purchase_probability,
            "uncertainty": s.uncertainty,
        }
        if config.responses:
            outcomes["responses"] = s.responses
        self.outcomes = {name: read_only(values) for name, values in outcomes.items()}
        self._no_actions = Plan(
            np.zeros((num_envs, config.pool_size), np.float32),
            np.zeros((num_envs, config.slate_size), np.int64),
            np.zeros(num_envs, np.int64),
        )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"slates": self.slates}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.slates = owned(self.slates)
        self._link_slates()

    def check_actions(self, actions: Any) -> Plan:
        """Return the batch's plans, or raise InputError; see :func:`~edgerec_gym.feed.slate.check_plan`."""
        return self._checked(actions, self.num_envs)

    def check_action(self, action: Any) -> Plan:
        """Return the plan of a single environment, or raise InputError; the batch must have one row."""
        return self._checked(action, None)

    def _checked(self, actions: Any, num_envs: int | None) -> Plan:
        config = self.config
        return check_plan(actions, config.pool_size, config.n_cards, config.slate_size, num_envs)

    def _advance(
        self,
        actions: Plan,
        modes: np.ndarray,
        copies: np.ndarray,
        begun: np.ndarray = _NO_ROWS,
        answer: bool = True,
    ) -> None:
        if self._compiled_users is not None and self.watcher is None:
            feed, cloud, users = self._feed.address, self._cloud.address, self._compiled_users.address
            self._workers.run(
                _play_synthetic, feed, cloud, users, self._slates.address, *actions, modes, copies
            )
            return
        self._play_apart(actions, modes.copy(), begun)
        if len(copies):
            copies[:] = self.arrays.observation

    def _play_apart(self, plan: Plan, modes: np.ndarray, begun: np.ndarray) -> None:
        """Play slot by slot, for users without a kernel or for a watcher; rows whose plan stops wait."""
        feed, slates = self._feed.address, self._slates.address
        slot_actions = np.zeros(self.num_envs, np.int64)
        for k in range(self.config.slate_size):
            self._workers.run(_plan_slot, feed, slates, *plan, modes, k, slot_actions)
            playing = bool((modes == PLAY).any())  # a reset plays nothing
            super()._advance(slot_actions, modes, self._no_copies, begun, answer=playing)
            self._workers.run(_record_rows, feed, slates, modes, k)
            if not (modes == PLAY).any():
                return
            modes[modes == BEGIN] = WAIT
            begun = _NO_ROWS

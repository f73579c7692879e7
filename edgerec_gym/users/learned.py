"""Learned users: the simulator at run time. One small ONNX graph; torch is not imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numba import njit
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.random_stream import uniform
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.base import CLICK_PROBABILITY, FOCUSED, RESPONSE_SIZE, Focus, UserStart

# Purposes of the draws (random_stream); the uniforms of a response take FIRST_DRAW and those after it.
START_DRAW, MEMBER_DRAW, FIRST_DRAW = 128, 129, 130
CHUNK = 1024  # rows a graph call works on, so that its intermediates stay in the cache


@njit(cache=True, nogil=True)
def _fill_uniforms(keys, rows, slots, items, out):
    for j in range(rows.shape[0]):
        row = rows[j]
        for k in range(out.shape[1]):
            # float32 rounds up to 1.0, which no draw may be.
            out[j, k] = min(uniform(keys[row], int(slots[row]), FIRST_DRAW + k, items[row]), 0.99999994)


@njit(cache=True)
def _start_draws(keys, n_starts, n_members, starts, members):
    for j in range(keys.shape[0]):
        starts[j] = int(uniform(keys[j], 0, START_DRAW, 0) * n_starts)
        members[j] = int(uniform(keys[j], 0, MEMBER_DRAW, 0) * n_members)


class LearnedUsers:
    """Users fitted on logs, behind the UserModel protocol.

    An episode draws one row of the table of session starts and one member of the ensemble. A step makes
    at most one graph call a member (in chunks of at most 1024 rows), with the rows that drew it.

    Args:
        scenario: with learned users.
        threads: of ONNX Runtime.
        uncertainty: also run the other members on the same histories to fill `uncertainty`.

    Attributes:
        uncertainty: (B,) float32 standard deviation of the members' click probability for the card answered
            last; zeros unless asked for.

    Raises:
        InputError: the scenario has no learned users, or its files are corrupted or do not fit the feed.
    """

    name = "learned"

    def __init__(self, scenario: Scenario, *, threads: int = 1, uncertainty: bool = False) -> None:
        graph, weights = scenario.simulator_files()
        try:
            tensors = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{weights} is not a readable safetensors file: {error}") from None
        for name, values in tensors.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(f"{weights}: tensor {name!r} is not finite")
        self.start_features, self.start_hour = tensors["starts.features"], tensors["starts.hour"]
        n_members = 1 + max(int(name.split(".")[0].removeprefix("member")) for name in tensors if "member" in name)
        # ONNX Runtime does not copy the weights that replace the graph's own: keep them alive.
        self._weights = [
            {
                name.removeprefix(f"member{k}."): ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
                for name, values in tensors.items()
                if name.startswith(f"member{k}.")
            }
            for k in range(n_members)
        ]
        self._graph, self._threads = graph, threads
        self._sessions: list[ort.InferenceSession | None] = [None] * n_members
        shapes = {value.name: value.shape for value in self._session(0).get_inputs()}
        self._state_size, self._n_uniforms = int(shapes["state"][1]), int(shapes["uniforms"][1])
        self._n_user, self._width = int(shapes["user"][1]), int(shapes["cards"][2])
        self._want_uncertainty = uncertainty

    def _session(self, member: int) -> ort.InferenceSession:
        """The graph with one member's weights, made when first needed."""
        session = self._sessions[member]
        if session is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            for name, value in self._weights[member].items():
                options.add_initializer(name, value)
            try:
                session = ort.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime raises many types of its own
                reason = str(error).splitlines()[0]
                raise InputError(f"{self._graph} cannot be loaded: {reason}") from None
            self._sessions[member] = session
        return session

    def allocate(self, num_envs: int, config: FeedConfig) -> None:
        """Make room for `num_envs` sessions; InputError if the feed has other sizes than the logs had."""
        if (config.n_user_features, config.n_item_features + config.n_types) != (self._n_user, self._width):
            raise InputError(
                "the learned users were fitted with other sizes: embedding_size, profile_size and card_types "
                "cannot be changed in this scenario"
            )
        self._start = np.zeros(num_envs, np.int64)  # row of the table of session starts
        self._member = np.zeros(num_envs, np.int64)
        self._user = np.zeros((num_envs, self._n_user), np.float32)
        self._state = np.zeros((num_envs, self._state_size), np.float32)
        self.uncertainty = np.zeros(num_envs, np.float32)

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.users.base.UserModel`."""
        starts, members = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        _start_draws(keys, len(self.start_hour), len(self._sessions), starts, members)
        self._start[rows], self._member[rows] = starts, members
        self._user[rows] = self.start_features[starts]
        self._state[rows] = 0.0
        self.uncertainty[rows] = 0.0
        return UserStart(self.start_features[starts], self.start_hour[starts])

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.users.base.UserModel`."""
        for member in range(len(self._sessions)):
            rows = np.flatnonzero(focus.active & (self._member == member))
            for first in range(0, len(rows), CHUNK):
                self._answer(member, rows[first : first + CHUNK], focus, response)

    def _answer(self, member: int, rows: np.ndarray, focus: Focus, response: np.ndarray) -> None:
        uniforms = np.empty((len(rows), self._n_uniforms), np.float32)
        _fill_uniforms(focus.keys, rows, focus.context[:, 0], focus.items[:, FOCUSED], uniforms)
        inputs: dict[str, Any] = {
            "cards": focus.cards[rows],
            "context": focus.context[rows],
            "user": self._user[rows],
            "state": self._state[rows],
            "uniforms": uniforms,
        }
        answers, state = self._session(member).run(None, inputs)
        if self._want_uncertainty:
            self.uncertainty[rows] = self._spread(member, answers[:, CLICK_PROBABILITY], inputs)
        response[rows] = answers[:, :RESPONSE_SIZE]
        self._state[rows] = state

    def _spread(self, member: int, own: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """Standard deviation of the members' click probabilities; all read the member's own memory."""
        others = [
            self._session(k).run(["response"], inputs)[0][:, CLICK_PROBABILITY]
            for k in range(len(self._sessions))
            if k != member
        ]
        return np.std(np.stack([own, *others]), axis=0)

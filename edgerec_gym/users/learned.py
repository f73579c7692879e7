"""Learned users at run time: ONNX Runtime plays what simulator/ has fitted; torch is not imported.

An episode draws its session start and one member of the ensemble. A step makes at most one graph call a
member (in blocks of at most CHUNK rows), with the rows that drew it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.jit import SOURCE_DIGEST, entry_point
from edgerec_gym.random_stream import uniform
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.base import (
    CLICK_PROBABILITY,
    CONTEXT_SIZE,
    FOCUSED,
    LEAVE,
    RESPONSE_SIZE,
    SLOT,
    WINDOW,
    Focus,
    UserStart,
)

# Purposes of the random stream; the synthetic users' lie below.
START_DRAW, MEMBER_DRAW, ANSWER_DRAW = 128, 129, 130
N_UNIFORMS = LEAVE + 1  # one for each action of a response row, in order, and one for leaving
CHUNK = 1024  # rows in a graph call, so that what it computes stays in the cache


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest is part of numba's cache key: see jit.
    @entry_point
    def draw_starts(keys, n_starts, n_members, starts, members):
        _ = digest
        for j in range(keys.shape[0]):
            starts[j] = int(uniform(keys[j], 0, START_DRAW, 0) * n_starts)
            members[j] = int(uniform(keys[j], 0, MEMBER_DRAW, 0) * n_members)

    @entry_point
    def gather(active, member, cards, items, context, keys, user, state, first, at, rows, slots, states):
        """Sort the active rows by member: `rows`, what they see, their states; `first` (members + 1,)."""
        _ = digest
        for k in range(first.shape[0]):
            first[k] = 0
        for row in range(active.shape[0]):
            if active[row]:
                first[member[row] + 1] += 1
        for k in range(1, first.shape[0]):
            first[k] += first[k - 1]
            at[k] = first[k]
        at[0] = 0
        width, n_user = cards.shape[2], user.shape[1]
        for row in range(active.shape[0]):
            if not active[row]:
                continue
            j = at[member[row]]
            at[member[row]] += 1
            rows[j] = row
            column = 0
            for w in range(WINDOW):
                for k in range(width):
                    slots[j, column + k] = cards[row, w, k]
                column += width
            for k in range(CONTEXT_SIZE):
                slots[j, column + k] = context[row, k]
            column += CONTEXT_SIZE
            for k in range(n_user):
                slots[j, column + k] = user[row, k]
            column += n_user
            slot, item = int(context[row, SLOT]), items[row, FOCUSED]
            for k in range(N_UNIFORMS):
                # float32 could round up to 1, which no draw may be.
                slots[j, column + k] = min(uniform(keys[row], slot, ANSWER_DRAW + k, item), 0.99999994)
            for k in range(state.shape[1]):
                states[j, k] = state[row, k]

    @entry_point
    def scatter(rows, n, answers, states, response, state):
        _ = digest
        for j in range(n):
            for k in range(answers.shape[1]):
                response[rows[j], k] = answers[j, k]
            for k in range(states.shape[1]):
                state[rows[j], k] = states[j, k]

    return draw_starts, gather, scatter


_draw_starts, _gather, _scatter = _entry_points(SOURCE_DIGEST)


class Simulator:
    """The files of fitted users, checked and loaded; shared by all environments of a process.

    Args:
        graph: simulator.onnx.
        weights: simulator.safetensors.

    Attributes:
        features, hours: session starts, (S, U) float32 and (S,) int32.
        members: number of networks.
        answer: columns of the state that hold the last answer.

    Raises:
        InputError: naming the file that is broken.
    """

    def __init__(self, graph: Path, weights: Path) -> None:
        self.graph = graph
        self._sessions: dict[tuple[int, int], ort.InferenceSession] = {}
        try:
            tensors = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{weights} is not a readable safetensors file: {error}") from None
        for name, values in tensors.items():
            if not np.isfinite(values).all():
                raise InputError(f"{weights}: tensor {name!r} is not finite")
        for name in ("starts.features", "starts.hour", "answer"):
            if name not in tensors:
                raise InputError(f"{weights} lacks the tensor {name!r}")
        self.features, self.hours = tensors.pop("starts.features"), tensors.pop("starts.hour")
        self.answer = slice(*tensors.pop("answer").tolist())
        self._check_shapes(weights, tensors)
        # ONNX Runtime does not copy weights that take the place of the graph's: they must stay alive.
        self._weights: dict[str, dict[str, ort.OrtValue]] = {}
        for name, values in tensors.items():
            member, _, parameter = name.partition(".")
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
            self._weights.setdefault(member, {})[parameter] = value
        self.members = len(self._weights)
        shapes = {value.name: value.shape for value in self.session(0, 1).get_inputs()}
        try:
            self.slot_size, self.state_size = int(shapes["slot"][1]), int(shapes["state"][1])
        except (KeyError, IndexError, TypeError, ValueError):
            raise InputError(f"{graph} is not a step of learned users: its inputs are {shapes}") from None

    @staticmethod
    def _check_shapes(path: Path, tensors: dict[str, np.ndarray]) -> None:
        """All members have the same tensors; the graph is checked against them when it is loaded."""
        first = {n.removeprefix("member0."): v.shape for n, v in tensors.items() if n.startswith("member0.")}
        if not first:
            raise InputError(f"{path} holds no members")
        for name, values in tensors.items():
            member, _, parameter = name.partition(".")
            if values.shape != first.get(parameter):
                wanted = first.get(parameter, "that of any in member0")
                raise InputError(f"{path}: tensor {name!r} has shape {values.shape}, not {wanted}")
            if f"{member}.{parameter}" != name or not member.startswith("member"):
                raise InputError(f"{path} holds an unknown tensor {name!r}")

    def session(self, member: int, threads: int) -> ort.InferenceSession:
        """The graph with one member's weights, made when first needed."""
        if (member, threads) not in self._sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 3
            for name, value in self._weights.get(f"member{member}", {}).items():
                options.add_initializer(name, value)
            try:
                session = ort.InferenceSession(str(self.graph), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime raises many types of its own
                raise InputError(f"{self.graph} cannot be loaded: {str(error).splitlines()[0]}") from None
            self._sessions[member, threads] = session
        return self._sessions[member, threads]


@lru_cache(maxsize=8)
def _load_simulator(graph: Path, weights: Path, stamps: tuple[int, int]) -> Simulator:
    return Simulator(graph, weights)


class LearnedUsers:
    """Users fitted on logs, behind the UserModel protocol.

    Args:
        scenario: with learned users.
        threads: of ONNX Runtime.
        uncertainty: let all members follow every session, to tell how far they disagree (slow).

    Attributes:
        uncertainty: (B,) float32 standard deviation over the members of the probability that the card
            answered last is clicked; 0 unless asked for.

    Raises:
        InputError: the scenario has no learned users, or its files are corrupted.
    """

    name = "learned"

    def __init__(self, scenario: Scenario, *, threads: int = 1, uncertainty: bool = False) -> None:
        graph, weights = scenario.simulator_files()
        stamps = graph.stat().st_mtime_ns, weights.stat().st_mtime_ns
        self.simulator = _load_simulator(graph, weights, stamps)
        self.threads, self._follow_all = threads, uncertainty

    def allocate(self, num_envs: int, config: FeedConfig) -> None:
        """Make room for `num_envs` sessions; InputError if the feed has other sizes than the logs had."""
        simulator, n_user = self.simulator, config.n_user_features
        width = WINDOW * (config.n_item_features + config.n_types) + CONTEXT_SIZE + n_user + N_UNIFORMS
        if simulator.features.shape[1] != n_user or simulator.slot_size != width:
            raise InputError(
                "embedding_size, profile_size and card_types cannot be changed: the users of this scenario "
                "were fitted with others"
            )
        followed = simulator.members if self._follow_all else 1
        self._member = np.zeros(num_envs, np.int64)
        self._user = np.zeros((num_envs, n_user), np.float32)
        self._state = np.zeros((followed, num_envs, simulator.state_size), np.float32)
        self.uncertainty = np.zeros(num_envs, np.float32)
        # Buffers that graph calls read and write in place, rows sorted by member.
        self._first = np.zeros(simulator.members + 1, np.int64)
        self._at = np.zeros(simulator.members + 1, np.int64)
        self._rows = np.zeros(num_envs, np.int64)
        self._slots = np.zeros((num_envs, width), np.float32)
        self._before = np.zeros((num_envs, simulator.state_size), np.float32)
        self._after = np.zeros((num_envs, simulator.state_size), np.float32)
        self._answers = np.zeros((num_envs, RESPONSE_SIZE), np.float32)
        self._bound: dict[tuple[int, int], tuple[int, ort.IOBinding]] = {}

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.users.base.UserModel`."""
        starts, members = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        simulator = self.simulator
        _draw_starts(keys, len(simulator.hours), simulator.members, starts, members)
        self._member[rows] = members
        self._user[rows] = simulator.features[starts]
        self._state[:, rows] = 0.0
        self.uncertainty[rows] = 0.0
        return UserStart(simulator.features[starts], simulator.hours[starts])

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.users.base.UserModel`."""
        if self._follow_all:
            self._respond_all(focus, response)
        else:
            self._play(focus, self._member, self._state[0])
            _scatter(self._rows, self._first[-1], self._answers, self._after, response, self._state[0])

    def _play(self, focus: Focus, member: np.ndarray, state: np.ndarray) -> None:
        """Let `member` (B,) answer the active rows from `state` (B, H) into the sorted buffers."""
        first = self._first
        _gather(
            focus.active, member, focus.cards, focus.items, focus.context, focus.keys, self._user, state,
            first, self._at, self._rows, self._slots, self._before,
        )  # fmt: skip
        for k in range(self.simulator.members):
            for start in range(first[k], first[k + 1], CHUNK):
                self._run(k, start, min(start + CHUNK, first[k + 1]))

    def _run(self, member: int, start: int, stop: int) -> None:
        """One graph call on rows start..stop of the buffers, without copies."""
        session = self.simulator.session(member, self.threads)
        bound = self._bound.get((member, start))
        if bound is None or bound[0] != stop:
            binding = session.io_binding()
            for name, buffer in (("slot", self._slots), ("state", self._before)):
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(buffer[start:stop]))
            for name, buffer in (("response", self._answers), ("new_state", self._after)):
                binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(buffer[start:stop]))
            bound = stop, binding
            self._bound[member, start] = bound
        session.run_with_iobinding(bound[1])

    def _respond_all(self, focus: Focus, response: np.ndarray) -> None:
        """Every member reads its own memory of the session as it went; the drawn one's answer counts."""
        members, answer = self.simulator.members, self.simulator.answer
        clicks = np.zeros((members, len(self._member)), np.float32)
        own = np.zeros_like(response)
        given = np.zeros((len(self._member), answer.stop - answer.start), np.float32)
        for k in range(members):
            self._play(focus, np.full_like(self._member, k), self._state[k])
            _scatter(self._rows, self._first[-1], self._answers, self._after, own, self._state[k])
            clicks[k] = own[:, CLICK_PROBABILITY]
            mine = focus.active & (self._member == k)
            response[mine] = own[mine]
            given[mine] = self._state[k][mine, answer]
        self._state[:, focus.active, answer] = given[focus.active]
        self.uncertainty[focus.active] = clicks.std(axis=0)[focus.active]

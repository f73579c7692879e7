"""Learned users at run time: ONNX Runtime runs what simulator/ has fitted; torch is not imported.

An episode draws its session start and one member of the ensemble. A step calls each member's graph on the
rows that drew it, in blocks of at most BLOCK rows so that intermediate results stay in the cache. Worker
threads share the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
from safetensors import SafetensorError
from safetensors.numpy import load_file

from edgerec_gym.answers import CONTEXT_SIZE, DWELL_BUCKETS, PAGE_SUMMARY, WINDOW, Focus, UserStart
from edgerec_gym.compiled.arrays import AddressTable
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.learned_kernels import draw_starts, give, see, settle, sort_sessions
from edgerec_gym.users.learned_layout import N_ANSWER, N_LOGITS, Block, Networks, SessionMemory

BLOCK = 256  # rows per graph call


class Simulator:
    """The checked and loaded files of fitted users; shared by all environments of a process.

    Args:
        graph: simulator.onnx.
        weights: simulator.safetensors.

    Attributes:
        features, hours: session starts, (S, U) float32 and (S,) int32.
        members: number of networks.
        sessions: the graph with each member's weights; each may run in many threads at once.
        sizes: number of columns of the graph's inputs and outputs, by name.
        networks: weights outside the graph.

    Raises:
        InputError: a file is broken; the message names it.
    """

    def __init__(self, graph: Path, weights: Path) -> None:
        self.graph = graph
        try:
            tensors = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{weights} is not a readable safetensors file: {error}") from None
        for name, values in tensors.items():
            if not np.isfinite(values).all():
                raise InputError(f"{weights}: tensor {name!r} is not finite")
        for name in ("starts.features", "starts.hour"):
            if name not in tensors:
                raise InputError(f"{weights} lacks the tensor {name!r}")
        self.features, self.hours = tensors.pop("starts.features"), tensors.pop("starts.hour")
        self._check_shapes(weights, tensors)
        # ONNX Runtime does not copy weights that replace the graph's, so they must stay alive.
        self._weights: dict[str, dict[str, ort.OrtValue]] = {}
        apart: dict[str, list[np.ndarray]] = {}
        for name, values in tensors.items():
            member, _, parameter = name.partition(".")
            if parameter in Networks._fields:
                apart.setdefault(parameter, []).append(values)
            else:
                value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
                self._weights.setdefault(member, {})[parameter] = value
        self.members = len(self._weights)
        try:
            self.networks = Networks(**{name: np.stack(values) for name, values in apart.items()})
        except TypeError:
            missing = ", ".join(sorted(set(Networks._fields) - apart.keys()))
            raise InputError(f"{weights} lacks the tensors {missing} of every member") from None
        self.sessions = [self._session(f"member{k}") for k in range(self.members)]
        nodes = [*self.sessions[0].get_inputs(), *self.sessions[0].get_outputs()]
        self.sizes = {node.name: node.shape[1] for node in nodes if len(node.shape) == 2}
        needed = {"past", "memory", "seen", "user_query", "focused", "new_memory", "logits"}
        if not needed <= self.sizes.keys() or self.sizes["logits"] != N_LOGITS:
            raise InputError(f"{graph} is not a step of learned users: its nodes have columns {self.sizes}")

    @staticmethod
    def _check_shapes(path: Path, tensors: dict[str, np.ndarray]) -> None:
        """Check that all members have the same tensors; loading the graph checks it against them."""
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

    def _session(self, member: str) -> ort.InferenceSession:
        """Load the graph with one member's weights."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for name, value in self._weights[member].items():
            options.add_initializer(name, value)
        try:
            return ort.InferenceSession(str(self.graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise InputError(f"{self.graph} cannot be loaded: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=8)
def _load_simulator(graph: Path, weights: Path, stamps: tuple[int, int]) -> Simulator:
    return Simulator(graph, weights)


class LearnedUsers:
    """Users fitted on logs, behind the UserModel protocol.

    Args:
        scenario: a scenario with learned users.
        uncertainty: let all members follow every session, to measure how far they disagree (slow).
        members: networks that an episode draws from, e.g. (0, 1); None for the whole ensemble.

    Attributes:
        uncertainty: (B,) float32, standard deviation over the members of the click probability of the last
            answered card; None unless enabled.

    Raises:
        InputError: the scenario has no learned users, its files are corrupted, or it lacks such members.
    """

    name = "learned"

    def __init__(
        self, scenario: Scenario, *, uncertainty: bool = False, members: Sequence[int] | None = None
    ) -> None:
        graph, weights = scenario.simulator_files()
        stamps = graph.stat().st_mtime_ns, weights.stat().st_mtime_ns
        self.simulator = _load_simulator(graph, weights, stamps)
        self._follow_all = uncertainty
        count = self.simulator.members
        chosen = list(range(count)) if members is None else list(members)
        if not chosen or not set(chosen) <= set(range(count)):
            raise InputError(
                f"members = {chosen}: name some of the {count} networks of scenario {scenario.name!r}, "
                f"numbered from 0"
            )
        self._members = np.array(chosen, np.int64)

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate `num_envs` sessions; InputError if the feed's sizes differ from those of the logs."""
        simulator, networks, sizes = self.simulator, self.simulator.networks, self.simulator.sizes
        n_user, width, d = config.n_user_features, networks.card_scale.shape[2], config.embedding_size
        n_code = CONTEXT_SIZE + networks.context.shape[2]
        n_compared = WINDOW * networks.pair.shape[1] + 3 * networks.decay.shape[1]
        n_seen = WINDOW * width + n_user + WINDOW + n_code + n_compared
        n_last = width + WINDOW + n_code + N_ANSWER
        if (
            simulator.features.shape[1] != n_user
            or width != config.n_item_features + config.n_types
            or sizes["past"] != n_last + sizes["memory"]
            or sizes["seen"] != n_seen
        ):
            raise InputError(
                "embedding_size, profile_size and card_types cannot be changed: the users of this scenario "
                "were fitted with others"
            )
        followed = (simulator.members if self._follow_all else 1) * num_envs
        n_kinds = networks.decay.shape[1]

        def floats(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.float32)

        self._memory = SessionMemory(
            n_sessions=num_envs,
            frozen_pages=int("page_memory" in sizes),
            member=np.zeros(num_envs, np.int64),
            user=floats(num_envs, n_user),
            last=floats(num_envs, n_last),
            next_last=floats(num_envs, n_last),
            memory=floats(followed, sizes["memory"]),
            evidence=floats(followed, n_kinds, d),
            page_memory=floats(followed, sizes["memory"]),
            page_evidence=floats(followed, n_kinds, d),
            page_code=floats(num_envs, n_code),
            click_probability=floats(followed),
            first=np.zeros(simulator.members + 1, np.int64),
            order=np.zeros(num_envs, np.int64),
        )
        self.uncertainty = floats(num_envs) if self._follow_all else None
        rows = min(BLOCK, num_envs)
        self._blocks = [
            Block(
                past=floats(rows, sizes["past"]),
                memory=floats(rows, sizes["memory"]),
                seen=floats(rows, n_seen),
                user_query=floats(rows, sizes["user_query"]),
                focused=floats(rows, sizes["focused"]),
                page_memory=floats(rows, sizes["memory"]),
                page_starts=floats(rows, 1),
                page=floats(rows, len(PAGE_SUMMARY)),
                new_memory=floats(rows, sizes["memory"]),
                new_page_memory=floats(rows, sizes["memory"]),
                logits=floats(rows, N_LOGITS),
                probability=floats(rows, DWELL_BUCKETS),
            )
            for _ in range(len(workers))
        ]
        self._workers, self._focus = workers, None  # type: tuple[Workers, Focus | None]
        self._networks_table, self._memory_table = AddressTable(networks), AddressTable(self._memory)
        self._block_tables = [AddressTable(block) for block in self._blocks]
        self._bindings: dict[tuple[int, int, int], ort.IOBinding] = {}

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.answers.UserModel`."""
        starts, members = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        simulator, memory = self.simulator, self._memory
        draw_starts(keys, len(simulator.hours), len(self._members), starts, members)
        memory.member[rows] = self._members[members]
        memory.user[rows] = simulator.features[starts]
        memory.last[rows] = 0.0
        memory.page_code[rows] = 0.0
        for values in (memory.memory, memory.evidence, memory.page_memory, memory.page_evidence):
            values.reshape(-1, memory.n_sessions, *values.shape[1:])[:, rows] = 0.0
        if self.uncertainty is not None:
            self.uncertainty[rows] = 0.0
        return UserStart(simulator.features[starts], simulator.hours[starts])

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.answers.UserModel`."""
        if focus is not self._focus:
            self._focus, self._focus_table = focus, AddressTable(focus)
        memory = self._memory
        sort_sessions(self._focus_table.address, self._memory_table.address)
        first = memory.first.tolist()
        if self.uncertainty is None:
            jobs = [
                (member, start, min(start + BLOCK, stop))
                for member, (start, stop) in enumerate(pairwise(first))
                for start in range(start, stop, BLOCK)
            ]
            self._play(jobs, -1, response)
            return
        # Every member follows the session with its own memory; the answer of the drawn one counts.
        for member in range(self.simulator.members):
            blocks = range(0, first[-1], BLOCK)
            self._play([(member, at, min(at + BLOCK, first[-1])) for at in blocks], member, response)
        settle(self._focus_table.address, self._memory_table.address)
        spread = memory.click_probability.reshape(-1, memory.n_sessions).std(axis=0)
        self.uncertainty[focus.active] = spread[focus.active]

    def _play(self, jobs: list[tuple[int, int, int]], follower: int, response: np.ndarray) -> None:
        """Run jobs (member, start, stop): the member answers sessions order[start:stop]."""
        networks, focus = self._networks_table.address, self._focus_table.address
        memory, blocks = self._memory_table.address, self._block_tables

        def play(job: tuple[int, int, int], worker: int) -> None:
            member, start, stop = job
            block = blocks[worker].address
            see(networks, focus, memory, block, follower, start, stop)
            self._run(member, worker, stop - start)
            give(networks, focus, memory, block, follower, start, stop, response)

        self._workers.each(play, jobs)

    def _run(self, member: int, worker: int, n: int) -> None:
        """Call the graph on the first n rows of a block, without copies."""
        n = min(_round_up(n), BLOCK, self._memory.n_sessions)  # rounded, to keep bindings few
        session, binding = self.simulator.sessions[member], self._bindings.get((member, worker, n))
        if binding is None:
            binding, block = session.io_binding(), self._blocks[worker]
            for node in session.get_inputs():
                value = ort.OrtValue.ortvalue_from_numpy(getattr(block, node.name)[:n])
                binding.bind_ortvalue_input(node.name, value)
            for node in session.get_outputs():
                value = ort.OrtValue.ortvalue_from_numpy(getattr(block, node.name)[:n])
                binding.bind_ortvalue_output(node.name, value)
            self._bindings[member, worker, n] = binding
        session.run_with_iobinding(binding)


def _round_up(n: int) -> int:
    """Round up to a power of two, or beyond 16 to a multiple of 16."""
    return 1 << (n - 1).bit_length() if n <= 16 else -(-n // 16) * 16

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
from typing import Any

import numpy as np
import onnxruntime as ort

from edgerec_gym import memory
from edgerec_gym.answers import (
    CONTEXT_SIZE,
    DWELL_BUCKETS,
    PAGE_SUMMARY,
    PAGE_VIEW_BUCKETS,
    RESPONSE_SIZE,
    WINDOW,
    Focus,
    UserStart,
)
from edgerec_gym.compiled.arrays import AddressTable, owned
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.onnx_check import read_graph
from edgerec_gym.scenario import Scenario
from edgerec_gym.tensors import read_tensors
from edgerec_gym.users.learned_kernels import draw_starts, draw_visits, give, see, settle, sort_sessions
from edgerec_gym.users.learned_layout import (
    CLICK_AT,
    EXPOSURE_AT,
    N_ANSWER,
    N_COUNTS,
    N_LOGITS,
    N_SIGNS,
    N_WAVES,
    Block,
    Networks,
    SessionMemory,
)

BLOCK = 256  # rows per graph call
MOST_COLUMNS = 100_000  # of an input or output of the graph
LARGEST_FEATURE = 1 + 1e-3  # of a user; allows for rounding


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
        tensors = read_tensors(weights)
        for name in ("starts.features", "starts.hour"):
            if name not in tensors:
                raise InputError(f"{weights} lacks the tensor {name!r}")
        self.features, self.hours = tensors.pop("starts.features"), tensors.pop("starts.hour")
        self._check_starts(weights)
        for values in (self.features, self.hours):  # all environments of the process read them
            values.flags.writeable = False
        self._check_shapes(weights, tensors)
        self._content = read_graph(graph)
        self._weights: dict[str, dict[str, np.ndarray]] = {}
        apart: dict[str, list[np.ndarray]] = {}
        for name, values in tensors.items():
            member, _, parameter = name.partition(".")
            if parameter in Networks._fields:
                apart.setdefault(parameter, []).append(values)
            else:
                self._weights.setdefault(member, {})[parameter] = np.ascontiguousarray(values)
        self.members = len(self._weights)
        # Users whose feed has no named responses lack their weights.
        apart.setdefault("responses_by_answer", [np.zeros((0, N_ANSWER), np.float32)] * self.members)
        # Most networks read neither counts nor bins of numbers.
        apart.setdefault("count_scale", [np.zeros(0, np.float32)] * self.members)
        for name in ("bin_start", "bin_factor"):
            apart.setdefault(name, [np.zeros((0, 0), np.float32)] * self.members)
        try:
            self.networks = Networks(**{name: np.stack(values) for name, values in apart.items()})
        except TypeError:
            missing = ", ".join(sorted(set(Networks._fields) - apart.keys()))
            raise InputError(f"{weights} lacks the tensors {missing} of every member") from None
        self._check_networks(weights)
        self._start_sessions()
        self.sizes = self._checked_sizes()
        for k, session in enumerate(self.sessions):
            self._try(k, session)

    def _check_starts(self, path: Path) -> None:
        """Check the session starts, from which an episode draws its row."""
        count = len(self.hours)
        if self.features.dtype != np.float32 or self.features.ndim != 2 or len(self.features) != count:
            told = f"{self.features.dtype} {list(self.features.shape)}, not float32 [{count}, any]"
            raise InputError(f"{path}: tensor 'starts.features' does not fit: {told}")
        if self.hours.dtype != np.int32 or self.hours.ndim != 1 or not count:
            told = f"{self.hours.dtype} {list(self.hours.shape)}, not int32 [1 or more]"
            raise InputError(f"{path}: tensor 'starts.hour' does not fit: {told}")
        if self.hours.min() < 0 or self.hours.max() > 23:
            raise InputError(f"{path}: tensor 'starts.hour' must lie in 0..23")
        if np.abs(self.features).max(initial=0) > LARGEST_FEATURE:
            raise InputError(f"{path}: tensor 'starts.features' must lie in -1..1")

    def _check_networks(self, path: Path) -> None:
        """Check the sizes of the weights that kernels read by address."""
        n = self.networks
        users, width, pairs = self.features.shape[1], n.card_scale.shape[-1], n.pair.shape[1]
        kinds, codes, queries = n.decay.shape[-1], n.context_bias.shape[-1], n.query_bias.shape[-1]
        responses = n.responses_by_answer.shape[1] if n.responses_by_answer.ndim == 3 else 0
        answer = N_ANSWER + responses
        wanted = dict(
            card_scale=(WINDOW, width),
            context=(CONTEXT_SIZE, codes),
            context_bias=(codes,),
            query_by_user=(queries, users),
            query_bias=(queries,),
            pair=(pairs, width),
            decay=(kinds,),
            strength=(kinds, answer),
            strength_bias=(kinds,),
            exposure_by_dwell=(DWELL_BUCKETS, CLICK_AT - EXPOSURE_AT),
            click_by_dwell=(DWELL_BUCKETS,),
            signs_by_page_view=(PAGE_VIEW_BUCKETS, N_SIGNS),
            leave_by_answer=(answer,),
            responses_by_answer=(responses, N_ANSWER),
            count_scale=(N_COUNTS,) if n.count_scale.size else (0,),
            bin_start=n.bin_start.shape[1:] if n.bin_start.ndim == 3 else (0, 0),
            bin_factor=n.bin_start.shape[1:],
        )
        for name, shape in wanted.items():
            found = getattr(n, name)
            if found.dtype != np.float32 or found.shape[1:] != shape:
                told = f"{found.dtype} {list(found.shape[1:])}, not float32 {list(shape)}"
                raise InputError(f"{path}: tensor 'member0.{name}' does not fit: {told}")
        if codes < N_WAVES:
            raise InputError(f"{path}: tensor 'member0.context' has {codes} columns; it needs {N_WAVES}")

    def _checked_sizes(self) -> dict[str, int]:
        """Return the columns of the graph's inputs and outputs; InputError if they do not fit together."""
        session, queries = self.sessions[0], self.networks.query_bias.shape[1]
        nodes = [*session.get_inputs(), *session.get_outputs()]
        sizes: dict[str, int] = {}
        for node in nodes:
            rows, *columns = node.shape or [0]
            if node.type != "tensor(float)" or not isinstance(rows, str) or len(columns) != 1:
                raise InputError(
                    f"{self.graph}: {node.name!r} is {node.type} {node.shape}, not rows of float32"
                )
            if not isinstance(columns[0], int) or not 1 <= columns[0] <= MOST_COLUMNS:
                raise InputError(f"{self.graph}: {node.name!r} has {columns[0]!r} columns")
            sizes[node.name] = columns[0]
        memory = sizes.get("memory", 0)
        inputs = {"past": None, "memory": None, "seen": None, "user_query": queries, "focused": queries}
        outputs = {"new_memory": memory, "logits": N_LOGITS + self.networks.responses_by_answer.shape[1]}
        if "page_memory" in sizes:
            inputs |= {"page_memory": memory, "page_starts": 1, "page": len(PAGE_SUMMARY)}
            outputs |= {"new_page_memory": memory}
        names = [node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()]
        wrong = [name for name, size in (inputs | outputs).items() if size and sizes.get(name) != size]
        if (sorted(names[0]), sorted(names[1])) != (sorted(inputs), sorted(outputs)) or wrong:
            raise InputError(f"{self.graph} is not a step of learned users: its nodes have columns {sizes}")
        return sizes

    def _try(self, member: int, session: ort.InferenceSession) -> None:
        """Run a member once: shapes inside the graph show only then."""
        zeros = {node.name: np.zeros((2, node.shape[1]), np.float32) for node in session.get_inputs()}
        try:
            found = session.run(None, zeros)
        except Exception as error:  # ONNX Runtime raises many types of its own
            raise InputError(f"{self.graph} does not run: {str(error).splitlines()[0]}") from None
        for node, values in zip(session.get_outputs(), found, strict=True):
            if values.shape != (2, node.shape[1]) or not np.isfinite(values).all():
                raise InputError(
                    f"{self.graph}: output {node.name!r} of member {member} has the shape {values.shape} "
                    f"for 2 rows, or is not finite; it must be (2, {node.shape[1]})"
                )

    @staticmethod
    def _check_shapes(path: Path, tensors: dict[str, np.ndarray]) -> None:
        """Check that all members have the same tensors; loading the graph checks it against them."""
        first = {n.removeprefix("member0."): v.shape for n, v in tensors.items() if n.startswith("member0.")}
        if not first:
            raise InputError(f"{path} holds no members")
        members = [f"member{k}" for k in range(-(-len(tensors) // len(first)))]
        for name in (f"{member}.{parameter}" for member in members for parameter in first):
            if name not in tensors:
                raise InputError(f"{path} lacks the tensor {name!r}")
        for name, values in tensors.items():
            member, _, parameter = name.partition(".")
            if values.dtype != np.float32:
                raise InputError(f"{path}: tensor {name!r} is {values.dtype}; allowed: float32")
            if values.shape != first.get(parameter):
                wanted = first.get(parameter, "that of any in member0")
                raise InputError(f"{path}: tensor {name!r} has shape {values.shape}, not {wanted}")
            if member not in members or f"{member}.{parameter}" != name:
                raise InputError(f"{path} holds an unknown tensor {name!r}")

    def _start_sessions(self) -> None:
        # ONNX Runtime does not copy weights that replace the graph's, so they must stay alive.
        self._values = {
            member: {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in weights.items()}
            for member, weights in self._weights.items()
        }
        self.sessions = [self._session(f"member{k}") for k in range(self.members)]

    def __deepcopy__(self, memo: object) -> Simulator:
        """Share what never changes with the copies of an environment."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts from: contents, since another process may not find the files."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_values", "sessions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_sessions()

    def _session(self, member: str) -> ort.InferenceSession:
        """Load the graph with one member's weights."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for name, value in self._values[member].items():
            options.add_initializer(name, value)
        try:
            return ort.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
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
        numbers: (B,) int64, each session's user as a row of :attr:`shipped`.

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
        self.supply = scenario.catalog.supply
        self._follow_all = uncertainty
        count = self.simulator.members
        chosen = list(range(count)) if members is None else list(members)
        if not chosen or not set(chosen) <= set(range(count)):
            raise InputError(
                f"members = {chosen}: name some of the {count} networks of scenario {scenario.name!r}, "
                f"numbered from 0"
            )
        self._members = np.array(chosen, np.int64)

    @property
    def shipped(self) -> np.ndarray:
        """What the cloud ships about every user that a session may have, (V, U) float32."""
        features: np.ndarray = self.simulator.features if self.supply is None else self.supply.features
        return features

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate `num_envs` sessions, once; InputError if the feed's sizes differ from the logs' ones."""
        if hasattr(self, "_memory"):
            raise InputError("this user model serves another environment: make one for each environment")
        simulator, networks, sizes = self.simulator, self.simulator.networks, self.simulator.sizes
        n_user, width, d = config.n_user_features, networks.card_scale.shape[2], config.embedding_size
        n_code = CONTEXT_SIZE + networks.context.shape[2]
        n_compared = WINDOW * networks.pair.shape[1] + 3 * networks.decay.shape[1]
        n_counts, (n_numbers, n_bins) = networks.count_scale.shape[1], networks.bin_start.shape[1:]
        n_seen = WINDOW * width + n_user + WINDOW + n_code + n_compared + n_counts + n_numbers * n_bins
        numbers = config.n_item_features + n_user - 2 * d + 1
        numbers += len(PAGE_SUMMARY) if "page_memory" in sizes else 0
        n_responses = networks.responses_by_answer.shape[1]
        n_last = width + WINDOW + n_code + N_ANSWER + n_responses
        if (
            simulator.features.shape[1] != n_user
            or width != config.n_item_features + config.n_types
            or sizes["past"] != n_last + sizes["memory"]
            or sizes["seen"] != n_seen
            or networks.query_bias.shape[1] % d
            or n_responses != config.n_responses
            or n_numbers not in (0, numbers)
        ):
            raise InputError(
                "embedding_size, profile_size, card_types and responses cannot be changed: the users of this "
                "scenario were fitted with others"
            )
        followed = (simulator.members if self._follow_all else 1) * num_envs
        n_kinds = networks.decay.shape[1]
        per_session = 2 * (sizes["memory"] + n_kinds * d) * (followed // num_envs) + n_user + 2 * n_last
        memory.check(4 * per_session * num_envs, f"num_envs = {num_envs}: its learned users")

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
            page_code=floats(num_envs, n_code + n_counts),
            click_probability=floats(followed),
            first=np.zeros(simulator.members + 1, np.int64),
            order=np.zeros(num_envs, np.int64),
        )
        self.uncertainty = floats(num_envs) if self._follow_all else None
        self.numbers = np.zeros(num_envs, np.int64)
        self._n_seen, self._n_responses, self._workers = n_seen, n_responses, workers
        self._link()

    def _link(self) -> None:
        """Make workspaces, tables of addresses and what points into them."""
        sizes, rows, n_seen = self.simulator.sizes, min(BLOCK, self._memory.n_sessions), self._n_seen

        def floats(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.float32)

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
                logits=floats(rows, sizes["logits"]),
                probability=floats(rows, DWELL_BUCKETS),
            )
            for _ in range(len(self._workers))
        ]
        self._focus: Focus | None = None
        self._networks_table = AddressTable(self.simulator.networks)
        self._memory_table = AddressTable(self._memory)
        self._block_tables = [AddressTable(block) for block in self._blocks]
        self._bindings: dict[tuple[int, int, int], ort.IOBinding] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts from."""
        linked = (
            "_blocks",
            "_focus",
            "_focus_table",
            "_networks_table",
            "_memory_table",
            "_block_tables",
            "_bindings",
        )
        return {name: value for name, value in self.__dict__.items() if name not in linked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: owned(value) for name, value in state.items()})
        if "_memory" in state:
            self._link()

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.answers.UserModel`."""
        starts, members = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        simulator, memory = self.simulator, self._memory
        features, hours = simulator.features, simulator.hours
        if self.supply is None:
            draw_starts(keys, len(hours), len(self._members), starts, members)
        else:  # the feed draws the same visits, and shows their pages
            supply = self.supply
            features, hours = supply.features, supply.hour
            draw_visits(keys, split, supply.held_out, len(hours), len(self._members), starts, members)
        memory.member[rows] = self._members[members]
        memory.user[rows] = features[starts]
        self.numbers[rows] = starts
        memory.last[rows] = 0.0
        memory.page_code[rows] = 0.0
        for values in (memory.memory, memory.evidence, memory.page_memory, memory.page_evidence):
            values.reshape(-1, memory.n_sessions, *values.shape[1:])[:, rows] = 0.0
        if self.uncertainty is not None:
            self.uncertainty[rows] = 0.0
        return UserStart(features[starts], hours[starts])

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the focused cards; see :class:`~edgerec_gym.answers.UserModel`."""
        memory = self._memory
        if focus is not self._focus:
            self._check_focus(focus)
            self._focus, self._focus_table = focus, AddressTable(focus)
        wanted = (memory.n_sessions, RESPONSE_SIZE + self._n_responses)
        if response.shape != wanted:
            raise InputError(f"response must have shape {wanted}, got {response.shape}")
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

    def _check_focus(self, focus: Focus) -> None:
        """Raise InputError if kernels would read beyond the arrays of a focus."""
        n, width = self._memory.n_sessions, self.simulator.networks.card_scale.shape[2]
        for name, least in {
            "active": (n,),
            "cards": (n, WINDOW, width),
            "items": (n, WINDOW),
            "context": (n, CONTEXT_SIZE),
            "keys": (n,),
            "pages": (n, WINDOW, len(PAGE_SUMMARY)),
        }.items():
            shape = getattr(focus, name).shape
            fits = len(shape) == len(least) and all(a >= b for a, b in zip(shape, least, strict=True))
            if not fits or shape[0] != n:
                raise InputError(f"{name} of the focus must have at least shape {least}, got {shape}")

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

"""Entry points for what learned users compute around the matrix products of their network."""

from __future__ import annotations

from typing import Any

from edgerec_gym.answers import Focus
from edgerec_gym.cloud.supply import draw_visit
from edgerec_gym.compiled.arrays import reader
from edgerec_gym.compiled.jit import SOURCE_DIGEST, entry_point
from edgerec_gym.compiled.random_stream import uniform
from edgerec_gym.users.learned_answer import give_answer, remember
from edgerec_gym.users.learned_encode import see_slot
from edgerec_gym.users.learned_layout import (
    MEMBER_DRAW,
    START_DRAW,
    Block,
    Networks,
    SessionMemory,
)

read_networks, read_memory = reader(Networks), reader(SessionMemory)
read_block, read_focus = reader(Block), reader(Focus)


def _entry_points(digest: str) -> tuple[Any, ...]:
    # The digest becomes part of numba's cache key; see compiled/jit.py.
    @entry_point
    def draw_starts(keys, n_starts, n_members, starts, members):
        _ = digest
        for j in range(keys.shape[0]):
            starts[j] = int(uniform(keys[j], 0, START_DRAW, 0) * n_starts)
            members[j] = int(uniform(keys[j], 0, MEMBER_DRAW, 0) * n_members)

    @entry_point
    def draw_visits(keys, split, held_out, n_visits, n_members, visits, members):
        _ = digest
        for j in range(keys.shape[0]):
            visits[j] = draw_visit(keys[j], split, held_out, n_visits)
            members[j] = int(uniform(keys[j], 0, MEMBER_DRAW, 0) * n_members)

    @entry_point
    def sort_sessions(focus_address, memory_address):
        """Order the active sessions by member."""
        _ = digest
        focus, memory = read_focus(focus_address), read_memory(memory_address)
        first, n_members = memory.first, memory.first.shape[0] - 1
        for m in range(n_members + 1):
            first[m] = 0
        at = 0
        for m in range(n_members):
            for session in range(memory.n_sessions):
                if memory.member[session] == m and focus.active[session]:
                    memory.order[at] = session
                    at += 1
            first[m + 1] = at

    @entry_point
    def see(networks_address, focus_address, memory_address, block_address, follower, start, stop):
        """Encode the slots of sessions order[start:stop] into the rows of a block."""
        _ = digest
        net, focus = read_networks(networks_address), read_focus(focus_address)
        memory, block = read_memory(memory_address), read_block(block_address)
        for j in range(stop - start):
            see_slot(net, focus, memory, block, j, memory.order[start + j], follower)

    @entry_point
    def give(
        networks_address, focus_address, memory_address, block_address, follower, start, stop, responses
    ):
        """Draw the answers of sessions order[start:stop] from the rows of a block."""
        _ = digest
        net, focus = read_networks(networks_address), read_focus(focus_address)
        memory, block = read_memory(memory_address), read_block(block_address)
        for j in range(stop - start):
            give_answer(net, focus, memory, block, j, memory.order[start + j], follower, responses)

    @entry_point
    def settle(focus_address, memory_address):
        """End a step that all members have followed."""
        _ = digest
        focus, memory = read_focus(focus_address), read_memory(memory_address)
        for session in range(memory.n_sessions):
            if focus.active[session]:
                remember(memory, session)

    return draw_starts, draw_visits, sort_sessions, see, give, settle


draw_starts, draw_visits, sort_sessions, see, give, settle = _entry_points(SOURCE_DIGEST)

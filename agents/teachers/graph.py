"""A teacher as one ONNX graph: it scores a page from the whole session, as the cloud would."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.judged_pages import JudgedPages
from edgerec_gym.agents.teachers.networks import Pages, PageTeacher, Sequences

INPUTS = ("ids", "cards", "actions", "user", "earlier", "known", "candidates", "pool", "context")
OPSET = 17


class _OneSession(nn.Module):
    """A teacher for one session and one page; inputs are :data:`INPUTS`."""

    def __init__(self, teacher: PageTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(
        self,
        ids: Tensor,
        cards: Tensor,
        actions: Tensor,
        user: Tensor,
        earlier: Tensor,
        known: Tensor,
        candidates: Tensor,
        pool: Tensor,
        context: Tensor,
    ) -> Tensor:
        nothing = ids[:, :0]
        sessions = Sequences(
            ids, cards, actions, nothing, cards[:, :, :0], user, earlier, nothing > 0, actions[:, :0, 0]
        )
        pages = Pages(torch.zeros_like(known), known, candidates, pool, context)
        return self.teacher.score(sessions, pages)[0]


def page_inputs(pages: JudgedPages, row: int) -> dict[str, np.ndarray]:
    """Return the inputs of one page: the events whose answers are known, and the candidates."""
    sessions, page = pages.sessions, pages.pages
    at, known = int(page.session[row]), int(page.known[row])
    seen = max(known, 1)  # at least one place, which nothing before an answer sees
    return {
        "ids": sessions.ids[at : at + 1, :seen],
        "cards": sessions.cards[at : at + 1, :seen],
        "actions": sessions.actions[at : at + 1, :seen],
        "user": sessions.user[at : at + 1],
        "earlier": sessions.earlier[at : at + 1],
        "known": np.array([known]),
        "candidates": page.ids[row : row + 1],
        "pool": page.pool[row : row + 1],
        "context": page.context[row : row + 1],
    }


def teacher_graph(teacher: PageTeacher, example: dict[str, np.ndarray]) -> bytes:
    """Return the graph, for sessions of any length.

    Args:
        teacher: the teacher.
        example: inputs as from :func:`page_inputs`; at least two events, so that their number stays free.
    """
    content: Any = io.BytesIO()  # torch writes to it, though its annotation names paths alone
    module = _OneSession(teacher.eval())
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(example[name])) for name in INPUTS)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own: traced sizes, and that it will be replaced
        torch.onnx.export(
            module,
            arguments,
            content,
            input_names=list(INPUTS),
            output_names=["scores"],
            opset_version=OPSET,
            dynamic_axes={name: {1: "events"} for name in ("ids", "cards", "actions")},
            dynamo=False,
        )
    return content.getvalue()

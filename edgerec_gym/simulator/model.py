"""UserNetwork: predicts what users do next, a recurrent model over observables (HUBSM-like, after EdgeRec).

The last slot with its answer is absorbed into the memory at the *start* of the next one (simulator/graph.py).

Memory: a GRU over exposures, a GRU over page views (updated by clicks only), and *evidence*: decayed sums of
the embeddings seen, weighted by the answers. If the order within a page is unidentified, all answers on a
page are based on the memory at the page's start, and depend on what else is on the page.

The heads are factorised: exposure actions -> click -> page-view actions -> named responses -> leave. A head
that the log does not identify puts all mass on its first level and is never fitted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgerec_gym.answers import (
    CLICK,
    DWELL_BUCKETS,
    FOCUSED,
    LEAVE,
    PAGE_AGE,
    PAGE_SUMMARY,
    PAGE_VIEW,
    PAGE_VIEW_BUCKETS,
    SLOT,
    WINDOW,
)
from edgerec_gym.config import FeedConfig
from edgerec_gym.simulator.inputs import (
    N_ACTIONS,
    N_ANSWER_CODE,
    N_CONTEXT_CODE,
    N_SIGNS,
    InputEncoder,
    SessionBatch,
    answer_code,
    hat,
)
from edgerec_gym.users.learned_layout import LEVELS, MOST_LEVELS

BUY_SIGN = 1  # place of d3 among the binary page-view actions d2..d11
HEADS = {
    "dwell": DWELL_BUCKETS,
    "exposure": len(LEVELS) * MOST_LEVELS,
    "click": 1,
    "page_view": PAGE_VIEW_BUCKETS,
    "signs": N_SIGNS,
    "leave": 1,
}
NEVER = -1e4  # logit of a level that does not exist
DECAYS = (0.6, 0.8, 0.9, 0.97)  # of evidence, per slot
CHANNELS = 2  # of evidence, per decay
QUERIES = 3  # vectors made from the memory that a card is compared with
PAIRS = 4  # ways to compare a card with each card of its window

Memory = tuple[Tensor, Tensor, Tensor]  # exposure (N, H), page view (N, H'), evidence (N, channels * d)
Window = tuple[Tensor, Tensor, Tensor]  # what InputEncoder returns


class UserNetwork(nn.Module):
    """Users learned from logs.

    Args:
        config: config of the feed; determines the sizes F, T, U and the units of the context.
        unidentified: what the log does not identify (scenario.py).
        hidden: size of the exposure GRU; the page-view GRU has two thirds of it, the trunk four thirds.
        behaviour: False makes a network for comparison that knows no earlier answers, and no earlier cards
            except the neighbours: its memory stays zero and its context hides page views. It has no step
            graph.
        bins: bins of each number (:meth:`InputEncoder.bin_code`), 0 for none.
    """

    decay: Tensor
    below: Tensor
    below_small: Tensor
    last_level: Tensor

    def __init__(
        self,
        config: FeedConfig,
        unidentified: tuple[str, ...] = (),
        hidden: int = 48,
        *,
        behaviour: bool = True,
        bins: int = 0,
    ) -> None:
        super().__init__()
        self.unidentified, self.behaviour = frozenset(unidentified), behaviour
        self.frozen_pages = "order_within_page" in self.unidentified
        self.inputs = InputEncoder(config, self.unidentified, behaviour, bins)
        self.d, users, attributes = config.embedding_size, config.n_user_features, self.inputs.n_attributes
        self.n_responses = config.n_responses
        n_code = N_ANSWER_CODE + self.n_responses
        self.head_sizes = HEADS | ({"responses": self.n_responses} if self.n_responses else {})
        self.n_evidence, page_view, trunk = len(DECAYS) * CHANNELS, hidden * 2 // 3, hidden * 4 // 3
        seen = self.d + attributes + N_CONTEXT_CODE
        self.exposure_gru = nn.GRU(seen + n_code, hidden, batch_first=True)
        self.page_view_gru = nn.GRU(seen + n_code, page_view, batch_first=True)
        self.evidence = nn.Linear(n_code, self.n_evidence)
        remembered = hidden + page_view + users
        self.query = nn.Linear(remembered, QUERIES * self.d)
        self.pair = nn.Linear(self.inputs.width, PAIRS, bias=False)
        width = remembered + self.d + WINDOW * (attributes + PAIRS) + N_CONTEXT_CODE
        width += 3 * self.n_evidence + QUERIES * self.d
        # Cards that are answered at once compete, so the rest of the page matters.
        width += len(PAGE_SUMMARY) if self.frozen_pages else 0
        width += self.inputs.n_codes
        self.trunk = nn.Sequential(nn.Linear(width, trunk), nn.ReLU(), nn.Linear(trunk, trunk), nn.ReLU())
        self.heads = nn.Linear(trunk, sum(self.head_sizes.values()))
        self.exposure_by_dwell = nn.Parameter(torch.zeros(DWELL_BUCKETS, HEADS["exposure"]))
        self.click_by_dwell = nn.Parameter(torch.zeros(DWELL_BUCKETS))
        self.signs_by_page_view = nn.Parameter(torch.zeros(PAGE_VIEW_BUCKETS, N_SIGNS))
        self.leave_by_actions = nn.Parameter(torch.zeros(1, N_ACTIONS))
        if self.n_responses:
            self.leave_by_responses = nn.Parameter(torch.zeros(1, self.n_responses))
            self.responses_by_answer = nn.Parameter(torch.zeros(self.n_responses, N_ANSWER_CODE))
        self.register_buffer("decay", torch.tensor(DECAYS).repeat_interleave(CHANNELS))
        self.register_buffer("below", torch.triu(torch.ones(DWELL_BUCKETS, DWELL_BUCKETS - 1)))
        self.register_buffer("below_small", torch.triu(torch.ones(MOST_LEVELS, MOST_LEVELS - 1)))
        self.register_buffer("last_level", torch.tensor([n - 1.0 for n in LEVELS]))
        self.memory_sizes = [hidden, page_view, self.n_evidence * self.d]
        self.seen_size = seen
        self._start_heads()

    @torch.no_grad()
    def _start_heads(self) -> None:
        """Start with small heads; absent levels and heads that cannot be fitted stay as set here."""
        self.heads.weight.mul_(0.1)
        self.heads.bias.zero_()
        sizes = self.head_sizes
        bias = dict(zip(sizes, self.heads.bias.split(list(sizes.values())), strict=True))
        bias["click"].fill_(-3.0)
        bias["leave"].fill_(-4.0)
        if self.n_responses:
            bias["responses"].fill_(-3.0)
        absent = torch.arange(MOST_LEVELS)[None] >= torch.tensor(LEVELS)[:, None]
        bias["exposure"].view_as(absent)[absent] = NEVER
        first_only = {"exposure_actions": ("dwell", "exposure"), "page_view_duration": ("page_view",)}
        for reason in self.unidentified & first_only.keys():
            for head in first_only[reason]:
                bias[head].view(-1, MOST_LEVELS if head == "exposure" else HEADS[head])[:, 1:] = NEVER
        if "page_view_actions" in self.unidentified:
            bias["signs"].fill_(NEVER)
        self.heads.weight[self.heads.bias == NEVER] = 0

    @torch.no_grad()
    def set_leave_hazard(self, hazard: float) -> None:
        """Make users leave with a constant probability per slot, for logs that do not tell who left."""
        leave = sum(HEADS.values()) - 1
        self.heads.weight[leave] = 0
        self.heads.bias[leave] = math.log(hazard / (1 - hazard))

    def _logits(
        self, window: Window, user: Tensor, memory: Memory, page: Tensor, codes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Compute the logits of every head before any sample of the slot is known, (N, levels) each."""
        cards, attributes, context = window
        exposure, page_view, evidence_flat = memory
        evidence = evidence_flat.view(-1, self.n_evidence, self.d)
        remembered = torch.cat([exposure, page_view, user], 1)
        # Compare the focused card with its neighbours, with what was seen, and with what is wanted.
        pairs = self.pair(cards * cards[:, FOCUSED : FOCUSED + 1]).flatten(1)
        focused = cards[:, FOCUSED, : self.d]
        matches = (evidence @ focused[:, :, None]).flatten(1)
        size = evidence.norm(dim=2)
        wanted = self.query(remembered) * focused.repeat(1, QUERIES)
        compared = [pairs, matches, size, matches / (size + 1), wanted]
        if self.frozen_pages:
            factor, offset = self.inputs.page_factors()
            compared.append(page * factor + offset)
        inputs = [remembered, focused, attributes.flatten(1), context, *compared, *codes]
        outputs = self.heads(self.trunk(torch.cat(inputs, 1))).split(list(self.head_sizes.values()), 1)
        return dict(zip(self.head_sizes, outputs, strict=True))

    # --- a whole session at once, for fitting ---------------------------------------------------

    def forward_sequence(self, batch: SessionBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the logits of every head at every answered slot, given the actual answers before it.

        Returns:
            Logits by head, (N, levels) over the N answered slots of all sessions in turn. They include the
            marginal click probability as "click_probability" (N,) and, if pages are answered as a whole,
            page numbers as "page" (N,) int64. Then the response rows up to `leave` and the named responses,
            (N, 19 + R).
        """
        mask = torch.arange(batch.context.shape[1])[None] < batch.length[:, None]  # (B, T)
        cards = batch.cards.unfold(1, WINDOW, 1)[mask].transpose(1, 2)  # (N, 5, F + T)
        rows = batch.actions[mask]
        scaled, attributes, context = self.inputs(cards, batch.context[mask])
        seen = torch.zeros(*mask.shape, self.seen_size)
        seen[mask] = torch.cat([scaled[:, FOCUSED, : self.d], attributes[:, FOCUSED], context], 1)
        if self.behaviour:
            memory = self._remember(seen, batch.actions)
        else:
            memory = [torch.zeros(*mask.shape, size) for size in self.memory_sizes]
        before = batch.context[mask]
        if self.frozen_pages:
            first = page_starts(batch.context)
            page = (first + torch.arange(len(first))[:, None] * first.shape[1])[mask]
            first = first[:, :, None]
            memory = [m.gather(1, first.expand(-1, -1, m.shape[2])) for m in memory]
            before = batch.context.gather(1, first.expand(-1, -1, batch.context.shape[2]))[mask]
            context = seen[:, :, -N_CONTEXT_CODE:].gather(1, first.expand(-1, -1, N_CONTEXT_CODE))[mask]
        user = batch.user[:, None].expand(-1, mask.shape[1], -1)[mask]
        codes = [
            self.inputs.count_code(before),
            self.inputs.bin_code(cards[:, FOCUSED], user, batch.page[mask]),
        ]
        user = user * self.inputs.user_scale
        exposure, page_view, evidence = (m[mask] for m in memory)
        window, memories = (scaled, attributes, context), (exposure, page_view, evidence)
        logits = self._logits(window, user, memories, batch.page[mask], codes)
        by_dwell = logits["click"] + self.click_by_dwell
        logits["click_probability"] = (torch.softmax(logits["dwell"], 1) * torch.sigmoid(by_dwell)).sum(1)
        dwell = hat(rows[:, :1], DWELL_BUCKETS)
        opened = hat(rows[:, PAGE_VIEW : PAGE_VIEW + 1], PAGE_VIEW_BUCKETS)
        logits["exposure"] = logits["exposure"] + dwell @ self.exposure_by_dwell
        logits["click"] = (by_dwell * dwell).sum(1, keepdim=True)
        logits["signs"] = logits["signs"] + opened @ self.signs_by_page_view
        logits["leave"] = logits["leave"] + rows[:, :N_ACTIONS] @ self.leave_by_actions.T
        if self.n_responses:
            logits["leave"] = logits["leave"] + rows[:, LEAVE + 1 :] @ self.leave_by_responses.T
            code = answer_code(rows)[:, :N_ANSWER_CODE]
            logits["responses"] = logits["responses"] + code @ self.responses_by_answer.T
        if self.frozen_pages:
            logits["page"] = page
        return logits, rows

    def _remember(self, seen: Tensor, actions: Tensor) -> list[Tensor]:
        """Return the memory (B, T, size) before each slot, given what was seen and answered (B, T, ...)."""
        delay = (0, 0, 1, -1)  # slot t reads what happened up to slot t - 1
        seen, actions = nn.functional.pad(seen, delay), nn.functional.pad(actions, delay)
        seen[:, 0, self.d + self.inputs.n_attributes - 1] = -self.inputs.ctr_logit.prod()  # a logit of 0
        code = answer_code(actions)
        code[:, 0] = 0  # nothing has been answered yet
        x = torch.cat([seen, code], 2)
        exposure, _ = self.exposure_gru(x)
        opened = actions[:, :, CLICK].cumsum(1).long()  # (B, T) page views before each slot
        order = torch.argsort(actions[:, :, CLICK], dim=1, descending=True, stable=True)
        order = order[:, : max(1, int(opened.max()))]
        clicked = x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
        page_views, _ = self.page_view_gru(clicked)
        page_views = nn.functional.pad(page_views, (0, 0, 1, 0))
        page_view = page_views.gather(1, opened[:, :, None].expand(-1, -1, page_views.shape[2]))
        age = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        weight = self.decay[:, None, None] ** age.clamp(min=0) * (age >= 0)  # (K, T, T) of slot s at slot t
        shown = self.evidence(code)[..., None] * seen[:, :, None, : self.d]  # (B, T, K, d)
        evidence = torch.einsum("kts,bskd->btkd", weight, shown).flatten(2)
        return [exposure, page_view, evidence]


def page_starts(context: Tensor) -> Tensor:
    """Return the slot at which each slot's page began, (B, T) int64, from the context (B, T, 8)."""
    at = torch.arange(context.shape[1])
    starts = context[:, :, PAGE_AGE] * context[:, :, SLOT] == 0
    return torch.where(starts, at, 0).cummax(1).values

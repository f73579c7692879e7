// What each panel shows of one slot. `session` is the recorded session, `at` the slot, from 0.
"use strict";
const session = JSON.parse(document.getElementById("session").textContent);
const { about, frames, slots, answers, items, colours } = session;
const LETTERS = { goods: "", video: "▶", live: "◉", content: "¶", ad: "€" };
const SHOWN = 8; // cards on the phone

const colour = (item) => (item < 0 ? null : colours[items[item][0]]);
const letter = (kind) => (kind in LETTERS ? LETTERS[kind] : kind.slice(0, 1).toUpperCase());
const kindOf = (row) => about.card_types[row % about.card_types.length];
const describe = (item) =>
  `item ${item}, category ${items[item][0]}, base click rate ${share(items[item][2])}, price level ${number(items[item][1])}`;

// What the policy did at a slot, in words.
function decision(card) {
  const words = {
    kept: "kept the cloud's next candidate",
    promoted: `promoted a candidate past ${card.passed}`,
    inserted: `inserted a card: ${card.kind}`,
  };
  const asked = card.request === "requested" ? "requested a page and " : "";
  return (card.invalid ? "illegal action: " : "") + asked + words[card.placed];
}

// The answer that is known once slot `at` has been played: the user looks `lookahead` slots above the newest card.
function answerAt(slot, at) {
  return slot <= at - about.lookahead ? answers[slot] : null;
}

function phone(at) {
  const before = frames[at];
  const focus = at - about.lookahead;
  const status = element("div", { class: "status" },
    element("span", {}, `${String(about.hour).padStart(2, "0")}:00`),
    element("span", {}, `page ${frames[at + 1].page + 1}`),
    element("span", { class: frames[at + 1].wire ? "wire on" : "wire" },
      frames[at + 1].wire ? `page in ${frames[at + 1].arrives_in}` : slots[at].arrived ? "new page" : ""));
  const first = Math.max(0, at + 1 - SHOWN);
  const feed = range(at + 1 - first).map((k) => feedCard(slots[first + k].card, answerAt(first + k, at), first + k === focus, first + k === at));
  const end = slots[at].end ? element("div", { class: "ended" }, slots[at].end === "left" ? "the user left" : "session cut off") : null;
  return [element("div", { class: "device" }, status, element("div", { class: "feed" }, ...feed, end)),
    element("p", { class: "note" }, focus < 0 ? "The user looks at the first card when two more stand below it."
      : `In focus: slot ${focus + 1}. Below it wait the cards that the user will see next. Page ${before.page + 1} came ${before.page_from === "requested" ? "on request" : "by itself"}.`)];
}

function feedCard(card, answer, focused, newest) {
  const state = ["card", answer ? "answered" : "waiting", focused ? "focused" : "", newest ? "newest" : "", card.placed];
  const marks = [];
  if (card.placed === "promoted") marks.push(element("b", { class: "badge up" }, `↑${card.passed}`));
  if (card.placed === "inserted") marks.push(element("b", { class: "badge in" }, card.kind));
  if (card.request === "requested") marks.push(element("b", { class: "badge ask" }, "⇣ request"));
  if (card.invalid) marks.push(element("b", { class: "badge bad" }, "illegal"));
  const events = [];
  if (answer) {
    if (answer.click) events.push(element("b", { class: "event" }, "● click"));
    events.push(...answer.actions.map((action) => element("b", { class: action === "buy" ? "event buy" : "event small" }, action.replaceAll("_", " "))));
    events.push(...answer.responses.map((name) => element("b", { class: "event small" }, name.replaceAll("_", " "))));
    if (answer.deleted) events.push(element("b", { class: "event gone" }, `✕ ${answer.deleted}`));
    if (answer.left) events.push(element("b", { class: "event gone" }, "left"));
  }
  return element("div", { class: state.filter(Boolean).join(" "), style: `--category: ${colours[card.category]}` },
    element("div", { class: "picture", title: describe(card.item) }, letter(card.kind)),
    element("div", { class: "text" },
      element("div", { class: "line" }, element("span", { class: "slot" }, String(card.slot + 1)),
        element("span", { class: "soft" }, `${share(card.base_ctr)}`), ...marks),
      answer ? element("div", { class: "dwell", title: `looked at for ${answer.dwell_seconds}` },
        element("i", { style: `width: ${100 * answer.dwell}%` }), element("span", {}, answer.dwell_seconds))
        : element("div", { class: "soft" }, "waiting"),
      events.length ? element("div", { class: "line" }, ...events) : null));
}

function decisionPanel(at) {
  const { card } = slots[at];
  const before = frames[at];
  const parts = [element("p", { class: "lead" }, `${about.policy} ${decision(card)}.`)];
  if (before.why && before.why.trigger) parts.push(element("p", {}, `Planned anew: ${before.why.trigger}.`));
  if (card.request === "automatic") parts.push(element("p", { class: "soft" }, "The device sent its automatic request: the page is used up."));
  const legal = element("ul", { class: "legal" });
  const rows = before.pool.filter((item) => item >= 0).length;
  if (about.track === "joint" || about.track === "rerank" || about.track === "slate") legal.append(element("li", { class: "may" }, `promote: ${rows} of ${before.pool.length} candidates`));
  for (const [name, count, why] of before.rules || []) {
    legal.append(element("li", { class: why ? "not" : "may" }, `${name} (${count} so far)${why ? `: ${why}` : ""}`));
  }
  if (before.request !== null) legal.append(element("li", { class: before.request ? "not" : "may" }, `request${before.request ? `: ${before.request}` : ""}`));
  if (legal.children.length) parts.push(element("h3", {}, "What was legal"), legal);
  return parts;
}

function poolPanel(at) {
  const [before, after] = [frames[at], frames[at + 1]];
  const { card, arrived } = slots[at];
  const inserted = card.placed === "inserted";
  return [
    element("h3", {}, "Before"), poolGrid(before, inserted ? -1 : card.row, before.why),
    cardStrip(before, inserted ? card.row : -1),
    element("h3", {}, arrived ? "After: a new page has come" : "After"), poolGrid(after, -1, null, inserted || arrived ? -1 : card.row),
    ranking(before, inserted ? -1 : card.row),
    element("p", { class: "note" }, `Colours are categories, in the cloud's order. Ring: chosen; dotted: the cloud's next candidate; dashed: shown already${before.why && before.why.scores ? "; light filling: the policy's score" : ""}.`),
  ];
}

function poolGrid(frame, chosen, why, taken = -1) {
  const columns = frame.pool.length <= 30 ? 10 : 20;
  const keep = frame.pool.findIndex((item) => item >= 0);
  const scores = why && why.scores ? frame.pool.map((item, row) => (item < 0 ? null : why.scores[row])) : null;
  const [low, high] = scores ? [Math.min(...known(scores)), Math.max(...known(scores))] : [0, 1];
  const cells = frame.pool.map((item, row) => {
    const state = ["cell", item < 0 ? "used" : "", row === chosen ? "chosen" : "", row === keep ? "keep" : "", row === taken ? "taken" : ""];
    const cell = element("div", { class: state.filter(Boolean).join(" "), style: item < 0 ? null : `--category: ${colour(item)}` });
    if (item < 0) return told(cell, `row ${row + 1}: shown`);
    const score = scores && scores[row] !== null ? `, score ${number(scores[row], 3)}` : "";
    if (score && high > low) cell.append(element("i", { style: `height: ${(100 * (scores[row] - low)) / (high - low)}%` }));
    return told(cell, `row ${row + 1}: ${describe(item)}${score}`);
  });
  return element("div", { class: "pool", style: `--columns: ${columns}` }, ...cells);
}

function cardStrip(frame, chosen) {
  if (!frame.rules) return null;
  const cells = frame.cards.map((item, row) => {
    const state = ["cell", "mix", item < 0 ? "used" : "", row === chosen ? "chosen" : ""];
    const cell = element("div", { class: state.filter(Boolean).join(" "), style: item < 0 ? null : `--category: ${colour(item)}` }, letter(kindOf(row)));
    return told(cell, item < 0 ? `${kindOf(row)}: shown` : `${kindOf(row)}: ${describe(item)}`);
  });
  return element("div", { class: "strip" }, element("span", { class: "soft" }, "cards"), ...cells);
}

// The candidates in the policy's order, or in the cloud's where it does not say.
function ranking(frame, chosen) {
  const scores = frame.why && frame.why.scores;
  const left = range(frame.pool.length).filter((row) => frame.pool[row] >= 0);
  const cloud = new Map(left.map((row, place) => [row, place + 1]));
  if (scores) left.sort((a, b) => (scores[b] ?? -Infinity) - (scores[a] ?? -Infinity));
  const head = element("tr", {}, ...["", "category", "cloud", "base ctr", ...(scores ? ["score"] : [])].map((text) => element("th", {}, text)));
  const body = left.slice(0, 6).map((row, place) => {
    const item = frame.pool[row];
    return element("tr", { class: row === chosen ? "chosen" : null },
      element("th", {}, String(place + 1)),
      element("td", {}, element("i", { class: "chip", style: `--category: ${colour(item)}` }), String(items[item][0])),
      element("td", {}, String(cloud.get(row))), element("td", {}, share(items[item][2])),
      scores ? element("td", {}, number(scores[row], 3)) : null);
  });
  return element("div", { class: "scroll" }, element("table", {},
    element("caption", {}, scores ? "Best candidates by the policy's score, with their place in the cloud's order" : "Next candidates in the cloud's order"),
    element("thead", {}, head), element("tbody", {}, ...body)));
}

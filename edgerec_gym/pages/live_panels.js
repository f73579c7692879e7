// What the panels of the live page show: of the slot that was played last, and of phone, wire and cloud now.
"use strict";
const KINDS = {
  hello: "hello", welcome: "welcome", delta: "answers", ack: "acknowledged", request: "page request", page: "page",
  end: "end of session", ended: "end acknowledged", offer: "model offered", want: "model request", chunk: "part of a model",
  refuse: "refused", malformed: "malformed",
};
const REASONS = { "": "", click: "after a click", deletion: "after a deletion" };
const LATEST = 7; // messages that are listed
const BARS = 60; // decisions in the chart

const bytes = (count) => (count < 1000 ? `${count} B` : count < 1e6 ? `${number(count / 1000, 1)} kB` : `${number(count / 1e6, 2)} MB`);
const milliseconds = (value) => (value < 1000 ? `${number(value, value < 10 ? 1 : 0)} ms` : `${number(value / 1000, 1)} s`);

// Why the phone decided so, in sentences.
function reasons(told, card) {
  const said = [];
  if (told.late) said.push(`The decision was late, so the ${told.fallback} stood.`);
  else if (told.rank) said.push(told.rank === 1 ? `The model scores it best of ${told.of} candidates.` : `The model scores it place ${told.rank} of ${told.of}.`);
  else if (card.placed === "inserted") said.push("Its expected value beats every candidate's.");
  if (told.reason) said.push(REASONS[told.reason] ? `Planned anew ${REASONS[told.reason]}.` : `${told.reason[0].toUpperCase()}${told.reason.slice(1)}.`);
  if (told.uplift !== null && told.uplift !== undefined) {
    const price = told.price === null || told.price === undefined ? "" : ` against a price of ${number(told.price, 2)}`;
    said.push(`A new page now would add ${signed(told.uplift, 2)}${price}.`);
  }
  if (card.request === "automatic") said.push("The page is used up: the next one is asked for.");
  return said.join(" ");
}

function nowPanel(slot, times, state) {
  const told = slot.decision;
  const scale = told.budget ? 1.25 * told.budget : Math.max(...times.map(([ms]) => ms), 1);
  const within = Math.min(100, (100 * told.ms) / scale);
  const rest = told.budget ? `of ${milliseconds(told.budget)} allowed` : "no budget";
  return [
    element("p", { class: "lead" }, `Slot ${slot.slot + 1}: ${decision(slot.card)}.`),
    element("p", { class: "why" }, reasons(told, slot.card) || " "),
    element("div", { class: "gauge" },
      element("span", {}, element("b", { id: "ms" }, milliseconds(told.ms)), ` ${rest}`),
      element("div", { class: told.late ? "bar late" : "bar" }, element("i", { style: `width: ${within}%` }),
        told.budget ? element("em", { style: "left: 80%", title: `budget: ${milliseconds(told.budget)}` }) : null)),
    history(times, told.budget),
    element("p", { class: "soft" }, `Last ${plural(times.length, "decision")}${told.budget ? "; dashed: the budget" : ""}. `
      + `Median ${milliseconds(told.p50)}, p99 ${milliseconds(told.p99)} of ${told.decisions}, ${told.missed} late.`),
    element("p", { class: "soft" }, told.page_ms === null ? "The page is one of an earlier session: the network was away."
      : `The last page came into play ${milliseconds(told.page_ms)} after its request. No decision waits for a page.`),
    element("p", { class: "soft", id: "plays" }, `Model: ${state.model.name}, ${state.model.form}`
      + (state.model.kilobytes ? `, ${number(state.model.kilobytes, 0)} kB, digest ${state.model.digest.slice(0, 8)}` : "")
      + (state.model.next ? `; ${state.model.next} takes over before the next card.` : ".")
      + (state.model.said ? ` The other one was refused: ${state.model.said}.` : "")),
  ];
}

// The last decisions as bars, and the budget as a line.
function history(times, budget) {
  const [width, height] = [300, 34];
  const most = Math.max(budget ? 1.1 * budget : 0, 1);
  const wide = width / BARS;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "history", role: "img", "aria-label": `milliseconds of the last ${times.length} decisions` });
  times.forEach(([ms, late], k) => {
    const tall = Math.max(1, Math.min(1, ms / most) * height);
    drawing.append(svg("rect", { x: width - (times.length - k) * wide, y: height - tall, width: wide - 1, height: tall, class: late ? "late" : "in-time" }));
  });
  if (budget) drawing.append(svg("path", { d: `M0,${height - (budget / most) * height}H${width}`, class: "budget", "vector-effect": "non-scaling-stroke" }));
  return drawing;
}

function wirePanel(messages, state) {
  const { up, down, told, snapshots } = state.wire;
  const rows = messages.slice(-LATEST).reverse().map(({ way, kind, count, bytes: size }) => element("li", { class: way },
    element("span", { class: "arrow", "aria-hidden": "true" }, way === "up" ? "↑" : "↓"),
    element("span", {}, (KINDS[kind] || kind) + (count > 1 ? ` × ${count}` : ""), element("span", { class: "unseen" }, way === "up" ? " to the cloud" : " to the phone")),
    element("span", { class: "size" }, bytes(size))));
  while (rows.length < LATEST) rows.push(element("li", { class: "none", "aria-hidden": "true" }, "\u00a0"));
  const part = snapshots ? told / snapshots : 0;
  return [
    element("ol", { class: "messages" }, ...rows),
    element("p", { class: "sums" }, element("span", { class: "up" }, `↑ ${bytes(up)}`), element("span", { class: "down" }, `↓ ${bytes(down)}`),
      element("span", { class: "soft" }, "at the socket")),
    snapshots ? element("div", { class: "gauge" },
      element("span", {}, element("b", {}, share(part)), " of the bytes of full snapshots"),
      element("div", { class: "bar told" }, element("i", { style: `width: ${100 * part}%` }))) : null,
    element("p", { class: "soft" }, "Answers go up as increments. A snapshot would tell the whole session each time."),
  ];
}

// How phone and cloud stand to each other, in words.
function standing(state) {
  const waits = state.answers - state.acknowledged + state.earlier_answers;
  if (state.network.cut) return ["cut", `Cut off. The phone plays on, and keeps ${plural(waits, "answer")} for later.`];
  if (state.refused) return ["cut", `The cloud refuses this session: ${state.refused}.`];
  if (isAway()) return ["cut", `No connection: the phone tries again, and keeps ${plural(waits, "answer")}.`];
  if (state.earlier) return ["behind", "The phone delivers an earlier session."];
  if (waits > 2) return ["behind", `Catching up: ${plural(waits, "answer")} to go.`];
  return ["level", waits ? `The cloud knows all but the last ${waits === 1 ? "answer" : "two answers"}.` : "The cloud knows every answer."];
}

function cloudPanel(state) {
  const { answers: made, acknowledged } = state;
  const [how, words] = standing(state);
  const known = made ? (100 * acknowledged) / made : 0;
  return [
    element("p", { class: `lead ${how}` }, words),
    element("div", { class: "gauge" },
      element("span", {}, element("b", { id: "acknowledged" }, String(acknowledged)), ` of ${plural(made, "answer")} acknowledged`),
      element("div", { class: `bar known ${how}` }, element("i", { style: `width: ${known}%` }))),
    element("p", { class: "soft" }, state.page < 0 ? "The phone has asked for its first page. At the very first start the cloud compiles its code, which may take a minute."
      : `Page ${state.page + 1} is on the phone, ${plural(state.candidates, "candidate")} of ${session.pool_size} left.`
        + (state.candidates || state.ended ? "" : " The phone waits for a page.")),
    element("p", { class: "soft" }, state.earlier ? `${plural(state.earlier, "earlier session")} with ${plural(state.earlier_answers, "answer")} still to deliver.` : "No earlier session waits."),
  ];
}

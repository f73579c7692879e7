// Panels about why: card x slot values and the plan, uplift against its price, rewards, the latent intent.
"use strict";

function matrixPanel(at) {
  const why = frames[at].why;
  if (!why || !why.matrix) return null;
  const { matrix, plan } = why;
  const places = Math.max(1, ...matrix.map((row) => row.length));
  const [cell, left, top] = [places > 20 ? 14 : 24, 62, 18];
  const finite = known(matrix.flat());
  const [low, high] = [Math.min(0, ...finite), Math.max(0, ...finite)];
  const most = Math.max(-low, high) || 1;
  const [width, height] = [left + places * cell + 4, top + matrix.length * cell + 4];
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "value of each card at each slot" });
  for (let place = 0; place < places; place += places > 20 ? 5 : 2) {
    drawing.append(svg("text", { x: left + (place + 0.5) * cell, y: 12, class: "tick middle" }, String(at + 1 + place)));
  }
  matrix.forEach((values, row) => {
    const gone = frames[at].cards[row] < 0;
    drawing.append(svg("text", { x: 0, y: top + (row + 0.5) * cell + 4, class: gone ? "tick" : "label" }, `${kindOf(row)} ${row + 1}`));
    values.forEach((value, place) => {
      const [x, y] = [left + place * cell, top + row * cell];
      const box = svg("rect", { x: x + 0.5, y: y + 0.5, width: cell - 1, height: cell - 1, rx: 2, class: value === null ? "none" : value < 0 ? "heat loss" : "heat", style: value === null ? null : `--heat: ${(Math.abs(value) / most).toFixed(3)}` });
      drawing.append(told(box, `${kindOf(row)} ${row + 1} at slot ${at + 1 + place}: ${value === null ? "cannot stand there" : number(value, 4)}`));
      if (plan && plan[row] === place) drawing.append(svg("rect", { x: x + 1.5, y: y + 1.5, width: cell - 3, height: cell - 3, rx: 2, class: "planned" }));
    });
  });
  const planned = plan ? range(matrix.length).filter((row) => plan[row] >= 0).sort((a, b) => plan[a] - plan[b]) : [];
  const words = planned.map((row) => `${kindOf(row)} at slot ${at + 1 + plan[row]}${plan[row] < places && matrix[row][plan[row]] != null ? ` (${number(matrix[row][plan[row]], 3)})` : ""}`);
  return [element("div", { class: "scroll" }, drawing),
    element("div", { class: "scale" },
      ...(low < 0 ? [element("span", {}, number(low, 3)), element("i", { class: "loss", style: `--heat: ${-low / most}` })] : []),
      element("span", {}, "0"), ...(high > 0 ? [element("i", { style: `--heat: ${high / most}` }), element("span", {}, number(high, 3))] : [])),
    plan ? element("p", {}, words.length ? `Plan: ${words.join(", ")}.` : "Plan: no card.") : null,
    element("p", { class: "note" }, `Rows are cards, columns the slots from this one on; dashes: it cannot stand there${plan ? "; outline: the plan" : ""}.`)];
}

function requestPanel(at) {
  if (!frames.some((frame) => frame.why && frame.why.uplift !== null && frame.why.uplift !== undefined)) return null;
  const why = frames[at].why || {};
  const asked = slots[at].card.request === "requested";
  const [uplift, price] = [why.uplift, why.price];
  const words = uplift === null || uplift === undefined
    ? `No request was weighed at this slot${frames[at].request ? `: ${frames[at].request}` : ""}.`
    : `A request now is expected to add ${signed(uplift, 3)}${price === null || price === undefined ? "" : ` against a price of ${number(price, 3)}`}: ${asked ? "requested" : "not requested"}.`;
  return [element("p", { class: "lead" }, words), requestChart(at)];
}

function requestChart(at) {
  const points = frames.slice(0, slots.length).map((frame) => frame.why || {});
  const values = known(points.flatMap((why) => [why.uplift, why.price]));
  const [low, high] = [Math.min(0, ...values), Math.max(...values, 0.01)];
  const [width, height, left] = [340, 120, 44];
  const x = (slot) => left + ((slot + 0.5) / slots.length) * (width - left - 6);
  const y = (value) => 10 + ((high - value) / (high - low)) * (height - 34);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "uplift of a request and its price by slot" });
  for (const value of [low, 0, high]) {
    drawing.append(svg("path", { d: `M${left},${y(value)}H${width}`, class: "grid" }),
      svg("text", { x: left - 6, y: y(value) + 4, class: "tick end" }, number(value, 2)));
  }
  drawing.append(svg("path", { d: `M${x(at)},6V${height - 22}`, class: "now" }));
  for (const [name, kind] of [["uplift", "c0"], ["price", "c1"]]) {
    let path = "";
    points.forEach((why, slot) => {
      const value = why[name];
      if (value === null || value === undefined) return;
      path += `${path ? "L" : "M"}${x(slot).toFixed(1)},${y(value).toFixed(1)}`;
    });
    if (path) drawing.append(svg("path", { d: path, class: `line ${kind}` }));
  }
  points.forEach((why, slot) => {
    if (why.uplift === null || why.uplift === undefined) return;
    const asked = slots[slot].card.request === "requested";
    drawing.append(told(svg("circle", { cx: x(slot), cy: y(why.uplift), r: asked ? 4.5 : 2, class: asked ? "asked" : "dot c0" }), `slot ${slot + 1}: uplift ${number(why.uplift, 3)}${asked ? ", requested" : ""}`));
  });
  drawing.append(svg("text", { x: width, y: height - 4, class: "tick end" }, "slot"), svg("text", { x: left, y: height - 4, class: "tick" }, "1"));
  return element("div", {}, drawing, element("ul", { class: "legend" },
    element("li", {}, element("i", { class: "key c0" }), "expected gain"), element("li", {}, element("i", { class: "key c1" }), "price"),
    element("li", {}, element("i", { class: "key ring" }), "requested")));
}

function rewardPanel(at) {
  const now = slots[at].terms;
  const sums = {};
  for (const { terms } of slots.slice(0, at + 1)) {
    for (const [name, value] of Object.entries(terms)) sums[name] = (sums[name] || 0) + value;
  }
  const every = [...new Set(slots.flatMap(({ terms }) => Object.keys(terms)))];
  const total = slots.slice(0, at + 1).reduce((sum, slot) => sum + slot.reward, 0);
  const line = (name, here, sum, kind) => element("tr", { class: kind }, element("th", {}, name.replaceAll("_", " ")),
    element("td", {}, here ? signed(here) : "0"), element("td", {}, number(sum)));
  return [element("div", { class: "scroll" }, element("table", { class: "rewards" },
    element("thead", {}, element("tr", {}, ...["term", "this slot", "so far"].map((text) => element("th", {}, text)))),
    element("tbody", {}, ...every.map((name) => line(name, now[name], sums[name] || 0)), line("reward", slots[at].reward, total, "total")))),
    element("p", { class: "note" }, about.lookahead ? `A card is answered ${plural(about.lookahead, "slot")} after it is placed, so rewards come later than decisions.` : "")];
}

function intentPanel(at) {
  const { intent, boredom } = frames[at];
  if (!intent) return null;
  const bars = intent.map(([category, match]) => element("div", { class: "match" },
    element("span", {}, `category ${category}`),
    element("span", { class: "track" }, element("i", { style: `width: ${Math.max(0, 100 * match)}%; background: ${colours[category]}` })),
    element("span", { class: "soft" }, number(match))));
  return [...bars, element("p", {}, `Boredom ${number(boredom)} of 1.`),
    element("p", { class: "note" }, "Latent: how near the user's present intent is to each category (cosine). No policy sees it but oracles.")];
}

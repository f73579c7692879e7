// Steps through a session: timeline, slider, buttons, keys, swipes; the place in the address after "#".
"use strict";
const PLAY_MS = 700;
const PANELS = { phone, decision: decisionPanel, pool: poolPanel, matrix: matrixPanel, request: requestPanel, reward: rewardPanel, intent: intentPanel };
const slider = document.getElementById("slider");
const place = document.getElementById("place");
const playButton = document.getElementById("play");
let current = -1;
let timer = null;

function show(slot) {
  const at = Math.min(Math.max(slot, 0), slots.length - 1);
  if (at === current) return;
  current = at;
  for (const [name, panel] of Object.entries(PANELS)) {
    const section = document.getElementById(name);
    const content = panel(at);
    section.hidden = content === null;
    section.querySelector(".content").replaceChildren(...(content || []).filter(Boolean));
  }
  slider.value = at + 1;
  place.textContent = `slot ${at + 1} of ${slots.length}`;
  document.getElementById("said").textContent = `Slot ${at + 1}: ${about.policy} ${decision(slots[at].card)}.`;
  moveMarker(at);
  history.replaceState(null, "", `#${at + 1}`);
  if (at === slots.length - 1) pause();
}

function pause() {
  clearInterval(timer);
  timer = null;
  playButton.classList.remove("playing");
  playButton.setAttribute("aria-label", "play");
}

function play() {
  if (timer) return pause();
  if (current === slots.length - 1) show(0);
  timer = setInterval(() => show(current + 1), PLAY_MS);
  playButton.classList.add("playing");
  playButton.setAttribute("aria-label", "pause");
}

function step(slot) {
  pause();
  show(slot);
}

// --- the whole session at a glance ---------------------------------------------------------------------
const WIDE = 1000;
const LANES = [...(frames[0].intent ? [["in mind", 16]] : []), ["shown", 16], ["policy", 9], ["clicks", 9], ["reward", 36]];
const GAP = 4;
const TALL = LANES.reduce((sum, [, height]) => sum + height + GAP, 0);
const across = (slot) => (slot / slots.length) * WIDE;
let marker;

function timeline() {
  const wide = across(1) - across(0);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, preserveAspectRatio: "none", role: "img", "aria-label": "the whole session" });
  let y = 0;
  const lane = (height, mark) => {
    slots.forEach((slot, k) => mark(slot, k, across(k), y));
    y += height + GAP;
  };
  if (frames[0].intent) {
    lane(16, (_, k, x, top) => drawing.append(told(svg("rect", { x, y: top, width: wide + 0.3, height: 16, fill: colours[frames[k].intent[0][0]] }), `slot ${k + 1}: category ${frames[k].intent[0][0]} in mind`)));
  }
  lane(16, ({ card }, k, x, top) => drawing.append(told(svg("rect", { x, y: top, width: Math.max(wide - 1, 0.5), height: 16, fill: colours[card.category] }), `slot ${k + 1}: ${decision(card)}, category ${card.category}`)));
  lane(9, ({ card }, k, x, top) => {
    const kind = card.request === "requested" ? "asked" : card.placed;
    if (kind !== "kept") drawing.append(svg("rect", { x, y: top, width: Math.max(wide - 1, 1), height: 9, class: `did ${kind}` }));
  });
  lane(9, (_, k, x, top) => {
    const answer = answers[k];
    if (answer && answer.click) drawing.append(svg("rect", { x, y: top, width: Math.max(wide - 1, 1), height: 9, class: answer.actions.includes("buy") ? "did bought" : "did clicked" }));
  });
  const sums = [0];
  for (const slot of slots) sums.push(sums[sums.length - 1] + slot.reward);
  const [low, high] = [Math.min(...sums), Math.max(...sums, Math.min(...sums) + 0.1)];
  const height = (value) => y + 3 + ((high - value) / (high - low)) * (TALL - y - 8);
  drawing.append(svg("path", { class: "line c0", "vector-effect": "non-scaling-stroke", d: `M${sums.map((value, k) => `${across(k).toFixed(1)},${height(value).toFixed(1)}`).join("L")}` }));
  slots.forEach((slot, k) => {
    if (slot.arrived) drawing.append(svg("path", { class: "page", "vector-effect": "non-scaling-stroke", d: `M${across(k + 1)},0V${TALL}` }));
  });
  marker = svg("rect", { class: "marker", x: 0, y: 0, width: Math.max(wide, 3), height: TALL, "vector-effect": "non-scaling-stroke" });
  drawing.append(marker);
  return drawing;
}

function moveMarker(at) {
  marker.setAttribute("x", across(at));
}

function timelineWords() {
  let top = 0;
  const words = LANES.map(([word, height]) => {
    const span = element("span", { style: `top: ${(100 * (top + height / 2)) / TALL}%` }, word);
    top += height + GAP;
    return span;
  });
  return element("div", { class: "lanes", "aria-hidden": "true" }, ...words);
}

// --- input ---------------------------------------------------------------------------------------------
const KEYS = {
  ArrowRight: () => step(current + 1), ArrowLeft: () => step(current - 1), PageDown: () => step(current + 10),
  PageUp: () => step(current - 10), Home: () => step(0), End: () => step(slots.length - 1), " ": play,
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in KEYS)) return;
  if (event.key === " " && event.target.closest("button, summary")) return; // the button's own key
  event.preventDefault();
  KEYS[event.key]();
});
slider.addEventListener("input", () => step(Number(slider.value) - 1));
playButton.addEventListener("click", play);
for (const [id, move] of [["first", () => 0], ["previous", () => current - 1], ["next", () => current + 1], ["last", () => slots.length - 1]]) {
  document.getElementById(id).addEventListener("click", () => step(move()));
}
const overview = document.getElementById("timeline");
const drawn = timeline();
overview.append(timelineWords(), drawn);
overview.addEventListener("pointerdown", (event) => {
  const box = drawn.getBoundingClientRect();
  step(Math.floor(((event.clientX - box.left) / box.width) * slots.length));
});
let from = null;
addEventListener("touchstart", (event) => {
  const inside = event.target.closest(".scroll, #timeline, input");
  from = event.touches.length === 1 && !inside ? [event.touches[0].clientX, event.touches[0].clientY] : null;
}, { passive: true });
addEventListener("touchend", (event) => {
  if (!from) return;
  const [dx, dy] = [event.changedTouches[0].clientX - from[0], event.changedTouches[0].clientY - from[1]];
  if (Math.abs(dx) > 40 && Math.abs(dx) > 2 * Math.abs(dy)) step(current + (dx < 0 ? 1 : -1));
}, { passive: true });
addEventListener("hashchange", () => step(Number(location.hash.slice(1)) - 1 || 0));

slider.max = slots.length;
show(Number(location.hash.slice(1)) - 1 || 0);

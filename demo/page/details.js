// What an operator wants to know of the way from camera to result, behind one toggle; and whether it is too slow.

import { $, make, notify } from "/page/common.js";
import { chosen, now } from "/page/camera.js";
import { isOpen, on } from "/page/feed.js";
import { gateRange, showGates, showHands } from "/page/overlays.js";
import { threshold } from "/page/sensitivity.js";

const ROUND_MS = 500, SLOW = 0.3;                           // of the camera's pictures are answered
const grabbed = [], answered = [], delays = [];
let prediction = null, gap = null, slow = false, own = false;

const rate = times => {
  while (times.length && times[0] < now() - 2) times.shift();
  return times.length / 2;
};

function add(at) {
  answered.push(now());
  const delay = now() - at;
  if (delay < 1e6) delays.push([now(), 1000 * delay]);      // a file's times begin at 0
}

on("grabbed", () => { grabbed.push(now()); own = true; });
on("answer", ({ at }) => { if (own && at) add(at); });
on("kept", ({ at }) => { if (!own) add(at); });
on("prediction", record => { prediction = record; });
on("gap", record => { gap = record; });
on("source", name => {
  prediction = gap = null;
  own = false;
  $("gates").disabled = name.startsWith("service:");
});

function watchPace() {                                     // newest pictures win; it is told when most of them lose
  const wanted = rate(grabbed), few = isOpen() && wanted >= 10 && rate(answered) < SLOW * wanted;
  if (few) notify(`Only ${rate(answered).toFixed(0)} of ${wanted.toFixed(0)} pictures a second come through: the network or the server is slow.`);
  else if (slow) notify("");
  slow = few;
}

function facts() {
  const sorted = delays.map(([, ms]) => ms).sort((a, b) => a - b), p95 = sorted[Math.floor(0.95 * sorted.length)];
  const range = gateRange();
  document.body.dataset.facts = JSON.stringify({ rate: rate(answered), p95, shown: $("banner").textContent });
  return [["Source", chosen() ?? "none"], ["Pictures", `${rate(answered).toFixed(0)} a second`],
    ...p95 === undefined ? [] : [["Camera to result", `${sorted[sorted.length >> 1].toFixed(0)} ms, p95 ${p95.toFixed(0)} ms`]],
    ...Object.entries(prediction?.latency_ms ?? {}).map(([part, ms]) => [`In the server: ${part}`, `${ms.toFixed(1)} ms`]),
    ...prediction ? [["Dropped, held", `${prediction.dropped}, ${prediction.held}`]] : [],
    ...prediction?.hands ? [["Hands in view", String(Object.keys(prediction.hands).length || "none")]] : [],
    ...threshold() === null ? [] : [["Events open above", String(Number(threshold().toFixed(4)))]],
    ...range ? [["Gates open", range.map(open => open.toFixed(2)).join(" (clear) to ") + " (red)"]] : [],
    ...gap ? [["Last gap", `${gap.seconds.toFixed(1)} s, ${gap.action}`]] : []];
}

setInterval(() => {
  watchPace();
  while (delays.length && delays[0][0] < now() - 5) delays.shift();
  const rows = facts();
  if ($("details").hidden) return;
  $("hands-toggle").hidden = !prediction?.hands;
  $("facts").replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
  $("weights").replaceChildren(...(prediction?.clips ?? []).map(gate => make("i", { style: `height: ${Math.max(4, 100 * gate)}%` })));
}, ROUND_MS);

const pressed = (id, act) => {
  $(id).onclick = () => {
    const on = $(id).getAttribute("aria-pressed") !== "true";
    $(id).setAttribute("aria-pressed", String(on));
    act(on);
  };
};
pressed("gates", showGates);
pressed("hands-toggle", showHands);
$("details-toggle").onclick = () => {
  const open = $("details").hidden;
  $("details").hidden = !open;
  $("details-toggle").setAttribute("aria-expanded", String(open));
};

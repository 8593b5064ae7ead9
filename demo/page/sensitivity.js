// How easily events open, in words. The number is in the tooltip.

import { $ } from "/page/common.js";
import { on, send } from "/page/feed.js";

const WORDS = ["fewest false alarms", "fewer false alarms", "as the model was made", "misses less", "misses least"];
let steps = null, chosen = null;                           // index of a step; null: the model's own

export const threshold = () => steps?.thresholds[chosen ?? steps.own] ?? null;

function show() {
  const i = chosen ?? steps.own, { measured } = steps, slider = $("threshold");
  slider.value = i;
  $("above").textContent = WORDS[i];
  slider.setAttribute("aria-valuetext", WORDS[i]);
  const known = i === steps.own && measured ? Object.entries(measured).map(([name, value]) =>
    name === "f1" ? `event F1 ${value.toFixed(2)}` : `${value.toFixed(1)} false events an hour`).join(", ") : "";
  slider.title = `Events open above a score of ${threshold().toFixed(4).replace(/0+$/, "")}. ${known
    ? `Measured when it was chosen: ${known}.` : "No curve of false alarms against misses was recorded for this step."}`;
}

const apply = () => send({ threshold: chosen === null ? null : threshold() });

on("hello", hello => {
  steps = hello.sensitivity;
  show();
  if (chosen !== null) apply();                             // another model, or a server that was started anew
});
$("threshold").oninput = () => {
  const i = Number($("threshold").value);
  chosen = i === steps?.own ? null : i;
  if (steps) show();
};
$("threshold").onchange = apply;

// The best labels of this moment and of the last seconds, as bars.

import { $, make } from "/page/common.js";
import { isFrozen } from "/page/camera.js";
import { on } from "/page/feed.js";
import { shownName } from "/page/labels.js";

let background = null, heads = null;

function draw() {
  const rows = [], several = Object.keys(heads ?? {}).length > 1;
  for (const [head, scores] of Object.entries(heads ?? {})) {
    const moment = new Map(scores.now);
    for (const [label, score] of scores.window) rows.push([several ? `${head}: ${label}` : shownName(label), label, score, moment.get(label) ?? 0]);
  }
  const bars = $("bars");
  while (bars.children.length > rows.length) bars.lastChild.remove();
  while (bars.children.length < rows.length)
    bars.append(make("div", { className: "bar" }, make("span", { dir: "auto" }),
      make("div", { className: "score" }, make("i"), make("i")), make("span")));
  rows.forEach(([name, label, window, moment], i) => {
    const [text, score, number] = bars.children[i].children;
    text.textContent = text.title = name;
    text.className = label === background ? "quiet" : "";
    score.style.setProperty("--label", label === background ? "var(--soft)" : "var(--accent)");
    score.children[0].style.width = `${100 * window}%`;
    score.children[1].style.width = `${100 * moment}%`;
    number.textContent = `${Math.round(100 * window)} %`;
  });
  $("no-scores").hidden = rows.length > 0;
  $("bars-legend").hidden = !rows.length;
}

on("hello", hello => { background = hello.background; });
on("source", () => { heads = null; draw(); });
on("prediction", prediction => {
  heads = prediction.heads;
  if (!isFrozen()) draw();
});

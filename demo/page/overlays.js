// What a model sees, drawn over the picture: where its gates let features through, and the hands that it looks for.

import { $ } from "/page/common.js";
import { isFrozen } from "/page/camera.js";
import { on, send } from "/page/feed.js";

const BONES = [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [0, 17, 18, 19, 20], [5, 9, 13, 17]];
const HANDS = { left: "#3ca0ff", right: "#ff8c28" };        // as in the annotated video
let gatesShown = false, handsShown = true, range = null;

export const gateRange = () => gatesShown ? range : null;   // [the least, the most] that is open, 0 to 1

export function showGates(shown) {
  gatesShown = shown;
  $("open").hidden = true;
  send({ gates: shown });
}

export function showHands(shown) {
  handsShown = shown;
  if (!shown) $("hands").hidden = true;
}

on("hello", () => {
  $("hands").hidden = true;
  if (gatesShown) send({ gates: true });
});

on("prediction", ({ hands }) => {
  if (isFrozen()) return;
  const canvas = $("hands"), pen = canvas.getContext("2d");
  canvas.hidden = !hands || !handsShown;
  if (canvas.hidden) return;
  const width = canvas.width = canvas.clientWidth * devicePixelRatio, height = canvas.height = canvas.clientHeight * devicePixelRatio;
  pen.lineWidth = Math.max(2, width / 240);
  for (const [side, points] of Object.entries(hands)) {
    pen.strokeStyle = HANDS[side];
    pen.fillStyle = "#fff";
    for (const bone of BONES) {
      pen.beginPath();
      for (const i of bone) pen.lineTo(points[i][0] * width, points[i][1] * height);
      pen.stroke();
    }
    for (const [x, y] of points) {
      pen.beginPath();
      pen.arc(x * width, y * height, 1.5 * pen.lineWidth, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
    }
  }
});

on("gates", record => {                                     // over the part of the picture that the network sees
  if (isFrozen() || !gatesShown) return;
  const canvas = $("open"), [height, width] = record.size_hw;
  canvas.style.height = `${100 * record.part_hw[0]}%`;
  canvas.style.width = `${100 * record.part_hw[1]}%`;
  canvas.hidden = false;
  canvas.width = width;
  canvas.height = height;
  const values = atob(record.open), pen = canvas.getContext("2d"), pixels = pen.createImageData(width, height);
  const numbers = Array.from(values, value => value.charCodeAt(0)), least = Math.min(...numbers), most = Math.max(...numbers);
  numbers.forEach((open, i) => {                           // differences are what is of interest
    const share = (open - least) / Math.max(1, most - least);
    pixels.data.set([255, 220 - 220 * share, 0, 170 * share], 4 * i);
  });
  range = [least / 255, most / 255];
  pen.putImageData(pixels, 0, 0);
});

// How a label looks: its name, its colour, and what one does for it, drawn as a line or shown as a recording.

import { make } from "/page/common.js";

export const UNKNOWN = "unknown";
const VECTOR = "http://www.w3.org/2000/svg";
const letters = new Intl.Segmenter();
const still = matchMedia("(prefers-reduced-motion: reduce)");
let drawn = {};                                            // label: what /live/pictograms says of it

export const shownName = label => label === UNKNOWN ? "movement, not known" : label;

export function colour(label) {                            // a label's own; AA on light and dark, whatever the hue
  if (label === UNKNOWN) return "var(--unknown)";
  let number = 0;
  for (const letter of label) number = (number * 31 + letter.codePointAt(0)) % 359;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return `hsl(${number} ${dark ? "75% 70%" : "70% 27%"})`;
}

export async function loadPictograms() {
  drawn = await (await fetch("/live/pictograms")).json();
}

const vector = (kind, attributes, ...inside) => {
  const made = document.createElementNS(VECTOR, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
};

// Recordings play where they are seen, and only there.
const inView = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!target.isConnected) inView.unobserve(target);
    if (isIntersecting && !still.matches) target.play().catch(() => {}); else target.pause();
  }
});

export function pictogram(label) {                          // hidden from screen readers: the name stands beside it
  const { path, seconds, clip } = drawn[label] ?? {};
  if (clip) {
    const video = make("video", { src: clip, muted: true, loop: true, playsInline: true, preload: "metadata", className: "pictogram" });
    video.setAttribute("aria-hidden", "true");
    video.tabIndex = -1;
    inView.observe(video);
    return video;
  }
  const svg = vector("svg", { class: "pictogram", viewBox: "0 0 100 100", "aria-hidden": "true" });
  if (path) {
    const points = path.slice(1).split("L").map(point => point.split(" ").map(Number)), [x, y] = points[0];
    const [[ax, ay], [bx, by]] = [points.at(-4), points.at(-1)], turn = Math.atan2(by - ay, bx - ax);
    const tip = [2.5, -2.5].map(side => `${bx + 15 * Math.cos(turn + side)} ${by + 15 * Math.sin(turn + side)}`);
    svg.style.setProperty("--seconds", `${Math.min(seconds, 2.5)}s`);
    svg.append(vector("path", { class: "whole", d: path }), vector("path", { class: "pen", d: path, pathLength: 1 }),
      vector("path", { class: "tip", d: `M${tip[0]}L${bx} ${by}L${tip[1]}` }),
      vector("circle", { class: "from", cx: x, cy: y, r: 6 }));
  } else {
    const [first] = letters.segment(label === UNKNOWN ? "?" : label.trim() || "?");
    svg.append(vector("circle", { class: "whole", cx: 50, cy: 50, r: 40 }), vector("text", { x: 50, y: 66 }, first.segment.toUpperCase()));
  }
  return svg;
}

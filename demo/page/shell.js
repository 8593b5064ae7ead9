// What every page of ours has: the name at the top where it stands alone, and whether anybody sees it.

import { make } from "/page/common.js";

const framed = window.top !== window;

if (!framed) document.body.prepend(make("header", { className: "shell" },
  make("a", { href: "/" }, make("img", { src: "/page/mark.svg", alt: "", width: 28, height: 28 }), "gatestream")));

let shown = true;
export const isSeen = () => shown && !document.hidden;
// A tab of the frame that another one covers is as hidden as one of the browser.
export function onSeen(tell) {
  document.addEventListener("visibilitychange", tell);
  new IntersectionObserver(([entry]) => {
    if (shown === entry.isIntersecting) return;
    shown = entry.isIntersecting;
    tell();
  }).observe(document.querySelector("main"));
}

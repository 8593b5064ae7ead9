// What every page of ours has: the name at the top where it stands alone, and whether anybody sees it.

const framed = window.top !== window;

const draw = async () => {
  const link = Object.assign(document.createElement("a"), { href: "/" }), header = document.createElement("header");
  link.innerHTML = await (await fetch("/page/mark.svg")).text();
  link.append("gatestream");
  header.className = "shell";
  header.append(link);
  document.body.prepend(header);
};
if (!framed) draw();

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

// What every page of ours uses.

export const $ = id => document.getElementById(id);
export const sentence = text => text && `${text[0].toUpperCase()}${text.slice(1)}${/[.…]$/.test(text) ? "" : "."}`;

export function make(kind, properties = {}, ...inside) {    // an element; what goes in is text or elements
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...inside);
  return made;
}

// Screen readers are told politely, by one place of the page, and nothing twice in a row.
const spoken = make("p", { id: "spoken", className: "spoken" });
spoken.setAttribute("aria-live", "polite");
document.body.append(spoken);
export const announce = text => { if (text && spoken.textContent !== text) spoken.textContent = text; };

export function notify(text, fine = false) {                // a sentence above the page, in #message
  $("message").textContent = text;
  $("message").className = fine ? "note" : "note alarm";
  announce(text);
}

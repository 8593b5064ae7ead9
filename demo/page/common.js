// What every page of ours uses.

export const $ = id => document.getElementById(id);
export const sentence = text => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

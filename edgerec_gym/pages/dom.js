// Small helpers: elements, SVG, numbers. Text enters as text, never as markup.
"use strict";
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

// A shape with the words that a pointer on it or a screen reader gets.
function told(node, words) {
  node.append(node.namespaceURI === SVG ? svg("title", {}, words) : "");
  if (node.namespaceURI !== SVG) node.title = words;
  return node;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "−"));
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);
const share = (value) => `${(100 * value).toFixed(1)} %`;
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
const known = (values) => values.filter((value) => value !== null && value !== undefined);
const range = (n) => Array.from({ length: n }, (_, k) => k);

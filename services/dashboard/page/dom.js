/* Makes elements.
 *
 * Owns the one way in which text reaches the page: as text, never as markup. What a guest wrote is
 * shown as it is and does nothing. Must not know what the page shows.
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an HTML element.
 *
 * @param {string} name - Its name.
 * @param {Object} [properties] - Attributes; null, undefined and false leave one out, true writes
 *   an empty one. `on` has listeners by the name of their event, `style` custom properties of CSS.
 * @param {...*} children - Nodes, texts and numbers, and arrays of them; null and false are none.
 */
export function h(name, properties = {}, ...children) {
  return furnish(document.createElement(name), properties, children);
}

/** Makes an element of SVG; the arguments are those of `h`. */
export function svg(name, properties = {}, ...children) {
  return furnish(document.createElementNS(SVG, name), properties, children);
}

/** Makes a text that only screen readers have. */
export function unseen(...children) {
  return h("span", { class: "unseen" }, ...children);
}

/** Makes a sign that only eyes have: a word beside it says the same. */
export function sign(text, kind = "") {
  return h("span", { class: `sign ${kind}`.trim(), "aria-hidden": "true" }, text);
}

/**
 * Makes details whose content is made when they are opened first, as most are never opened.
 *
 * @param {Object} properties - As of `h`.
 * @param {...*} summary - What is always seen.
 * @param {function(): Node[]} make - Makes the content.
 */
export function details(properties, summary, make) {
  const element = h("details", properties, h("summary", {}, summary));
  element.addEventListener("toggle", () => {
    if (element.open && element.children.length === 1) element.append(...make());
  });
  return element;
}

/** Returns a link to another site, or the text alone if the address is not one of the web. */
export function outside(address, text) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return h("span", {}, text);
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return h("span", {}, text);
  return h("a", { href: url.href, rel: "noreferrer noopener", target: "_blank" }, text,
    unseen(" (opens in a new tab)"));
}

/**
 * Replaces the content of an element, and keeps what its reader was doing: the focus, the details
 * that are open, and how far parts of it are scrolled. These are found again by their id; the focus
 * otherwise by its place.
 */
export function refill(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  const path = focused && placeIn(element, focused);
  const open = [...element.querySelectorAll("details[id]")].map((each) => [each.id, each.open]);
  const scrolled = [...element.querySelectorAll("[id]")]
    .filter((each) => each.scrollLeft)
    .map((each) => [each.id, each.scrollLeft]);
  element.replaceChildren(...children.flat().filter(isSomething));
  for (const [id, isOpen] of open) {
    const place = document.getElementById(id);
    if (place) place.open = isOpen;
  }
  for (const [id, left] of scrolled) {
    const place = document.getElementById(id);
    if (place) place.scrollLeft = left;
  }
  if (!focused) return;
  const again = focused.id ? document.getElementById(focused.id) : at(element, path);
  if (again?.localName === focused.localName) again.focus({ preventScroll: true });
}

function placeIn(element, descendant) {
  const path = [];
  for (let each = descendant; each !== element; each = each.parentElement) {
    path.unshift([...each.parentElement.children].indexOf(each));
  }
  return path;
}

function at(element, path) {
  return path.reduce((each, place) => each?.children[place], element);
}

function furnish(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else if (name === "style") {
      // The content security policy allows this, and no style attribute.
      for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && isSomething(value)) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(...children.flat(Infinity)
    .filter((child) => isSomething(child) && child !== "")
    .map(asNode));
  return element;
}

function isSomething(value) {
  return value !== null && value !== undefined && value !== false;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(String(child));
}

// Building elements, and the few things every view needs.

/** Make an element: h("button", { class: "main", onclick }, "Save"). Properties that are functions listen to events. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "colour") element.style.setProperty("--colour", value);
    else if (name in element && !["list", "form", "role"].includes(name) && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Make an element of an SVG. */
export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children.flat(Infinity));
  return element;
}

/** Put other children into an element; what of it has the focus has it again, if there is such a one. */
export function redraw(element, ...children) {
  const held = element.contains(document.activeElement) ? document.activeElement : null;
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (!held) return;
  const name = (each) => each.dataset.act ?? each.getAttribute("href") ?? each.textContent;
  [...element.querySelectorAll(held.tagName)].find((each) => name(each) === name(held))?.focus({ preventScroll: true });
}

/** Say something in a corner for a while; errors stay until they are closed. */
export function toast(text, kind = "info") {
  const place = document.getElementById("toasts");
  const close = h("button", { class: "quiet", type: "button", "aria-label": "Close the message", onclick: () => box.remove() }, "×");
  const box = h("div", { class: `toast ${kind}` }, h("span", {}, text), close);
  [...place.children].filter((each) => each.firstChild.textContent === text).forEach((each) => each.remove());
  place.append(box);
  if (kind !== "error") setTimeout(() => box.remove(), 5000);
}

/** Wait for what the user asked for. An error is said, wherever he is by then, and the answer is null. */
export const told = (promise) =>
  Promise.resolve(promise).catch((error) => {
    toast(error.message, "error");
    return null;
  });

/** A group of choices of which one is taken. */
export function segmented(name, legend, choices, chosen, onchange) {
  return h(
    "fieldset",
    { class: "segmented" },
    h("legend", {}, legend),
    h(
      "div",
      { class: "segments" },
      choices.map(({ value, text, note }) =>
        h(
          "label",
          {},
          h("input", { type: "radio", name, value: String(value), checked: value === chosen, onchange: () => onchange(value) }),
          h("span", {}, text, note ? h("small", {}, note) : null),
        ),
      ),
    ),
  );
}

/** A dialog over the page; resolves when it is closed. */
export function dialog(title, ...content) {
  const close = h("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: () => box.close() }, "×");
  const box = h("dialog", { "aria-label": title }, h("div", { class: "dialog-head" }, h("h2", {}, title), close), ...content);
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
  return box;
}

/** Ask before something is done; return whether it is to be. What has the focus says no, and a held key nothing. */
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const go = h("button", { type: "button", onclick: () => box.close("yes") }, yes);
    const stay = h("button", { type: "button", class: "main", onclick: () => box.close() }, "Not yet");
    const box = dialog(title, h("p", {}, text), h("div", { class: "row" }, stay, go));
    box.addEventListener("keydown", (event) => event.repeat && event.preventDefault());
    box.addEventListener("close", () => resolve(box.returnValue === "yes"));
    stay.focus();
  });
}

export const megabytes = (bytes) =>
  bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

// All cases at a glance: how far each is, what is wrong with the data, and which to label next.

import { get, settled } from "./api.js";
import { h, redraw, toast, told } from "./dom.js";
import { store } from "./store.js";

const WORDS = { none: "not labelled", draft: "begun", done: "finished" };

export async function casesView(visit) {
  const element = h("div", { class: "cases-view" });
  let suggested = []; // cases, each of one image or several
  const isSuggested = (each) => suggested.includes(each.case) && each.state !== "done";

  async function draw() {
    const cases = await visit.newest("cases").still(get("/api/cases"));
    const { labels } = store.project;
    const done = cases.filter(({ state }) => state === "done").length;
    const next = cases.find(isSuggested) ?? cases.find(({ state }) => state !== "done");
    const ask = h("button", { type: "button", onclick: () => suggest(ask) }, "Suggest which to label");
    const actions = [
      next ? h("a", { class: "button main", href: `#label/${next.id}` }, done ? "Label the next case" : "Label the first case") : null,
      done ? h("a", { class: next ? "button" : "button main", href: "#train" }, "Train") : null,
      cases.length - done > 1 && labels.length > 0 ? ask : null,
    ];
    redraw(
      element,
      h(
        "div",
        { class: "head" },
        h("div", {}, h("h1", {}, `${cases.length} ${cases.length === 1 ? "image" : "images"}, ${done} finished`), h("p", { class: "soft" }, summary(cases))),
        h("div", { class: "row" }, actions),
      ),
      problems(),
      h(
        "ul",
        { class: "grid" },
        cases.map((each) =>
          h(
            "li",
            {},
            h(
              "a",
              { class: "card", href: `#label/${each.id}` },
              h("img", { src: `/api/cases/${each.id}/thumbnail?v=${each.picture}`, alt: "", loading: "lazy", onerror: (event) => event.target.classList.add("broken") }),
              h("span", { class: "card-name" }, each.name),
              h("span", { class: "card-foot" }, h("span", { class: `badge ${each.state}` }, WORDS[each.state]), isSuggested(each) ? h("span", { class: "badge hint" }, "label this") : null),
            ),
          ),
        ),
      ),
    );
  }

  async function suggest(button) {
    button.disabled = true;
    button.textContent = "Looking at all cases…";
    const found = await settled(visit, "/api/suggest", { again: true });
    if (found.state === "failed") toast(found.message, "error");
    else suggested = found.cases;
    await told(draw());
  }

  await draw();
  return { element, revised: () => told(draw()) };
}

function summary(cases) {
  const shapes = [...new Set(cases.map(({ shape }) => shape.join(" × ")))];
  const sizes = shapes.length === 1 ? shapes[0] : `${shapes.length} sizes`;
  const labels = store.labels.slice(1).map(({ name }) => name);
  return `${sizes} · ${labels.length ? labels.join(", ") : "no labels yet"}`;
}

function problems() {
  const { problems, warnings, checked } = store.project;
  if (!checked) return [h("p", { class: "note" }, "Looking through all files for what may be wrong…")];
  if (!problems.length && !warnings.length) return [h("p", { class: "note good" }, "Every file was read; nothing is wrong with the data.")];
  const list = (texts) => h("ul", {}, texts.slice(0, 50).map((text) => h("li", {}, text)));
  return [
    problems.length ? h("details", { class: "banner bad", open: true }, h("summary", {}, `${problems.length} ${problems.length === 1 ? "problem" : "problems"} with the data`), list(problems)) : null,
    warnings.length ? h("details", { class: "banner" }, h("summary", {}, `${warnings.length} ${warnings.length === 1 ? "remark" : "remarks"} on the data`), list(warnings)) : null,
  ];
}

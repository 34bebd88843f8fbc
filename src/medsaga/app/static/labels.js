// The labels of the folder: names, colours, which one is painted with, and new ones.

import { post } from "./api.js";
import { h, told } from "./dom.js";
import { store } from "./store.js";

const FRESH = ["#e69f00", "#56b4e9", "#009e73", "#d55e00", "#f0e442", "#0072b2", "#cc79a7", "#8a7bd8", "#c25b8a", "#999933"];

export function labelList(chosen, onchoose) {
  const labels = store.labels.slice(1);
  // One label at a time: the others may have changed since they were drawn, also in another tab.
  const save = async (change) => {
    await told(post("/api/labels", change));
    await store.refresh();
  };
  const rows = labels.map((label, index) =>
    h(
      "li",
      { class: chosen === index + 1 ? "chosen" : "" },
      h("input", {
        type: "color",
        value: label.colour,
        "aria-label": `Colour of ${label.name}`,
        onchange: (event) => save({ value: label.value, colour: event.target.value }),
      }),
      h("button", { type: "button", class: "label-name", "aria-pressed": String(chosen === index + 1), onclick: () => onchoose(index + 1), title: `Paint ${label.name}` }, label.name),
      index < 9 ? h("kbd", { "aria-hidden": "true" }, String(index + 1)) : null,
      h("button", { type: "button", class: "quiet small", "aria-label": `Rename ${label.name}`, title: "Rename", onclick: (event) => rename(event.target.closest("li"), index) }, "✎"),
    ),
  );
  const rename = (row, index) => {
    const input = h("input", {
      type: "text",
      value: labels[index].name,
      maxlength: "60",
      "aria-label": "Name of the label",
      onkeydown: (event) => {
        if (event.key === "Escape") input.value = labels[index].name;
        if (event.key === "Enter" || event.key === "Escape") input.blur();
      },
      onblur: () => {
        if (input.value !== labels[index].name) save({ value: labels[index].value, name: input.value });
        else input.replaceWith(button);
      },
    });
    const button = row.querySelector(".label-name");
    button.replaceWith(input);
    input.select();
  };
  const name = h("input", { type: "text", placeholder: "New label", maxlength: "60", "aria-label": "Name of a new label" });
  const add = h(
    "form",
    {
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        if (name.value.trim()) save({ add: name.value, colour: FRESH[labels.length % FRESH.length] });
      },
    },
    name,
    h("button", { type: "submit" }, "Add"),
  );
  return h("div", {}, h("ul", { class: "labels" }, rows), add);
}

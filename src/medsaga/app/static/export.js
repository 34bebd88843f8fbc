// Taking it along: label maps for other programs, or the model.

import { get, post } from "./api.js";
import { h, segmented, toast } from "./dom.js";

export async function exportView() {
  const [formats, { runs, labelled }] = await Promise.all([get("/api/export"), get("/api/runs")]);
  const trained = runs.filter(({ state }) => state === "done");
  const what = [
    { value: "masks", text: "Finished masks", note: `${labelled.length} cases` },
    ...(trained.length ? [{ value: "predictions", text: "Predictions", note: `of ${trained[0].name}` }, { value: "model", text: "Model", note: `of ${trained[0].name}` }] : []),
  ];
  const possible = formats.filter((each) => each.possible);
  const choice = { what: "masks", format: possible[0]?.kind };
  const format = segmented("format", "Format", possible.map(({ kind, name }) => ({ value: kind, text: name })), choice.format, (value) => (choice.format = value));
  const done = h("div", { role: "status" });
  const go = h("button", { type: "button", class: "main", onclick: () => save() }, "Export");

  async function save() {
    go.disabled = true;
    const run = choice.what === "masks" ? null : trained[0].id;
    try {
      const { folder, files } = await post("/api/export", { what: choice.what === "model" ? "model" : "labels", format: choice.format, run });
      done.replaceChildren(h("p", { class: "note good" }, `${files} ${files === 1 ? "file" : "files"} written to`), h("code", { class: "path" }, folder));
    } catch (error) {
      toast(error.message, "error");
    }
    go.disabled = false;
  }

  const impossible = formats.filter((each) => !each.possible).map(({ name }) => name);
  return {
    element: h(
      "section",
      { class: "panel-box narrow" },
      h("h1", {}, "Export"),
      h("p", { class: "soft" }, "Files are written into a new folder beside the images, on the grid of each image."),
      segmented("what", "What", what, choice.what, (value) => {
        choice.what = value;
        format.hidden = value === "model";
      }),
      format,
      impossible.length ? h("p", { class: "soft small" }, `${impossible.join(" and ")}: not possible for these images.`) : null,
      go,
      done,
    ),
  };
}

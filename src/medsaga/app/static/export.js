// Taking it along: label maps for other programs, or the model.

import { get, post, settled } from "./api.js";
import { h, segmented, toast, told } from "./dom.js";

export async function exportView(visit) {
  const [formats, { runs, labelled }] = await visit.still(Promise.all([get("/api/export"), get("/api/runs")]));
  const run = runs.find(({ state }) => state === "done");
  const what = [{ value: "masks", text: "Finished masks", note: `${labelled.length} cases` }];
  if (run)
    what.push(
      { value: "predictions", text: "Predictions", note: `of ${run.name}` },
      { value: "model", text: "Model", note: `of ${run.name}` },
      { value: "delta", text: "Delta", note: `what ${run.name} has changed in its base weights: small, to send` },
    );
  const possible = formats.filter((each) => each.possible);
  const choice = { what: "masks", format: possible[0]?.kind };
  const format = segmented("format", "Format", possible.map(({ kind, name }) => ({ value: kind, text: name })), choice.format, (value) => (choice.format = value));
  const done = h("div", { role: "status" });
  const go = h("button", { type: "button", class: "main", onclick: () => save() }, "Export");

  async function save() {
    go.disabled = true;
    done.replaceChildren(h("p", { class: "note" }, "Writing…"));
    const written = await (choice.what === "delta" ? writeDelta() : writeFiles());
    go.disabled = false;
    if (!written) return done.replaceChildren();
    const { folder, files, left_out: leftOut = [] } = written;
    return done.replaceChildren(
      h("p", { class: "note good" }, `${files} ${files === 1 ? "file" : "files"} written to`),
      h("code", { class: "path" }, folder),
      ...(leftOut.length ? [h("p", { class: "note" }, `Left out, because ${leftOut.length === 1 ? "it" : "they"} could not be written:`), h("ul", {}, leftOut.map((text) => h("li", {}, text)))] : []),
    );
  }

  function writeFiles() {
    const asked = { what: choice.what === "model" ? "model" : "labels", format: choice.format, run: choice.what === "masks" ? null : run.id };
    return visit.still(told(post("/api/export", asked)));
  }

  /** It takes a while, and is a process of its own. */
  async function writeDelta() {
    const found = await settled(visit, `/api/runs/${run.id}/delta`, { again: true });
    if (found.state === "done") return found;
    toast(found.message, "error");
    return null;
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
        format.hidden = value === "model" || value === "delta";
      }),
      format,
      impossible.length ? h("p", { class: "soft small" }, `${impossible.join(" and ")}: not possible for these images.`) : null,
      go,
      done,
    ),
  };
}

// The first thing a newcomer sees: a folder, or the phantom.

import { get, post } from "./api.js";
import { dialog, h, told } from "./dom.js";
import { store } from "./store.js";
import { Visit } from "./visit.js";

export function startView() {
  const phantom = h("button", { type: "button", class: "choice", onclick: () => openPhantom(phantom) },
    h("strong", {}, "Start with the phantom"),
    h("span", {}, "A generated abdominal CT of nobody: ten cases, four of them labelled. Train in a few minutes, on any computer."));
  const folder = h("button", { type: "button", class: "choice main", onclick: openDialog },
    h("strong", {}, "Open a folder"),
    h("span", {}, "Images and masks in PNG, TIFF, NIfTI, NRRD or DICOM; images alone; or a run that medsaga made."));
  return {
    element: h(
      "div",
      { class: "start" },
      h("h1", {}, "From a few outlined cases to a segmenter of your own"),
      h("p", { class: "lead" }, "Outline what matters in a few images, train, mend what comes out worst, and train again."),
      h("div", { class: "choices" }, folder, phantom),
      h("ol", { class: "steps" }, ["Label a few cases", "Train on this computer", "Mend the least certain", "Train again, export"].map((text) => h("li", {}, text))),
    ),
  };
}

async function openPhantom(button) {
  button.disabled = true;
  button.querySelector("span").textContent = "Making ten cases…";
  await told(post("/api/phantom"));
  button.disabled = false;
  await store.refresh();
}

export function openDialog() {
  const list = h("ul", { class: "folders" });
  const path = h("input", { type: "text", "aria-label": "Folder", spellcheck: false, oninput: () => (open.disabled = false) });
  const form = h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), go(path.value)) }, path, h("button", { type: "submit" }, "Go"));
  const what = h("p", { class: "note" });
  const open = h("button", { type: "button", class: "main", onclick: () => choose() }, "Open");
  const box = dialog("Open a folder", form, list, h("div", { class: "dialog-foot" }, what, open));
  const visit = new Visit();
  box.addEventListener("close", () => visit.close());
  let here = null;

  async function go(to) {
    open.disabled = true; // it stands for the folder that is still listed, and another is wanted
    try {
      here = await visit.newest("folder").still(get(`/api/folders${to ? `?path=${encodeURIComponent(to)}` : ""}`));
    } catch (error) {
      what.textContent = error.message;
      open.disabled = here?.kind === "" && path.value === here.path;
      return false;
    }
    path.value = here.path;
    const marks = { dataset: "dataset", run: "run", images: "images" };
    const rows = here.folders.map((each) =>
      h("li", {}, h("button", { type: "button", onclick: () => go(each.path) }, h("span", {}, each.name), each.kind ? h("span", { class: `badge ${each.kind}` }, marks[each.kind]) : null)),
    );
    if (here.parent) rows.unshift(h("li", {}, h("button", { type: "button", onclick: () => go(here.parent) }, h("span", {}, "‹ up"))));
    if (here.more) rows.push(h("li", { class: "soft" }, `and ${here.more} more: write the name above`));
    list.replaceChildren(...rows);
    what.textContent = {
      dataset: "A dataset: it opens as it is.",
      run: "A run: its data open, with its results.",
      images: "Images without the folders images and masks: they are copied into a new dataset beside this folder.",
      "": "No images here. Choose a folder with images, or one of its parts.",
    }[here.kind];
    open.textContent = here.kind === "images" ? "Make a dataset" : "Open";
    open.disabled = here.kind === "";
    return true;
  }

  async function choose() {
    // A path that was typed is meant, not the folder that is still listed.
    if (path.value !== here?.path && !((await go(path.value)) && here.kind)) return;
    open.disabled = true;
    what.textContent = "Opening…";
    try {
      await post(here.kind === "images" ? "/api/images" : "/api/open", { path: here.path });
      box.close();
      await store.refresh();
    } catch (error) {
      what.textContent = error.message;
      open.disabled = false;
    }
  }

  go("");
}

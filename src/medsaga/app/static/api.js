// Talking to the server on this machine. Errors carry what the server says: what was expected, found, and what to do.

import { pause } from "./visit.js";

const ASK_AGAIN = 700;

export class ServerError extends Error {
  constructor(document, status) {
    super(document.do ? `${document.found ? `Expected ${document.expected}, found ${document.found}. ` : ""}${document.do}` : document.message);
    this.status = status;
    this.where = document.where ?? "";
  }
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new ServerError({ message: "The server does not answer. Is medsaga app still running?" }, 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let document = { message: text.trim() || `The server answered ${response.status}.` };
  try {
    document = JSON.parse(text);
  } catch {
    // plain text is the message
  }
  throw new ServerError(document, response.status);
}

export const get = async (path) => (await answer(fetch(path))).json();

export const bytes = async (path, options = {}) => (await answer(fetch(path, options))).arrayBuffer();

export const post = async (path, document = {}) =>
  (await answer(fetch(path, { method: "POST", body: JSON.stringify(document), headers: { "Content-Type": "application/json" } }))).json();

export const send = async (path, body) =>
  (await answer(fetch(path, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } }))).json();

/** Ask again until an answer of the server has another state than "waiting", for as long as a visit lasts. */
export async function settled(visit, path, document) {
  for (;;) {
    const found = await visit.still(post(path, document).catch(({ message }) => ({ state: "failed", message })));
    if (found.state !== "waiting") return found;
    document = { ...document, again: undefined };
    await visit.still(pause(ASK_AGAIN));
  }
}

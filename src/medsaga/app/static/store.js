// What the server says of itself, asked again and again; views listen for what changes.

import { get } from "./api.js";

class Store extends EventTarget {
  state = { project: null, jobs: [], notices: [] };
  predicted = new Map();
  #seen = {};
  #asked = 0;
  #taken = 0;

  get project() {
    return this.state.project;
  }

  get labels() {
    return this.state.project?.labels ?? [];
  }

  /** The jobs that wait or run. */
  get active() {
    return (this.state.jobs ?? []).filter(({ state }) => state === "waiting" || state === "running");
  }

  /** The newest run that has a prediction of a case. */
  newestWith(id) {
    return this.predicted.get(id) ?? null;
  }

  async refresh() {
    const question = ++this.#asked;
    let state;
    try {
      state = await get("/api/state");
    } catch (error) {
      this.#tell("lost", error);
      return;
    }
    if (question < this.#taken) return; // a later question was answered before
    this.#taken = question;
    this.state = state;
    this.#tell("state");
    const parts = {
      project: state.project?.path ?? null,
      labels: JSON.stringify(state.project?.labels ?? []),
      revision: `${state.project?.revision} ${state.project?.checked}`,
      jobs: JSON.stringify(state.jobs ?? []),
    };
    const before = this.#seen;
    this.#seen = parts;
    for (const name of Object.keys(parts)) if (before[name] !== undefined && before[name] !== parts[name]) this.#tell(name);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** Learn which cases the newest run has predictions of. */
  async learnPredictions() {
    const predicted = new Map();
    const { runs } = this.project ? await get("/api/runs") : { runs: [] };
    for (const run of [...runs].reverse())
      for (const { id } of (await get(`/api/runs/${run.id}/results`)).cases) predicted.set(id, run.id);
    this.predicted = predicted;
  }
}

export const store = new Store();

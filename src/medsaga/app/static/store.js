// What the server says of itself, asked again and again; views listen for what changes.

import { get } from "./api.js";

class Store extends EventTarget {
  state = { project: null, jobs: [], notices: [] };
  predicted = new Map();
  #seen = {};

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
    let state;
    try {
      state = await get("/api/state");
    } catch (error) {
      this.#tell("lost", error);
      return;
    }
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
    this.predicted = new Map();
    if (!this.project) return;
    const { runs } = await get("/api/runs");
    for (const run of [...runs].reverse())
      for (const { id } of (await get(`/api/runs/${run.id}/results`)).cases) this.predicted.set(id, run.id);
  }
}

export const store = new Store();

// How long something is wanted: a view until another is asked for, a part of it until a newer one of its name begins.
//
// What follows an await happens later than it was asked for, and the user may be elsewhere by then. So what goes to
// another view, shows or focuses something after an await, waits by `still` or asks `isOpen`.

export class Visit {
  #parent;
  #address;
  #parts = new Map();
  #isOver = false;

  /** address: of the page, with which it is over when that changes; null where it has none. */
  constructor(parent = null, address = null) {
    this.#parent = parent;
    this.#address = address;
  }

  get isOpen() {
    if (this.#isOver || (this.#address !== null && this.#address !== location.hash)) return false;
    return this.#parent?.isOpen ?? true;
  }

  close() {
    this.#isOver = true;
  }

  /** Begin a part; the one before it of the same name is over. */
  newest(name, address = null) {
    this.#parts.get(name)?.close();
    const part = new Visit(this, address);
    this.#parts.set(name, part);
    return part;
  }

  /** Settle as a promise does if this is still open then; else never, so that what follows does not happen. */
  still(promise) {
    return new Promise((resolve, reject) => {
      Promise.resolve(promise).then(
        (value) => this.isOpen && resolve(value),
        (error) => this.isOpen && reject(error),
      );
    });
  }

  /** Go to another view, unless the user has gone elsewhere. */
  go(view) {
    if (this.isOpen) location.hash = `#${view}`;
  }
}

/** Wait for some milliseconds. */
export const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));

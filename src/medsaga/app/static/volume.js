// The slices of one image in the browser: fetched once, kept while they are near, and where each voxel lies in a plane.

import { bytes, get } from "./api.js";
import { saved } from "./saving.js";

const MOST_KEPT = 400;
const AHEAD = 4;

export class Volume {
  constructor(id, about) {
    this.id = id;
    this.about = about;
    this.planes = about.planes;
    this.names = Object.keys(about.planes);
    this.isFlat = "image" in about.planes;
    this.images = new Map();
    this.labels = new Map();
    const first = this.planes[this.names[0]];
    this.shape = this.isFlat ? [first.height, first.width] : this.#shape();
    this.position = this.shape.map((size) => Math.floor(size / 2));
    this.move(this.names[0], [about.start]);
  }

  static async open(id) {
    return new Volume(id, await get(`/api/cases/${id}`));
  }

  /** The stored axes of a plane: slice, row, column; of a 2-D image there is no slice axis. */
  #axes(plane) {
    return this.isFlat ? { order: [null, 0, 1], flips: [false, false, false] } : this.planes[plane];
  }

  #shape() {
    const shape = [0, 0, 0];
    for (const { order, slices, height, width } of Object.values(this.planes))
      [slices, height, width].forEach((size, index) => (shape[order[index]] = size));
    return shape;
  }

  /** Where the position lies in a plane: [slice, row, column]. */
  place(plane) {
    const { order, flips } = this.#axes(plane);
    return order.map((axis, index) => {
      if (axis === null) return 0;
      return flips[index] ? this.shape[axis] - 1 - this.position[axis] : this.position[axis];
    });
  }

  /** Move the position to a slice, row and column of a plane; what is undefined stays. */
  move(plane, place) {
    const { order, flips } = this.#axes(plane);
    order.forEach((axis, index) => {
      if (axis === null || place[index] === undefined) return;
      const within = Math.max(0, Math.min(this.shape[axis] - 1, Math.round(place[index])));
      this.position[axis] = flips[index] ? this.shape[axis] - 1 - within : within;
    });
  }

  /** The 16-bit values of a slice: [Uint16Array] with one for each channel asked for. */
  image(plane, index, channels) {
    return Promise.all(
      channels.map((channel) =>
        this.#kept(this.images, `${plane} ${index} ${channel}`, async () => {
          const buffer = await bytes(`/api/cases/${this.id}/image?plane=${plane}&index=${index}&channel=${channel}`);
          return new Uint16Array(buffer);
        }),
      ),
    );
  }

  /** The classes of a slice: of the mask, or of a run's prediction. */
  classes(plane, index, run = null) {
    return this.#kept(this.labels, `${plane} ${index} ${run}`, async () => {
      const of = run ? `&run=${run}` : "";
      await saved(); // what was painted in one plane is seen in all
      return new Uint8Array(await bytes(`/api/cases/${this.id}/labels?plane=${plane}&index=${index}${of}`));
    });
  }

  /** Fetch the slices that come next when the user scrolls on. */
  ahead(plane, index, direction, channels, runs) {
    for (let step = 1; step <= AHEAD; step++) {
      const next = index + step * direction;
      if (next < 0 || next >= this.planes[plane].slices) return;
      this.image(plane, next, channels).catch(() => {});
      for (const run of runs) this.classes(plane, next, run).catch(() => {});
    }
  }

  /** Keep what was painted in a slice, which changes those of the other planes. */
  painted(plane, index, classes) {
    for (const key of [...this.labels.keys()]) if (!key.startsWith(`${plane} `)) this.labels.delete(key);
    this.labels.set(`${plane} ${index} null`, Promise.resolve(classes));
  }

  forgetLabels() {
    this.labels.clear();
  }

  #kept(map, key, load) {
    let found = map.get(key);
    if (found) {
      map.delete(key); // the last that was asked for is the last to go
    } else {
      found = load();
      found.catch(() => map.delete(key));
    }
    map.set(key, found);
    while (map.size > MOST_KEPT) map.delete(map.keys().next().value);
    return found;
  }
}

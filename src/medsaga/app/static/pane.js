// One view of a slice: the image through its window, labels over it, zoom and pan. It knows nothing of files or tools.

const TABLE = 65536;

/** Grey for each 16-bit value, from black at `low` to white at `high` in the image's own units. */
export function windowTable({ offset, step }, [low, high]) {
  const table = new Uint8ClampedArray(TABLE);
  const width = Math.max(1e-9, high - low);
  for (let value = 0; value < TABLE; value++) table[value] = ((offset + step * value - low) / width) * 255;
  return table;
}

export const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

export class Pane {
  constructor(name) {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "pane";
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", name);
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.drawing = document.createElement("canvas");
    this.zoom = 1;
    this.pan = [0, 0];
    this.size = null;
    this.marks = null;
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }

  /**
   * Show a slice.
   * height, width: of the slice; aspect: height of a pixel through its width; channels: Uint16Arrays;
   * tables: of `windowTable`; classes: Uint8Array or null; colours: [r, g, b] of each class; opacity: 0 to 1.
   */
  show({ height, width, aspect, channels, tables, classes, colours, opacity, outline = true }) {
    if (!this.size || this.size.height !== height || this.size.width !== width) {
      this.drawing.width = width;
      this.drawing.height = height;
      this.pixels = this.drawing.getContext("2d").createImageData(width, height);
    }
    this.size = { height, width, aspect };
    const data = this.pixels.data;
    const count = height * width;
    if (channels.length >= 3) {
      for (let at = 0, to = 0; at < count; at++, to += 4) {
        data[to] = tables[0][channels[0][at]];
        data[to + 1] = tables[1][channels[1][at]];
        data[to + 2] = tables[2][channels[2][at]];
        data[to + 3] = 255;
      }
    } else {
      const [values, table] = [channels[0], tables[0]];
      for (let at = 0, to = 0; at < count; at++, to += 4) {
        data[to] = data[to + 1] = data[to + 2] = table[values[at]];
        data[to + 3] = 255;
      }
    }
    if (classes && opacity > 0) this.#blend(data, classes, colours, opacity, outline);
    this.drawing.getContext("2d").putImageData(this.pixels, 0, 0);
    this.paint();
  }

  #blend(data, classes, colours, opacity, outline) {
    const { height, width } = this.size;
    for (let row = 0, at = 0; row < height; row++) {
      for (let column = 0; column < width; column++, at++) {
        const label = classes[at];
        if (!label) continue;
        const edge =
          outline &&
          ((column > 0 && classes[at - 1] !== label) ||
            (column < width - 1 && classes[at + 1] !== label) ||
            (row > 0 && classes[at - width] !== label) ||
            (row < height - 1 && classes[at + width] !== label));
        const share = edge ? Math.min(1, opacity + 0.45) : opacity;
        const colour = colours[label] ?? [255, 255, 255];
        const to = 4 * at;
        data[to] += share * (colour[0] - data[to]);
        data[to + 1] += share * (colour[1] - data[to + 1]);
        data[to + 2] += share * (colour[2] - data[to + 2]);
      }
    }
  }

  /** Draw what is there at the present zoom. */
  paint() {
    const ratio = window.devicePixelRatio || 1;
    const [wide, high] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!wide || !high) return;
    if (this.canvas.width !== Math.round(wide * ratio) || this.canvas.height !== Math.round(high * ratio)) {
      this.canvas.width = Math.round(wide * ratio);
      this.canvas.height = Math.round(high * ratio);
    }
    const context = this.context;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, wide, high);
    if (!this.size) return;
    const { left, top, across, down } = this.#frame();
    context.imageSmoothingEnabled = across < 3 && this.zoom <= 1;
    context.drawImage(this.drawing, left, top, this.size.width * across, this.size.height * down);
    this.marks?.(context, (row, column) => [left + (column + 0.5) * across, top + (row + 0.5) * down], across, down);
  }

  #frame() {
    const { height, width, aspect } = this.size;
    const [wide, high] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const fit = Math.min(wide / width, high / (height * aspect)) * 0.98;
    const across = fit * this.zoom;
    const down = across * aspect;
    const left = (wide - width * across) / 2 + this.pan[0];
    const top = (high - height * down) / 2 + this.pan[1];
    return { left, top, across, down };
  }

  /** The pixel below a point of the page, as [row, column] with fractions; null before anything is shown. */
  pixel(event) {
    if (!this.size) return null;
    const box = this.canvas.getBoundingClientRect();
    const { left, top, across, down } = this.#frame();
    return [(event.clientY - box.top - top) / down - 0.5, (event.clientX - box.left - left) / across - 0.5];
  }

  /** Where a pixel is on the page, as [x, y] from the canvas's corner. */
  point(row, column) {
    const { left, top, across, down } = this.#frame();
    return [left + (column + 0.5) * across, top + (row + 0.5) * down];
  }

  /** Zoom by a factor and keep a point of the canvas where it is; without a point, the middle. */
  zoomBy(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const next = Math.max(0.5, Math.min(24, this.zoom * factor));
    const change = next / this.zoom;
    const [wide, high] = [this.canvas.clientWidth, this.canvas.clientHeight];
    this.pan = [(this.pan[0] + wide / 2 - x) * change + x - wide / 2, (this.pan[1] + high / 2 - y) * change + y - high / 2];
    this.zoom = next;
    this.paint();
  }

  reset() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.paint();
  }
}

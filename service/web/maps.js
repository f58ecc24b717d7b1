/** A map of numbers over the patches of a picture, and its painting. */

export class PatchMap {
  /** values: rows of numbers, none below 0. */
  constructor(values) {
    this.rows = values.length;
    this.columns = values[0].length;
    this.values = Float64Array.from(values.flat());
    this.max = this.values.reduce((a, b) => Math.max(a, b), 0);
    this.total = this.values.reduce((a, b) => a + b, 0);
    /** What every cell would hold if the total lay evenly. */
    this.even = this.total / this.values.length;
  }

  at({ row, column }) {
    return this.values[row * this.columns + column];
  }

  /** A cell's value as a multiple of the even share. */
  times(cell) {
    return this.even > 0 ? this.at(cell) / this.even : 0;
  }

  /** The cell with the highest value. */
  get peak() {
    const index = this.values.indexOf(this.max);
    return { row: Math.floor(index / this.columns), column: index % this.columns };
  }
}

/** Paints a pixel a cell. The scale starts at 0; `top` gets the last of the table's 256 colours. */
export function paint(canvas, map, top, table) {
  canvas.width = map.columns;
  canvas.height = map.rows;
  const image = new ImageData(map.columns, map.rows);
  map.values.forEach((value, i) => {
    const colour = top > 0 ? Math.min(255, Math.round((255 * value) / top)) : 0;
    image.data.set(table.subarray(4 * colour, 4 * colour + 4), 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Paints the table itself, left to right. */
export function paintScale(canvas, table) {
  canvas.width = 256;
  canvas.height = 1;
  canvas.getContext("2d").putImageData(new ImageData(table, 256, 1), 0, 0);
}

/** The cell under a pointer event, on an element that shows rows x columns of them. */
export function cellUnder(event, element, { rows, columns }) {
  const box = element.getBoundingClientRect();
  const index = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
  return {
    row: index(event.clientY - box.top, box.height, rows),
    column: index(event.clientX - box.left, box.width, columns),
  };
}

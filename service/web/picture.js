/** The picture, the map laid over it, and its cells, which keys, pointer and screen readers can reach. */

import { capital, place, value } from "./words.js";
import { cellUnder } from "./maps.js";

export class Picture {
  #cells;
  #size = { rows: 0, columns: 0 };
  #home = { row: 0, column: 0 };

  /** stage holds the photo and the cells. point(cell or null): the pointer went there; pin: the focus did.
   * unseen(): the browser can't show the photo. */
  constructor(stage, { point, pin, unseen }) {
    this.stage = stage;
    this.photo = stage.querySelector("img");
    this.unseen = false;
    this.#cells = stage.querySelector("[role=grid]");
    this.#cells.addEventListener("pointermove", (event) => point(cellUnder(event, this.#cells, this.#size)));
    this.#cells.addEventListener("pointerleave", () => point(null));
    this.#cells.addEventListener("keydown", (event) => this.#key(event, pin));
    this.#cells.addEventListener("focusin", ({ target }) => {
      this.#home = { row: Number(target.dataset.row), column: Number(target.dataset.column) };
      this.#rove();
      pin(this.#home);
    });
    this.photo.addEventListener("load", () => this.#shape(this.photo.naturalWidth, this.photo.naturalHeight));
    this.photo.addEventListener("error", () => {
      this.unseen = this.photo.hidden = true;
      unseen();
    });
  }

  show(file) {
    URL.revokeObjectURL(this.photo.src);
    this.unseen = this.photo.hidden = false;
    this.photo.src = URL.createObjectURL(file);
  }

  /** Gives the stage the picture's proportions. */
  #shape(width, height) {
    this.stage.style.setProperty("--aspect", width / height);
  }

  /** Lays map and cells over the part of the upright picture that the model sees: all, unless told less.
   * Returns its width over its height. */
  lay({ width, height, seen: [left, top, right, bottom] }) {
    this.#shape(width, height);
    const style = this.#cells.parentElement.style;
    style.left = `${(100 * left) / width}%`;
    style.top = `${(100 * top) / height}%`;
    style.width = `${(100 * (right - left)) / width}%`;
    style.height = `${(100 * (bottom - top)) / height}%`;
    return (right - left) / (bottom - top);
  }

  /** Makes the cells tell the values of a map; without one, there are none. */
  tell(map) {
    if (!map) {
      this.#size = { rows: 0, columns: 0 };
      this.#cells.replaceChildren();
      return;
    }
    if (map.rows !== this.#size.rows || map.columns !== this.#size.columns) this.#build(map);
    for (const cell of this.#cells.querySelectorAll("[role=gridcell]")) {
      const { row, column } = cell.dataset;
      const at = { row: Number(row), column: Number(column) };
      cell.setAttribute("aria-label", `${capital(place(at))}: ${value(map, at)}`);
    }
  }

  #build({ rows, columns }) {
    this.#size = { rows, columns };
    this.#home = { row: 0, column: 0 };
    this.stage.style.setProperty("--rows", rows);
    this.stage.style.setProperty("--columns", columns);
    const made = Array.from({ length: rows }, (_, row) => {
      const line = element("row");
      line.append(
        ...Array.from({ length: columns }, (_, column) => {
          const cell = element("gridcell");
          Object.assign(cell.dataset, { row, column });
          return cell;
        }),
      );
      return line;
    });
    this.#cells.replaceChildren(...made);
    this.#rove();
  }

  #at({ row, column }) {
    return this.#cells.children[row].children[column];
  }

  /** One cell is in the tab order. */
  #rove() {
    this.#cells.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    this.#at(this.#home).tabIndex = 0;
  }

  #key(event, pin) {
    if (event.altKey || event.metaKey) return;
    if (event.key === "Escape") {
      pin(null);
      return;
    }
    const { row, column } = this.#home;
    const last = { row: this.#size.rows - 1, column: this.#size.columns - 1 };
    const all = event.ctrlKey;
    const next = {
      ArrowUp: { row: Math.max(0, row - 1), column },
      ArrowDown: { row: Math.min(last.row, row + 1), column },
      ArrowLeft: { row, column: Math.max(0, column - 1) },
      ArrowRight: { row, column: Math.min(last.column, column + 1) },
      Home: { row: all ? 0 : row, column: 0 },
      End: { row: all ? last.row : row, column: last.column },
    }[event.key];
    if (!next) return;
    event.preventDefault();
    this.#at(next).focus();
  }
}

function element(role) {
  const made = document.createElement("div");
  made.setAttribute("role", role);
  if (role === "gridcell") made.tabIndex = -1;
  return made;
}

/** The maps of all blocks, side by side. */

import { cellUnder, paint } from "./maps.js";
import { brief, percent } from "./words.js";

export class Tiles {
  #tiles = [];

  /** point(cell or null, block): the pointer went there. choose(block): it was clicked. */
  constructor(root, { point, choose }) {
    this.root = root;
    this.listeners = { point, choose };
  }

  /** Draws a tile a map. shared: the value at the end of every scale; false: each map's own maximum. */
  draw(maps, shared, table) {
    if (maps.length !== this.#tiles.length) this.#build(maps.length);
    this.root.style.setProperty("--across", Math.ceil(Math.sqrt(maps.length)));
    maps.forEach((map, block) => {
      const tile = this.#tiles[block];
      tile.map = map;
      paint(tile.canvas, map, shared || map.max, table);
      tile.max.textContent = `max ${percent(map.max)}`;
      tile.button.style.setProperty("--rows", map.rows);
      tile.button.style.setProperty("--columns", map.columns);
    });
  }

  /** Marks the block that lies over the picture, if one does. */
  press(layer) {
    this.#tiles.forEach(({ button }, block) => button.setAttribute("aria-pressed", block === layer));
  }

  /** Says in every tile what it holds at a cell. */
  tell(cell) {
    for (const { map, here } of this.#tiles) here.textContent = cell ? brief(map, cell) : "\u00a0";
  }

  #build(count) {
    this.#tiles = Array.from({ length: count }, (_, block) => this.#tile(block));
    this.root.replaceChildren(...this.#tiles.map(({ button }) => button));
  }

  #tile(block) {
    const button = document.createElement("button");
    button.type = "button";
    button.innerHTML =
      '<span class="map"><canvas aria-hidden="true"></canvas><span class="marker"></span></span>' +
      '<span class="name"></span> <span class="max"></span> <span class="here"></span>';
    const part = (name) => button.querySelector(name);
    part(".name").textContent = `Block ${block + 1}`;
    const tile = { button, canvas: part("canvas"), max: part(".max"), here: part(".here"), map: null };
    const { point, choose } = this.listeners;
    tile.canvas.addEventListener("pointermove", (event) => point(cellUnder(event, tile.canvas, tile.map), block));
    tile.canvas.addEventListener("pointerleave", () => point(null, block));
    button.addEventListener("click", () => choose(block));
    return tile;
  }
}

/** Everything that is drawn of the answers about one picture. */

import { shade, table } from "./colours.js";
import { paint, paintScale } from "./maps.js";
import { Picture } from "./picture.js";
import { Tiles } from "./tiles.js";
import { capital, nameOf, percent, place, probability, value } from "./words.js";

const $ = (id) => document.getElementById(id);

export class Board {
  #answers = { rollout: null, blocks: null };
  #layer = "rollout"; // what lies over the picture: "rollout" or a block's index
  #pinned = null; // the cell with the focus
  #hovered = null; // the { cell, block } under the pointer

  constructor() {
    this.picture = new Picture($("stage"), {
      point: (cell) => this.#hover(cell && { cell, block: null }),
      pin: (cell) => {
        this.#pinned = cell;
        this.#hover(null); // a pointer that rests there moved no more
      },
      unseen: () => this.draw(),
    });
    this.tiles = new Tiles($("tiles"), {
      point: (cell, block) => this.#hover(cell && { cell, block }),
      choose: (block) => {
        this.#layer = this.#layer === block && this.#answers.rollout ? "rollout" : block;
        this.draw();
      },
    });
  }

  get answers() {
    return this.#answers;
  }

  /** Forgets what was known of a picture. */
  clear() {
    this.#answers = { rollout: null, blocks: null };
    this.#layer = "rollout";
    this.#pinned = this.#hovered = null;
    this.draw();
  }

  /** Takes in what a route answered; null: nothing. */
  set(route, answer) {
    this.#answers[route] = answer;
    this.draw();
  }

  /** Shows a block where no rollout will come. */
  settle() {
    const { rollout, blocks } = this.#answers;
    if (rollout || !blocks || this.#layer !== "rollout") return;
    this.#layer = blocks.maps.length - 1;
    this.draw();
  }

  /** The map over the picture. */
  get #map() {
    const { rollout, blocks } = this.#answers;
    return this.#layer === "rollout" ? rollout?.maps[0] : blocks?.maps[this.#layer];
  }

  draw() {
    const { rollout, blocks } = this.#answers;
    const answer = rollout ?? blocks;
    const colours = table($("colours").value);
    const shared = $("scale").value === "shared" && blocks && Math.max(...blocks.maps.map(({ max }) => max));

    $("looked").hidden = !answer && this.picture.unseen;
    $("blind").hidden = !this.picture.unseen;
    $("looked-title").textContent =
      this.#layer === "rollout" ? "Rollout, all blocks" : `${capital(nameOf(this.#layer))} alone`;
    if (answer) $("tiles").style.setProperty("--aspect", this.picture.lay(answer.body.image));
    this.picture.tell(this.#map);
    this.#drawLayer(this.#layer !== "rollout" && shared, colours);

    $("blocks").hidden = !blocks;
    if (blocks) this.tiles.draw(blocks.maps, shared, colours);
    this.tiles.press(this.#layer);

    $("named").hidden = $("notes").hidden = $("again").hidden = !answer;
    $("labels").replaceChildren(...(answer?.body.labels ?? []).map(labelled));
    $("halves").hidden = answer?.body.model.family !== "vit";
    $("commands").textContent = [rollout, blocks].flatMap((known) => known?.command ?? []).join("\n");
    this.#tell();
  }

  /** Draws map and legend. shared: the end of the scale; false: the map's own maximum. */
  #drawLayer(shared, colours) {
    const map = this.#map;
    const view = $("view").querySelector(":checked").value;
    $("layer").hidden = $("legend").hidden = !map || view === "off";
    if (!map) return;
    const top = shared || map.max;
    const palette = view === "masked" ? shade : colours;
    paint($("layer"), map, top, palette);
    paintScale($("legend").querySelector("canvas"), palette);
    $("legend").style.setProperty("--even", top > 0 ? map.even / top : 0);
    $("even").textContent = `even share ${percent(map.even)}`;
    $("top").textContent = percent(top);
  }

  #hover(at) {
    this.#hovered = at;
    this.#tell();
  }

  /** Marks the cell in question everywhere, and says what is there. */
  #tell() {
    const map = this.#map;
    const { cell, block } = this.#hovered ?? { cell: this.#pinned, block: null };
    $("result").classList.toggle("marked", Boolean(cell && map));
    this.tiles.tell(map && cell);
    if (!map || !cell) {
      const hint = "Point at a cell or tap it, or walk through them with the arrow keys.";
      $("readout").textContent = map ? hint : "\u00a0";
      return;
    }
    $("result").style.setProperty("--row", cell.row);
    $("result").style.setProperty("--column", cell.column);
    const parts = [`${nameOf(this.#layer)} ${value(map, cell)}`];
    if (block !== null && block !== this.#layer)
      parts.push(`${nameOf(block)} ${value(this.#answers.blocks.maps[block], cell)}`);
    $("readout").textContent = `${capital(place(cell))}: ${parts.join("; ")}.`;
  }
}

/** A label and its probability, as an item of the list. */
function labelled({ label, score }) {
  const item = document.createElement("li");
  const [text, share] = [document.createElement("span"), document.createElement("span")];
  text.textContent = label;
  share.textContent = probability(score);
  item.append(text, share);
  item.style.setProperty("--share", score);
  return item;
}

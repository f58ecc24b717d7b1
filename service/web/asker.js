/** Requests in flight: only the latest of each route may answer, so that no late answer replaces a later one. */

import { curl, explain, Refusal } from "./api.js";
import { PatchMap } from "./maps.js";

export const ROUTES = ["rollout", "blocks"];

export class Asker {
  #latest = new Map();

  /** started(route); answered(route, answer); refused(route, refusal); settled(): nothing is in flight. */
  constructor(listeners) {
    this.listeners = listeners;
  }

  /** Whether a route's answer may still come. */
  awaits(route) {
    return this.#latest.has(route);
  }

  /** Forgets all requests in flight. */
  drop() {
    for (const request of this.#latest.values()) request.abort();
    this.#latest.clear();
  }

  async ask(route, options, file) {
    this.#latest.get(route)?.abort();
    const mine = new AbortController();
    this.#latest.set(route, mine);
    this.listeners.started(route);
    let tell;
    try {
      const { body, ms } = await explain(route, options, file, mine.signal);
      const grids = route === "blocks" ? body.blocks.grids : [body.rollout.grid];
      const maps = grids.map((grid) => new PatchMap(grid));
      const answer = { body, ms, maps, command: curl(route, options, file) };
      tell = () => this.listeners.answered(route, answer);
    } catch (error) {
      if (!mine.signal.aborted && !(error instanceof Refusal)) throw error;
      tell = () => this.listeners.refused(route, error);
    }
    if (mine.signal.aborted) return;
    this.#latest.delete(route);
    tell();
    if (this.#latest.size === 0) this.listeners.settled();
  }
}

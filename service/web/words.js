/** Numbers and sentences. */

const short = new Intl.NumberFormat("en", { minimumSignificantDigits: 2, maximumSignificantDigits: 2 });
const whole = new Intl.NumberFormat("en");

/** 0.0213 -> "2.1 %" */
export const percent = (share) => `${share ? short.format(100 * share) : 0}\u00a0%`;

/** A label's probability: 0.9123 -> "91.2 %" */
export const probability = (score) =>
  score < 0.0005 ? "<\u00a00.1\u00a0%" : `${(100 * score).toFixed(1)}\u00a0%`;

/** A cell's place, counted from 1. */
export const place = ({ row, column }) => `row ${row + 1}, column ${column + 1}`;

/** A cell's value in a map: "2.1 %, 5.8 ×" */
export const brief = (map, cell) => `${percent(map.at(cell))}, ${short.format(map.times(cell))}\u00a0×`;

/** The same as a sentence has it: "2.1 %, 5.8 × even" */
export const value = (map, cell) => `${brief(map, cell)} even`;

/** What a map is called. layer: "rollout", or a block's index. */
export const nameOf = (layer) => (layer === "rollout" ? "rollout" : `block ${layer + 1}`);

export const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** What a model is and is not, from its card. */
export function about(card) {
  const [height, width] = card.input_size;
  const knows =
    card.name === "shapes-tiny"
      ? "The small demonstration model that comes with this service. It learned from drawings, not from " +
        "photographs, and knows ten classes: striped, dotted, checkered, ringed, bricked, zigzag, scarlet, " +
        "golden, emerald and cobalt. Of a photograph it can say no more than which of these comes closest."
      : `Knows ${whole.format(card.classes)} classes and always answers with some of them, whatever the picture shows.`;
  const built = `It sees ${width} × ${height} pixels, through ${card.blocks} blocks of ${card.heads} heads.`;
  return `${knows} ${built} Weights: ${card.source}; licence: ${card.licence ?? "not stated"}.`;
}

/** One line for the status: who answered, what, and how fast. */
export function summary(answers) {
  const { model, labels } = (answers.rollout ?? answers.blocks).body;
  const best = `${model.name}: ${labels[0].label}, ${probability(labels[0].score)}.`;
  const peak = answers.rollout && ` The rollout is strongest at ${place(answers.rollout.maps[0].peak)}.`;
  const times = Object.values(answers).map((answer) => answer?.ms ?? 0);
  return `${best}${peak ?? ""} Answered in ${Math.round(Math.max(...times))} ms.`;
}

/** What went wrong, as one paragraph. */
export function complaint({ title, detail, status, retryAfter, requestId }) {
  const wait = retryAfter === null ? "" : ` It asks to wait ${retryAfter} s.`;
  const id = status >= 500 && requestId ? ` (Request ${requestId}.)` : "";
  return `${title}. ${detail}${wait}${id}`;
}

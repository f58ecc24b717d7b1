/** The service's HTTP interface: questions, answers, and refusals as one kind of error. */

const PATHS = { rollout: "attention/rollout", blocks: "attention/blocks" };
let key = "";

/** A request that got no answer. detail: what is wrong and the remedy. retryAfter: seconds, or null. */
export class Refusal extends Error {
  constructor(title, detail, status = 0, retryAfter = null, requestId = null) {
    super(title);
    Object.assign(this, { title, detail, status, retryAfter, requestId });
  }
}

/** The API key for every later request. It lives here and nowhere else: a reload forgets it. */
export function useKey(text) {
  key = text.trim();
}

/** The loaded models, the default one first; an empty list while they load. */
export async function models() {
  return (await ask("models")).body.models;
}

/** What a route ("rollout" or "blocks") says of a picture: the answer's JSON, and its milliseconds. */
export async function explain(route, options, file, signal) {
  const headers = { "Content-Type": typeOf(file) };
  return ask(pathOf(route, options), { method: "POST", headers, body: file, signal });
}

/** The command line that asks the same. A key is named in it, never written. */
export function curl(route, options, file) {
  const words = ["curl", "--data-binary", quoted(`@${file.name}`), "-H", quoted(`Content-Type: ${typeOf(file)}`)];
  if (key) words.push("-H", '"X-API-Key: $KEY"');
  return [...words, quoted(new URL(pathOf(route, options), document.baseURI).href)].join(" ");
}

async function ask(path, request = {}) {
  const headers = { Accept: "application/json", ...request.headers };
  if (key) headers["X-API-Key"] = key;
  let response, body;
  try {
    response = await fetch(path, { ...request, headers, cache: "no-store" });
    body = await response.json().catch(failUnlessSyntax);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Refusal("No answer", "The service can't be reached, or the connection broke off.");
  }
  if (response.ok && body) return { body, ms: totalOf(response.headers.get("Server-Timing")) };
  throw new Refusal(
    body?.title ?? `HTTP status ${response.status}`,
    body?.detail ?? "The answer is none that this page understands; a proxy may have sent it.",
    response.status,
    secondsOf(response.headers.get("Retry-After")),
    response.headers.get("X-Request-ID"),
  );
}

/** A body that is not JSON counts as none; one that broke off is an error. */
function failUnlessSyntax(error) {
  if (error instanceof SyntaxError) return null;
  throw error;
}

function pathOf(route, options) {
  return `${PATHS[route]}?${new URLSearchParams(options)}`;
}

function typeOf(file) {
  return file.type.startsWith("image/") ? file.type : "application/octet-stream";
}

function secondsOf(text) {
  return text !== null && /^\d+$/.test(text) ? Number(text) : null;
}

function totalOf(timing) {
  const found = /\btotal;dur=([\d.]+)/.exec(timing ?? "");
  return found && Number(found[1]);
}

/** A word as a POSIX shell reads it back unchanged. */
function quoted(word) {
  return `'${word.replaceAll("'", String.raw`'\''`)}'`;
}

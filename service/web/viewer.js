/** The viewer page: a picture goes to the service, and its answers are drawn and can be explored. */

import { models, Refusal, useKey } from "./api.js";
import { Asker, ROUTES } from "./asker.js";
import { Board } from "./board.js";
import { names } from "./colours.js";
import { listen } from "./input.js";
import { about, complaint, summary } from "./words.js";

const $ = (id) => document.getElementById(id);
const say = (words) => ($("status").textContent = words);

let cards = []; // the models that can explain something
let file = null; // the picture that is asked about
const failed = new Set(); // routes, or "models": what "Try again" asks again

$("colours").append(...names.map((name) => new Option(name, name)));
const board = new Board();
const asker = new Asker({
  started(route) {
    failed.delete(route);
    if (failed.size === 0) $("trouble").hidden = $("lock").hidden = true;
    $("result").setAttribute("aria-busy", "true");
    say(`Asking ${$("model").value}…`);
  },
  answered: (route, answer) => board.set(route, answer),
  refused(route, refusal) {
    board.set(route, null);
    refuse(route, refusal);
  },
  settled() {
    $("result").removeAttribute("aria-busy");
    board.settle();
    say(failed.size ? "" : summary(board.answers));
  },
});

const card = () => cards.find(({ name }) => name === $("model").value);

async function loadModels() {
  let loaded;
  try {
    loaded = await models();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refuse("models", error);
    return;
  }
  if (loaded.length === 0) {
    say("The service is loading its models…");
    setTimeout(loadModels, 1000);
    return;
  }
  cards = loaded.filter(({ explains }) => ROUTES.some((route) => explains.includes(route)));
  $("model").replaceChildren(...cards.map(({ name }) => new Option(name, name)));
  $("model").disabled = cards.length === 0;
  say(cards.length ? "" : "No model of this service can explain its answers.");
  useModel();
}

function useModel() {
  $("about").textContent = card() ? about(card()) : "";
  if (file) askAll();
}

function take(taken) {
  file = taken;
  board.picture.show(file);
  $("result").hidden = false;
  askAll();
}

/** Asks everything about the picture; what was known of an earlier one goes. */
function askAll() {
  asker.drop();
  board.clear();
  for (const route of ROUTES) failed.delete(route);
  for (const route of ROUTES) ask(route);
}

function ask(route) {
  if (!file || !card()?.explains.includes(route)) return;
  const model = $("model").value;
  const [head_fusion, discard_ratio] = [$("head_fusion").value, $("discard_ratio").value];
  const options = {
    rollout: { model, head_fusion, discard_ratio, grid: true },
    blocks: { model, grids: true, max_side: 1 },
  };
  asker.ask(route, options[route], file);
}

function refuse(what, refusal) {
  failed.add(what);
  say("");
  $("trouble").querySelector("p").textContent = complaint(refusal);
  $("trouble").querySelector("button").hidden = refusal.status >= 400 && refusal.status < 500;
  $("trouble").hidden = false;
  $("lock").hidden = refusal.status !== 401;
  if (refusal.status === 401) $("key").focus();
}

function tryAgain() {
  const again = [...failed];
  failed.clear();
  $("trouble").hidden = $("lock").hidden = true;
  for (const what of again) {
    if (what === "models") loadModels();
    else ask(what);
  }
}

function useEnteredKey(event) {
  event.preventDefault();
  useKey($("key").value);
  $("key").value = "";
  tryAgain();
}

async function copyCommands() {
  try {
    await navigator.clipboard.writeText($("commands").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("commands")); // no clipboard without HTTPS
    $("copy").textContent = "Selected: press Ctrl C";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
}

const showDiscarded = () => ($("discarded").textContent = `${Math.round(100 * $("discard_ratio").value)}\u00a0%`);
const showStrength = () => $("stage").style.setProperty("--strength", $("strength").value);

listen([$("file"), $("camera")], take, say);
$("ask").addEventListener("submit", (event) => event.preventDefault());
$("model").addEventListener("change", useModel);
for (const id of ["head_fusion", "discard_ratio"]) $(id).addEventListener("change", () => ask("rollout"));
for (const id of ["view", "colours", "scale"]) $(id).addEventListener("change", () => board.draw());
$("discard_ratio").addEventListener("input", showDiscarded);
$("strength").addEventListener("input", showStrength);
$("trouble").querySelector("button").addEventListener("click", tryAgain);
$("lock").addEventListener("submit", useEnteredKey);
$("copy").addEventListener("click", copyCommands);

showDiscarded(); // a reload keeps what controls showed
showStrength();
loadModels();

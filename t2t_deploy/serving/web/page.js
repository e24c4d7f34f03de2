// A picture in, the model's five best classes out. Nothing leaves the page.
import { decoded, prepared } from "./prepare.js";

const element = (id) => document.getElementById(id);
const MOST_THREADS = 4;
const TIMED_RUNS = 2;
// model: the one in use. waiting: the newest picture that was given while another was looked at.
let about, ort, threads, models = [], model, last, waiting = null, busy = false;

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

async function file(name, kind) {
  let answer;
  try {
    answer = await fetch(name);
  } catch {
    throw new Error(`${name} cannot be reached: is the server still there?`);
  }
  if (!answer.ok) throw new Error(`${name} is missing on the server (status ${answer.status}).`);
  return answer[kind]();
}

async function checked(bytes, one) {
  // browsers have the hash on https and on localhost only
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== one.sha256) throw new Error(`${one.file} is not the file that was packaged.`);
}

async function start() {
  try {
    about = await file("model.json", "json");
    document.title = about.name;
    element("name").textContent = about.name;
    showExamples();
    if (typeof WebAssembly !== "object")
      throw new Error("This browser has no WebAssembly, or it is switched off.");
    ort = await import(`./${about.runtime.script}`);
    const alone = !globalThis.crossOriginIsolated;
    threads = alone ? 1 : Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1);
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "fatal"; // errors are told on the page
    for (const one of about.models) models.push({ ...one, session: await loaded(one) });
    use(models[0]);
    element("threads").hidden = !alone;
    for (const button of document.querySelectorAll("button, input")) button.disabled = false;
    say("Ready: give it a picture.");
    if (waiting) classify(waiting);
  } catch (error) {
    say(`The model does not load. ${lineOf(error)}`, true);
  }
}

async function loaded(one) {
  const bytes = await file(one.file, "arrayBuffer");
  await checked(bytes, one);
  return ort.InferenceSession.create(new Uint8Array(bytes), {
    executionProviders: ["wasm"],
    logSeverityLevel: 4,
  });
}

const precisionOf = (one) => one.precision ?? "unknown precision";
const kindOf = (one) => `${precisionOf(one)}, ${(one.size_bytes / 1e6).toFixed(1)} MB`;

function use(one) {
  model = one;
  element("facts").textContent =
    `${kindOf(one)}, onnxruntime-web ${about.runtime.version} (WebAssembly), ` +
    `${threads} ${threads === 1 ? "thread" : "threads"}`;
}

const lineOf = (error) => String(error?.message ?? error).split("\n")[0];

// The newest of the pictures given while one is looked at, or while the model loads, comes next.
async function classify(blob) {
  closeCamera();
  waiting = blob;
  if (!model || busy) return;
  busy = true;
  element("result").setAttribute("aria-busy", "true");
  while (waiting) {
    last = waiting;
    waiting = null;
    say("Looking at the picture …");
    // the line above is painted before the work begins
    await new Promise((done) => setTimeout(done, 20));
    try {
      await look(last);
    } catch (error) {
      say(lineOf(error), true);
    }
  }
  busy = false;
  element("result").removeAttribute("aria-busy");
}

async function look(blob) {
  const begun = performance.now();
  let image;
  try {
    image = await decoded(blob, about.preparation);
  } catch {
    throw new Error("This is no picture that the browser can read; give a JPEG, PNG or WebP.");
  }
  const pixels = prepared(image, about.preparation);
  const seen = performance.now();
  if (models.length > 1 && !models[0].ms) await choose(pixels);
  const { outputs, ms } = await run(model, pixels);
  const shares = outputs[model.probabilities].data;
  const classes = outputs[model.indices].data;
  if (!shares.every(Number.isFinite)) throw new Error("The model gives no numbers for it.");
  show(image);
  list(shares, classes);
  element("time").textContent =
    `${ms.toFixed(0)} ms in the model, ${(seen - begun).toFixed(0)} ms to prepare`;
  element("time").dataset.ms = String(ms);
  say(`${nameOf(Number(classes[0]))}, ${percent(shares[0])}`);
}

async function run(one, pixels) {
  const begun = performance.now();
  const feeds = { [one.input]: new ort.Tensor("uint8", pixels, one.shape) };
  const outputs = await one.session.run(feeds);
  return { outputs, ms: performance.now() - begun };
}

// The faster model on the first picture: each runs once to warm up, then in turns.
async function choose(pixels) {
  const times = models.map(() => []);
  for (let round = 0; round <= TIMED_RUNS; round++)
    for (const [index, one] of models.entries()) times[index].push((await run(one, pixels)).ms);
  for (const [index, one] of models.entries()) one.ms = Math.min(...times[index].slice(1));
  use(models.reduce((best, one) => (one.ms < best.ms ? one : best)));
  const named = models.map((one) => `${precisionOf(one)} ${one.ms.toFixed(0)} ms`);
  element("why").textContent = `The faster on the first picture here: ${named.join(", ")}.`;
  element("model").replaceChildren(
    ...models.map((one) => new Option(kindOf(one))),
  );
  element("model").selectedIndex = models.indexOf(model);
  element("model").disabled = false;
  element("models").hidden = false;
}

const nameOf = (index) => about.labels?.[index] ?? `class ${index}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function list(shares, classes) {
  element("classes").replaceChildren(
    ...Array.from(shares, (share, rank) => {
      const row = document.createElement("li");
      const index = Number(classes[rank]);
      Object.assign(row.dataset, { index, share });
      const [name, figure, bar] = ["name", "figure", "bar"].map((kind) => {
        const part = document.createElement("span");
        part.className = kind;
        return part;
      });
      name.textContent = nameOf(index);
      figure.textContent = percent(share);
      bar.style.setProperty("--share", String(share));
      row.append(name, figure, bar);
      return row;
    }),
  );
}

function show(image) {
  const canvas = element("picture");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.hidden = false;
  element("hint").hidden = true;
}

function showExamples() {
  element("examples").replaceChildren(
    ...about.examples.map((path) => {
      const [button, picture] = [document.createElement("button"), document.createElement("img")];
      const address = path.split("/").map(encodeURIComponent).join("/");
      picture.src = address;
      picture.alt = `Example ${path.split("/").pop().replace(/\.[^.]*$/, "")}`;
      button.type = "button";
      button.disabled = true;
      button.append(picture);
      button.addEventListener("click", async () => {
        try {
          classify(await file(address, "blob"));
        } catch (error) {
          say(lineOf(error), true);
        }
      });
      return button;
    }),
  );
}

const NO_CAMERA = {
  NotAllowedError: "The camera was not allowed: allow it beside the page's address.",
  NotFoundError: "No camera was found on this machine.",
  NotReadableError: "The camera is in use elsewhere.",
};

async function camera() {
  const video = element("video");
  if (video.srcObject) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(classify);
    return;
  }
  if (!navigator.mediaDevices) return say("A camera needs https or localhost.", true);
  element("camera").disabled = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
    video.hidden = false;
    await video.play();
    element("camera").textContent = "Take the picture";
    say("The camera is on; nothing is sent anywhere.");
  } catch (error) {
    closeCamera();
    say(NO_CAMERA[error.name] ?? `The camera cannot be used: ${lineOf(error)}`, true);
  } finally {
    element("camera").disabled = false;
  }
}

function closeCamera() {
  const video = element("video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  element("camera").textContent = "Camera";
}

const pictureIn = (files) => [...(files ?? [])].find((one) => one);

element("choose").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", (event) => {
  const chosen = pictureIn(event.target.files);
  if (chosen) classify(chosen);
  event.target.value = "";
});
element("camera").addEventListener("click", camera);
element("model").addEventListener("change", (event) => {
  use(models[event.target.selectedIndex]);
  classify(last);
});
addEventListener("paste", (event) => {
  const pasted = pictureIn(event.clipboardData?.files);
  if (pasted) classify(pasted);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    const dropped = kind === "drop" && pictureIn(event.dataTransfer?.files);
    if (dropped) classify(dropped);
  });
}
start();

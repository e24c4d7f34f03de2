// A picture in, the model's five best classes out. Nothing leaves the page.
import { decoded, prepared } from "./prepare.js";

const element = (id) => document.getElementById(id);
const MOST_THREADS = 4;
let about, session, ort, threads, busy = false;

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

async function checked(bytes) {
  // browsers have the hash on https and on localhost only
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== about.sha256) throw new Error("model.onnx is not the file that was packaged.");
}

async function start() {
  try {
    about = await file("model.json", "json");
    document.title = about.name;
    element("name").textContent = about.name;
    showExamples();
    const bytes = await file("model.onnx", "arrayBuffer");
    await checked(bytes);
    ort = await import(`./${about.runtime.script}`);
    const alone = !globalThis.crossOriginIsolated;
    threads = alone ? 1 : Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1);
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "fatal"; // errors are told on the page
    session = await ort.InferenceSession.create(new Uint8Array(bytes), {
      executionProviders: ["wasm"],
      logSeverityLevel: 4,
    });
    element("facts").textContent =
      `${about.precision}, ${(about.size_bytes / 1e6).toFixed(1)} MB, ` +
      `onnxruntime-web ${about.runtime.version} (WebAssembly), ` +
      `${threads} ${threads === 1 ? "thread" : "threads"}`;
    element("threads").hidden = !alone;
    for (const button of document.querySelectorAll("button, input")) button.disabled = false;
    say("Ready: give it a picture.");
  } catch (error) {
    say(`The model does not load. ${lineOf(error)}`, true);
  }
}

const lineOf = (error) => String(error?.message ?? error).split("\n")[0];

async function classify(blob) {
  if (!session || busy) return;
  busy = true;
  element("result").setAttribute("aria-busy", "true");
  say("Looking at the picture …");
  try {
    // the line above is painted before the work begins
    await new Promise((done) => setTimeout(done, 20));
    const begun = performance.now();
    let image;
    try {
      image = await decoded(blob, about.preparation);
    } catch {
      throw new Error("This is no picture that the browser can read; give a JPEG, PNG or WebP.");
    }
    const pixels = prepared(image, about.preparation);
    const seen = performance.now();
    const feeds = { [about.input]: new ort.Tensor("uint8", pixels, about.shape) };
    const outputs = await session.run(feeds);
    const ended = performance.now();
    const shares = outputs[about.probabilities].data;
    const classes = outputs[about.indices].data;
    if (!shares.every(Number.isFinite)) throw new Error("The model gives no numbers for it.");
    show(image);
    list(shares, classes);
    const [model, preparation] = [ended - seen, seen - begun].map((time) => time.toFixed(0));
    element("time").textContent = `${model} ms in the model, ${preparation} ms to prepare`;
    element("time").dataset.ms = String(ended - seen);
    say(`${nameOf(Number(classes[0]))}, ${percent(shares[0])}`);
  } catch (error) {
    say(lineOf(error), true);
  } finally {
    busy = false;
    element("result").removeAttribute("aria-busy");
  }
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

async function camera() {
  const video = element("video");
  if (video.srcObject) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    closeCamera();
    canvas.toBlob(classify);
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment" },
    });
    video.hidden = false;
    await video.play();
    element("camera").textContent = "Take the picture";
    say("The camera is on; nothing is sent anywhere.");
  } catch {
    closeCamera();
    say("No camera can be used here: it needs https or localhost, and your permission.", true);
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

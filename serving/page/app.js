"use strict";
// Pictures come over the WebSocket (the server's source), or go to POST /v1/segment (a photo, this device's camera).

const COLOURS = ["#ff3b6b", "#2f8cff", "#ffb020", "#1fc16b", "#a664ff", "#12c2d0", "#ff7a1a", "#f052d8"];
const KEPT = "lavt-serve";
const [WEBCAM_SIDE, PHOTO_SIDE] = [960, 4096]; // larger pictures are reduced
const $ = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const [view, stage, banner] = [$("view"), $("stage"), $("banner")];
const paint = view.getContext("2d");
const shade = document.createElement("canvas");

let chips = []; // {text, colour, item}
let said = { ready: [], problems: {}, source_problem: null }; // by the server, of the sentences
let draws = { fill: true, outline: true, labels: true };
let info = null, informed;
const knowsLimits = new Promise((resolve) => { informed = resolve; });
let socket = null;
let owed = 0; // frames that are not acknowledged: while none is wanted, the server sends none
let mode = null; // live, photo, webcam
let frozen = false;
let shown = null; // {bitmap, width, height, results}
let photo = null; // {file, bitmap}
let camera = null;
let asked = 0;
let inOrder = Promise.resolve();
let lastSpoken = 0;
const times = [];

// ---- masks

function runsOf(counts) {
  const runs = [];
  for (let i = 0; i < counts.length;) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function maskOf({ size: [height, width], counts }) {
  const mask = new Uint8Array(width * height);
  let x = 0, y = 0;
  runsOf(counts).forEach((run, i) => {
    for (; run > 0; run--) {
      if (i & 1) mask[y * width + x] = 1;
      if (++y === height) { y = 0; x++; }
    }
  });
  return mask;
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function shadeMask(pixels, result, colour, width, height) {
  result.mask ??= maskOf(result.rle);
  const [red, green, blue] = rgb(colour);
  const solid = (opacity) => ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const [inside, border] = [solid(draws.fill ? Math.round(2.55 * $("opacity").value) : 0), solid(255)];
  const [left, top, wide, high] = result.box;
  const edge = Math.max(1, Math.round(2 / shownScale(width, height)));
  const within = (x, y) => x < 0 || y < 0 || x >= width || y >= height || result.mask[y * width + x];
  for (let y = top; y < top + high; y++) {
    for (let x = left; x < left + wide; x++) {
      if (!result.mask[y * width + x]) continue;
      const middle = within(x - edge, y) && within(x + edge, y) && within(x, y - edge) && within(x, y + edge);
      pixels[y * width + x] = draws.outline && !middle ? border : inside;
    }
  }
}

const shownScale = (width, height) => Math.min(stage.clientWidth / width, stage.clientHeight / height);

function drawLabel(result, colour, scale) {
  const size = Math.round(13 / Math.min(1.4, shownScale(view.width, view.height)));
  paint.font = `600 ${size}px system-ui, sans-serif`;
  const text = result.sentence.length > 42 ? `${result.sentence.slice(0, 40)}…` : result.sentence;
  const [wide, high] = [paint.measureText(text).width + size, size * 1.6];
  const x = Math.max(0, Math.min(result.box[0] * scale, view.width - wide));
  const y = Math.max(0, result.box[1] * scale - high - size * 0.3);
  paint.fillStyle = colour;
  paint.beginPath();
  paint.roundRect(x, y, wide, high, high / 3);
  paint.fill();
  const [red, green, blue] = rgb(colour);
  paint.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#16181d" : "#fff";
  paint.textBaseline = "middle";
  paint.fillText(text, x + size / 2, y + high / 2 + 1);
}

function draw() {
  if (!shown) return;
  const { bitmap, width, height } = shown;
  const scale = Math.min(4, Math.max(1, Math.round(1280 / width))); // so that outlines and labels are sharp
  if (view.width !== width * scale || view.height !== height * scale) {
    [view.width, view.height] = [width * scale, height * scale];
  }
  paint.drawImage(bitmap, 0, 0, view.width, view.height);
  const visible = shown.results.filter((one) => one.box && colourOf(one.sentence));
  if (visible.length) {
    [shade.width, shade.height] = [width, height];
    const data = new ImageData(width, height);
    const pixels = new Uint32Array(data.data.buffer);
    for (const result of visible) shadeMask(pixels, result, colourOf(result.sentence), width, height);
    shade.getContext("2d").putImageData(data, 0, 0);
    paint.drawImage(shade, 0, 0, view.width, view.height);
    if (draws.labels) for (const result of visible) drawLabel(result, colourOf(result.sentence), scale);
  }
  speak();
}

function speak() {
  if (performance.now() - lastSpoken < 2000) return;
  lastSpoken = performance.now();
  const parts = shown.results.map((one) => `${one.sentence}: ${one.box ? shareOf(one) : "not found"}`);
  view.setAttribute("aria-label", parts.length ? `Picture with masks. ${parts.join("; ")}` : "Picture without masks");
}

const shareOf = (one) => `${((100 * one.area) / (one.rle.size[0] * one.rle.size[1])).toFixed(1)} %`;

function present(bitmap, width, height, results, figures) {
  if (shown && shown.bitmap !== bitmap && shown.bitmap !== photo?.bitmap) shown.bitmap.close();
  shown = { bitmap, width, height, results };
  $("empty").hidden = true;
  $("save-picture").disabled = $("save-coco").disabled = false;
  stage.style.setProperty("--shape", `${width} / ${height}`);
  const now = performance.now();
  times.push(now);
  if (times.length > 30) times.shift();
  const rate = (1000 * (times.length - 1)) / (now - times[0]);
  $("fps").textContent = mode === "photo" || frozen || !isFinite(rate) ? "–" : rate.toFixed(1);
  $("model-ms").textContent = figures ? `${figures.model_ms.toFixed(0)} ms` : "–";
  $("total-ms").textContent = figures ? `${figures.total_ms.toFixed(0)} ms` : "–";
  $("size").textContent = `${width}×${height}`;
  showScores();
  draw();
}

// ---- sentences

const colourOf = (text) => chips.find((chip) => chip.text === text)?.colour;

function addChip(text, colour) {
  const item = $("chip").content.firstElementChild.cloneNode(true);
  const chip = { text, item, colour: colour ?? COLOURS.find((one) => chips.every((other) => other.colour !== one)) ?? COLOURS[0] };
  item.querySelector(".swatch").style.background = chip.colour;
  const field = item.querySelector(".text");
  field.value = text;
  field.addEventListener("change", () => { chip.text = field.value.trim(); sentencesChanged(); });
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); field.blur(); } });
  item.querySelector(".remove").addEventListener("click", () => {
    chips = chips.filter((other) => other !== chip);
    item.remove();
    sentencesChanged();
    $("sentence").focus();
  });
  item.querySelector(".save").addEventListener("click", () => saveMask(chip));
  chips.push(chip);
  $("chips").append(item);
}

function sentencesChanged() {
  keep();
  for (const chip of chips) {
    chip.item.querySelector(".remove").setAttribute("aria-label", `Remove ${chip.text}`);
    chip.item.querySelector(".save").setAttribute("aria-label", `Save the mask of ${chip.text}`);
  }
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ sentences: chips.map((chip) => chip.text) }));
  showScores();
  draw();
}

function takeState(state) {
  said = state;
  for (const chip of chips) {
    const problem = said.problems[chip.text] ?? "";
    chip.item.querySelector(".problem").textContent = problem;
    chip.item.classList.toggle("refused", Boolean(problem) && !said.ready.includes(chip.text));
    chip.item.classList.toggle("warned", Boolean(problem) && said.ready.includes(chip.text));
  }
  if (mode === "live") complain(said.source_problem);
  if (mode === "photo" ? photo : frozen && shown) segmentStill();
}

function showScores() {
  for (const chip of chips) {
    const result = shown?.results.find((one) => one.sentence === chip.text);
    const score = chip.item.querySelector(".score");
    score.textContent = !result ? "" : result.box ? result.score.toFixed(2) : "not found";
    score.title = result?.box ? `score; ${shareOf(result)} of the picture` : "";
  }
}

// ---- the server

async function connect() {
  try {
    const answer = await fetch("/v1/info");
    if (answer.status === 401) { $("login").showModal(); return; }
    if (!answer.ok) throw new Error((await answer.json()).error);
    showInfo(await answer.json());
  } catch { return lost(); }
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/live`);
  socket.binaryType = "arraybuffer";
  owed = 0;
  socket.onopen = () => { link("up", "connected"); sentencesChanged(); };
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") takeState(JSON.parse(data));
    else inOrder = inOrder.then(() => takeFrame(data)).catch((error) => complain(error.message));
  };
  socket.onclose = () => lost($("link").dataset.state === "up" ? undefined : "too many pages are open: close one");
}

async function lost(text = "reconnecting") {
  link("down", text);
  await wait(800);
  connect();
}

function link(state, text) {
  $("link").dataset.state = state;
  $("link").textContent = text;
}

function showInfo(found) {
  info = found;
  informed();
  $("device").textContent = info.device === "cuda" ? "GPU (CUDA)" : "CPU";
  $("precision").textContent = info.precision.toUpperCase();
  $("engine").textContent = $("engine").title = `${info.runtime} · ${info.files.at(-1)}`;
  const { height, width } = info.manifest.input;
  $("model").textContent = `${info.manifest.model.variant ?? "lavt"} ${info.manifest.model.swin ?? ""} · ${height}×${width}`;
  if (info.manifest.model.swin === "demo") $("sentence").placeholder = "the leftmost circle";
  $("live-choice").hidden = !info.source;
  $("live-name").textContent = { camera: "Camera", video: "Video", folder: "Folder" }[info.source] ?? "";
  if (!mode || (mode === "live" && !info.source)) setMode(info.source ? "live" : "photo");
}

async function takeFrame(data) {
  owed++;
  if (!wantsFrames()) return;
  const length = new DataView(data).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
  if (wantsFrames()) present(bitmap, head.width, head.height, head.results, head);
  settle();
}

const wantsFrames = () => mode === "live" && !frozen && !document.hidden;

function settle() {
  if (!wantsFrames()) return;
  for (; owed > 0; owed--) if (socket?.readyState === WebSocket.OPEN) socket.send('{"ack": 1}');
}

async function ask(blob) {
  const sentences = chips.map((chip) => chip.text).filter((text) => said.ready.includes(text));
  if (!sentences.length) return { results: [], latency: null };
  const form = new FormData();
  form.append("image", blob, "image");
  for (const text of sentences) form.append("sentence", text);
  const begun = performance.now();
  const answer = await fetch("/v1/segment", { method: "POST", body: form });
  if (answer.status === 503) {
    await wait(1000 * Number(answer.headers.get("Retry-After") ?? 1));
    return ask(blob);
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  found.latency.total_ms = performance.now() - begun;
  return found;
}

// ---- photos and this device's camera

async function takePhoto(file) {
  if (!file) return;
  await knowsLimits;
  try {
    photo = { file, bitmap: await createImageBitmap(file) };
    const { width, height } = photo.bitmap;
    if (Math.max(width, height) > PHOTO_SIDE || file.size > info.limits.upload - 4096) photo = await stillOf(photo.bitmap, width, height, PHOTO_SIDE);
  } catch {
    photo = null;
  }
  setMode("photo");
  if (photo) present(photo.bitmap, photo.bitmap.width, photo.bitmap.height, [], null);
  else complain(`${file.name || "what was pasted"} is not an image that this browser shows`);
}

async function stillOf(picture, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const size = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
  const canvas = Object.assign(document.createElement("canvas"), size);
  canvas.getContext("2d").drawImage(picture, 0, 0, size.width, size.height);
  const bitmap = await createImageBitmap(canvas);
  return { bitmap, file: await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9)) };
}

async function segmentStill() {
  const turn = ++asked;
  try {
    const { file, bitmap } = mode === "photo" ? photo : await stillOf(shown.bitmap, shown.width, shown.height, PHOTO_SIDE);
    const found = await ask(file);
    if (turn !== asked) return;
    const { width, height } = found.image ?? bitmap;
    complain(null);
    present(bitmap, width, height, found.results, found.latency);
  } catch (error) {
    if (turn === asked) complain(error.message);
  }
}

async function runWebcam() {
  if (!navigator.mediaDevices) return complain("browsers give their camera only to https and localhost pages: forward the port with ssh -L");
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (error) { return complain(`no camera: ${error.message}`); }
  const [video, mine] = [document.createElement("video"), camera];
  [video.srcObject, video.muted, video.playsInline] = [mine, true, true];
  await video.play();
  while (camera === mine) {
    if (frozen || document.hidden) { await wait(100); continue; }
    const { file, bitmap } = await stillOf(video, video.videoWidth, video.videoHeight, WEBCAM_SIDE);
    try {
      const found = await ask(file);
      if (camera !== mine) return;
      complain(null);
      if (!frozen) present(bitmap, bitmap.width, bitmap.height, found.results, found.latency);
    } catch (error) { complain(error.message); await wait(1000); }
    await new Promise(requestAnimationFrame);
  }
}

function setMode(next) {
  mode = next;
  document.querySelector(`input[name="source"][value="${mode}"]`).checked = true;
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  setFrozen(false);
  times.length = 0;
  complain(mode === "live" ? said.source_problem : null);
  $("freeze").disabled = mode === "photo";
  $("empty").hidden = mode === "photo" && Boolean(photo);
  $("choose").hidden = mode !== "photo";
  const empty = { live: ["Waiting for the first picture", ""], webcam: ["Starting this device's camera", ""], photo: ["Drop or paste a photo", "or choose one from this device"] }[mode];
  $("empty-text").replaceChildren(Object.assign(document.createElement("b"), { textContent: empty[0] }), document.createElement("br"), empty[1]);
  if (mode === "photo" && photo) segmentStill();
  if (mode === "webcam") runWebcam();
}

function setFrozen(on) {
  frozen = on;
  asked++; // what is on its way is of another picture
  $("freeze").setAttribute("aria-pressed", frozen);
  $("freeze").textContent = frozen ? "Resume" : "Freeze";
  $("badge").hidden = false;
  $("badge").dataset.kind = frozen || mode === "photo" ? "still" : "live";
  $("badge").textContent = mode === "photo" ? "photo" : frozen ? "frozen" : "live";
  settle();
}

function complain(text) {
  banner.hidden = !text;
  banner.textContent = text ?? "";
}

// ---- saving

function save(blob, name) {
  const anchor = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
}

function saveMask(chip) {
  const result = shown?.results.find((one) => one.sentence === chip.text);
  if (!result) return complain("it has no mask yet");
  const [height, width] = result.rle.size;
  const data = new ImageData(width, height);
  const pixels = new Uint32Array(data.data.buffer);
  maskOf(result.rle).forEach((bit, i) => { pixels[i] = bit ? 0xffffffff : 0xff000000; });
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").putImageData(data, 0, 0);
  canvas.toBlob((blob) => save(blob, `${chip.text.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}.png`));
}

function saveCoco() {
  if (!shown) return;
  const annotations = shown.results.map(({ sentence, rle, box, area, score }) => ({ sentence, segmentation: rle, bbox: box, area, score }));
  const file = { image: { width: shown.width, height: shown.height }, annotations };
  save(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }), "masks.coco.json");
}

const savePicture = () => shown && view.toBlob((blob) => save(blob, "picture.png"));

function keep() {
  const state = { chips: chips.map(({ text, colour }) => ({ text, colour })), draws, opacity: $("opacity").value };
  try { localStorage.setItem(KEPT, JSON.stringify(state)); } catch { /* a browser that keeps nothing */ }
}

function restore() {
  try {
    const state = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    for (const { text, colour } of state.chips ?? []) addChip(String(text), COLOURS.includes(colour) ? colour : undefined);
    draws = { ...draws, ...state.draws };
    $("opacity").value = state.opacity ?? 45;
  } catch { /* what an older page kept */ }
}

function showDrawing() {
  for (const button of document.querySelectorAll("[data-draw]")) button.setAttribute("aria-pressed", Boolean(draws[button.dataset.draw]));
  $("opacity-value").textContent = `${$("opacity").value} %`;
  keep();
  draw();
}

// ---- what the user does

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("sentence").value.trim();
  const twice = chips.some((chip) => chip.text === text);
  $("hint").textContent = !text ? `Type what to find, such as: ${$("sentence").placeholder}` : twice ? "It is in the list already" : "";
  if (!text || twice) return;
  addChip(text);
  $("sentence").value = "";
  sentencesChanged();
});
$("sentence").addEventListener("input", () => { $("hint").textContent = ""; });
for (const button of document.querySelectorAll("[data-draw]")) {
  button.addEventListener("click", () => { draws[button.dataset.draw] = !draws[button.dataset.draw]; showDrawing(); });
}
$("opacity").addEventListener("input", showDrawing);
for (const choice of document.querySelectorAll('input[name="source"]')) {
  choice.addEventListener("change", () => { setMode(choice.value); if (mode === "photo" && !photo) $("file").click(); });
}
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { takePhoto($("file").files[0]); $("file").value = ""; });
$("freeze").addEventListener("click", () => setFrozen(!frozen));
$("save-picture").addEventListener("click", savePicture);
$("save-coco").addEventListener("click", saveCoco);
document.addEventListener("visibilitychange", settle);
addEventListener("resize", draw);
document.addEventListener("paste", (event) => takePhoto([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("drop"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) stage.classList.remove("drop"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("drop");
  takePhoto(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text], input[type=password]")) return;
  if (event.key === "/") { event.preventDefault(); $("sentence").focus(); }
  if (event.key === " " && !event.target.closest("button, input, label") && mode !== "photo") { event.preventDefault(); setFrozen(!frozen); }
  if (event.key.toLowerCase() === "s") savePicture();
});
$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/v1/login", { method: "POST", body: JSON.stringify({ token: $("token").value }) });
  $("login-problem").textContent = answer.ok ? "" : (await answer.json()).error;
  if (!answer.ok) return;
  $("token").value = "";
  $("login").close();
  connect();
});

restore();
showDrawing();
connect();

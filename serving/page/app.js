// The page of the service: plain JavaScript, no build step, no request to another host.

const $ = (id) => document.getElementById(id);
const state = { image: null, name: "image", stream: null, run: null, bundles: [], urls: [] };

class Refused extends Error {}

/** Call the service; a refusal becomes an Error with the service's own words. */
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const again = response.headers.get("Retry-After");
  const when = response.status === 503 && again ? ` Try again in ${again} s.` : "";
  throw new Refused(`${problem.detail || response.statusText || response.status}${when}`);
}

const address = (path, values) => {
  const query = new URLSearchParams(
    Object.entries(values).filter(([, value]) => value !== null && value !== undefined));
  return `${path}?${query}`;
};

function show(element, visible) { element.hidden = !visible; }

function fail(error) {
  if (error.name === "AbortError") return;
  const text = error instanceof Refused ? error.message : `Unexpected: ${error.message}`;
  $("problem").textContent = text[0].toUpperCase() + text.slice(1);
  show($("problem"), true);
  $("status").textContent = "";
}

function objectUrl(blob) {
  const url = URL.createObjectURL(blob);
  state.urls.push(url);
  return url;
}

function timings(response) {
  const result = {};
  for (const part of (response.headers.get("Server-Timing") || "").split(",")) {
    const [name, duration] = part.trim().split(";dur=");
    if (duration) result[name] = Number(duration);
  }
  return result;
}

const current = () => state.bundles.find((bundle) => bundle.name === $("bundle").value) || state.bundles[0];

function settings() {
  const bundle = current();
  const all = bundle.schedules[bundle.schedule];
  const passes = Number($("passes").value);
  return { steps: Number($("steps").value), passes: passes < all ? passes : null, bundle: bundle.name };
}

function describeControls() {
  const bundle = current();
  const all = bundle.schedules[bundle.schedule];
  $("passes").max = all;
  $("passes-value").textContent = `${$("passes").value} of ${all}`;
  $("steps-value").textContent = $("steps").value;
}

async function begin(file) {
  for (const url of state.urls.splice(0)) URL.revokeObjectURL(url);
  state.name = file.name.replace(/\.[^.]*$/, "") || "image";
  const head = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  const isStream = head[0] === 0x50 && head[1] === 0xc0;
  state.image = isStream ? null : file;
  state.stream = isStream ? file : null;
  $("passes").disabled = $("bundle").disabled = isStream;  // it has been encoded already
  $("file").value = "";  // so that the same file can be chosen again
  show($("result"), false);
  await update();
}

/** Encode (unless a stream was given), decode, and show. A newer run ends an older one. */
async function update() {
  if (!state.image && !state.stream) return;
  state.run?.abort();
  const run = (state.run = new AbortController());
  const signal = run.signal;
  show($("problem"), false); show($("growth"), false); show($("others"), false);
  const chosen = settings();
  try {
    let encodeTimes = {};
    if (state.image) {
      $("status").textContent = "Encoding…";
      const encoded = await call(
        address("v1/encode", { bundle: chosen.bundle, passes: chosen.passes }),
        { method: "POST", body: state.image, signal, headers: { "Content-Type": "application/octet-stream" } });
      encodeTimes = timings(encoded);
      state.stream = await encoded.blob();
    }
    $("status").textContent = "Decoding…";
    const decoded = await call(address("v1/decode", { steps: chosen.steps, format: "png" }),
      { method: "POST", body: state.stream, signal, headers: { "Content-Type": "application/octet-stream" } });
    const width = Number(decoded.headers.get("X-Percoedge-Width"));
    const height = Number(decoded.headers.get("X-Percoedge-Height"));
    const image = await decoded.blob();
    $("decoded").src = objectUrl(image);
    $("decoded").alt = `decoded from ${state.stream.size} bytes`;
    if (state.image) $("original").src = objectUrl(state.image);
    $("compare").classList.toggle("only-decoded", !state.image);
    const bpp = (8 * state.stream.size) / (width * height);
    const times = state.image ? ` · the file was ${state.image.size.toLocaleString("en")} bytes` : "";
    $("figures").textContent =
      `${width}×${height} px · ${state.stream.size} bytes · ${bpp.toFixed(4)} bits per pixel${times}`;
    $("download").href = objectUrl(state.stream);
    $("download").download = `${state.name}.pco`;
    tabulate(encodeTimes, timings(decoded));
    show($("classical"), Boolean(state.image));
    show($("result"), true);
    $("status").textContent = "Done.";
  } catch (error) {
    fail(error);
  }
}

function tabulate(encode, decode) {
  const cell = (text) => Object.assign(document.createElement("td"), { textContent: text });
  const number = (value) => (value === undefined ? "" : value.toFixed(1));
  const names = [...new Set([...Object.keys(encode), ...Object.keys(decode)])];
  $("stages").replaceChildren(...names.map((name) => {
    const row = document.createElement("tr");
    row.append(cell(name.replaceAll("-", " ")), cell(number(encode[name])), cell(number(decode[name])));
    return row;
  }));
}

function figure(source, caption) {
  const element = document.createElement("figure");
  const image = Object.assign(document.createElement("img"), { src: source, alt: caption });
  element.append(image, Object.assign(document.createElement("figcaption"), { textContent: caption }));
  return element;
}

/** Read server-sent events of a POST, which EventSource cannot make. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const fields = Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: (.*)/s)));
      yield { name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

async function grow() {
  const strip = $("passes-strip");
  strip.replaceChildren(); show($("growth"), true); show($("problem"), false);
  $("grow").disabled = true;
  try {
    const response = await call(address("v1/progressive", { steps: settings().steps, format: "webp" }),
      { method: "POST", body: state.stream, headers: { "Content-Type": "application/octet-stream" }, signal: state.run?.signal });
    for await (const event of eventsOf(response)) {
      if (event.name === "problem") throw new Refused(event.data.detail);
      strip.append(figure(event.data.image, `pass ${event.data.pass} of ${event.data.of}`));
      $("status").textContent = `Pass ${event.data.pass} of ${event.data.of}.`;
    }
    $("status").textContent = "Done.";
  } catch (error) {
    fail(error);
  } finally {
    $("grow").disabled = false;
  }
}

async function compareClassical() {
  const strip = $("others-strip");
  strip.replaceChildren(figure($("decoded").src, `percoedge: ${state.stream.size} bytes`));
  show($("others"), true); show($("problem"), false);
  $("classical").disabled = true;
  try {
    for (const [codec, name] of [["jpeg", "JPEG"], ["webp", "WebP"], ["avif", "AVIF"]]) {
      $("status").textContent = `Encoding as ${name}…`;
      const response = await call(address("v1/classical", { codec, bytes: state.stream.size }),
        { method: "POST", body: state.image, headers: { "Content-Type": "application/octet-stream" }, signal: state.run?.signal });
      const size = Number(response.headers.get("X-Percoedge-Bytes"));
      const least = size > state.stream.size ? ", the least it can" : "";
      strip.append(figure(objectUrl(await response.blob()), `${name}: ${size} bytes${least}`));
    }
    $("status").textContent = "Done.";
  } catch (error) {
    fail(error);
  } finally {
    $("classical").disabled = false;
  }
}

async function beginSample(sample) {
  const blob = await (await call(sample.file)).blob();
  await begin(new File([blob], sample.file.split("/").pop()));
}

async function start() {
  state.bundles = (await (await call("v1/bundles")).json()).bundles;
  $("bundle").replaceChildren(...state.bundles.map((b) => new Option(b.name, b.name)));
  $("passes").max = $("passes").value = state.bundles[0].schedules[state.bundles[0].schedule];
  $("steps").value = state.bundles[0].steps;
  describeControls();
  const samples = await (await call("page/samples.json")).json();
  $("samples").append(...samples.map((sample) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(Object.assign(document.createElement("img"), { src: sample.file, alt: sample.name }));
    button.addEventListener("click", () => beginSample(sample).catch(fail));
    return button;
  }));
  $("credits").replaceChildren(...samples.flatMap((sample, index) => [
    index ? "; " : "",
    `${sample.name} by `,
    Object.assign(document.createElement("a"), { href: sample.source, textContent: sample.credit }),
    ` (${sample.licence})`,
  ]));
}

$("file").addEventListener("change", (event) => event.target.files[0] && begin(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) begin(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => event.clipboardData.files[0] && begin(event.clipboardData.files[0]));
$("slider").addEventListener("input", () => $("compare").style.setProperty("--cut", `${$("slider").value}%`));
for (const id of ["bundle", "passes", "steps"]) {
  $(id).addEventListener("input", describeControls);
  $(id).addEventListener("change", update);
}
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("grow").addEventListener("click", grow);
$("classical").addEventListener("click", compareClassical);
start().catch(fail);

// Run the cases through ONNX Runtime's WebAssembly kernels in Node.js.
//
//   node run_wasm.mjs FOLDER_WITH_NODE_MODULES ENTROPY_ONNX FOLDER_WITH_CASES
//
// Prints its tally as one line of JSON, of the fields of cases.Tally.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";

const [modules, model, folder] = process.argv.slice(2);
const ort = createRequire(join(modules, "x.js"))("onnxruntime-web");
const THREADS = 2;
const began = performance.now();
const tally = {
  target: `WebAssembly, onnxruntime-web ${ort.env.versions.web}, Node ${process.versions.node}: ${basename(model)}`,
  configurations: 0, runs: 0, grids: 0, integers: 0, streams: 0, seconds: 0, wrong: [],
};

const blob = readFileSync(join(folder, "cases.bin"));
const integers = ({ offset, shape }) => {
  const count = shape.reduce((product, size) => product * size, 1);
  return Int32Array.from({ length: count }, (_, i) => blob.readInt32LE(offset + 4 * i));
};
const cases = JSON.parse(readFileSync(join(folder, "cases.json"), "utf8"));

// Batches of every size, as cases.batches makes them.
const batches = (slots) =>
  Array.from({ length: slots * slots }, (_, i) =>
    Array.from({ length: Math.floor(i / slots) + 1 }, (_, place) => ((i % slots) + place) % slots));

async function compare(session, { name, tokens, positions, digests }, level) {
  const [slots, height, width] = tokens.shape;
  const grids = integers(tokens);
  const cells = height * width;
  const where = new ort.Tensor("int32", integers(positions), positions.shape);
  for (const chosen of batches(slots)) {
    const batch = new Int32Array(chosen.length * cells);
    chosen.forEach((slot, place) =>
      batch.set(grids.subarray(slot * cells, (slot + 1) * cells), place * cells));
    const feeds = {
      tokens: new ort.Tensor("int32", batch, [chosen.length, height, width]),
      positions: where,
    };
    const { data } = (await session.run(feeds)).weights;
    const size = data.length / chosen.length;
    tally.runs += 1;
    chosen.forEach((slot, place) => {
      const weights = data.subarray(place * size, (place + 1) * size);
      const digest = createHash("sha256").update(weights).digest("hex");
      tally.grids += 1;
      tally.integers += size;
      if (digest !== digests[slot]) {
        tally.wrong.push(`level ${level} ${name}: slot ${slot} in place ${place} of ${chosen}`);
      }
    });
  }
}

ort.env.logLevel = "error";
ort.env.wasm.numThreads = THREADS;
for (const graphOptimizationLevel of ["disabled", "basic", "extended", "all"]) {
  const options = { executionProviders: ["wasm"], graphOptimizationLevel };
  const session = await ort.InferenceSession.create(model, options);
  tally.configurations += 1;
  for (const item of cases) await compare(session, item, graphOptimizationLevel);
  await session.release();
}
tally.seconds = (performance.now() - began) / 1000;
console.log(JSON.stringify(tally));
process.exit(0); // worker threads would keep it alive

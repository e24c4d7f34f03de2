// One file in onnxruntime-node, or in onnxruntime-web's WebAssembly under Node: run by runtimes.py.
//     node runtime_runner.mjs (node|web) FILE.onnx INPUTS FOLDER
// chromium.html takes runAll from here too.

const KINDS = { float32: ["<f4", Float32Array], uint8: ["|u1", Uint8Array], int64: ["<i8", BigInt64Array] };

export function npy(dtype, dims, data) {
  const [descr] = KINDS[dtype];
  const shape = `(${dims.join(", ")}${dims.length === 1 ? "," : ""})`;
  let header = `{'descr': '${descr}', 'fortran_order': False, 'shape': ${shape}, }`;
  header += " ".repeat(63 - ((10 + header.length) % 64)) + "\n";
  const bytes = new Uint8Array(10 + header.length + data.byteLength);
  bytes.set([0x93, 78, 85, 77, 80, 89, 1, 0, header.length & 255, header.length >> 8]);
  bytes.set(new TextEncoder().encode(header), 10);
  bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + header.length);
  return bytes;
}

// Pictures one by one, then all at once; save(name, bytes) takes each output.
export async function runAll(ort, options, model, input, ends, save) {
  const answer = { version: ort.env.versions.common, names: {}, reasons: {} };
  let session;
  try {
    session = await ort.InferenceSession.create(model, options);
  } catch (error) {
    answer.reasons.load = String(error);
    return answer;
  }
  const [, Kind] = KINDS[ends.kind];
  const all = new Kind(input);
  const each = ends.sides.reduce((a, b) => a * b, 1);
  const count = all.length / each;
  for (const batch of [1, count]) {
    try {
      const parts = [];
      for (let start = 0; start < count; start += batch) {
        const rows = all.slice(start * each, (start + batch) * each);
        const tensor = new ort.Tensor(ends.kind, rows, [batch, ...ends.sides]);
        parts.push(await session.run({ [session.inputNames[0]]: tensor }));
      }
      answer.names[batch] = [...session.outputNames];
      for (const [index, name] of session.outputNames.entries()) {
        const { type, dims } = parts[0][name];
        const rows = parts.map((part) => part[name].data);
        const joined = new KINDS[type][1](rows.reduce((sum, row) => sum + row.length, 0));
        rows.reduce((at, row) => (joined.set(row, at), at + row.length), 0);
        const first = parts.reduce((sum, part) => sum + part[name].dims[0], 0);
        await save(`${batch}-${index}.npy`, npy(type, [first, ...dims.slice(1)], joined));
      }
    } catch (error) {
      answer.reasons[batch] = String(error);
    }
  }
  return answer;
}

if (typeof process !== "undefined" && process.versions?.node) {
  const { createRequire } = await import("node:module");
  const { readFileSync, writeFileSync } = await import("node:fs");
  const [kind, file, folder] = process.argv.slice(2);
  const require = createRequire(`${process.env.RUNTIME_HOME}/package.json`);
  const ort = require(`onnxruntime-${kind}`);
  const providers = kind === "web" ? ["wasm"] : ["cpu"];
  if (kind === "web") ort.env.wasm.numThreads = 1;
  const options = { executionProviders: providers, intraOpNumThreads: 1, logSeverityLevel: 3 };
  const input = readFileSync(`${folder}/input.bin`);
  const ends = JSON.parse(readFileSync(`${folder}/ends.json`));
  const bytes = input.buffer.slice(input.byteOffset, input.byteOffset + input.byteLength);
  const save = (name, data) => writeFileSync(`${folder}/${name}`, data);
  const answer = await runAll(ort, options, new Uint8Array(readFileSync(file)), bytes, ends, save);
  const about = `${process.env.RUNTIME_HOME}/node_modules/onnxruntime-${kind}/package.json`;
  answer.version = JSON.parse(readFileSync(about)).version;
  writeFileSync(`${folder}/answer.json`, JSON.stringify(answer));
  process.exit(0);
}

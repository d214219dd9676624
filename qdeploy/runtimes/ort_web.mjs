// One model in onnxruntime-web's WASM, which ort_web.py starts in Node and asks over stdin and stdout.
//
// A message, either way, is the length of a JSON text (uint32, little-endian), that text, and the bytes of the tensors
// that its "tensors" lists one behind the other: [{name, type, dims, bytes}], C order. Requests have "do"; a reply has
// "error" where the request failed. When the other side closes stdin, this process ends.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// stdout is for replies alone: what onnxruntime prints there, in any of its threads, goes to stderr.
const send = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr);
// A Ctrl-C in the terminal reaches every process of a bench; the one that started this ends it in order.
process.on("SIGINT", () => {});

const parent = process.ppid;

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array, bool: Uint8Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
};

const stdin = process.stdin[Symbol.asyncIterator]();
let left = Buffer.alloc(0);

/** The next `size` bytes of stdin; null where it has ended. */
async function read(size) {
  const parts = [left];
  for (let there = left.length; there < size; there += parts.at(-1).length) {
    const { value, done } = await stdin.next();
    if (done) return null;
    parts.push(value);
  }
  const all = parts.length > 1 ? Buffer.concat(parts) : left;
  left = Buffer.from(all.subarray(size)); // a copy, small: not a view that would keep a model in memory
  return all.subarray(0, size);
}

/** The next message, the bytes of its tensors as an ArrayBuffer of their own in "data"; null where stdin has ended. */
async function receive() {
  const length = await read(4);
  const text = length && (await read(length.readUInt32LE()));
  if (!text) return null;
  const message = JSON.parse(text);
  for (const tensor of message.tensors ?? []) {
    const bytes = await read(tensor.bytes);
    if (!bytes) return null;
    tensor.data = new Uint8Array(bytes).buffer; // a copy: typed arrays have to be aligned
  }
  return message;
}

/** Send a message with the tensors [name, ort.Tensor], and wait until the other side has taken it. */
async function reply(message, tensors = []) {
  const views = tensors.map(([, { data }]) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  const listed = tensors.map(([name, { type, dims }], i) => ({ name, type, dims, bytes: views[i].length }));
  const text = Buffer.from(JSON.stringify({ ...message, tensors: listed }));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  for (const part of [length, text, ...views]) await new Promise((taken) => send(part, taken));
}

let ort, session, threads;

const requests = {
  /** Create the session of the one tensor, the model. */
  async load(request) {
    ort = createRequire(join(request.package, "package.json"))("onnxruntime-web");
    threads = ort.env.wasm.numThreads = request.threads;
    ort.env.logLevel = "error";
    const options = { executionProviders: ["wasm"], logSeverityLevel: 3, extra: request.options };
    const start = performance.now();
    session = await ort.InferenceSession.create(new Uint8Array(request.tensors[0].data), options);
    const loadMs = performance.now() - start;
    await settle();
    const versions = { ort: ort.env.versions.web, node: process.versions.node };
    await reply({ inputs: session.inputNames, outputs: session.outputNames, loadMs, versions });
  },

  /** The outputs that `request.outputs` names, of one call. */
  async run(request) {
    const results = await session.run(feeds(request), request.outputs);
    await reply({}, request.outputs.map((name) => [name, results[name]]));
  },

  /** Times of back-to-back calls in nanoseconds, for about `request.seconds`: runner.time_block in JavaScript. */
  async block(request) {
    const given = feeds(request);
    const nanoseconds = BigInt(Math.round(request.seconds * 1e9));
    const clock = process.hrtime.bigint;
    const countedFrom = clock() + nanoseconds / 20n; // another process had the caches before
    do {
      exitIfOrphaned();
      await session.run(given);
    } while (clock() < countedFrom);
    const times = [];
    const end = clock() + nanoseconds;
    for (let stop = 0n; stop < end; ) {
      exitIfOrphaned();
      const start = clock();
      await session.run(given);
      stop = clock();
      times.push(Number(stop - start));
    }
    await settle();
    await reply({ times });
  },

  /** The largest resident set that this process had. */
  async peak() {
    // Not maxRSS on Linux: a child inherits its parent's.
    const status = await readFile("/proc/self/status", "utf8").catch(() => "");
    const kibibytes = /^VmHWM:\s*(\d+)/m.exec(status)?.[1] ?? process.resourceUsage().maxRSS;
    await reply({ bytes: Number(kibibytes) * 1024 });
  },
};

/** What session.run is fed, of a request's tensors. */
function feeds(request) {
  const tensor = ({ name, type, dims, data }) => {
    if (!(type in ARRAYS)) throw new Error(`${name} is ${type}, and there are no such tensors`);
    return [name, new ort.Tensor(type, new ARRAYS[type](data), dims)];
  };
  return Object.fromEntries(request.tensors.map(tensor));
}

/** End this process where the one that started it is gone: while it measures it does not read stdin. */
function exitIfOrphaned() {
  if (process.ppid !== parent) process.exit(0);
}

/** Wait until the threads of this process are idle, a second at the most: those that WASM has spin for a while. */
async function settle() {
  if (threads === 1) return;
  for (const deadline = performance.now() + 1000; performance.now() < deadline; ) {
    exitIfOrphaned();
    const before = process.cpuUsage();
    await sleep(5);
    const { user, system } = process.cpuUsage(before);
    if (user + system < 500) return;
  }
}

for (let request; (request = await receive()); ) {
  try {
    await requests[request.do](request);
  } catch (error) {
    await reply({ error: error instanceof Error ? error.message : String(error) });
  }
}
process.exit(0); // WASM's threads would keep Node alive

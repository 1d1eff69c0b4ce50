// Adds one picture to a line: node send-ioredis.mjs press-3 part.jpg
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { encode } from "@msgpack/msgpack";
import { Redis } from "ioredis";

const [line, path] = process.argv.slice(2);
const client = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0", {
  autoResendUnfulfilledCommands: false, // by default a lost reply has the entry added twice
  maxRetriesPerRequest: 0,
  retryStrategy: null,
});
client.on("error", () => {}); // the calls below throw it
const image = { id: basename(path), format: "jpeg", data: await readFile(path), ts: Date.now() / 1000 };
const batch = Buffer.from(encode({ v: 1, images: [image] }));
console.log(await client.xadd(`mhpc:{${line}}:images`, "*", "batch", batch));
client.disconnect();

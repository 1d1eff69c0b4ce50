// Adds one picture to a line: node send.mjs press-3 part.jpg
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { encode } from "@msgpack/msgpack";
import { createClient } from "redis";

const [line, path] = process.argv.slice(2);
const client = createClient({
  url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0",
  socket: { reconnectStrategy: false }, // an error at once; the default waits for Redis for ever
});
client.on("error", () => {}); // the calls below throw it
await client.connect();
const image = { id: basename(path), format: "jpeg", data: await readFile(path), ts: Date.now() / 1000 };
const batch = Buffer.from(encode({ v: 1, images: [image] }));
console.log(await client.xAdd(`mhpc:{${line}}:images`, "*", { batch }));
await client.close();

// Follows a line's results: node read.mjs press-3 [ID OF THE LAST ONE SEEN]
import { decode } from "@msgpack/msgpack";
import { createClient, RESP_TYPES } from "redis";

const [line, seen] = process.argv.slice(2);
const client = createClient({ url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0" });
client.on("error", (error) => console.error(error.message));
await client.connect();
const binary = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer }); // results are bytes
let last = seen ?? "0-0"; // the oldest kept; store the last one somewhere, and nothing is missed or seen twice
for (;;) {
  const streams = await binary.xRead({ key: `mhpc:{${line}}:scores`, id: last }, { COUNT: 100, BLOCK: 5000 });
  for (const { id, message } of streams?.[0].messages ?? []) {
    const result = decode(message.result);
    const verdict = result.anomalous === null ? "no verdict yet" : result.anomalous ? "ANOMALOUS" : "ok";
    console.log(`${result.id}: ${verdict}, score ${result.score}, threshold ${result.threshold}`);
    last = id.toString();
  }
}

// Follows a line's results: node read.mjs press-3 [ID OF THE LAST ONE SEEN]
import { setTimeout } from "node:timers/promises";
import { decode } from "@msgpack/msgpack";
import { createClient, RESP_TYPES } from "redis";

const [line, seen] = process.argv.slice(2);
const verdicts = new Map([[null, "no verdict yet"], [true, "ANOMALOUS"], [false, "ok"]]);
const client = createClient({ url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0" });
client.on("error", (error) => console.error(error.message)); // and it connects again by itself
await client.connect();
const binary = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer }); // results are bytes
let last = seen ?? "0-0"; // the oldest kept; store the last one somewhere, and nothing is missed or seen twice
for (;;) {
  let streams;
  try {
    streams = await binary.xRead({ key: `mhpc:{${line}}:scores`, id: last }, { COUNT: 100, BLOCK: 5000 });
  } catch (error) { // it restarts, or the network is gone: to read again does no harm
    console.error(error.message);
    await setTimeout(1000);
  }
  for (const { id, message } of streams?.[0].messages ?? []) {
    last = id.toString();
    try {
      const result = decode(message.result);
      const verdict = verdicts.get(result.anomalous);
      if (verdict === undefined) throw new TypeError(`its "anomalous" is ${result.anomalous}`);
      console.log(`${result.id}: ${verdict}, score ${result.score}, threshold ${result.threshold}`);
    } catch (error) { // somebody else's; the next ones are read
      console.error(`${last} is no result: ${error.message}`);
    }
  }
}

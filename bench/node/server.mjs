// The npm reference server on a data directory, so that it syncs each append before it answers.
// Called as: node server.mjs DATA_DIR. Its first line of output says where it listens.

import { DurableStreamTestServer } from "@durable-streams/server"

const dataDir = process.argv[2]
if (!dataDir) {
  console.error("usage: node server.mjs DATA_DIR")
  process.exit(2)
}

const server = new DurableStreamTestServer({ host: "127.0.0.1", port: 0, dataDir })
const url = await server.start()

async function stop() {
  await server.stop()
  process.exit(0)
}
process.once("SIGTERM", stop)
process.once("SIGINT", stop)

console.log(`listening on ${url}`)

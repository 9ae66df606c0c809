// The npm reference server on a data directory, so that it syncs each append before it answers.
// Called as: node server.mjs DATA_DIR PORT. Without arguments it loads the server's code and ends.

import { DurableStreamTestServer } from "@durable-streams/server"

const [dataDir, port] = process.argv.slice(2)
if (!dataDir) {
  process.exit(0)
}
if (!port) {
  console.error("usage: node server.mjs DATA_DIR PORT")
  process.exit(2)
}

const server = new DurableStreamTestServer({ host: "127.0.0.1", port: Number(port), dataDir })
const url = await server.start()

async function stop() {
  await server.stop()
  process.exit(0)
}
process.once("SIGTERM", stop)
process.once("SIGINT", stop)

console.log(`listening on ${url}`)

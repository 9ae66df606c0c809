// The TypeScript client as a process that obeys: one JSON command a line on stdin, one JSON answer
// or event a line on stdout. It reports what it read and judges nothing; the tests do that.
//
//   {"id": 1, "op": "read", "url": …}        a command
//   {"id": 1, "value": …}                    its answer, or {"id": 1, "error": "…"}
//   {"log": 2, "event": "data", …}           what happened to the reader or producer that 2 opened
//
// Data is what the client hands out: a list for "json", a string for "text", base64 for "bytes".

import { createInterface } from "node:readline"
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"

// The client draws its waits between tries at random below a delay that grows to this.
const RETRY_MS_MAX = 200

const say = (message) => process.stdout.write(JSON.stringify(message) + "\n")

const decoded = (format, data) =>
  format === "bytes" ? Buffer.from(data, "base64") : format === "json" ? JSON.stringify(data) : data

const producers = new Map()

const operations = {
  async create({ url, contentType, headers }) {
    await DurableStream.create({ url, contentType, headers })
  },

  async append({ url, contentType, format, data, headers }) {
    await new DurableStream({ url, contentType, headers }).append(decoded(format, data))
  },

  async close({ url, contentType }) {
    await new DurableStream({ url, contentType }).close()
  },

  async read({ url, offset, format, headers }) {
    const answer = await stream({ url, offset, live: false, headers })
    const data =
      format === "bytes"
        ? Buffer.from(await answer.body()).toString("base64")
        : format === "json"
          ? await answer.json()
          : await answer.text()
    return { data, offset: answer.offset, closed: answer.streamClosed }
  },

  // Answers at once; what is read arrives as events, the last one when the stream is closed.
  // The client does not survive a connection that breaks under it: opened again, where it was.
  follow({ id, url, offset, live, format, headers }) {
    const tell = (event, more) => say({ log: id, event, ...more })
    const fetchAndTell = (target, init) => {
      tell("request", { live: new URL(target).searchParams.get("live") })
      return fetch(target, init)
    }
    const backoffOptions = {
      initialDelay: 20,
      maxDelay: RETRY_MS_MAX,
      multiplier: 1.3,
      onFailedAttempt: () => tell("outage"),
    }
    const run = async () => {
      let at = offset
      let closed = false
      let handed = () => {}
      const hand = (data, batch) => {
        at = batch.offset
        closed = batch.streamClosed
        tell("data", { data, offset: at })
        handed()
      }
      while (!closed) {
        // The first request is a plain catch-up: the client goes live when that is up to date.
        const how = { live, headers, fetch: fetchAndTell, backoffOptions }
        const answer = await stream({ url, offset: at, ...how })
        if (format === "json") answer.subscribeJson((batch) => hand(batch.items, batch))
        else if (format === "text") answer.subscribeText((batch) => hand(batch.text, batch))
        else answer.subscribeBytes((batch) => hand(Buffer.from(batch.data).toString("base64"), batch))
        try {
          await answer.closed
          // It may say so while the body of the last batch is still being read.
          while (at !== answer.offset) await new Promise((resolve) => (handed = resolve))
        } catch (error) {
          tell("outage", { reason: String(error.cause ?? error) })
        }
      }
      tell("end")
    }
    run().catch((error) => tell("failed", { reason: String(error.stack) }))
  },

  // "answers" says what happens to each request of this producer:
  //   "kept"   sent once more whenever no answer came, until one does (the producer does not retry)
  //   "lost"   sent twice, and only the second answer is let through
  openProducer({ id, url, contentType, producerId, epoch, answers, batchBytes, ...more }) {
    const tell = (event, more) => say({ log: id, event, ...more })
    const untilAnswered = async (target, init) => {
      for (;;) {
        try {
          const answer = await fetch(target, init)
          if (answer.status !== 503) return answer
          tell("outage", { reason: "503" })
        } catch (error) {
          tell("outage", { reason: error.cause?.code ?? String(error) })
        }
        await new Promise((resolve) => setTimeout(resolve, Math.random() * RETRY_MS_MAX))
      }
    }
    const twice = async (target, init) => {
      const lost = await fetch(target, init)
      await lost.arrayBuffer()
      const answer = await fetch(target, init)
      tell("answers", { lost: lost.status, kept: answer.status })
      return answer
    }
    const handle = new DurableStream({ url, contentType, headers: more.headers })
    const producer = new IdempotentProducer(handle, producerId, {
      epoch,
      autoClaim: more.autoClaim,
      maxBatchBytes: batchBytes,
      fetch: answers === "lost" ? twice : untilAnswered,
      onError: (error) => tell("failed", { reason: `${error.name}: ${error.message}` }),
    })
    producers.set(id, producer)
  },

  produce({ producer, messages }) {
    for (const message of messages) producers.get(producer).append(message)
  },

  async flushProducer({ producer }) {
    await producers.get(producer).flush()
  },

  async closeProducer({ producer }) {
    await producers.get(producer).close()
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  Promise.resolve(command)
    .then(operations[command.op])
    .then((value) => say({ id: command.id, value: value ?? null }))
    .catch((error) => say({ id: command.id, error: `${error.name}: ${error.message}` }))
}
process.exit(0)

// The protocol's own conformance suite, all of it, against the server at CONFORMANCE_URL.
// (Not BASE_URL: vite sets that name itself.)
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const baseUrl = process.env.CONFORMANCE_URL
if (!baseUrl) {
  throw new Error("set CONFORMANCE_URL to the origin of the server under test")
}

runConformanceTests({ baseUrl, subscriptions: true })

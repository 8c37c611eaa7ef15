// Drives sdk.mjs as a test says: node drive.mjs '{"baseUrl": …, "apiKey"?: …, "calls": [[method, …arguments]]}'
// Prints one line of JSON per event, and one per answer.
//
// `{"leaveAt": type}` leaves a query's loop at the first event of that type; `{"abortAt": type}` aborts its
// signal there. Then the program says so and stays alive until its stdin ends, so that what ends the run
// can't be the end of this process.
import { Client } from './sdk.mjs'

const { baseUrl, apiKey, calls } = JSON.parse(process.argv[2])
const client = new Client({ baseUrl, apiKey })
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)

async function query(request, { leaveAt, abortAt } = {}) {
  const abort = new AbortController()
  try {
    for await (const event of client.query(request, { signal: abort.signal })) {
      print(event)
      if (event.type === leaveAt) {
        break
      }
      if (event.type === abortAt) {
        abort.abort()
      }
    }
  } catch (error) {
    if (error.name !== 'AbortError') {
      throw error
    }
  }
  print({ dropped: client.dropped })
  if (leaveAt || abortAt) {
    for await (const _ of process.stdin) {
      // Nothing is sent: the end is what is waited for.
    }
  }
}

for (const [method, ...rest] of calls) {
  try {
    if (method === 'query') {
      await query(...rest)
    } else {
      print(await client[method](...rest))
    }
  } catch (error) {
    print({ thrown: error.message })
  }
}

// A client as users of the published SDK know it: one request per stream, never resumed; what cannot be
// read is skipped; types that it does not know are dropped; leaving the loop ends the request.
import { createParser } from 'eventsource-parser'

const KNOWN = new Set([
  'system', 'assistant', 'tool_use', 'tool_result', 'thinking', 'file', 'result', 'stderr', 'warning',
  'error', 'session_created', 'session_expired', 'session_command_result', 'branch_request',
  'confidence_report', 'branch_start', 'branch_progress', 'branch_complete', 'branch_selected',
  'branch_summary',
])

export class Client {
  /** What this client did not pass on: for tests. */
  dropped = []

  constructor({ baseUrl, apiKey }) {
    this.baseUrl = baseUrl.replace(/\/+$/, '')
    this.headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {}
  }

  /** Starts a run when iteration starts, and yields its events. */
  async *query(request, { signal } = {}) {
    const abort = new AbortController()
    const response = await fetch(`${this.baseUrl}/query`, {
      method: 'POST',
      headers: { ...this.headers, 'Content-Type': 'application/json' },
      body: JSON.stringify(request),
      signal: signal ? AbortSignal.any([signal, abort.signal]) : abort.signal,
    })
    if (!response.ok) {
      throw new Error(`${response.status} ${response.statusText}`)
    }
    const ready = []
    const parser = createParser({ onEvent: ({ data }) => this.#take(data, ready) })
    try {
      const text = response.body.pipeThrough(new TextDecoderStream())
      for await (const chunk of text) {
        parser.feed(chunk)
        yield* ready.splice(0)
      }
    } finally {
      abort.abort()
    }
  }

  #take(data, ready) {
    let event
    try {
      event = JSON.parse(data)
    } catch {
      this.dropped.push(data)
      return
    }
    if (KNOWN.has(event?.type)) {
      ready.push(event)
    } else {
      this.dropped.push(data)
    }
  }

  listRuns() {
    return this.#get('/runs')
  }

  health() {
    return this.#get('/health')
  }

  async #get(path) {
    const response = await fetch(`${this.baseUrl}${path}`, { headers: this.headers })
    if (!response.ok) {
      throw new Error(`${response.status} ${response.statusText}`)
    }
    return response.json()
  }
}

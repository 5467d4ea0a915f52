// A stream for loggers that write JSON, such as pino and winston: each line becomes an event, sent in batches.
//
//     pino(new IgrisStream(url, key)).info({ type: "tool_call", toolName: "generate_report" }, "made")
//     winston.createLogger({ transports: [new winston.transports.Stream({ stream: new IgrisStream(url, key) })] })
import { Writable } from "node:stream";
import { send } from "./send.mjs";

const BATCH_EVENTS = 1000;

export class IgrisStream extends Writable {
  /** `onRejected` gets an error, and the events that the service rejected. */
  constructor(url, key, { onRejected = (error) => console.error("igris-ingest rejected events:", error.message) } = {}) {
    super({ decodeStrings: false, highWaterMark: 2 ** 20 });
    Object.assign(this, { url, key, onRejected, printed: new Set() });
  }

  printOnce(error) {
    const problem = error.cause?.message || error.message;
    if (this.printed.has(problem) || this.printed.size >= 100) return;
    this.printed.add(problem);
    console.error("igris-ingest can't be reached, trying again:", problem);
  }

  /** Node collects what is written while a batch is on its way, and hands it over at once. */
  async _writev(chunks, done) {
    const lines = chunks.flatMap(({ chunk }) => chunk.toString().split("\n")).filter(Boolean);
    for (let at = 0; at < lines.length; at += BATCH_EVENTS) {
      const events = lines.slice(at, at + BATCH_EVENTS).map(toEvent);
      try {
        const { details } = await send(this.url, this.key, events, {
          attempts: Infinity,
          lenient: true,
          onError: (error) => this.printOnce(error),
        });
        if (details) this.onRejected(new Error(JSON.stringify(details)), events);
      } catch (error) {
        this.onRejected(error, events);
      }
    }
    done();
  }
}

/** `type`, `toolName` and `action` of a line are the event's; everything else becomes metadata. */
function toEvent(line) {
  let record;
  try {
    record = JSON.parse(line);
  } catch {
    record = null;
  }
  if (typeof record !== "object" || record === null) record = { message: line };
  const { type = "custom", toolName, action = "log", time, timestamp, name, ...metadata } = record;
  const given = new Date(time ?? timestamp ?? Date.now());
  const when = Number.isNaN(given.valueOf()) ? new Date() : given;
  return { type, toolName: toolName ?? name ?? "log", action, timestamp: when.toISOString(), metadata };
}

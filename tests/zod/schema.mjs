// The rules of an event in Zod 3.25, which schemas.py mirrors message for message.
import { z } from "zod";

const event = z.object({
  type: z.enum(["tool_call", "completion", "embedding", "custom"]),
  toolName: z.string().min(1).max(255),
  action: z.enum(["allow", "deny", "alert", "log"]).default("log"),
  timestamp: z.string().datetime({ offset: true }).optional(),
  metadata: z.record(z.unknown()).optional(),
});
const events = z.array(event).min(1).max(10_000);

// An array is a batch, and so is an object with the key `events`. Every other body is one event.
function schemaOf(body) {
  if (Array.isArray(body)) return events;
  if (body !== null && typeof body === "object" && Object.hasOwn(body, "events")) return z.object({ events });
  return event;
}

/** Returns the details of the 400 for a body; an empty list if the body is valid. */
export function details(body) {
  const { error } = schemaOf(body).safeParse(body);
  return (error?.issues ?? []).map(({ path, message }) => ({ field: path.join("."), message }));
}

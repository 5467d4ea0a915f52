// Send a batch with got. All attempts have one Idempotency-Key, so the batch is stored once.
import { randomUUID } from "node:crypto";
import got from "got";

/** Store events; return the response. Throws if they are rejected, or if no response comes in ten attempts. */
export async function send(url, key, events) {
  try {
    return await got
      .post(url, {
        json: events,
        headers: { Authorization: `Bearer ${key}`, "Idempotency-Key": randomUUID() },
        timeout: { request: 35_000 },
        retry: {
          limit: 9,
          methods: ["POST"],
          statusCodes: [408, 429, 500, 502, 503, 504],
          backoffLimit: 10_000,
          // the quota's 429 has no Retry-After, as nginx's rate limit has
          calculateDelay: ({ error, computedValue }) =>
            error.response?.statusCode === 429 && !error.response.headers["retry-after"] ? 0 : computedValue,
        },
      })
      .json();
  } catch (error) {
    throw error.response ? new Error(`${error.response.statusCode} ${error.response.rawBody}`) : error;
  }
}

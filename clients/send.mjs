// Send a batch with Node's fetch. All attempts have one Idempotency-Key, so the batch is stored once.
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

const WORTH_ANOTHER_ATTEMPT = new Set([408, 500, 502, 503, 504]);

const KEY = /^ig_[A-Za-z0-9]{40}$/;
const HOPELESS = /^(CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_(GET|VERIFY)_|ERR_TLS_CERT_|ERR_INVALID_URL)/;

/**
 * Store events; return the service's response. Throws if they are rejected, if the request can't be made, or if there is
 * no response in so many attempts. `onError` gets each error after which it tries again.
 */
export async function send(url, key, events, { attempts = 10, lenient = false, onError = () => {} } = {}) {
  if (!KEY.test(key.trim())) throw new Error("the key must be ig_ and 40 letters and digits");
  const headers = {
    Authorization: `Bearer ${key.trim()}`,
    "Content-Type": "application/json",
    "Idempotency-Key": randomUUID(),
    ...(lenient && { Prefer: "handling=lenient" }),
  };
  const body = JSON.stringify(events);
  for (let attempt = 1; ; attempt++) {
    let problem;
    // Not AbortSignal.timeout: its timer keeps no process alive, so Node 20 ends while fetch waits on a closed connection.
    const controller = new AbortController();
    const timeout = setTimeout(() => controller.abort(), 35_000);
    try {
      const response = await fetch(url, { method: "POST", headers, body, signal: controller.signal });
      const text = await response.text();
      if (response.ok) return JSON.parse(text);
      problem = new Error(`${response.status} ${text.trim()}`);
      const isRateLimit = response.status === 429 && response.headers.has("Retry-After"); // nginx's; the quota's has none
      if (!WORTH_ANOTHER_ATTEMPT.has(response.status) && !isRateLimit) attempt = Infinity;
    } catch (error) {
      problem = error; // no response, or a part of one
      if (HOPELESS.test(error.code ?? error.cause?.code ?? "")) attempt = Infinity;
    } finally {
      clearTimeout(timeout);
    }
    if (attempt >= attempts || attempt === Infinity) throw problem;
    onError(problem);
    await pause(Math.min(250 * 2 ** attempt, 10_000));
  }
}

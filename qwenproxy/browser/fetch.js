// The half of the bridge that runs in the page, in its main world: it makes the calls with the page's own
// fetch and reports what comes back, all calls together, one batch a tick. Python keeps the only handle to
// what this returns; nothing stays on window.
//
// A batch is "<sequence>\n<call> <kind> <base64>\n…". Kinds: head (JSON), data, end, and what ends a call
// badly: unreachable, severed, challenge.
(function (options) {
  "use strict";
  const say = window[options.binding];
  delete window[options.binding];

  const DIALOGS =
    "#waf_nc_block, #WAF_NC_WRAPPER, #aliyunCaptcha-window-embed, #nocaptcha, .nc_wrapper, .baxia-dialog";
  const DIALOG_CHECK_MS = 1000;
  const BATCH_BYTES = 1 << 20;

  const build = /\/g\/qwenweb\/qwen-chat-fe\/([^/"'\s]+)\//.exec(document.documentElement.outerHTML);
  const version = build ? build[1] : options.defaultVersion;

  const calls = new Map();
  const touched = new Set();
  const channel = new MessageChannel();
  channel.port1.onmessage = flush;
  let sequence = 0;
  let scheduled = false;
  let flushedAt = 0;
  let dialogTimer = 0;

  function base64(bytes) {
    if (bytes.toBase64) return bytes.toBase64();
    let text = "";
    for (let at = 0; at < bytes.length; at += 0x8000) {
      text += String.fromCharCode.apply(null, bytes.subarray(at, at + 0x8000));
    }
    return btoa(text);
  }

  function joined(chunks, length) {
    if (chunks.length === 1) return chunks[0];
    const whole = new Uint8Array(length);
    let at = 0;
    for (const chunk of chunks) {
      whole.set(chunk, at);
      at += chunk.length;
    }
    return whole;
  }

  function utf8(text) {
    return base64(new TextEncoder().encode(text));
  }

  function flush() {
    scheduled = false;
    if (touched.size === 0) return;
    flushedAt = performance.now();
    const lines = [sequence++];
    for (const call of touched) {
      if (call.head !== null) lines.push(call.number + " head " + call.head);
      if (call.length > 0) lines.push(call.number + " data " + base64(joined(call.chunks, call.length)));
      if (call.ending !== null) lines.push(call.number + " " + call.ending);
      call.head = null;
      call.chunks = [];
      call.length = 0;
    }
    touched.clear();
    say(lines.join("\n"));
  }

  // The first piece after a pause leaves at once; under load, one batch every tick.
  function report(call) {
    touched.add(call);
    if (call.length >= BATCH_BYTES) return flush();
    if (scheduled) return;
    scheduled = true;
    const wait = flushedAt + options.tickMs - performance.now();
    if (wait > 0) setTimeout(flush, wait);
    else channel.port2.postMessage(null);
  }

  function end(call, kind, why) {
    if (calls.get(call.number) !== call) return;
    calls.delete(call.number);
    call.ending = kind + " " + utf8(why ? String(why) : "");
    report(call);
  }

  function visible(element) {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && getComputedStyle(element).visibility !== "hidden";
  }

  function asked() {
    return [...document.querySelectorAll(DIALOGS)].some(visible);
  }

  // A challenged call neither fails nor answers: it hangs until a person solves the dialog (protocol §2, §6.3).
  function lookForDialog() {
    const pending = [...calls.values()].filter((call) => call.pending);
    if (pending.length === 0) {
      clearInterval(dialogTimer);
      dialogTimer = 0;
    } else if (asked()) {
      for (const call of pending) {
        end(call, "challenge");
        call.controller.abort();
      }
    }
  }

  async function credential() {
    const token = localStorage.getItem("token");
    if (!token) return "";
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(token));
    return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("").slice(0, 16);
  }

  // Protocol §2. Read at each call: the page renews its token by itself (protocol §1.2).
  function headersFor(wanted) {
    const headers = {
      "Accept": "application/json",
      "Content-Type": "application/json",
      "Version": version,
      "source": "web",
      "X-Request-Id": crypto.randomUUID(),
      "Timezone": new Date().toString().replace(/ \(.*\)$/, ""),
    };
    if (wanted.stream) headers["X-Accel-Buffering"] = "no";
    if (wanted.host === "auth") headers["x-request-origin"] = location.origin;
    const token = localStorage.getItem("token");
    if (token) headers["Authorization"] = "Bearer " + token;
    return headers;
  }

  async function answered(call, wanted) {
    const mark = credential();
    const response = await window.fetch(wanted.host === "auth" ? options.auth + wanted.path : wanted.path, {
      method: wanted.method,
      headers: headersFor(wanted),
      body: wanted.body === null ? undefined : wanted.body,
      credentials: "include",
      signal: call.controller.signal,
    });
    const headers = {};
    response.headers.forEach((value, name) => (headers[name.toLowerCase()] = value));
    call.head = utf8(JSON.stringify({ status: response.status, headers, credential: await mark }));
    call.pending = false;
    report(call);
    return response;
  }

  async function read(call, response) {
    if (!response.body) return;
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || calls.get(call.number) !== call) return;
      call.chunks.push(value);
      call.length += value.length;
      report(call);
    }
  }

  async function run(call, wanted) {
    try {
      await read(call, await answered(call, wanted));
      end(call, "end");
    } catch (error) {
      end(call, call.pending ? "unreachable" : "severed", error);
    }
  }

  return {
    start(wantedCalls) {
      for (const [number, wanted] of wantedCalls) {
        const call = {
          number, controller: new AbortController(), pending: true, head: null, chunks: [], length: 0, ending: null,
        };
        calls.set(number, call);
        run(call, wanted);
      }
      if (!dialogTimer) dialogTimer = setInterval(lookForDialog, DIALOG_CHECK_MS);
    },
    abort(numbers) {
      for (const number of numbers) {
        const call = calls.get(number);
        if (!call) continue;
        calls.delete(number);
        touched.delete(call);
        call.controller.abort();
      }
    },
    credential,
    asked,
    ping() {},
  };
})

// The site's own script: signs in, boots, renews its access token, and verifies that a person is there.
"use strict";
(() => {
  const setup = window.__setup;
  const era_c = setup.era === "C";
  const page_fetch = window.fetch.bind(window);

  // The risk-control script of the real site wraps fetch too: a challenged call shows a dialog and stays
  // pending until somebody solves it (protocol §6.3.3).
  window.fetch = async (resource, init) => {
    const own = typeof resource === "string" && resource.startsWith("/api/");
    const marked = own ? { ...init, headers: { ...plain(init && init.headers), "bx-v": "stand-in" } } : init;
    for (;;) {
      const answer = await page_fetch(resource, marked);
      if (!answer.headers.get("bxpunish")) return answer;
      await verified(init && init.signal);
    }
  };

  // Where a person is played: one who cannot see a page does not act in it.
  const somebody_here = setup.personIn === "all" || !/Headless/.test(navigator.userAgent);

  function soon(seconds, act) {
    if (seconds && somebody_here) setTimeout(act, seconds * 1000);
  }

  const plain = (headers) => Object.fromEntries(new Headers(headers || {}).entries());
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  async function verified(signal) {
    const dialog = shown_dialog();
    for (;;) {
      if (signal && signal.aborted) throw signal.reason;
      if (!(await still_challenged())) break;
      await pause(250);
    }
    dialog.remove();
  }

  // A request that is lost must not leave the dialog standing for ever.
  async function still_challenged() {
    try {
      const answer = await page_fetch("/__standin__/challenge", { signal: AbortSignal.timeout(3000) });
      return (await answer.json()).challenged;
    } catch {
      return true;
    }
  }

  function shown_dialog() {
    const standing = document.querySelector(".baxia-dialog");
    if (standing) return standing;
    const dialog = document.createElement("div");
    dialog.className = "baxia-dialog";
    dialog.innerHTML = '<div id="waf_nc_block"><h2>Are you human?</h2><p>The stand-in plays the verification ' +
      'that Qwen Chat sometimes shows.</p><button type="button">I am</button></div>';
    dialog.querySelector("button").onclick = () => page_fetch("/__standin__/solve", { method: "POST" });
    document.body.append(dialog);
    soon(setup.solvesAfterS, () => dialog.querySelector("button").click());
    return dialog;
  }

  const activate = (account) =>
    page_fetch("/__standin__/activate", { method: "POST", body: JSON.stringify({ account }) });

  // The e-mail address is not confirmed yet (protocol §1.1).
  function show_pending(account) {
    const overlay = document.createElement("div");
    overlay.className = "account-pending-overlay";
    overlay.innerHTML = '<div><h2>Confirm your e-mail address</h2><p>The stand-in plays the wait for the link ' +
      'in the mail.</p><button type="button">Check again</button> <button type="button">Open the link</button></div>';
    const [check, open] = overlay.querySelectorAll("button");
    check.onclick = () => location.reload();
    open.onclick = async () => { await activate(account); location.reload(); };
    document.body.append(overlay);
    soon(setup.activatesAfterS, () => open.click());
  }

  function headers(more) {
    return {
      "Accept": "application/json, text/plain, */*",
      "Content-Type": "application/json",
      "Version": setup.version,
      "source": "web",
      "X-Request-Id": crypto.randomUUID(),
      "Timezone": new Date().toString().replace(/ \(.*\)$/, ""),
      ...more,
    };
  }

  const bearer = () => (era_c && localStorage.token ? { Authorization: `Bearer ${localStorage.token}` } : {});

  const api = (path, init) =>
    fetch(path, { credentials: "include", headers: headers(bearer()), ...init });

  const at_auth = (path, init) =>
    page_fetch(setup.auth + path, {
      credentials: "include",
      ...init,
      headers: headers({ "x-request-origin": location.origin, ...(init && init.headers) }),
    });

  function remaining_s(token) {
    try {
      const claims = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
      return JSON.parse(atob(claims)).exp - Date.now() / 1000;
    } catch {
      return -1;
    }
  }

  async function renewed() {
    const answer = await (await at_auth("/api/v2/auths/refresh")).json().catch(() => ({}));
    if (!answer.success) return false;
    localStorage.token = answer.data.access_token;
    return true;
  }

  async function who_am_i() {
    if (!era_c) {
      const answer = await api("/api/v1/auths/");
      return answer.ok ? answer.json() : null;
    }
    const answer = await (await at_auth("/api/v2/auths/", { headers: bearer() })).json();
    return answer.success ? answer.data : null;
  }

  // A missing, expired or refused access token is renewed as the page loads (protocol §1.3).
  async function signed_in() {
    if (era_c && !(localStorage.token && remaining_s(localStorage.token) > 0) && !(await renewed())) return null;
    const user = await who_am_i();
    if (user || !era_c) return user;
    return (await renewed()) ? who_am_i() : null;
  }

  function renew_by_timer() {
    const left_s = remaining_s(localStorage.token);
    setTimeout(async () => { if (await renewed()) renew_by_timer(); }, Math.max(500, (left_s * 0.8) * 1000));
  }

  async function boot() {
    const prerendered = window.__prerendered_data;
    if (prerendered.user) localStorage.token = prerendered.user.token;
    await api("/api/v2/configs/");
    await api("/api/v2/configs/setting-config");
    const user = await signed_in();
    if (!user && era_c) {
      location.href = "/auth";
      return;
    }
    document.querySelector("#who").textContent = user ? `Signed in as ${user.email}` : "Not signed in";
    const models = await (await api("/api/v2/models/")).json();
    show_models(models.data.data);
    if (!user) return;
    if (user.role === "pending") show_pending(user.email);
    if (setup.challenged) verified();
    if (era_c && setup.renew === "timer") renew_by_timer();
    const post = (data) => ({ method: "POST", body: JSON.stringify(data) });
    await Promise.all([
      api("/api/v2/users/user/settings"),
      api("/api/v2/users/status", post({ typarms: {} })),
      api("/api/v2/tts/config?omni_speakers=v1&audio_tts_speakers=v1&omni_language=v1&audio_tts_language=v1"),
      api("/api/v2/chats/pinned"),
      api("/api/v2/folders/"),
    ]);
    await Promise.all([
      api("/api/v2/projects/"),
      api("/api/v2/library/list?type=all"),
      api("/api/v2/notifications/latest?type=memory"),
      api("/api/v2/users/user/entitlement_quota", post({ features: [] })),
    ]);
    await show_chats();
    document.querySelector("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      send(document.querySelector(".message-input-textarea"));
    });
  }

  function show_models(models) {
    for (const model of models) document.querySelector("#models").append(new Option(model.name, model.id));
  }

  async function show_chats() {
    const chats = await (await api("/api/v2/chats/?page=1&exclude_project=true")).json();
    document.querySelector("#chats").replaceChildren(...(chats.data || []).map((chat) => {
      const row = document.createElement("li");
      row.textContent = chat.title;
      return row;
    }));
  }

  let chat_id = null;
  let parent_id = null;

  async function send(box) {
    const text = box.value.trim();
    if (!text) return;
    box.value = "";
    said("user", text);
    const model = document.querySelector("#models").value;
    if (!chat_id) {
      const made = await api("/api/v2/chats/new", {
        method: "POST",
        body: JSON.stringify({
          chatId: "", models: [model], project_id: "", timestamp: Date.now(), chat_type: "t2t", chat_mode: "normal",
        }),
      });
      chat_id = (await made.json()).data.id;
    }
    const answer = await api(`/api/v2/chat/completions?chat_id=${chat_id}`, {
      method: "POST",
      body: JSON.stringify(question(model, text)),
    });
    await shown(answer, said("assistant", ""));
    await show_chats();
  }

  function question(model, text) {
    const seconds = Math.floor(Date.now() / 1000);
    const feature_config = {
      thinking_enabled: false, output_schema: "phase", research_mode: "normal", auto_thinking: false,
      thinking_mode: "Fast", auto_search: true,
    };
    const message = {
      id: null, fid: crypto.randomUUID(), parentId: parent_id, parent_id, childrenIds: [crypto.randomUUID()],
      role: "user", content: text, user_action: "chat", files: [], timestamp: seconds, models: [model], model: "",
      chat_type: "t2t", sub_chat_type: "t2t", feature_config, extra: { meta: { subChatType: "t2t" } },
    };
    return {
      stream: true, version: "2.1", incremental_output: true, chatId: chat_id, parentId: parent_id || "",
      chat_id, chat_mode: "normal", model, parent_id, messages: [message], timestamp: seconds,
    };
  }

  async function shown(answer, paragraph) {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const piece of answer.body) {
      rest += decoder.decode(piece, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) show_line(line, paragraph);
    }
    if (rest) paragraph.textContent += rest;
  }

  function show_line(line, paragraph) {
    if (!line.startsWith("data: ")) return;
    const frame = JSON.parse(line.slice(6));
    if (frame["response.created"]) parent_id = frame["response.created"].response_id;
    const delta = frame.choices && frame.choices[0] && frame.choices[0].delta;
    if (delta && delta.phase === "answer") paragraph.textContent += delta.content;
    if (frame.error) paragraph.textContent += JSON.stringify(frame.error);
  }

  function said(role, text) {
    const paragraph = document.createElement("p");
    paragraph.className = role;
    paragraph.textContent = text;
    document.querySelector("#talk").append(paragraph);
    return paragraph;
  }

  async function sha256(text) {
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
    return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async function sign_in(form) {
    const body = JSON.stringify({ email: form.email.value, password: await sha256(form.password.value) });
    const path = "/api/v2/auths/signin";
    const call = era_c ? at_auth(path, { method: "POST", body }) : api(path, { method: "POST", body });
    const answer = await (await call).json();
    if (!answer.success) {
      const error = form.querySelector(".error");
      error.textContent = (answer.data && answer.data.details) || "Signing in did not work.";
      error.hidden = false;
      if (answer.data && answer.data.code === "ACCOUNT_PENDING") {
        soon(setup.activatesAfterS, async () => { await activate(form.email.value); form.requestSubmit(); });
      }
      return;
    }
    localStorage.token = era_c ? answer.data.access_token : answer.data.token;
    location.href = "/";
  }

  function prepare_form() {
    const form = document.querySelector("#sign-in");
    const button = form.querySelector("button");
    form.addEventListener("input", () => { button.disabled = !(form.email.value && form.password.value); });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sign_in(form);
    });
    document.querySelector("#provider").onclick = ask_provider;
    if (setup.demo && somebody_here) play(form);
  }

  // Where the person goes who would rather sign in with another account of theirs.
  function ask_provider() {
    if (setup.identity === "popup") window.open(setup.provider, "_blank", "popup,width=480,height=560");
    else location.href = setup.provider;
  }

  // The demo signs itself in, so that no program ever types into a sign-in page.
  async function play(form) {
    await pause(400);
    if (setup.identity) ask_provider();
    if (setup.identity === "page") return;
    if (setup.identity) await pause(1000);
    form.email.value = setup.person;
    form.password.value = "demo";
    form.dispatchEvent(new Event("input"));
    form.requestSubmit();
  }

  document.addEventListener("DOMContentLoaded", () => (setup.page === "auth" ? prepare_form() : boot()));
})();

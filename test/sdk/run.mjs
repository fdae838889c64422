// Runs the real Node SDK of Dify (dify-client, which brings its own HTTP client) against a
// base URL and prints one JSON line for each scenario: {scenario, ok, ms, detail}.
// The exit code is 1 if any failed, 2 if the call was wrong.
//
//   node run.mjs BASE_URL TOKEN USER [SCENARIO ...]
//
// or BASE_URL, TOKEN, USER and SCENARIOS (separated by commas) in the environment, which keeps the
// token out of the process list. BASE_URL ends in /v1. A token is that of one app: the scenarios of
// `chat` want a chat app (any of its kinds), `completion` and `workflow` theirs. Default: all of `chat`.
import { createHash, randomBytes } from "node:crypto";
import { ChatClient, CompletionClient } from "dify-client";
import FormData from "form-data";

const groups = {
  chat: [
    "parameters", "chat-blocking", "chat-streaming", "conversation-continues", "conversations",
    "messages", "rename", "feedback", "upload-user-first", "upload-user-last", "unicode", "delete",
  ],
  completion: ["parameters", "completion-blocking", "completion-streaming"],
  workflow: ["parameters", "workflow-blocking", "workflow-streaming"],
};

const args = process.argv.slice(2);
const baseURL = args[0] ?? process.env.BASE_URL;
const token = args[1] ?? process.env.TOKEN;
const user = args[2] ?? process.env.USER;
const named = args.length > 3 ? args.slice(3) : (process.env.SCENARIOS ?? "chat").split(",");
const names = named.flatMap((n) => groups[n] ?? [n]);

const chat = new ChatClient(token, baseURL);
const completion = new CompletionClient(token, baseURL); // in 2.3.2 it runs workflows, too

function check(condition, what) {
  if (!condition) throw new Error(what);
}

// first makes one conversation for all scenarios that need one, whichever runs first.
let opened;
function first() {
  opened ??= chat.createChatMessage({}, "hello from the SDK", user).then((r) => r.data);
  return opened;
}

// events reads a stream to its end: every event with the time it arrived.
async function events(response, begun) {
  check(response.headers["content-type"].startsWith("text/event-stream"), `content type ${response.headers["content-type"]}`);
  const list = [];
  let rest = "";
  let pings = 0;
  response.data.setEncoding("utf8");
  for await (const chunk of response.data) {
    rest += chunk;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const frame = rest.slice(0, end);
      if (frame === "event: ping") {
        pings++;
        continue;
      }
      check(frame.startsWith("data: ") && !frame.includes("\n"), `not an event: ${JSON.stringify(frame)}`);
      list.push({ at: performance.now() - begun, ...JSON.parse(frame.slice(6)) });
    }
  }
  check(rest === "", `half an event at the end: ${JSON.stringify(rest)}`);
  const failed = list.find((e) => e.event === "error");
  check(!failed, `error event ${failed?.code}: ${failed?.message}`);
  return { list, pings };
}

// streamed calls f and checks what holds for every stream: it ends with one of the events in `ends`, and
// its text comes bit by bit. Events held back by a buffer arrive all at once.
async function streamed(f, textEvents, ends) {
  const begun = performance.now();
  const response = await f();
  const headers = performance.now() - begun;
  const { list, pings } = await events(response, begun);
  const text = list.filter((e) => textEvents.includes(e.event));
  check(text.length > 1, `${text.length} text events`);
  check(ends.every((name) => list.some((e) => e.event === name)), `no ${ends}: ${list.map((e) => e.event)}`);
  check(new Set(list.map((e) => e.task_id)).size === 1, "more than one task in a stream");
  const spread = text.at(-1).at - text[0].at;
  check(spread > 0, "all events arrived at once");
  const gaps = text.slice(1).map((e, i) => e.at - text[i].at);
  return {
    list,
    answer: text.map((e) => e.answer ?? e.data.text).join(""),
    detail: {
      events: list.length, pings, headers_ms: round(headers), first_ms: round(text[0].at), spread_ms: round(spread),
      max_gap_ms: round(Math.max(...gaps)), arrivals_ms: text.map((e) => round(e.at)),
    },
  };
}

const round = (n) => Math.round(n * 10) / 10;
const chatText = ["message", "agent_message"];

async function upload(userFirst) {
  const content = randomBytes(1 << 20);
  const form = new FormData();
  if (userFirst) form.append("user", user);
  form.append("file", content, { filename: "one-megabyte.txt", contentType: "text/plain" });
  if (!userFirst) form.append("user", user);
  const { status, data } = await chat.fileUpload(form);
  check(status === 201, `status ${status}`);
  check(data.size === content.length, `size ${data.size}`);
  // The file is usable by the user who sent it, and only there where it is stored.
  const file = { type: "document", transfer_method: "local_file", upload_file_id: data.id };
  const answer = await chat.createChatMessage({}, "read this", user, true, null, [file]);
  await events(answer, performance.now());
  const preview = await chat.sendRequest("GET", `/files/${data.id}/preview`, null, { user }, true);
  const hash = createHash("sha256");
  for await (const chunk of preview.data) hash.update(chunk);
  check(hash.digest("hex") === createHash("sha256").update(content).digest("hex"), "the file came back changed");
  return { id: data.id };
}

const scenarios = {
  async parameters() {
    const { data } = await chat.getApplicationParameters(user);
    check("opening_statement" in data, "no opening_statement");
    return { keys: Object.keys(data).length };
  },

  async "chat-blocking"() {
    const { status, data } = await chat.createChatMessage({}, "hello", user);
    check(status === 200 && data.event === "message", `status ${status}, event ${data.event}`);
    check(data.answer.length > 0 && data.conversation_id && data.message_id && data.task_id, "no answer or no ids");
    check(Number.isInteger(data.metadata.usage.total_tokens), "no usage");
    check(typeof data.metadata.usage.total_price === "string", "price is not a string");
    return { answer: data.answer, tokens: data.metadata.usage.total_tokens };
  },

  async "chat-streaming"() {
    const { list, answer, detail } = await streamed(() => chat.createChatMessage({}, "tell me", user, true), chatText, ["message_end"]);
    check(new Set(list.map((e) => e.conversation_id)).size === 1, "more than one conversation in a stream");
    return { answer, ...detail };
  },

  async "conversation-continues"() {
    const { conversation_id } = await first();
    const { list, answer } = await streamed(() => chat.createChatMessage({}, "go on", user, true, conversation_id), chatText, ["message_end"]);
    check(list[0].conversation_id === conversation_id, "another conversation answered");
    return { conversation_id, answer };
  },

  async conversations() {
    const { conversation_id } = await first();
    const { data } = await chat.getConversations(user, null, 100);
    check(data.data.some((c) => c.id === conversation_id), "the conversation is not in the list");
    return { listed: data.data.length };
  },

  async messages() {
    const { conversation_id, message_id, answer } = await first();
    const { data } = await chat.getConversationMessages(user, conversation_id);
    const message = data.data.find((m) => m.id === message_id);
    check(message?.answer === answer, "the message is not there, or has another answer");
    return { listed: data.data.length };
  },

  async rename() {
    const { conversation_id } = await first();
    const { data } = await chat.renameConversation(conversation_id, "renamed by the SDK", user, false);
    check(data.name === "renamed by the SDK", `name ${data.name}`);
    return { name: data.name };
  },

  async feedback() {
    const { message_id } = await first();
    const { data } = await chat.messageFeedback(message_id, "like", user);
    check(data.result === "success", `result ${data.result}`);
    return data;
  },

  "upload-user-first": () => upload(true),
  "upload-user-last": () => upload(false),

  async unicode() {
    const query = "grüße 平衡 🙂 \u2028 \"quoted\" \\ back";
    const { conversation_id } = await streamed(() => chat.createChatMessage({ text: query }, query, user, true), chatText, ["message_end"])
      .then(({ list }) => list[0]);
    const { data } = await chat.getConversationMessages(user, conversation_id);
    check(data.data[0].query === query, `query came back as ${data.data[0].query}`);
    return {};
  },

  async delete() {
    const { data: doomed } = await chat.createChatMessage({}, "to be deleted", user);
    const { status } = await chat.deleteConversation(doomed.conversation_id, user);
    check(status === 204, `status ${status}`);
    const { data } = await chat.getConversations(user, null, 100);
    check(!data.data.some((c) => c.id === doomed.conversation_id), "it is still in the list");
    const gone = await chat.getConversationMessages(user, doomed.conversation_id).catch((e) => e.response);
    check(gone.status === 404 && gone.data.code === "not_found", `status ${gone.status} for a deleted conversation`);
    return {};
  },

  async "completion-blocking"() {
    const { data } = await completion.createCompletionMessage({ query: "hello" }, user);
    check(data.answer.length > 0 && !("conversation_id" in data), "no answer, or a conversation");
    return { answer: data.answer };
  },

  async "completion-streaming"() {
    const { answer, detail } = await streamed(() => completion.createCompletionMessage({ query: "hello" }, user, true), ["message"], ["message_end"]);
    return { answer, ...detail };
  },

  async "workflow-blocking"() {
    const { data } = await completion.runWorkflow({ topic: "balance" }, user);
    check(data.data.status === "succeeded" && data.data.outputs.text.length > 0, `status ${data.data.status}`);
    return { workflow_run_id: data.workflow_run_id };
  },

  async "workflow-streaming"() {
    const { list, answer, detail } = await streamed(() => completion.runWorkflow({ topic: "balance" }, user, true), ["text_chunk"], ["workflow_started", "workflow_finished"]);
    check(list.at(-1).data.status === "succeeded", `status ${list.at(-1).data.status}`);
    return { answer, ...detail };
  },
};

const unknown = names.filter((n) => !Object.hasOwn(scenarios, n));
if (!baseURL || !token || !user || unknown.length > 0) {
  console.error(unknown.length > 0 ? `unknown scenario: ${unknown}` : "usage: node run.mjs BASE_URL TOKEN USER [SCENARIO ...]");
  console.error(`scenarios: ${Object.keys(groups)}, or ${Object.keys(scenarios)}`);
  process.exit(2);
}

// An error of axios holds the request, token and all: only what the server said is shown.
function describe(error) {
  const r = error.response;
  if (!r) return { error: error.code ?? error.message, message: error.message };
  const body = r.data?.pipe ? "stream" : r.data;
  return { error: `status ${r.status}`, body };
}

let failures = 0;
for (const scenario of names) {
  const begun = performance.now();
  let ok = true;
  let detail;
  try {
    detail = await scenarios[scenario]();
  } catch (error) {
    ok = false;
    failures++;
    detail = describe(error);
  }
  console.log(JSON.stringify({ scenario, ok, ms: round(performance.now() - begun), detail }));
}
// Sockets kept alive by the SDK would hold the process for a while.
process.exit(failures > 0 ? 1 : 0);

// A chat of the AI SDK, as `useChat` keeps one, held against a host: `node client.mjs AI URL SCENARIO` prints what the
// package AI makes of it, a JSON document a line. The transport's two functions are the README's.

const [ai, url, scenario] = process.argv.slice(2);
const { AbstractChat, DefaultChatTransport } = await import(ai);

class Transport extends DefaultChatTransport {
  constructor() {
    super({
      prepareSendMessagesRequest: ({ id, messages }) => ({ api: `/agents/chat/${id}`, body: { id, messages } }),
      prepareReconnectToStreamRequest: ({ id }) => ({ api: `/instances/chat/${id}/stream` }),
      fetch: (path, init) => this.connect(path, init),
    });
  }

  connect(path, init) {
    this.connection = new AbortController();
    const signals = [this.connection.signal, init.signal].filter(Boolean);
    return fetch(url + path, { ...init, signal: AbortSignal.any(signals) });
  }

  /** Closes the connection, which is told as browsers tell it. */
  cut() {
    this.connection.abort(new TypeError("network error"));
  }

  processResponseStream(body) {
    this.parts = [];
    const transform = (part, controller) => {
      this.parts.push(part.type);
      controller.enqueue(part);
    };
    return super.processResponseStream(body).pipeThrough(new TransformStream({ transform }));
  }
}

class Chat extends AbstractChat {
  constructor(messages = []) {
    const transport = new Transport();
    const show = (messages) => {
      state.messages = structuredClone(messages);
      if (text(messages.at(-1))) this.shown?.();
    };
    const state = {
      status: "ready",
      messages,
      pushMessage: (message) => show([...state.messages, message]),
      popMessage: () => show(state.messages.slice(0, -1)),
      replaceMessage: (index, message) => show(state.messages.with(index, message)),
      snapshot: structuredClone,
    };
    super({ id: "demo", transport, state });
    this.transport = transport;
  }

  /** Waits for the first text of the answer that is asked for with this. */
  async answering(ask) {
    const shown = new Promise((resolve) => (this.shown = resolve));
    const over = ask();
    await shown;
    return { over };
  }

  print() {
    const { status, error, messages, lastMessage: message } = this;
    const { parts } = this.transport;
    console.log(JSON.stringify({ status, error: error?.message, messages: messages.length, message, parts }));
  }
}

const text = ({ role, parts }) => role === "assistant" && parts.some((part) => part.type === "text" && part.text);

const chat = new Chat();
const ask = () => chat.sendMessage({ text: "What time is it?" });

const scenarios = {
  /** Two messages, one after the other. */
  async send() {
    await ask();
    chat.print();
    await chat.sendMessage({ text: "Thanks." });
    chat.print();
  },

  /** A connection that is cut, to which both the chat and the page loaded anew come back, and once more after the end. */
  async cut() {
    const { over } = await chat.answering(ask);
    chat.transport.cut();
    await over;
    chat.print();
    const reloaded = new Chat(chat.messages.slice(0, 1));
    const chats = [chat, reloaded];
    const resumed = await Promise.all(chats.map((each) => each.answering(each.resumeStream)));
    console.log(JSON.stringify("resumed"));
    await Promise.all(resumed.map(({ over }) => over));
    chats.forEach((each) => each.print());
    console.log(JSON.stringify(await chat.transport.reconnectToStream({ chatId: chat.id })));
  },

  /** A run that is stopped: its id is the message's. */
  async stop() {
    const { over } = await chat.answering(ask);
    await fetch(`${url}/runs/${chat.lastMessage.id}`, { method: "DELETE" });
    await over;
    chat.print();
  },

  /** A provider that fails in the middle. */
  async fail() {
    await ask();
    chat.print();
  },
};

await scenarios[scenario]();

# workerd with the agent of `agent.js`, whose instances keep what they have in SQLite, in the directory `data`.

using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "agents", worker = .agents),
    (name = "data", disk = (writable = true)),
  ],
  sockets = [(name = "http", http = (), service = "agents")],
);

const agents :Workerd.Worker = (
  modules = [(name = "agent.js", esModule = embed "node_modules/.bundle/agent.js")],
  compatibilityDate = "2026-11-01",
  durableObjectNamespaces = [(className = "Load", uniqueKey = "load", enableSql = true)],
  durableObjectStorage = (localDisk = "data"),
  bindings = [(name = "Load", durableObjectNamespace = "Load")],
);

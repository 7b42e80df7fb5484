//! The host, tested as its users meet it: the real program, real components, real sockets, a real journal.
//!
//! `support` starts hosts and reads streams; every other module is one promise or one part of it.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod support;

mod pages;
mod http;
mod auth;
mod clients;
mod tls;
mod sse;
mod agents;
mod swap;
mod deployments;
mod outbound;
mod ai;
mod ai_sdk;
mod openapi;
mod migration;
mod cancel;
mod formats;
mod runs;
mod repeat;
mod turns;
mod limits;
mod faults;
mod wasi_http;
mod memory;
mod floors;
mod work;
mod crash;
mod soak;
mod reconnect;
mod shutdown;
mod watch;
mod dev;
mod commands;
mod docs;
mod python;

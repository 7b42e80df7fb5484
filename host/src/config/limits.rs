//! Every limit of the host: its name, its default, and the danger that it averts.
//!
//! Each table of limits is declared once, with the unit of each value; from that follow how it is read, what it is when
//! it is not written, and how it is printed. Limits of instances can be set for all agents and again for one.

use std::time::Duration;

use super::unit::{Count, Size, SizeOrZero, Span, SpanOrZero, Unit, Written};

pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// What the pool of WebAssembly has place for in one instance. Python's toolchain makes components of some thirty core instances.
pub const MOST_CORE_INSTANCES: usize = 200;
pub const MOST_MEMORIES: usize = 20;
pub const MOST_TABLES: usize = 200;

/// Declares tables of limits: `name: type, unit = default`.
macro_rules! limits {
    ($(
        $(#[$doc:meta])*
        $limits:ident, written as $written:ident {
            $($(#[$field_doc:meta])* $field:ident: $type:ty, $unit:ty = $default:expr;)*
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $limits {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $limits {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $limits {
            /// These limits, but for those that are written.
            pub(super) fn but(mut self, written: $written) -> Self {
                $(if let Some(value) = written.$field { self.$field = value.0; })*
                self
            }

            /// Each limit's name, and its value as it would be written, unless there is none.
            pub(super) fn print(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($field), <$unit as Unit<$type>>::print(&self.$field)),)*]
            }
        }

        /// What a file says of them.
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $written {
            $($field: Option<Written<$unit, $type>>,)*
        }
    )*};
}

limits! {
    /// Limits of deployments.
    DeploymentLimits, written as WrittenDeployments {
        /// The largest module: compiling takes some hundred times its bytes of memory, one module at a time.
        module_bytes: usize, Size = 128 * MIB;
        /// How many deployments of an agent are kept, with their modules, to go back to.
        kept: usize, Count = 16;
        /// How long an agent may take to answer for its health before it serves.
        health_timeout: Duration, Span = Duration::from_secs(5);
    }

    /// Limits of the HTTP side.
    HttpLimits, written as WrittenHttp {
        /// How long a request's body may take: a client that sends a byte a minute would hold its buffer for ever.
        body_timeout: Duration, Span = Duration::from_secs(30);
        /// Bytes of requests' bodies that are being read, of all clients together: those that send slowly would hold as much for each of
        /// their requests. Past this a body is refused.
        bodies_bytes: usize, Size = 512 * MIB;
        /// The largest head of a request, and what an HTTP/1 connection buffers.
        header_bytes: usize, Size = 64 * KIB;
        /// Fields of a request's head: each costs more than its bytes. Other than 100, it costs HTTP/1 an allocation a request.
        header_count: usize, Count = 100;
        /// How long a request's head may take, the wait for it on a kept connection included.
        header_timeout: Duration, Span = Duration::from_secs(10);
        /// Connections at once: past this, clients wait in the kernel's queue. Each one costs a file descriptor.
        connections: usize, Count = 20_000;
        /// Of them, those of one client address, where 64 bits of an IPv6 address are one: past this they are closed at once, so that
        /// one client does not take all. Behind a reverse proxy, whose address all clients have, make it as large as `connections`
        /// and have the proxy count.
        connections_per_address: usize, Count = 16_000;
        /// Requests at once on one HTTP/2 connection: one client must not multiply itself without end.
        streams_per_connection: u32, Count = 256;
        /// How long a write to a connection may be stuck: a client that stops reading holds buffers for as long. One stream
        /// of an HTTP/2 connection whose others move is not cut off; it holds a page and 64 KiB.
        write_stall: Duration, Span = Duration::from_secs(60);
        /// How often an idle stream and an HTTP/2 connection are written to. Proxies cut connections that are idle for long,
        /// and some clients that have gone are noticed by nothing else.
        heartbeat: Duration, Span = Duration::from_secs(15);
        /// When a client that lost its stream should come back: too soon, and a restart is met by all at once.
        retry: Duration, Span = Duration::from_secs(2);
    }

    /// Limits of agents' instances: of all agents in `[instances]`, and over that of one agent in `[agents.NAME.limits]`.
    InstanceLimits, written as WrittenInstances {
        /// Instances live at once, of all agents together or of the one: past this an idle one is
        /// retired, which of many names that are used once is one of those. Each keeps its guest's memory.
        live: usize, Count = 4096;
        /// How long an instance without runs stays live: a name that was used once must not keep memory for ever.
        idle: Duration, SpanOrZero = Duration::from_secs(60);
        /// Requests that wait for one instance: past this they are refused, so that none waits without bound.
        mailbox: usize, Count = 256;
        /// Runs at once in one instance: past this they are refused.
        runs: usize, Count = 1024;
        /// Runs at once of one agent, in all of its instances: past this they are refused. One agent must not take all of the
        /// host's connections and memory.
        runs_per_agent: usize, Count = 16_384;
        /// How long a run may go on, from when it began or was resumed: one that hangs keeps its place. Streams may last, so none
        /// unless it is set.
        run_time: Option<Duration>, Span = None;
        /// What an instance may compute for a run: what it computes while the run goes on, in equal parts for all that do. None
        /// unless it is set; it costs each step of an instance two looks at the time of its thread.
        run_cpu: Option<Duration>, Span = None;
        /// Events of a run: one that emits for ever fills the disk.
        run_events: u64, Count = 10_000_000;
        /// Bytes of the events of a run, from when it began or was resumed.
        run_bytes: u64, Size = GIB;
        /// The largest request body, at most 256 MiB; all of it is held in memory and copied into the guest.
        request_body_bytes: usize, Size = 2 * MIB;
        /// A guest's linear memory, and the most that it hands over in one call: one agent must not take the host's.
        memory_bytes: usize, Size = 128 * MIB;
        /// Core instances of an instance: a component may be made of many, each with tables of its own.
        core_instances: usize, Count = MOST_CORE_INSTANCES;
        /// Memories of an instance. They share [`memory_bytes`](Self::memory_bytes).
        memories: usize, Count = MOST_MEMORIES;
        /// Tables of an instance: the pool has some for each.
        tables: usize, Count = MOST_TABLES;
        /// What an instance may hold of the host's at once: calls that wait, streams, runs. Each takes some hundred bytes that are not
        /// the guest's.
        handles: usize, Count = 100_000;
        /// How long a guest may compute without return to the host: one that spins holds a worker's share.
        cpu: Duration, Span = Duration::from_secs(5);
        /// How long a module may take to take over what an instance keeps: the instance's requests wait for it.
        migration: Duration, Span = Duration::from_secs(30);
        /// How long a run that was cancelled, or went over a limit, may take to return. Then its instance's store is stopped, and
        /// runs that share it are interrupted.
        cancel_grace: Duration, SpanOrZero = Duration::from_secs(10);
        /// What a guest may write between two suspensions, at most 256 MiB: it is held in memory until the turn is over.
        turn_bytes: usize, Size = 8 * MIB;
        /// The largest event: readers hold a whole one at least.
        event_bytes: usize, Size = MIB;
        /// The largest state document: it is written whole each time, and a live instance keeps it in memory.
        state_bytes: usize, Size = 2 * MIB;
        /// The largest stored value.
        value_bytes: usize, Size = 2 * MIB;
        /// Bytes of keys and values in an instance's storage: names are free, and a disk is finite.
        storage_bytes: u64, Size = 64 * MIB as u64;
        /// Keys in an instance's storage: a live instance that writes there keeps the size of each in memory.
        storage_keys: usize, Count = 10_000;
        /// Lines that an instance may log within a second: past this they are dropped and counted. A log has a disk too, and
        /// readers.
        log_lines: u32, Count = 1000;
    }

    /// Limits of agents' requests to others. Each is for one agent.
    OutboundLimits, written as WrittenOutbound {
        /// How long a connection may take to be made, TLS included: one that never is would hold a request's place.
        connect_timeout: Duration, Span = Duration::from_secs(10);
        /// How long a request may take to be sent and the head of its response to come. A guest can ask for less.
        response_timeout: Duration, Span = Duration::from_secs(120);
        /// How long the body of a response may be silent: a server that has gone to sleep holds a request's place.
        read_stall: Duration, Span = Duration::from_secs(300);
        /// Requests at once, until their responses' bodies have ended: past this they are refused. Each holds buffers.
        requests: usize, Count = 64;
        /// Connections at once, those that wait for another request included: past this, new ones are refused. Each one costs a
        /// file descriptor.
        connections: usize, Count = 256;
        /// How long a connection waits for another request.
        idle: Duration, SpanOrZero = Duration::from_secs(30);
    }

    /// Limits of the journal.
    JournalLimits, written as WrittenJournal {
        /// Memory for the store's pages.
        cache_bytes: usize, Size = 256 * MIB;
        /// What the log in front of the data file takes before it goes round. So much is read when the host starts after a crash,
        /// and kept in memory, twice or three times over; a larger batch goes to the data file at once.
        log_bytes: usize, Size = 16 * MIB;
        /// What a live run keeps of its latest events in memory, for its readers to share, and about as much again of their
        /// frames. There may be thousands of runs.
        tail_bytes: usize, Size = 64 * KIB;
        /// What a reader who is behind fetches at a time: each such reader holds as much.
        page_bytes: usize, Size = 256 * KIB;
        /// What a run may have emitted that is not durable yet: a guest is faster than a disk.
        backlog_bytes: usize, Size = 4 * MIB;
        /// How long ended runs are kept: a disk is finite.
        retain_for: Duration, SpanOrZero = Duration::from_secs(7 * 24 * 60 * 60);
        /// How many bytes of events of ended runs are kept.
        retain_bytes: u64, SizeOrZero = 4 * GIB;
        /// How long failing commits are tried again before the host gives up: it must not pretend to serve for ever.
        patience: Duration, Span = Duration::from_secs(30);
    }
}

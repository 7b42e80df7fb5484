//! A run as a thing that clients and operators hold: what it is, what it emits, and its end.
//!
//! **Problem.** Who began a run may leave and come back, or be another one than who reads it; whatever a run emits is theirs
//! to read in any [format](Format), and none of it is the agent's business.
//!
//! **Mechanism.** Everything is answered from the journal and, for runs that are in flight and not on record, from the
//! directory. Attaching is a [`Reader`] from the start or from where the client stopped.
//!
//! **Limits.** A list looks at a bounded number of runs. **Cost.** A read of the journal.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderName, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::sleep;

use super::accept::Accept;
use super::answer::{for_method, identify, no_content};
use super::api::{Api, Reset};
use super::documents::{self, RunView};
use super::problem::Problem;
use super::route::{PageQuery, RunsQuery};
use super::sse::{self, Broken};
use super::{Body, BodyError};
use crate::agent::LiveRun;
use crate::fault::Fault;
use crate::format::Format;
use crate::id::{Cursor, InstanceKey, RunId, Seq};
use crate::journal::{
    Followed, Follower, Located, NotResumable, Reader, RunPage, RunRecord, StoreError,
};
use crate::shutdown::Begun;

pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

impl Api {
    /// The runs on record, and with the first page those that are in flight and not on record.
    pub(super) async fn runs(&self, query: RunsQuery) -> Result<Response<Body>, Problem> {
        let RunsQuery { agent, instance, page } = query;
        if let (Some(agent), Some(name)) = (&agent, &instance) {
            let instance = InstanceKey::new(agent.clone(), name);
            let instance = instance.map_err(|error| Problem::BadName(error.to_string()))?;
            return self.runs_of(&instance, page).await;
        }
        let matches =
            move |of: &InstanceKey| agent.as_ref().is_none_or(|agent| of.agent() == agent);
        let in_flight = self.in_flight(&matches);
        let journal = self.journal.clone();
        let listed = read(move || journal.runs(page.before, page.limit, &matches)).await?;
        Ok(list(listed, in_flight, page))
    }

    /// Those of one instance.
    pub(super) async fn runs_of(
        &self,
        instance: &InstanceKey,
        page: PageQuery,
    ) -> Result<Response<Body>, Problem> {
        let PageQuery { limit, before } = page;
        let in_flight = self.in_flight(|of| of == instance);
        let (journal, of) = (self.journal.clone(), instance.clone());
        let listed = read(move || journal.runs_of(&of, before, limit)).await?;
        Ok(list(listed, in_flight, page))
    }

    fn in_flight(&self, matches: impl Fn(&InstanceKey) -> bool) -> HashMap<RunId, LiveRun> {
        let in_flight = self.directory.runs().into_iter();
        let in_flight = in_flight.filter(|live| matches(&live.instance));
        in_flight.map(|live| (live.run, live)).collect()
    }

    /// What the journal knows of a run.
    pub(super) async fn record(&self, run: RunId) -> Result<Option<RunRecord>, Problem> {
        let journal = self.journal.clone();
        read(move || journal.run(run)).await
    }

    /// The instance that a run is one of.
    pub(super) async fn instance_of(&self, run: RunId) -> Result<InstanceKey, Problem> {
        if let Some(record) = self.record(run).await? {
            return Ok(record.instance);
        }
        let mut in_flight = self.directory.runs().into_iter();
        in_flight.find(|live| live.run == run).map(|live| live.instance).ok_or(Problem::NoSuchRun)
    }

    pub(super) async fn run(&self, run: RunId) -> Result<Response<Body>, Problem> {
        let view = match self.record(run).await? {
            Some(record) => RunView::from(record),
            None => {
                let mut in_flight = self.directory.runs().into_iter();
                in_flight.find(|live| live.run == run).ok_or(Problem::NoSuchRun)?.into()
            }
        };
        Ok(documents::respond(StatusCode::OK, &view))
    }

    /// What a run emits, from the beginning or from where the client stopped; what it answered, if it emitted nothing.
    pub(super) async fn run_events(
        &self,
        run: RunId,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Problem> {
        let accept = Accept::of(request.headers());
        let (record, place) = self.place(run, request, accept).await?;
        let response = match place {
            Place::At(reader) => self.stream(reader, accept.format(None), None),
            Place::CaughtUp => no_content(),
            Place::Start(reset) => self.attach(record, accept, reset).await?,
        };
        Ok(for_method(request.method(), response))
    }

    /// What a run emits and nothing else, for who follows it whatever became of it: a failure that comes first is an event too.
    pub(super) async fn follow_run(
        &self,
        run: RunId,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Problem> {
        let accept = Accept::of(request.headers());
        let (record, place) = self.place(run, request, accept).await?;
        let (reader, reset) = match place {
            Place::At(reader) => (reader, None),
            Place::CaughtUp => return Ok(no_content()),
            Place::Start(reset) => match self.beginning(&record).await? {
                Located::At(reader) => (reader, reset),
                Located::CaughtUp(_) => return Ok(no_content()),
                // Retention may delete a run between two reads.
                Located::Not(_) => return Err(Problem::NoSuchRun),
            },
        };
        let mut response = self.stream(reader, accept.format(None), reset);
        identify(&mut response, run, record.module);
        Ok(for_method(request.method(), response))
    }

    /// Where the client stands that asks for a run on record.
    async fn place(
        &self,
        run: RunId,
        request: &Request<Incoming>,
        accept: Accept,
    ) -> Result<(RunRecord, Place), Problem> {
        if !accept.is_satisfiable() {
            return Err(Problem::NotAcceptable);
        }
        let record = self.record(run).await?.ok_or(Problem::NoSuchRun)?;
        let resumes = accept.format(None).resumes();
        let sent = request.headers().get(LAST_EVENT_ID).filter(|_| resumes);
        let Some(sent) = sent else { return Ok((record, Place::Start(None))) };
        let id = String::from_utf8_lossy(sent.as_bytes()).into_owned();
        let located = self.journal.locate(&record.instance, &id).await.map_err(unreadable)?;
        let place = match located {
            Located::At(reader) if reader.tail().run() == run => Place::At(reader),
            Located::CaughtUp(of) if of == run => Place::CaughtUp,
            Located::At(_) | Located::CaughtUp(_) => {
                Place::Start(Some((id, NotResumable::Unknown)))
            }
            Located::Not(why) => Place::Start(Some((id, why))),
        };
        Ok((record, place))
    }

    /// A reader at the beginning of a run on record, if there is something to read.
    pub(super) async fn beginning(&self, record: &RunRecord) -> Result<Located, Problem> {
        let start = Cursor { run: record.run, seq: Seq::ZERO }.to_string();
        Ok(self.journal.locate(&record.instance, &start).await.map_err(unreadable)?)
    }

    /// The newest run of an instance that goes on, from its start: what a chat's page that was loaded again asks for.
    pub(super) fn latest(
        &self,
        instance: &InstanceKey,
        request: &Request<Incoming>,
    ) -> Response<Body> {
        let Some(reader) = self.journal.latest_live(instance) else { return no_content() };
        let format = Accept::of(request.headers()).format(Some(Format::UiMessages));
        for_method(request.method(), self.stream(reader, format, None))
    }

    /// Every event of every run of an instance, from now on.
    pub(super) fn instance_events(&self, instance: &InstanceKey) -> Response<Body> {
        let http = &self.config.http;
        let following = Following {
            follower: self.journal.follow(instance),
            heartbeat: http.heartbeat,
            retry: http.retry,
            drain: Box::pin(self.shutdown.drain.begun()),
            ended: false,
        };
        let rest = stream::unfold(following, |mut following| async {
            following.next().await.map(|bytes| (bytes, following))
        });
        // At once, so that who follows knows from when on.
        let bytes = stream::iter([Ok(sse::preamble(http.retry))]).chain(rest);
        let frames = bytes.map(|bytes| bytes.map(Frame::data));
        let body = Body::Chunks(UnsyncBoxBody::new(StreamBody::new(frames)));
        let mut response = Response::new(body);
        sse::insert_headers(response.headers_mut());
        response
    }

    /// Asks a run to end. It may take its time, up to the grace.
    pub(super) async fn cancel(&self, run: RunId) -> Result<Response<Body>, Problem> {
        if self.directory.cancel(run) || self.resumptions.cancel(run) {
            return Ok(documents::of_type(
                StatusCode::ACCEPTED,
                "cancelling\n",
                "text/plain; charset=utf-8",
            ));
        }
        Err(self.record(run).await?.map_or(Problem::NoSuchRun, |_| Problem::RunEnded))
    }
}

/// A page of runs on record, with those that were in flight before it was read.
fn list(
    listed: RunPage,
    mut in_flight: HashMap<RunId, LiveRun>,
    PageQuery { limit, before }: PageQuery,
) -> Response<Body> {
    #[derive(Serialize)]
    struct Runs {
        runs: Vec<RunView>,
        next: Option<String>,
    }
    let mut next = listed.next;
    listed.records.iter().for_each(|record| drop(in_flight.remove(&record.run)));
    // A run that is younger than the page belongs to an earlier one, and one that is older to a later one.
    in_flight.retain(|run, _| {
        before.is_none_or(|before| *run < before) && next.is_none_or(|next| *run >= next)
    });
    let mut runs: Vec<RunView> = listed.records.into_iter().map(Into::into).collect();
    runs.extend(in_flight.into_values().map(RunView::from));
    runs.sort_by_key(|run| Reverse(run.id()));
    if runs.len() > limit {
        runs.truncate(limit);
        next = runs.last().map(RunView::id);
    }
    let next = next.map(|next| next.to_string());
    documents::respond(StatusCode::OK, &Runs { runs, next })
}

/// Where a client stands in a run.
enum Place {
    /// After the event that it saw last.
    At(Reader),
    /// At the end.
    CaughtUp,
    /// At the beginning, with the id that it came with if that is none of the run.
    Start(Option<Reset>),
}

/// Who follows an instance.
struct Following {
    follower: Follower,
    heartbeat: Duration,
    retry: Duration,
    drain: Pin<Box<Begun>>,
    ended: bool,
}

impl Following {
    /// What is sent next; none at the end.
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        if self.ended {
            return None;
        }
        tokio::select! {
            biased;
            () = self.drain.as_mut() => {
                self.ended = true;
                Some(Ok(sse::retry_field(self.retry)))
            }
            followed = self.follower.next() => Some(match followed {
                Followed::Events(run, page) => Ok(sse::frames(run, &page)),
                Followed::Broken(why) => {
                    self.ended = true;
                    Err(Broken(why).into())
                }
            }),
            () = sleep(self.heartbeat) => Some(Ok(sse::heartbeat())),
        }
    }
}

/// Reads the journal where that holds up nobody.
pub(super) async fn read<T: Send + 'static>(
    body: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Problem> {
    let read = tokio::task::spawn_blocking(body).await.map_err(|_| Fault::Internal)?;
    Ok(read.map_err(unreadable)?)
}

pub(super) fn unreadable(cause: StoreError) -> Fault {
    tracing::error!(%cause, "the journal cannot be read");
    Fault::JournalUnavailable
}
